"""A copy of a model repository with other instance counts, to measure one against another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]

from serving.errors import RepositoryError, RequestError
from serving.repository import CONFIG_NAME, parse_config


def copy_repository(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A repository of the same files with changed configs.

    Files are linked, not copied, where the folders are on one file system: Triton refuses symbolic links only.

    Args:
        source: The repository.
        target: A folder that is not there yet.
        change: Changes a `ModelConfig` message in place; called for each model.

    Returns:
        `target`.

    Raises:
        RepositoryError: If `source` is no repository, or `target` can not be written.
    """
    configs = sorted(source.glob(f"*/{CONFIG_NAME}"))
    if not configs:
        raise RepositoryError(f"expected a model repository at {source}, got a folder without any */{CONFIG_NAME}")
    try:
        for config_path in configs:
            model = config_path.parent
            shutil.copytree(model, target / model.name, copy_function=_link)
            config = parse_config(config_path)
            change(config)
            # Not written into the linked file, which is the source's own.
            (target / model.name / CONFIG_NAME).unlink()
            (target / model.name / CONFIG_NAME).write_text(text_format.MessageToString(config), encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"expected a new folder that can be written at {target}, got: {error}") from error
    return target


def with_instances(source: Path, target: Path, count: int) -> Path:
    """A repository in which every instance group has so many instances.

    Args:
        source: The repository.
        target: A folder that is not there yet.
        count: Instances, at least 1.

    Returns:
        `target`.

    Raises:
        RequestError: If `count` is below 1.
        RepositoryError: As `copy_repository`.
    """
    if count < 1:
        raise RequestError(f"expected 1 instance or more, got {count}")

    def change(config: Any) -> None:
        for group in config.instance_group:
            group.count = count

    return copy_repository(source, target, change)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copy2(source, target)
