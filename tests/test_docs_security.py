"""The lines of docs/security.md that make certificates, run as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from demo.guard import HEALTH_PATH, READY_PATH
from serving.tls import ClientTls, ServerTls
from serving.triton_arguments import ADMIN_HEADER, GRPC_HEADER_PREFIX

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    script = next(block for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if "openssl req" in block)
    subprocess.run(["sh", "-e", "-c", script], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_certificates_are_taken(made: Path) -> None:
    ServerTls(made / "server.pem", made / "server.key", made / "authority.pem")
    ClientTls(made / "authority.pem", made / "client.pem", made / "client.key")


def test_the_authority_has_signed_them(made: Path) -> None:
    command = ["openssl", "verify", "-CAfile", "authority.pem", "-verify_hostname", "localhost", "server.pem"]
    assert "server.pem: OK" in subprocess.run(command, cwd=made, check=True, capture_output=True, text=True).stdout


def test_names_are_those_of_the_code() -> None:
    for name in (ADMIN_HEADER, GRPC_HEADER_PREFIX + ADMIN_HEADER, HEALTH_PATH, READY_PATH):
        assert f"`{name}`" in TEXT


def test_the_container_that_is_recommended_is_the_one_that_is_pinned() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    pinned = re.search(r":(\d+\.\d+)-py3$", services["triton"]["build"]["args"]["TRITON_IMAGE"])
    assert pinned is not None
    assert f"NVIDIA's container of {pinned[1]} or later" in TEXT
    fixed = re.findall(r"^\| (\d+\.\d+) \| 20", TEXT, re.MULTILINE)
    assert max(fixed) <= pinned[1]
