"""Hostile uploads to the running page: each gets a result, or a message where the result would be, and the page stays.

The short form leaves the largest bombs out, of which each takes seconds. `make reliability` sends all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.request import urlopen

import pytest

from serving.archives import ZIP_MAGICS
from serving.limits import MAX_FILE_BYTES
from serving.nifti import GZIP_MAGIC, HEAD_BYTES, is_nifti
from serving.tritonserver import TritonServer
from tests.demo.page_process import served_page
from tests.hostile.bombs import BOMBS
from tests.hostile.mutations import mutant
from tests.reliability import IS_LONG, ROOT, Tally, record

pytestmark = [pytest.mark.triton, pytest.mark.reliability, pytest.mark.slow]

MUTATIONS = 500 if IS_LONG else 12
SHORT_BYTES = 2**20
# One in six; all of them go through what reads files in test_reading.py.
FEW_BOMBS = frozenset(list(BOMBS)[::6])
STUDIES = (".zip", ".nii", ".gz")
"""They go to the tab for volumes."""
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}

# In a process of its own, as the page is: Gradio's client leaves its event loop to the garbage collector.
UPLOAD = f"""
import json, sys, time
from pathlib import Path
from gradio_client import Client, handle_file

STUDIES = {STUDIES!r}

client = Client(sys.argv[1], verbose=False)
for path in map(Path, json.loads(sys.stdin.read())):
    started_s = time.perf_counter()
    try:
        if path.suffix in STUDIES:
            said = client.predict([handle_file(path)], 0, 0, 0, 0, 0, api_name="/predict_volume")
            says = {{"alert": said["error"]["message"] if "error" in said else ""}}
        else:
            said = client.predict(handle_file(path), "auto", 0.45, 0, 0, 0, 0, api_name="/read")
            shown = [one.get("value") if isinstance(one, dict) else one for one in said]
            says = {{"alert": next((one for one in shown if isinstance(one, str) and 'class="ls-alert"' in one), "")}}
    except Exception as error:
        says = {{"failed": f"{{type(error).__name__}}: {{error}}"}}
    print(json.dumps([path.name, time.perf_counter() - started_s, says]), flush=True)
"""


def suffix_of(data: bytes) -> str:
    if data.startswith(ZIP_MAGICS):
        return ".zip"
    if data.startswith(GZIP_MAGIC):
        return ".nii.gz"
    if is_nifti(data[:HEAD_BYTES]):
        return ".nii"
    return next((suffix for magic, suffix in SUFFIXES.items() if data.startswith(magic)), ".dcm")


def is_sent(name: str, data: bytes) -> bool:
    # An empty file, Gradio's own client does not send. What is too large is tests/demo/test_page_limits.py's.
    if not 0 < len(data) <= MAX_FILE_BYTES:
        return False
    return IS_LONG or (len(data) < SHORT_BYTES and name in FEW_BOMBS)


@pytest.mark.timeout(900)
def test_hostile_uploads_get_a_result_or_a_message(
    toy_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("uploads")
    paths = []
    for number in range(MUTATIONS):
        _, data = mutant(90_000 + number)
        paths.append(folder / f"mutation {number}{suffix_of(data)}")
        paths[-1].write_bytes(data)
    for bomb in BOMBS.values():
        data = bomb.make()
        if is_sent(bomb.name, data):
            paths.append(folder / f"{bomb.name}{suffix_of(data)}")
            paths[-1].write_bytes(data)
    tally, odd = Tally(), []
    with served_page(toy_triton.grpc_url) as url:
        ran = subprocess.run(
            [sys.executable, "-c", UPLOAD, url],
            input=json.dumps([str(path) for path in paths]),
            capture_output=True,
            text=True,
            timeout=800,
            check=True,
            cwd=ROOT,
        )
        with urlopen(url, timeout=30) as answer:
            assert answer.status == 200
    for name, seconds, says in map(json.loads, ran.stdout.splitlines()):
        if "failed" in says:
            tally.mistake(seconds)
            odd.append(f"{name}: {says['failed']}")
        elif not says["alert"]:
            tally.answer(seconds)
        elif "xpected" in says["alert"] and "got" in says["alert"]:
            tally.refuse(seconds)
        else:
            tally.mistake(seconds)
            odd.append(f"{name}: {says['alert']}")
    row = record(
        tally.row(
            f"uploads of mutations and {'all' if IS_LONG else 'small'} bombs to the running page", group="Hostile input"
        )
    )
    assert odd == []
    assert row.requests == len(paths)
    assert row.answered
    assert row.refused
    assert {path.suffix for path in paths} >= set(STUDIES)
