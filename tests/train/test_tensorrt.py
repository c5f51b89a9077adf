"""``lungstreams export --target tensorrt`` without TensorRT: what it writes, and what it refuses.

Nothing here runs on a GPU. Where ``trtexec`` is called, a script stands for it that writes down how it was called.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from serving import pipeline
from serving.errors import ExportError, ParityError
from serving.repository import check, model_config, parse_config, render_all
from serving.repository_checks import problems
from serving.trial_scans import drawn_scans
from tests.toy_models import means_network
from tests.train.tensorrt_toys import write_float_toy_repository
from tests.train.test_export import everything_in
from train import tensorrt, tensorrt_render
from train.digest import sha256_of
from train.gating import add_gate
from train.parity import check_signature, onnx_answers, open_session
from train.tensorrt_configs import gated_steps, trtexec_command
from train.tensorrt_graphs import through_float
from train.tensorrt_int8 import is_quantized
from train.tensorrt_render import network_for
from train.tensorrt_render import render_all as render_tensorrt
from train.ungating import ungated

VERSIONS = {"recognition": 3, "segment_all": 12}
ENGINES = {
    step.model: f"plan_repository/{step.model}_engine/{VERSIONS.get(step.model, 1)}/model.plan"
    for step in gated_steps()
}

STAND_IN = """#!/bin/sh
# Stands for trtexec: writes down how it was called, and an engine where it is told to.
echo "$@" >> "$CALLS"
for each in "$@"; do case "$each" in --saveEngine=*) echo plan > "${each#--saveEngine=}" ;; esac; done
"""
REFUSING = "#!/bin/sh\necho 'all well'\necho '[E] out of memory' >&2\nexit 1\n"
GPU = "#!/bin/sh\necho 'GPU 0: stand-in'\n"
NO_GPU = "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_float_toy_repository(tmp_path_factory.mktemp("toys") / "model_repository", VERSIONS)


@pytest.fixture(scope="module")
def rendered(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_tensorrt(repository, tmp_path_factory.mktemp("out") / "tensorrt", "fp16").parent


def report_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tensorrt.json").read_text(encoding="utf-8")))


def tools(folder: Path, **scripts: str) -> str:
    """A PATH whose first folder has these scripts."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def export_tensorrt(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lungstreams", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_everything_is_in_a_folder_of_its_own_and_the_repository_is_left_alone(
    repository: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    folder = render_tensorrt(repository, tmp_path / "deep" / "tensorrt", "fp16").parent
    assert folder == tmp_path / "deep" / "tensorrt"
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert {path.name for path in folder.iterdir()} == {
        *("networks", "accelerated_repository", "plan_repository", "engine_cache"),
        *("build_engines.sh", "tensorrt.json"),
    }
    assert [path.name for path in folder.parent.iterdir()] == ["tensorrt"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755  # The server is another user.


def test_the_accelerated_repository_is_whole_and_differs_in_its_configs_alone(rendered: Path) -> None:
    found = list(problems(rendered / "accelerated_repository"))
    assert len(found) == len(gated_steps())
    for line, step in zip(found, gated_steps(), strict=True):
        assert line.startswith(f"{step.model}: expected the config")
        assert line.endswith("got another instance_group, optimization")


def test_the_plan_repository_has_a_gate_and_an_engines_place_for_every_step(rendered: Path) -> None:
    folder = rendered / "plan_repository"
    names = {path.name for path in folder.iterdir()}
    assert names == {*pipeline.MODEL_NAMES, *(f"{step.model}_engine" for step in gated_steps())}
    for step in gated_steps():
        version = str(VERSIONS.get(step.model, 1))
        assert everything_in(folder / step.model) == [version, f"{version}/model.py", "config.pbtxt"]
        assert everything_in(folder / f"{step.model}_engine") == [version, "config.pbtxt"]
    for name in (pipeline.PREPROCESS.model, pipeline.ENSEMBLE_NAME):
        (folder / "published.pbtxt").write_text(render_all()[name], encoding="utf-8")
        assert parse_config(folder / name / "config.pbtxt") == parse_config(folder / "published.pbtxt")
        (folder / "published.pbtxt").unlink()


def test_each_config_names_a_cache_folder_that_was_made(rendered: Path) -> None:
    made = {path.name for path in (rendered / "engine_cache").iterdir()}
    named = set()
    for step in gated_steps():
        config = parse_config(rendered / "accelerated_repository" / step.model / "config.pbtxt")
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        named.add(Path(accelerator.parameters["trt_engine_cache_path"]).name)
    assert made == named
    assert "segment_all-12-fp16" in made


def test_the_report_says_what_was_made_of_what(rendered: Path, repository: Path) -> None:
    report = report_in(rendered)
    assert report["precision"] == "fp16"
    assert list(report["models"]) == [step.model for step in gated_steps()]
    for step in gated_steps():
        entry, version = report["models"][step.model], VERSIONS.get(step.model, 1)
        assert (entry["version"], entry["experiment"]) == (version, f"toy_{step.model}")
        assert entry["published_sha256"] == sha256_of(repository / step.model / str(version) / "model.onnx")
        assert entry["network_sha256"] == sha256_of(rendered / entry["network"])
        assert (entry["engine"], entry["engine_sha256"]) == (ENGINES[step.model], None)
        assert entry["command"] == list(trtexec_command(step, version, "fp16"))
        assert entry["against_published"]["phantoms"] == (6 if step.stage == 1 else 3)


def test_the_networks_answer_as_what_is_published(rendered: Path, repository: Path) -> None:
    for step in gated_steps():
        images = drawn_scans(step)
        published = onnx.load(repository / step.model / str(VERSIONS.get(step.model, 1)) / "model.onnx")
        answers = onnx_answers(open_session(rendered / "networks" / f"{step.model}.onnx"), images)
        np.testing.assert_array_equal(answers, onnx_answers(open_session(ungated(published)), images))
        gated = rendered / "accelerated_repository" / step.model / str(VERSIONS.get(step.model, 1)) / "model.onnx"
        check_signature(open_session(gated), step)


def test_the_script_holds_the_commands_of_the_report(rendered: Path) -> None:
    script = rendered / "build_engines.sh"
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.startswith("trtexec ")]
    assert [line.split() for line in lines] == [entry["command"] for entry in report_in(rendered)["models"].values()]
    assert script.stat().st_mode & stat.S_IXUSR


def test_the_script_builds_every_engine_from_any_folder(repository: Path, tmp_path: Path) -> None:
    folder = render_tensorrt(repository, tmp_path / "a folder", "fp16").parent
    path = tools(tmp_path / "tools", trtexec=STAND_IN)
    environment = {**os.environ, "PATH": path, "CALLS": str(tmp_path / "calls")}
    subprocess.run([folder / "build_engines.sh"], cwd="/", env=environment, check=True)
    assert all((folder / engine).read_text() == "plan\n" for engine in ENGINES.values())


def test_int8_of_a_network_that_was_published_in_float_is_calibrated_on_scans(repository: Path, tmp_path: Path) -> None:
    asked = []

    def scans(provenance: Any) -> np.ndarray:
        asked.append(provenance["experiment"])
        return drawn_scans(pipeline.step("segment_all"))

    # The toys have no layer with weights; what is tested is who is asked.
    folder = render_tensorrt(repository, tmp_path / "out", "int8", calibration=scans).parent
    assert asked == [f"toy_{step.model}" for step in gated_steps()]
    assert report_in(folder)["precision"] == "int8"
    with pytest.raises(ExportError, match="expected scans to calibrate recognition with, got none"):
        render_tensorrt(repository, tmp_path / "other", "int8")
    assert not (tmp_path / "other").exists()


def test_calibrated_networks_are_symmetric_and_scans_are_not_asked_for_in_vain() -> None:
    from tests.train.test_quantize import network

    step = pipeline.MANIFESTATION_STEP
    images = drawn_scans(step)
    quantized = network_for(add_gate(network(), step), step, "int8", lambda: images)
    assert is_quantized(quantized)

    def none_there() -> np.ndarray:
        raise AssertionError("scans were asked for")

    assert not is_quantized(network_for(add_gate(network(), step), step, "fp16", none_there))


def test_a_network_that_tensorrt_would_refuse_is_not_written(repository: Path, tmp_path: Path) -> None:
    from tests.toy_models import write_toy_repository

    write_toy_repository(tmp_path / "toys")  # Its masks are computed in uint8.
    with pytest.raises(ExportError, match=r"^segment_all: .* that TensorRT refuses$"):
        render_tensorrt(tmp_path / "toys", tmp_path / "out", "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]


def test_a_network_that_says_something_else_than_what_is_published_is_not_written(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = through_float(means_network([(slice(0, 9), slice(0, 9))] * 4, activation=True), pipeline.RECOGNITION)
    monkeypatch.setattr(tensorrt_render, "network_for", lambda *_: other)
    with pytest.raises(ParityError, match="recognition for TensorRT against what is published"):
        render_tensorrt(repository, tmp_path / "out", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_within_the_repository_or_around_it_is_refused(repository: Path) -> None:
    before = everything_in(repository)
    for out in (repository, repository / "tensorrt", repository.parent):
        with pytest.raises(ExportError, match="expected an output folder apart from the repository"):
            render_tensorrt(repository, out, "fp16")
    assert everything_in(repository) == before


def test_an_output_folder_that_holds_something_is_refused(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "model.plan").touch()
    with pytest.raises(ExportError, match="expected a new or empty folder to write to"):
        render_tensorrt(repository, tmp_path / "engines", "fp16")
    assert everything_in(tmp_path) == ["engines", "engines/model.plan"]


def test_an_empty_output_folder_is_taken(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert render_tensorrt(repository, tmp_path / "out", "fp16").is_file()


def test_a_model_that_is_not_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a published recognition in"):
        render_tensorrt(tmp_path / "repository", tmp_path / "out", "fp16")


class TestCommand:
    def test_renders_without_a_gpu_when_told_to(self, repository: Path, tmp_path: Path) -> None:
        run = export_tensorrt(
            *("--target", "tensorrt", "--render-only", "--repository", repository, "--out", tmp_path / "out")
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert only_line(run.stdout) == f"written {tmp_path / 'out' / 'tensorrt.json'}"
        assert all(entry["engine_sha256"] is None for entry in report_in(tmp_path / "out")["models"].values())

    @pytest.mark.parametrize(
        ("scripts", "says"),
        [
            ({"nvidia_smi": NO_GPU, "trtexec": STAND_IN}, "got no GPU that nvidia-smi sees; --render-only"),
            ({"nvidia_smi": GPU}, "got no trtexec on PATH; --render-only"),
            ({"nvidia_smi": NO_GPU}, "got no GPU that nvidia-smi sees and no trtexec on PATH; --render-only"),
        ],
        ids=["no gpu", "no trtexec", "neither"],
    )
    def test_refuses_to_build_without_a_gpu_or_trtexec(
        self, repository: Path, tmp_path: Path, scripts: dict[str, str], says: str
    ) -> None:
        if "trtexec" not in scripts and tensorrt.trtexec() is not None:
            pytest.skip("this machine has trtexec")
        path = tools(tmp_path / "tools", **scripts)
        run = export_tensorrt(
            *("--target", "tensorrt", "--repository", repository, "--out", tmp_path / "out"), PATH=path
        )
        assert (run.returncode, run.stdout) == (2, "")
        assert says in only_line(run.stderr)
        assert not (tmp_path / "out").exists()

    def test_builds_every_engine_where_it_can(self, repository: Path, tmp_path: Path) -> None:
        path = tools(tmp_path / "tools", nvidia_smi=GPU, trtexec=STAND_IN)
        out, calls = tmp_path / "out", tmp_path / "calls"
        run = export_tensorrt(
            *("--target", "tensorrt", "--repository", repository, "--out", out), PATH=path, CALLS=str(calls)
        )
        assert (run.returncode, run.stderr) == (0, "")
        entries = report_in(out)["models"]
        assert calls.read_text().splitlines() == [" ".join(entry["command"][1:]) for entry in entries.values()]
        for model, entry in entries.items():
            assert entry["engine_sha256"] == sha256_of(out / ENGINES[model])

    @pytest.mark.long
    def test_an_engine_that_can_not_be_built_is_one_line(self, repository: Path, tmp_path: Path) -> None:
        path = tools(tmp_path / "tools", nvidia_smi=GPU, trtexec=REFUSING)
        run = export_tensorrt(
            *("--target", "tensorrt", "--repository", repository, "--out", tmp_path / "out"), PATH=path
        )
        assert run.returncode == 2
        assert f"expected trtexec to build {ENGINES['recognition']}, got: [E] out of memory" in only_line(run.stderr)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["runs/some", "--target", "tensorrt"], "expected no run with --target tensorrt"),
            ([], "expected the folder of a run, got none"),
            (["runs/some", "--render-only"], "with --target tensorrt alone, got them with onnx"),
            (["runs/some", "--precision", "fp16"], "with --target tensorrt alone, got them with onnx"),
            (["--target", "tensorrt", "--precision", "fp8"], "fp8"),
        ],
        ids=["a run", "no run", "render only", "precision", "fp8"],
    )
    def test_what_does_not_go_together_is_one_line(self, arguments: list[str], says: str) -> None:
        run = export_tensorrt(*arguments)
        assert (run.returncode, run.stdout) == (2, "")
        assert says in only_line(run.stderr)


def test_the_toys_that_are_rendered_from_are_a_sound_repository(repository: Path) -> None:
    assert check(repository) == []
    assert model_config(pipeline.RECOGNITION).max_batch_size == pipeline.MAX_BATCH_SIZE
