"""DICOM files as hospitals send them: how they are shown, and what is refused without a word about the patient."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from jpeg_ls import encode_array
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from serving import limits
from serving.dicom import decode_stored
from serving.errors import RequestError, ScanError, ScanTooLarge, ScanTooSmall, UnreadableScan, UnsupportedScan
from serving.phantom import ct_slice, dicom_bytes
from serving.scans import decode, from_hu
from tests.serving.dicom_files import GRADIENT, PATIENT, compressed, edited, saved, with_pixels

CT = dicom_bytes(GRADIENT, "ct")
WIDE = (np.arange(64 * 96, dtype=np.uint16) * 10).reshape(64, 96)


def jpeg(image_format: str, pixels: np.ndarray = GRADIENT, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("modality", ["ct", "xray"])
def test_a_phantom_comes_back_as_it_was_drawn(modality: str, photometric: str) -> None:
    pixels = ct_slice(3, 128).pixels
    scan = decode(dicom_bytes(pixels, modality, photometric, (0.5, 0.75)))
    np.testing.assert_array_equal(scan.pixels, pixels)
    assert (scan.modality, scan.source_format, scan.pixel_spacing_mm) == (modality, "dicom", (0.5, 0.75))


def test_ct_is_shown_through_the_lung_window_whatever_the_file_asks_for() -> None:
    data = edited(data=CT, WindowCenter=40, WindowWidth=400, PixelRepresentation=0)
    np.testing.assert_array_equal(decode(data).pixels, decode(CT).pixels)


def test_ct_is_rescaled_from_signed_values_with_slope_and_intercept() -> None:
    stored = np.linspace(-500, 700, 64 * 64).astype(np.int16).reshape(64, 64)
    data = with_pixels(stored, Modality="CT", RescaleSlope=2, RescaleIntercept=-1000)
    np.testing.assert_array_equal(decode(data).pixels, from_hu(stored.astype(float) * 2 - 1000).pixels)


def test_monochrome1_is_inverted() -> None:
    plain, inverted = with_pixels(GRADIENT), with_pixels(GRADIENT, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode(inverted).pixels, 255 - decode(plain).pixels)


@pytest.mark.parametrize(
    ("function", "expected"), [(None, (0, 85, 255)), ("LINEAR_EXACT", (0, 85, 255)), ("SIGMOID", (9, 86, 250))]
)
def test_a_radiograph_is_shown_through_its_first_window(function: str | None, expected: tuple[int, ...]) -> None:
    stored = np.tile(np.array([1000, 21000, 56000], np.uint16), (64, 32))
    options = {"WindowCenter": [26000, 1], "WindowWidth": [30000, 2]}
    data = with_pixels(stored, **options, **({"VOILUTFunction": function} if function else {}))
    assert np.abs(decode(data).pixels[0, :3].astype(int) - expected).max() <= 1


def test_a_radiograph_without_window_uses_its_whole_range_but_not_its_padding() -> None:
    stored = WIDE // 4 + 1000
    stored[:8] = 65_535
    pixels = decode(with_pixels(stored, PixelPaddingValue=65_535)).pixels
    assert not pixels[:8].any()
    assert (pixels[8:].min(), pixels[8:].max()) == (0, 255)


def test_padding_stays_black_when_the_image_is_inverted() -> None:
    stored = np.where(np.arange(96) < 48, WIDE, 0).astype(np.int16)
    elements = {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}
    assert not decode(with_pixels(stored, **elements)).pixels[:, 48:].any()


def test_a_lut_of_values_of_interest_is_applied() -> None:
    def add_lut(dataset: Dataset) -> None:
        lut = Dataset()
        lut.LUTDescriptor = [256, 0, 16]
        lut.LUTData = [65_535 - 257 * i for i in range(256)]
        lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
        dataset.VOILUTSequence = [lut]

    np.testing.assert_array_equal(decode(edited(add_lut)).pixels, 255 - GRADIENT)


def test_colour_radiographs_become_luma() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 1] = 255
    assert abs(int(decode(with_pixels(rgb)).pixels[0, 0]) - 150) <= 1


def test_palettes_are_looked_up() -> None:
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", (np.arange(256, dtype="<u2")[::-1] * 257).tobytes()))
    }
    pixels = decode(edited(PhotometricInterpretation="PALETTE COLOR", **tables)).pixels
    assert np.abs(pixels.astype(int) - (255 - GRADIENT)).max() <= 1


@pytest.mark.parametrize(
    ("frame", "syntax", "tolerance"),
    [
        (jpeg("JPEG", quality=95), "1.2.840.10008.1.2.4.50", 4),
        (jpeg("JPEG2000", irreversible=False), "1.2.840.10008.1.2.4.90", 0),
        (jpeg("JPEG2000", irreversible=False, no_jp2=True), "1.2.840.10008.1.2.4.91", 0),
    ],
)
def test_compressed_pixels_are_decoded(frame: bytes, syntax: str, tolerance: int) -> None:
    pixels = decode(compressed(frame, UID(syntax))).pixels
    assert np.abs(pixels.astype(int) - GRADIENT).max() <= tolerance


def lossless(pixels: np.ndarray, folder: Path) -> bytes:
    """A frame in lossless JPEG, which only GDCM inside of ITK writes here: selection value 1, so both processes."""
    writer = SimpleITK.ImageFileWriter()
    writer.SetFileName(str(folder / "lossless.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(SimpleITK.GetImageFromArray(pixels[None]))
    written = pydicom.dcmread(folder / "lossless.dcm")
    assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return bytes(get_frame(written.PixelData, 0, number_of_frames=1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize(
    ("syntax", "tolerance"), [(JPEGLossless, 0), (JPEGLosslessSV1, 0), (JPEGLSLossless, 0), (JPEGLSNearLossless, 2)]
)
def test_compressed_pixels_of_sixteen_bits_are_decoded(
    syntax: UID, tolerance: int, dtype: type[np.integer], tmp_path: Path
) -> None:
    # All of the range, so that a lost byte or sign shows.
    stored = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, 64 * 96).astype(dtype).reshape(64, 96)
    stored[::7] = stored[::7, ::-1]
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        frame = lossless(stored, tmp_path)
    else:
        frame = bytes(encode_array(stored.view(np.uint16), lossy_error=tolerance))
    dataset = pydicom.dcmread(io.BytesIO(compressed(frame, syntax, with_pixels(stored))))
    found = decode_stored(dataset).astype(int)
    assert np.abs((found - stored + 2**15) % 2**16 - 2**15).max() <= tolerance
    if tolerance:
        assert (found != stored).any()
    # Nearly the least value of a sign may become the greatest: only what is exact is the same picture.
    if not tolerance:
        np.testing.assert_array_equal(decode(saved(dataset)).pixels, decode(with_pixels(stored)).pixels)


def test_extended_jpeg_is_decoded_in_eight_bits_and_in_twelve() -> None:
    extended = UID("1.2.840.10008.1.2.4.51")
    eight = decode(compressed(jpeg("JPEG", quality=95), extended)).pixels
    assert np.abs(eight.astype(int) - GRADIENT).max() <= 4
    path = get_testdata_file("JPGExtended.dcm", download=False)
    dataset = pydicom.dcmread(path)
    assert dataset.BitsStored == 12
    # As pydicom's own tests have them, of two decoders.
    assert [decode_stored(dataset)[at] for at in ((420, 140), (230, 120))] == [244, 95]
    # It is of nuclear medicine.
    dataset.Modality = "CR"
    assert [decode(saved(dataset)).pixels[at] for at in ((420, 140), (230, 120))] == [236, 92]


def test_run_lengths_are_decoded_and_bounded() -> None:
    rle = pydicom.dcmread(io.BytesIO(dicom_bytes(GRADIENT, "xray")))
    rle.compress(UID("1.2.840.10008.1.2.5"), generate_instance_uid=False)
    np.testing.assert_array_equal(decode(saved(rle)).pixels, GRADIENT)
    bomb = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + b"\x81\x00" * 100_000
    with pytest.raises(UnreadableScan, match="expected RLE pixels of 6,144 bytes, got more"):
        decode(compressed(bomb, UID("1.2.840.10008.1.2.5")))


def test_run_lengths_of_sixteen_bits_are_counted_segment_by_segment() -> None:
    # Noise makes segments of odd lengths, which are padded: read on from there, the second was counted wrongly.
    stored = np.random.default_rng(0).integers(0, 3000, (50, 61)).astype(np.uint16)
    data = with_pixels(stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1000)
    rle = pydicom.dcmread(io.BytesIO(data))
    rle.compress(UID("1.2.840.10008.1.2.5"), generate_instance_uid=False)
    np.testing.assert_array_equal(decode(saved(rle)).pixels, decode(data).pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "JPEG2000"])
def test_compressed_pixels_of_another_size_than_declared_are_refused_before_decoding(image_format: str) -> None:
    syntax = {"JPEG": "1.2.840.10008.1.2.4.50", "JPEG2000": "1.2.840.10008.1.2.4.90"}[image_format]
    frame = jpeg(image_format, np.zeros((4000, 4000), np.uint8))
    with pytest.raises(UnreadableScan, match=r"expected compressed pixels of 96 x 64 .*, got 4000 x 4000"):
        decode(compressed(frame, UID(syntax)))


@pytest.mark.parametrize(
    ("last", "name"), [(b"102", "MPEG-4 AVC/H.264 High Profile"), (b"992", r"1\.2\.840\.10008\.1\.2\.4\.992")]
)
def test_a_transfer_syntax_that_can_not_be_decoded_is_named(last: bytes, name: str) -> None:
    video = compressed(b"\0" * 64, UID("1.2.840.10008.1.2.4.102"))
    data = video.replace(b"1.2.840.10008.1.2.4.102", b"1.2.840.10008.1.2.4." + last)
    with pytest.raises(UnreadableScan, match=f"expected a DICOM transfer syntax that can be decoded, got {name}"):
        decode(data)


def test_boxes_around_a_codestream_that_lead_nowhere_are_refused() -> None:
    # pydicom never returns from a box of 0 bytes.
    boxes = jpeg("JPEG2000")
    second = boxes.index(b"ftyp") - 4
    with pytest.raises(UnreadableScan, match="expected a JPEG 2000 codestream, got broken JP2 boxes"):
        decode(compressed(boxes[:second] + bytes(4) + boxes[second + 4 :], UID("1.2.840.10008.1.2.4.90")))


def test_deflated_files_are_read_but_not_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(GRADIENT, "xray")))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    deflated = saved(dataset)
    np.testing.assert_array_equal(decode(deflated).pixels, GRADIENT)
    monkeypatch.setattr("serving.dicom_headers.MAX_FILE_BYTES", 4096)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated without a bound"))
    with pytest.raises(ScanTooLarge, match="at most 4,096 bytes of deflated DICOM, got more"):
        decode(deflated)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (
            edited(PixelData=None, SOPClassUID=BasicTextSRStorage, Modality="SR"),
            UnreadableScan,
            "Basic Text SR Storage",
        ),
        (edited(PixelData=None), UnreadableScan, "got one without pixels .Computed Radiography Image Storage."),
        (edited(NumberOfFrames=12), UnsupportedScan, "expected a DICOM of one frame, got 12 frames"),
        (edited(Modality="MR"), UnsupportedScan, "expected a DICOM of modality CT, CR, DX, DR, RG, got MR"),
        (edited(Modality=None), UnsupportedScan, "got none"),
        (edited(SamplesPerPixel=4), UnsupportedScan, "expected 1 or 3 samples of up to 32 bits, got 4 of 8 bits"),
        (edited(data=CT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), UnsupportedScan, "got a CT localizer"),
        (with_pixels(np.zeros((64, 64, 3), np.uint8), Modality="CT"), UnsupportedScan, "in grey, got one in colour"),
        (edited(Rows=1, Columns=1, PixelData=b"\0\0"), ScanTooSmall, "got 1 x 1"),
        (edited(Rows=65_535, Columns=65_535), ScanTooLarge, "got 65,535 x 65,535"),
        (edited(Rows=60, Columns=200), UnreadableScan, "a whole DICOM file, got a broken or truncated one"),
        (edited(Rows=None), UnreadableScan, "a whole DICOM file, got a broken or truncated one"),
        (edited(PixelData=b""), UnreadableScan, "a whole DICOM file, got a broken or truncated one"),
    ],
)
def test_what_is_refused_is_named_and_the_patient_is_not(data: bytes, error: type[ScanError], says: str) -> None:
    with pytest.raises(error, match=says) as refused:
        decode(data)
    assert type(refused.value) is error
    assert PATIENT.split("^")[0] not in str(refused.value)


def test_nothing_of_the_cause_is_chained_because_it_may_quote_the_file() -> None:
    with pytest.raises(UnreadableScan) as refused:
        decode(edited(PixelData=b""))
    assert refused.value.__suppress_context__
    assert refused.value.__cause__ is None


def test_float_pixels_are_refused() -> None:
    def to_float(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.FloatPixelData = np.zeros(64 * 96, np.float32).tobytes()
        dataset.BitsAllocated = 32

    with pytest.raises(UnsupportedScan, match="expected a DICOM of integer pixels, got floating-point"):
        decode(edited(to_float))


@pytest.mark.parametrize("asked", ["auto", "ct"])
def test_a_request_that_contradicts_the_file_is_refused(asked: str) -> None:
    assert decode(CT, asked).modality == "ct"  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected a scan of modality xray, got a DICOM that says it is ct"):
        decode(CT, "xray")


@pytest.mark.parametrize("spacing", [None, [0, 1], [1, -1]])
def test_a_spacing_that_can_not_be_is_no_spacing(spacing: list[float] | None) -> None:
    elements = {} if spacing is None else {"PixelSpacing": spacing}
    data = edited(data=dicom_bytes(GRADIENT, "xray", pixel_spacing_mm=None), **elements)
    assert decode(data).pixel_spacing_mm is None


def test_values_that_pydicom_warns_about_are_read_in_silence() -> None:
    # Warnings are errors here, and pydicom warns of a spacing with a decimal comma.
    data = edited(PixelSpacing=[0.125, 0.125]).replace(b"0.125", b"0,125")
    scan = decode(data)
    np.testing.assert_array_equal(scan.pixels, GRADIENT)
    assert scan.pixel_spacing_mm is None


def test_pydicom_logs_nothing_of_the_file(caplog: pytest.LogCaptureFixture) -> None:
    decode(edited(PatientBirthDate="19700101").replace(b"19700101", b"1970.01."))
    with pytest.raises(UnreadableScan):
        decode(compressed(jpeg("JPEG2000")[:300], UID("1.2.840.10008.1.2.4.90")))
    assert not caplog.records


def test_encapsulated_frames_beyond_the_first_are_not_decoded() -> None:
    frame = jpeg("JPEG", quality=95)

    def two(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
        dataset.NumberOfFrames = 2
        dataset.PixelData = encapsulate([frame, frame])
        dataset["PixelData"].VR = "OB"

    with pytest.raises(UnsupportedScan, match="got 2 frames"):
        decode(edited(two))


def test_limits_hold_for_dicom_as_for_others() -> None:
    assert limits.MAX_SIDE_PX < 65_535
