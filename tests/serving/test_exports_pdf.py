"""The page for people: one page, what it says, and that long texts do not run over each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdfium2
import pytest

from serving.burden import Area, SliceBurden
from serving.exports import Case, write
from serving.exports.pages import page
from serving.exports.paper import cut, text_width
from serving.labels import DIAGNOSES, MANIFESTATIONS
from serving.measuring import NO_LUNG
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from serving.studies import open_volume
from tests.serving.export_cases import drawn_case, study_case, xray_report
from tests.serving.volume_files import affine_ras, block, nifti_bytes


def study(**kwargs: int) -> Case:
    return study_case(open_volume(nifti_bytes(block(), affine_ras((2, 1, 0), (1, 1, 1), (2.5, 0.75, 0.5)))), **kwargs)


def text_of(data: bytes) -> str:
    document = pypdfium2.PdfDocument(data)
    assert len(document) == 1
    width, height = document[0].get_size()
    assert (round(width), round(height)) == (595, 842)
    text = document[0].get_textpage().get_text_range()
    return " ".join(text.split())


def test_a_page_says_what_was_said(tmp_path: Path) -> None:
    case = drawn_case(dicom_bytes(ct_slice(3).pixels))
    (path,) = write(case, ["pdf"], tmp_path, "case")["pdf"]
    said = text_of(path.read_bytes())
    assert "Research use only. Not a medical device." in said
    assert "no person has verified it" in said
    for label in (*DIAGNOSES, *MANIFESTATIONS):
        assert label.title in said
    assert "COVID-19 likeliest 70.0%" in said
    assert "segment_ground_glass 3" in said
    area = case.masks()["ground_glass"].sum() * 0.7 * 0.7 / 100
    assert f"{area:.1f} cm2" in said
    assert case.single is not None
    burden = case.single.burden
    assert burden is not None
    found, lung = burden.found["infected"], burden.lung["left"]
    assert lung is not None
    per_cents = " ".join(f"{one.percent:.1f} %" for one in found.values() if one is not None)
    assert f"Any of them {per_cents}" in said
    assert f"{lung.pixels:,} px" in said


def test_a_page_of_a_slice_without_lung_says_why_there_is_no_per_cent() -> None:
    case = drawn_case(dicom_bytes(ct_slice(3).pixels))
    assert case.single is not None
    burden = case.single.burden
    assert burden is not None
    none = {name: {**dict.fromkeys(sides), "both": Area(9, None, None)} for name, sides in burden.found.items()}
    bare = SliceBurden({"both": Area(0, None, None), "right": None, "left": None}, none, NO_LUNG)
    said = text_of(page(replace(case, report=replace(case.single, burden=bare))))
    assert NO_LUNG in said
    assert "px" not in said


def test_a_page_of_a_study_has_its_burden_and_its_problems() -> None:
    case = study(read=7)
    assert case.study is not None
    said = text_of(page(case))
    assert "CT study, 49 slices of 54 x 51 pixels, 2.50 mm apart, pixels of 0.50 x 0.75 mm" in said
    assert "Note: only 7 of 49 slices were read" in said
    assert "Note: values are taken for Hounsfield units: NIfTI does not say" in said
    assert "7 of 7 slices that were read" in said
    assert f"Any of them {case.study.burden.found['infected']['both'].ml:.1f} ml" in said


def test_a_page_of_an_xray_does_not_ask_for_findings() -> None:
    pixels = chest_xray(1, 256)
    said = text_of(page(Case.of_scan(png_bytes(pixels), xray_report(pixels.shape))))
    assert "looked for in CT slices only" in said
    assert "threshold of this request" in said
    assert "part of the picture" not in said


def test_whatever_there_is_to_say_it_is_one_page() -> None:
    case = study()
    assert case.study is not None
    many = replace(
        case, report=replace(case.study, problems=tuple(f"problem {i} " + "of many words " * 40 for i in range(50)))
    )
    data = page(many)
    assert "more, in the JSON document" in text_of(data)
    # Nothing below the lower margin, nor beside the page.
    pixels = pypdfium2.PdfDocument(data)[0].render(scale=1).to_numpy()
    assert (pixels[-36:] == 255).all()
    assert (pixels[:, :36] == 255).all()
    assert (pixels[:, -36:] == 255).all()


def test_the_picture_is_on_the_page() -> None:
    case = drawn_case(png_bytes(ct_slice(3).pixels))
    pixels = pypdfium2.PdfDocument(page(case))[0].render(scale=1, rev_byteorder=True).to_numpy().astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 10)
    assert np.count_nonzero(green) > 500  # the effusion, and its swatch


@pytest.mark.parametrize("width", [20.0, 60.0, 200.0])
def test_what_is_too_long_for_its_place_is_cut(width: float) -> None:
    said = cut("consolidation " * 10, width, 9)
    assert text_width(said, 9) <= width
    assert said.endswith("...")
    assert cut("short", 200, 9) == "short"
