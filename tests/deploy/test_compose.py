"""What of the deployment can be checked without a Docker engine: its files, held against the code and each other."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.app import launch
from serving.repository import DEFAULT_REPOSITORY
from serving.tritonserver import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FIXED_RELEASE = (26, 7)
"""The first release without what NVIDIA's bulletins name up to September 2026, see docs/security.md."""

IMPORTS = {"cv2": "opencv-python-headless", "PIL": "pillow"}
"""Import name -> its package, where they differ."""

LABEL = re.compile(r"\s*(- )?(apiVersion: |topologyKey: |[\w.-]+/[\w.-]+: )")

PLUGINS = {"pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg"}
"""What pydicom looks for by itself."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


@pytest.fixture(params=["triton", "triton-gpu"])
def triton_service(compose: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(compose["services"][request.param])


def requirement_lines() -> list[str]:
    lines = (DEPLOY / "requirements-triton.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def package(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ]", requirement)[0]


def imported_packages(module: str, seen: set[str]) -> set[str]:
    """Third-party packages that a module of ours imports, itself or through others of ours."""
    if module in seen:
        return set()
    seen.add(module)
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return set()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top = name.split(".")[0]
            if top == "serving":
                found |= imported_packages(name, seen)
            elif top not in sys.stdlib_module_names:
                found.add(IMPORTS.get(top, top))
    return found


def published(service: dict[str, Any]) -> set[tuple[str, int, int]]:
    parts = [str(port).split(":") for port in service["ports"]]
    return {(host, int(outside), int(inside)) for host, outside, inside in parts}


def test_the_container_is_a_release_without_the_known_holes(triton_service: dict[str, Any]) -> None:
    image = triton_service["build"]["args"]["TRITON_IMAGE"]
    found = re.fullmatch(r"\$\{TRITON_REGISTRY:\?[^}]+\}/nvidia/tritonserver:(\d+)\.(\d+)-py3", image)
    assert found is not None, image
    assert (int(found[1]), int(found[2])) >= FIXED_RELEASE


def test_the_container_serves_our_repository_and_cannot_write_to_it(triton_service: dict[str, Any]) -> None:
    (mount,) = triton_service["volumes"]
    assert (DEPLOY / mount["source"]).resolve() == DEFAULT_REPOSITORY
    assert mount["read_only"] is True
    assert f"--model-repository={mount['target']}" in triton_service["command"]


def test_the_container_has_room_for_tensors_in_shared_memory(triton_service: dict[str, Any]) -> None:
    assert triton_service["shm_size"] == "1gb"


def test_everything_is_published_on_loopback_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert {host for host, _, _ in published(service)} == {"127.0.0.1"}, name


def test_the_ports_are_those_of_the_embedded_server(triton_service: dict[str, Any]) -> None:
    assert {outside for _, outside, _ in published(triton_service)} == set(ServerConfig().ports().values())


def test_the_health_check_asks_whether_every_model_is_ready(triton_service: dict[str, Any]) -> None:
    *command, program = triton_service["healthcheck"]["test"]
    assert command == ["CMD", "python3", "-c"]
    compile(program, "healthcheck", "exec")
    assert "/v2/health/ready" in program


def test_each_profile_starts_one_triton_and_the_demo_in_front_of_it(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for profile, triton in (("cpu", "triton"), ("gpu", "triton-gpu")):
        assert {name for name, service in services.items() if profile in service["profiles"]} == {triton, "demo"}
        assert "triton" in services[triton]["networks"]["default"]["aliases"]
        # Not required: the other profile's is not there.
        assert services["demo"]["depends_on"][triton] == {"condition": "service_healthy", "required": False}
    assert services["demo"]["environment"]["TRITON_URL"] == "triton:8001"


def test_only_the_gpu_profile_reserves_a_gpu(compose: dict[str, Any]) -> None:
    (device,) = compose["services"]["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in compose["services"]["triton"]


def test_no_file_names_a_registry() -> None:
    # The variable of compose.yaml does; python:3.11 is the engine's own default.
    for file in (path for path in DEPLOY.rglob("*") if path.is_file()):
        # Kinds and labels of Kubernetes have domains, too.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not LABEL.match(line)]
        assert not re.search(r"\b[\w-]+\.(io|com|dev|net)(:\d+)?/", "\n".join(lines)), file.name


@pytest.mark.parametrize("name", ["triton", "demo"])
def test_what_a_dockerfile_copies_is_in_its_context(name: str) -> None:
    dockerfile = (DEPLOY / f"{name}.Dockerfile").read_text(encoding="utf-8")
    sent = (DEPLOY / f"{name}.Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for source in line.split()}
    assert copied == {line[1:] for line in sent if line.startswith("!")}
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_container_installs_what_preprocessing_imports() -> None:
    needed = imported_packages("serving.preprocessing", set()) | imported_packages("serving.pipeline", set())
    assert {"numpy", "pydicom", "opencv-python-headless"} <= needed
    assert needed | PLUGINS == {package(line) for line in requirement_lines()}


def test_the_container_installs_the_versions_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in requirement_lines():
        assert f'"{line}",\n' in project


def test_the_demo_is_launched_as_it_can_be() -> None:
    command = re.search(r'^CMD \["python", "-c", "(.+)"\]$', (DEPLOY / "demo.Dockerfile").read_text(), re.MULTILINE)
    assert command is not None
    call = next(node for node in ast.walk(ast.parse(command[1])) if isinstance(node, ast.Call) and node.args[1:])
    inspect.signature(launch).bind(*call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})
