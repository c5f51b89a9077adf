"""PNG and JPEG files as people send them: what is read, how, and what is refused with which words."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from serving import limits, scans
from serving.errors import (
    GeometryError,
    RequestError,
    ScanError,
    ScanTooLarge,
    ScanTooSmall,
    UnreadableScan,
    UnsupportedScan,
)
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from serving.scans import Scan, decode, from_hu

GREY = ct_slice(1, 96).pixels


def as_file(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=image_format, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, bit_depth: int = 1, colour: int = 0, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def jpeg_of(pixels: np.ndarray = GREY, **options: object) -> bytes:
    return as_file(Image.fromarray(pixels), "JPEG", quality=95, **options)


def test_a_grey_png_is_read_as_it_is() -> None:
    scan = decode(png_bytes(GREY), "ct")
    np.testing.assert_array_equal(scan.pixels, GREY)
    assert (scan.modality, scan.source_format, scan.pixel_spacing_mm) == ("ct", "png", None)
    assert scan.size_hw == GREY.shape


def test_a_jpeg_is_read_nearly_as_it_was() -> None:
    scan = decode(jpeg_of(progressive=True), "xray")
    assert scan.source_format == "jpeg"
    assert np.abs(scan.pixels.astype(int) - GREY).mean() < 3


def test_rows_and_columns_are_not_swapped() -> None:
    pixels = np.zeros((60, 90), np.uint8)
    pixels[:10] = 200
    assert decode(png_bytes(pixels), "ct").pixels[5, 80] == 200
    assert decode(png_bytes(pixels), "ct").pixels[50, 5] == 0


@pytest.mark.parametrize("options", [{}, {"modality": "ct"}])
def test_explicit_and_guessed_modality(options: dict[str, str]) -> None:
    assert decode(png_bytes(ct_slice(2).pixels), **options).modality == "ct"
    assert decode(png_bytes(chest_xray(2))).modality == "xray"


def test_what_the_caller_says_of_a_png_is_believed() -> None:
    assert decode(png_bytes(GREY), "xray").modality == "xray"


def test_sixteen_bits_are_stretched_from_their_minimum_to_their_maximum() -> None:
    values = np.linspace(1000, 3000, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    pixels = decode(png_bytes(values), "ct").pixels
    expected = np.rint((values.astype(float) - 1000) * 255 / 2000)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_constant_sixteen_bit_png_is_black() -> None:
    assert not decode(png_bytes(np.full((64, 64), 40_000, np.uint16)), "ct").pixels.any()


@pytest.mark.parametrize("transparency", [None, 7])
def test_a_palette_is_looked_up(transparency: int | None) -> None:
    image = Image.fromarray(np.repeat([[3, 7]], 64, axis=0).repeat(32, axis=1).astype(np.uint8), "P")
    image.putpalette([v for i in range(256) for v in ((200, 200, 200) if i == 3 else (40, 40, 40))])
    options = {} if transparency is None else {"transparency": transparency}
    pixels = decode(as_file(image, "PNG", **options), "ct").pixels
    assert (pixels[0, 0], pixels[0, -1]) == (200, 40 if transparency is None else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_black(mode: str) -> None:
    image = Image.new("RGBA", (64, 64), (200, 200, 200, 255))
    image.paste((200, 200, 200, 0), (0, 0, 32, 64))
    image.paste((200, 200, 200, 128), (0, 0, 32, 32))
    pixels = decode(as_file(image.convert(mode), "PNG"), "ct").pixels
    assert pixels[50, 50] == 200
    assert pixels[50, 5] == 0
    assert abs(int(pixels[5, 5]) - 100) <= 1


def test_colours_become_luma() -> None:
    pixels = decode(as_file(Image.new("RGB", (64, 64), (255, 0, 0)), "PNG"), "ct").pixels
    assert abs(int(pixels[0, 0]) - 76) <= 1


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(GREY).point(lambda v: 255 * (v > 100)).convert("1")
    assert set(np.unique(decode(as_file(image, "PNG"), "ct").pixels)) == {0, 255}


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    image = Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).convert("CMYK")
    pixels = decode(as_file(image, "JPEG", quality=95), "ct").pixels
    assert np.corrcoef(pixels.ravel(), GREY.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to show
    stored = np.zeros((64, 100), np.uint8)
    stored[:, :20] = 220
    pixels = decode(as_file(Image.fromarray(stored), image_format, exif=exif), "ct").pixels
    assert pixels.shape == (100, 64)
    assert pixels[5, 30] > 200 > 50 > pixels[90, 30]


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"])
def test_broken_exif_does_not_lose_the_picture(exif: bytes) -> None:
    assert decode(as_file(Image.fromarray(GREY), "JPEG", exif=exif), "ct").size_hw == GREY.shape


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "got an empty file"),
        (b"Dear doctor", "got 11 bytes of an unknown format"),
        (b"%PDF-1.7 ...", "got PDF"),
        (b"PK\x03\x04....", "got a ZIP archive"),
        (bytes(2000), "got 2,000 bytes of an unknown format"),
    ],
)
def test_what_is_no_image_is_unreadable(data: bytes, got: str) -> None:
    with pytest.raises(UnreadableScan, match=f"expected PNG, JPEG or DICOM, {got}"):
        decode(data)


@pytest.mark.parametrize(("image_format", "name"), [("GIF", "GIF"), ("WEBP", "WebP"), ("BMP", "BMP"), ("TIFF", "TIFF")])
def test_other_image_formats_are_refused_by_name(image_format: str, name: str) -> None:
    with pytest.raises(UnsupportedScan, match=f"expected PNG, JPEG or DICOM, got {name}"):
        decode(as_file(Image.fromarray(GREY), image_format))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(image_format: str) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())
    data = as_file(first, image_format, save_all=True, append_images=[second])
    with pytest.raises(UnsupportedScan, match="animated PNG of 2 frames" if image_format == "PNG" else "got"):
        decode(data)


@pytest.mark.parametrize("whole", [png_bytes(GREY), jpeg_of(), dicom_bytes(GREY)], ids=["png", "jpeg", "dicom"])
@pytest.mark.parametrize("kept", [0.03, 0.3, 0.6, 0.95])
def test_truncated_files_are_unreadable(whole: bytes, kept: float) -> None:
    with pytest.raises(UnreadableScan, match=r"expected .*, got "):
        decode(whole[: int(len(whole) * kept)], "ct")


@pytest.mark.parametrize("size", [(1, 1), (2000, limits.MIN_SIDE_PX - 1)])
def test_too_small_images_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ScanTooSmall, match=f"expected sides of at least {limits.MIN_SIDE_PX} pixels, got {size[0]:,} x"
    ):
        decode(as_file(Image.new("L", size), "PNG"))


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a decoder was called before the limits were held")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr("serving.dicom.pixel_array", refuse)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_small_file_of_a_huge_png_is_refused_before_decoding() -> None:
    row = bytes(1 + 30_000 // 8)
    bomb = png_of(30_000, 30_000, body=row * 3_000)
    assert len(bomb) < 20_000
    with pytest.raises(ScanTooLarge, match=r"expected sides of at most 10,000 pixels, got 30,000 x 30,000"):
        decode(bomb)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_area_and_jpeg_sizes_are_limited_before_decoding() -> None:
    with pytest.raises(ScanTooLarge, match=f"expected at most {limits.MAX_PIXELS:,} pixels, got 9,000 x 9,000"):
        decode(png_of(9_000, 9_000))
    whole = jpeg_of()
    at = whole.index(b"\xff\xc0") + 5
    huge = whole[:at] + struct.pack(">HH", 65_000, 65_000) + whole[at + 4 :]
    with pytest.raises(ScanTooLarge, match="got 65,000 x 65,000"):
        decode(huge)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_jpeg_that_repeats_its_scans_is_refused_before_decoding() -> None:
    whole = jpeg_of(progressive=True)
    start = whole.rindex(b"\xff\xda")
    with pytest.raises(ScanTooLarge, match=f"at most {limits.MAX_JPEG_SCANS} scans, got"):
        decode(whole[:-2] + whole[start:-2] * 200 + whole[-2:])


@pytest.mark.usefixtures("nothing_is_decoded")
def test_file_bytes_are_limited_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ScanTooLarge, match=r"expected a file of at most 1,000 bytes, got 1,001 bytes"):
        decode(b"\x89PNG\r\n\x1a\n" + bytes(993))


def test_an_unknown_modality_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="expected a modality of auto, ct, xray, got 'mri'"):
        decode(png_bytes(GREY), "mri")  # type: ignore[arg-type]


def test_every_refusal_is_a_scan_error_and_the_limits_are_public() -> None:
    assert {UnreadableScan, UnsupportedScan, ScanTooLarge, ScanTooSmall} <= set(ScanError.__subclasses__())
    assert scans.MAX_FILE_BYTES >= 2 * scans.MAX_PIXELS


def test_a_scan_is_valid_once_constructed() -> None:
    with pytest.raises(GeometryError, match=r"uint8\[h, w\], got float64\[64, 64\]"):
        Scan(np.zeros((64, 64)), "ct", "png")
    with pytest.raises(GeometryError, match=r"got uint8\[64, 64, 3\]"):
        Scan(np.zeros((64, 64, 3), np.uint8), "ct", "png")
    with pytest.raises(ScanTooSmall):
        Scan(np.zeros((4, 64), np.uint8), "ct", "png")
    with pytest.raises(RequestError, match="got 'auto'"):
        Scan(np.zeros((64, 64), np.uint8), "auto", "png")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_the_lung_window_shows_hounsfield_units(dtype: type[np.generic]) -> None:
    values = np.array([-3000, -1350, -600, 150, 3000])
    hu = np.tile(values.astype(dtype), (64, 20))
    assert from_hu(hu).pixels[0, :5].tolist() == [0, 0, 128, 255, 255]
    np.testing.assert_array_equal(hu[0, :5], values.astype(dtype))


def test_hounsfield_units_that_are_not_numbers_read_as_air() -> None:
    hu = np.full((64, 64), 0.0)
    hu[0] = np.nan
    assert from_hu(hu).pixels[0].max() == 0


def test_decoding_does_not_depend_on_opencv_threads() -> None:
    before = cv2.getNumThreads()
    decode(png_bytes(GREY))
    assert cv2.getNumThreads() == before
