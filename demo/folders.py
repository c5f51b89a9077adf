"""Where the page keeps files while it runs: the phantoms that it drew, what was uploaded, the overlays."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from serving.errors import ScanError

_GRADIO_CACHE: Final = "GRADIO_TEMP_DIR"

KEPT_S: Final = 3600
"""How long the page keeps what a visitor sent and what was made of it, in seconds."""

SWEEP_S: Final = 300
"""How often it looks for what is older: so nothing is there for longer than both together."""


class UploadGone(ScanError):
    """An upload that the page has deleted in the meantime."""


def kept(paths: Sequence[str | Path]) -> list[Path]:
    """Uploads as paths.

    Raises:
        UploadGone: If one is not kept any more. The message does not say which: its name is the visitor's.
    """
    found = [Path(path) for path in paths]
    if not all(path.is_file() for path in found):
        raise UploadGone("expected an upload that is still kept, got one that was deleted: upload it again")
    return found


def make_private_folder() -> Path:
    """A folder that only this user can read, removed when the process ends. Gradio's cache goes there too.

    By default Gradio keeps uploads in a folder that everyone on the machine can read and that every page on it
    shares, by content: a page that ends would delete the pictures of another. A cache that the user has named in
    the environment is left as it is.
    """
    folder = Path(tempfile.mkdtemp(prefix="lungstreams-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault(_GRADIO_CACHE, str(folder / "cache"))
    return folder
