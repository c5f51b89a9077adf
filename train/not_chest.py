"""Pictures that are no chest scan, by kind: what `train.plausibility` fits and tests against.

Some are drawn (`train.not_chest_drawings`); the others are pictures inside packages of PyPI, unpacked side by side
into a folder::

    pip download --no-deps -d wheels pydicom-data scikit-image nilearn
    pip download --no-deps --no-binary pillow -d wheels pillow
    for f in wheels/*.whl; do unzip -qo $f -d packages; done; for f in wheels/*.tar.gz; do tar xzf $f -C packages; done

None is published. Copies of the same picture (pydicom's test files are one in many encodings) are taken once.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import cv2
import nibabel
import numpy as np
import pydicom
import pydicom.data
from jaxtyping import Num

from serving.dicom_pixels import lung_window
from serving.limits import MIN_SIDE_PX
from train.not_chest_drawings import DRAWINGS, Picture, drawn, stretched

__all__ = ["DRAWINGS", "drawn", "of_packages"]

_PHOTOS: Final = (
    "skimage/data/astronaut.png skimage/data/camera.png skimage/data/coffee.png skimage/data/chelsea.png "
    "skimage/data/rocket.jpg skimage/data/motorcycle_left.png skimage/data/clock_motion.png skimage/data/coins.png "
    "skimage/data/moon.png skimage/data/hubble_deep_field.jpg pillow-*/Tests/images/hopper.png "
    "pillow-*/Tests/images/lena.ppm pillow-*/Tests/images/flower.jpg pillow-*/Tests/images/flower2.jpg "
    "pillow-*/Tests/images/exif-72dpi-int.jpg pillow-*/Tests/images/iptc.jpg pillow-*/Tests/images/pil123p.png "
    "pillow-*/Tests/images/xmp_test.jpg pillow-*/Tests/images/app13-multiple.jpg pillow-*/Tests/images/blp/*.jpg"
)
_FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "photo": _PHOTOS,
        "microscopy, retina": "skimage/data/ihc.png skimage/data/cell.png skimage/data/retina.jpg "
        "skimage/data/microaneurysms.png",
        "texture": "skimage/data/grass.png skimage/data/gravel.png skimage/data/brick.png",
        "text": "skimage/data/page.png skimage/data/text.png pillow-*/Tests/images/multiline_text*.png "
        "pillow-*/Tests/images/test_anchor_multiline*.png pillow-*/Tests/images/issue_2278.tif "
        "pillow-*/Tests/images/multipage_out_of_order.tif",
        "shapes": "pillow-*/Tests/images/imagedraw_*.png skimage/data/logo.png skimage/data/color.png "
        "skimage/data/horse.png skimage/data/chessboard_GRAY.png",
        "charts": "pillow-*/Tests/images/eps/*.png pillow-*/Tests/images/test-card.png "
        "pillow-*/Tests/images/pport_g4.tif pillow-*/Tests/images/rdf.tif",
    }
)
"""Files by kind, relative to the folder of unpacked packages."""

_DICOM_KINDS: Final[Mapping[str, str]] = MappingProxyType({"US": "ultrasound", "MR": "MR", "NM": "bone scan"})
_DICOM_BY_NAME: Final[Mapping[str, str]] = MappingProxyType(
    {"693": "CT of the head", "J2K_pixelrep": "CT of the head", "bad_sequence": "CT of the spine",
     "explicit_VR-UN": "CT of the abdomen", "RG3": "X-ray of a limb", "examples_": "ultrasound", "vlut": "charts"}
)  # fmt: skip


def of_packages(folder: Path) -> Iterator[tuple[str, Picture]]:
    """Pictures of unpacked packages, and of installed ones that ship some.

    Args:
        folder: Where the packages were unpacked; see the module.

    Yields:
        The kind and the picture, each once.
    """
    seen = set()
    for kind, pixels in (*_rasters(folder), *_dicoms(folder), *_brains(folder), *_installed()):
        digest = hashlib.sha256(cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA) // 32).hexdigest()
        if min(pixels.shape) >= MIN_SIDE_PX and digest not in seen:
            seen.add(digest)
            yield kind, pixels


def _rasters(folder: Path) -> Iterator[tuple[str, Picture]]:
    for kind, patterns in _FILES.items():
        for pattern in patterns.split():
            for path in sorted(folder.glob(pattern)):
                pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
                if pixels is not None:
                    yield kind, np.asarray(pixels)


def _dicoms(folder: Path) -> Iterator[tuple[str, Picture]]:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    bundled = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted([*bundled.glob("*.dcm"), *folder.glob("data_store/data/*.dcm")]):
        # Test files: many are broken on purpose.
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            named = next((kind for stem, kind in _DICOM_BY_NAME.items() if path.stem.startswith(stem)), None)
            kind = named or _DICOM_KINDS[dataset.Modality]
            yield kind, _grey(dataset.pixel_array, is_hu=kind.startswith("CT"))


def _grey(values: Num[np.ndarray, ...], *, is_hu: bool = False) -> Picture:
    if values.ndim == 4 or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        values = values[len(values) // 2]
    if values.ndim == 3:
        values = values[..., :3].mean(axis=-1)
    if is_hu and values.min() >= 0:
        return lung_window(values.astype(np.float32) - 1024)
    return stretched(values)


def _brains(folder: Path) -> Iterator[tuple[str, Picture]]:
    for path in sorted(folder.glob("nilearn/datasets/data/mni_icbm152_t1_*.nii.gz")):
        volume = np.asanyarray(nibabel.load(path).dataobj)
        for axis, size in enumerate(volume.shape):
            for index in range(size // 5, size * 4 // 5, 9):
                yield "MR", _grey(np.rot90(np.take(volume, index, axis)).astype(np.float32))


def _installed() -> Iterator[tuple[str, Picture]]:
    with suppress(ImportError):
        from sklearn.datasets import load_sample_images

        for image in load_sample_images().images:
            yield "photo", _grey(image)
