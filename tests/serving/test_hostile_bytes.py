"""Files with random damage: an answer or a refusal of ours, and nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import UID

from serving.errors import RequestError, ScanError
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from serving.scans import Scan, decode
from tests.serving.dicom_files import compressed

PIXELS = ct_slice(7, 64).pixels


def _encoded(image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format=image_format, **options)
    return stream.getvalue()


WHOLE = {
    "png": png_bytes(PIXELS),
    "palette": _encoded("PNG", optimize=True),
    "jpeg": _encoded("JPEG", quality=60),
    "progressive": _encoded("JPEG", quality=60, progressive=True),
    "ct": dicom_bytes(PIXELS, "ct"),
    "xray": dicom_bytes(chest_xray(1, 64), "xray", "MONOCHROME1"),
    "jpeg in dicom": compressed(_encoded("JPEG"), UID("1.2.840.10008.1.2.4.50"), dicom_bytes(PIXELS, "xray")),
    "jp2 in dicom": compressed(_encoded("JPEG2000"), UID("1.2.840.10008.1.2.4.91"), dicom_bytes(PIXELS, "xray")),
    "jpeg 2000 in dicom": compressed(
        _encoded("JPEG2000", no_jp2=True), UID("1.2.840.10008.1.2.4.91"), dicom_bytes(PIXELS, "xray")
    ),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes changed, or a stretch cut out, doubled or zeroed; more often near the front."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(len(changed) * rng.random() ** 3)
        length = int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind < 3:
            changed[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = bytes(length)
    return bytes(changed)


# A decoder that never returns was found here once.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_read_or_refused_and_nothing_else(name: str) -> None:
    assert isinstance(decode(WHOLE[name]), Scan)
    rng = np.random.default_rng(sorted(WHOLE).index(name))
    refusals = []
    for _ in range(100):
        try:
            scan = decode(damaged(WHOLE[name], rng))
        except (ScanError, RequestError) as refused:
            refusals.append(str(refused))
        else:
            assert isinstance(scan, Scan)
    assert refusals
    assert all("expected" in says and "got" in says for says in refusals)


@pytest.mark.parametrize("magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(128) + b"DICM"])
def test_noise_after_the_right_first_bytes_is_refused(magic: bytes) -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 25, 60, 400):
        with pytest.raises(ScanError):
            decode(magic + rng.bytes(length))
