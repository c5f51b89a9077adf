"""Where datasets come from, what they cost in licences, and fetching those that have a plain address.

Nothing here was checked at the origins: licences are as known, and an address may have moved. A download goes into a
``.partial`` file that gets its name only when it is whole, and that a later call goes on with where the server lets it.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from serving.errors import DatasetError
from train.digest import sha256_of

if TYPE_CHECKING:
    from train.data import Task

CHUNK_BYTES: Final = 2**18
TIMEOUT_S: Final = 60
AS_STATED: Final = "as stated at the origin, check there"

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes that are there, and how many there will be, if the server said so."""


@dataclass(frozen=True)
class RemoteFile:
    """A file with a plain address.

    Attributes:
        url: Of http or https.
        name: What it is called here.
        gives: What is there when it is done: `name`, or the last thing that is unpacked from an archive.
        inside: For a ZIP archive, the folder in it whose contents are wanted, as a pattern; empty for all of it.
        size_bytes: If known.
        sha256: In hexadecimal, if known.
    """

    url: str
    name: str
    gives: str
    inside: str = ""
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked."""
        return self.gives != self.name


@dataclass(frozen=True)
class Origin:
    """A dataset where it comes from.

    Attributes:
        name: What to call it in a command.
        what: For people.
        tasks: What it can train.
        licence: As known.
        page: Where to read on, and to download by hand.
        files: Those with a plain address; together they are what `train.origins` takes.
        by_hand: Why there are none, and what to do.
    """

    name: str
    what: str
    tasks: tuple[Task, ...]
    licence: str
    page: str
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""


_FIGSHARE: Final = "https://figshare.com/ndownloader/files/"
MASK_TASKS: Final[tuple[Task, ...]] = ("manifestations", "segmentation")
DIAGNOSIS_TASKS: Final[tuple[Task, ...]] = ("recognition",)

_ORIGINS: Final = (
    Origin(
        "medseg100",
        "100 CT slices with ground-glass, consolidation and effusion drawn in (the paper's dataset 1)",
        MASK_TASKS,
        AS_STATED,
        "https://medicalsegmentation.com/covid19/",
        (
            RemoteFile(_FIGSHARE + "25953977", "tr_im.nii.gz", "tr_im.nii.gz"),
            RemoteFile(_FIGSHARE + "25953980", "tr_mask.nii.gz", "tr_mask.nii.gz"),
        ),
    ),
    Origin(
        "medseg9",
        "nine whole CT scans of Radiopaedia with the same three drawn in",
        MASK_TASKS,
        f"{AS_STATED}; Radiopaedia's own terms are non-commercial",
        "https://medicalsegmentation.com/covid19/",
        (
            RemoteFile(_FIGSHARE + "25954007", "rp_im.zip", "rp_im"),
            RemoteFile(_FIGSHARE + "25954013", "rp_msk.zip", "rp_msk"),
        ),
    ),
    Origin(
        "ieee8023",
        "radiographs and CT slices of COVID-19 and other pneumonias, from publications",
        DIAGNOSIS_TASKS,
        "one for each image in metadata.csv, some non-commercial, many not stated",
        "https://github.com/ieee8023/covid-chestxray-dataset",
        (
            RemoteFile(
                "https://github.com/ieee8023/covid-chestxray-dataset/archive/refs/heads/master.zip",
                "covid-chestxray-dataset.zip",
                "metadata.csv",
                inside="covid-chestxray-dataset-*",
            ),
        ),
    ),
    Origin(
        "rsna",
        "RSNA Pneumonia Detection Challenge 2018: radiographs as DICOM, normal or with opacities",
        DIAGNOSIS_TASKS,
        f"RSNA's terms of use with attribution, {AS_STATED}",
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        by_hand="it needs an account at Kaggle and a yes to the challenge's rules",
    ),
    Origin(
        "radiography",
        "COVID-19 Radiography Database: a folder per class of radiographs",
        DIAGNOSIS_TASKS,
        AS_STATED,
        "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
        by_hand="it needs an account at Kaggle",
    ),
    Origin(
        "kermany",
        "children's radiographs: normal, viral and bacterial pneumonia",
        DIAGNOSIS_TASKS,
        f"CC BY 4.0, {AS_STATED}",
        "https://data.mendeley.com/datasets/rscbjbr9sj/2",
        by_hand="its archive has to be sorted into a folder per class, with one for each person, first",
    ),
)

ORIGINS: Mapping[str, Origin] = MappingProxyType({origin.name: origin for origin in _ORIGINS})


def download(name: str, out: Path, progress: Progress | None = None) -> Path:
    """Fetch a dataset into a folder that `train.origins` takes. What is there already is left alone.

    Args:
        name: In `ORIGINS`.
        out: The folder; made if need be.
        progress: Told how far it is.

    Returns:
        The folder.

    Raises:
        DatasetError: If there is no such dataset or no plain address for it, or if a transfer or an archive is broken.
    """
    if name not in ORIGINS:
        raise DatasetError(f"expected one of {', '.join(ORIGINS)}, got {name!r}")
    origin = ORIGINS[name]
    if not origin.files:
        raise DatasetError(f"{name} has no plain address: {origin.by_hand}; see {origin.page}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in origin.files:
            if (out / file.gives).exists():
                continue
            _fetch(file, out / file.name, progress or (lambda *_: None))
            if file.is_archive:
                _unpack(file, out)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or out}: expected to write there, got {error.strerror or error}"
        ) from error
    return out


def _fetch(file: RemoteFile, target: Path, progress: Progress) -> None:
    partial, seen = (target.with_name(target.name + suffix) for suffix in (".partial", ".partial.etag"))
    request = urllib.request.Request(file.url, headers={"Accept-Encoding": "identity", "User-Agent": "lungstreams"})
    done = partial.stat().st_size if partial.is_file() and seen.is_file() else 0
    if done:
        # If-Range: a file that has changed since comes whole and not as the rest of another one.
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", seen.read_text(encoding="utf-8"))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            done = done if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            _remember(response, seen)
            length = response.headers["Content-Length"]
            total = done + int(length) if length else file.size_bytes
            with partial.open("ab" if done else "wb") as stream:
                while chunk := response.read(CHUNK_BYTES):
                    stream.write(chunk)
                    done += len(chunk)
                    progress(file.name, done, total)
    except urllib.error.HTTPError as error:
        error.close()
        if done and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _forget(partial, seen)
            return _fetch(file, target, progress)
        raise DatasetError(f"{file.url}: expected the file, got HTTP {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise DatasetError(f"{file.url}: expected the whole file, got {done:,} bytes and {reason!r}") from error
    if total is not None and done < total:
        raise DatasetError(f"{file.url}: expected {total:,} bytes, got {done:,}: broken off, run it again")
    _verify(file, partial, seen)
    seen.unlink(missing_ok=True)
    partial.rename(target)


def _remember(response: Any, seen: Path) -> None:
    """Keep what tells this version of the file from another; without it a transfer can not be gone on with."""
    tag = response.headers["ETag"]
    if tag and not tag.startswith("W/"):
        seen.write_text(tag, encoding="utf-8")
    else:
        seen.unlink(missing_ok=True)


def _forget(partial: Path, seen: Path) -> None:
    partial.unlink(missing_ok=True)
    seen.unlink(missing_ok=True)


def _verify(file: RemoteFile, partial: Path, seen: Path) -> None:
    size = partial.stat().st_size
    if file.size_bytes not in (None, size):
        _forget(partial, seen)
        raise DatasetError(f"{file.url}: expected {file.size_bytes:,} bytes, got {size:,}")
    if file.sha256 is None:
        return
    digest = sha256_of(partial)
    if digest != file.sha256:
        _forget(partial, seen)
        raise DatasetError(f"{file.url}: expected a file of SHA-256 {file.sha256}, got {digest}")


def _unpack(file: RemoteFile, out: Path) -> None:
    """Unpack beside, then move into place, `file.gives` last: a folder that is not whole is never taken for one."""
    archive, beside = out / file.name, out / f"{file.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as stream:
            members = [m for m in stream.namelist() if PurePosixPath(m).parts[0] != "__MACOSX"]
            stream.extractall(beside, members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, IndexError) as error:
        archive.unlink()
        shutil.rmtree(beside, ignore_errors=True)
        raise DatasetError(f"{file.url}: expected a ZIP archive, got {error}") from error
    starts = list(beside.glob(file.inside)) if file.inside else [beside]
    if len(starts) != 1 or not (starts[0] / file.gives).exists():
        shutil.rmtree(beside)
        raise DatasetError(f"{file.url}: expected an archive with {file.gives} in it, got one without; see {archive}")
    for path in sorted(starts[0].iterdir(), key=lambda path: path.name == file.gives):
        path.rename(out / path.name)
    shutil.rmtree(beside)
    archive.unlink()
