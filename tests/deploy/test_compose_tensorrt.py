"""The Compose file for TensorRT, held against the one that it changes and against what is rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from train.tensorrt_configs import ACCELERATED_REPOSITORY, ENGINE_CACHE, accelerated_config, gated_steps

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def services(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["services"])


@pytest.fixture
def changed() -> dict[str, Any]:
    return services("compose.tensorrt.yaml")


def test_only_the_service_with_a_gpu_is_changed(changed: dict[str, Any]) -> None:
    assert list(changed) == ["triton-gpu"]
    base = services("compose.yaml")["triton-gpu"]
    assert base["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert set(changed["triton-gpu"]) <= set(base)


def test_a_rendered_repository_takes_the_place_of_the_published_one(changed: dict[str, Any]) -> None:
    models, _ = changed["triton-gpu"]["volumes"]
    (published,) = services("compose.yaml")["triton-gpu"]["volumes"]
    assert (models["target"], models["read_only"]) == (published["target"], True)
    assert models["source"].endswith(f":-{ACCELERATED_REPOSITORY}}}")


def test_the_engine_caches_are_mounted_where_the_configs_look_and_can_be_written(changed: dict[str, Any]) -> None:
    _, cache = changed["triton-gpu"]["volumes"]
    assert "read_only" not in cache
    assert cache["source"] == f"${{LUNGSTREAMS_TENSORRT}}/{ENGINE_CACHE}"
    for step in gated_steps():
        (accelerator,) = accelerated_config(
            step, 1, "fp16"
        ).optimization.execution_accelerators.gpu_execution_accelerator
        assert Path(accelerator.parameters["trt_engine_cache_path"]).parent == Path(cache["target"])
