"""Version folders of a model repository appear whole, in one rename, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.repository import versions


@contextmanager
def unpublished_version(model_folder: Path) -> Iterator[Path]:
    """A folder beside the versions that Triton does not take for one; gone at the end, unless renamed."""
    existed = model_folder.exists()
    model_folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".unpublished-", dir=model_folder))
    # mkdtemp makes it for its owner alone; the server is another user.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(model_folder.iterdir()):
            model_folder.rmdir()


def publish_version(folder: Path) -> Path:
    """Rename a finished folder to the next version. Renaming onto a version of another export fails and is retried."""
    model_folder = folder.parent
    while True:
        version = model_folder / str(max(versions(model_folder), default=0) + 1)
        try:
            return folder.rename(version)
        except OSError:
            if not version.exists():
                raise
