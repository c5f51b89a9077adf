"""What `lungstreams predict` makes of files and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, generate_uid

from lungstreams.sources import Listing, Source, list_sources
from serving import phantom
from serving.errors import RequestError
from tests.serving.dicom_files import edited
from tests.serving.volume_files import affine_ras, block, dicom_slice, file_of, nifti_bytes, zipped

PIXELS = np.full((64, 64), 90, np.uint8)


def slices(series: str, count: int = 3) -> list[bytes]:
    hu = np.full((64, 64), -800, np.int16)
    return [file_of(dicom_slice(hu, (0, 0, 5.0 * k), series=series)) for k in range(count)]


def report_without_pixels() -> bytes:
    def change(dataset: Dataset) -> None:
        dataset.SOPClassUID, dataset.Modality = BasicTextSRStorage, "SR"
        for keyword in ("PixelData", "Rows", "Columns"):
            del dataset[keyword]

    return edited(change)


def write(folder: Path, **files: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def listed(*given: Path, series: int | None = None, output: Path | None = None) -> Listing:
    return list_sources(given, series, output)


def named(listing: Listing, below: Path) -> dict[str, tuple[int, bool]]:
    """By name below a folder: how many files, and whether it is a study."""
    return {str(Path(one.name).relative_to(below)): (len(one.paths), one.is_study) for one in listing.sources}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "scans"
    write(top, a__png=phantom.png_bytes(PIXELS), notes__txt=b"hello", table__csv=b"a,b", z=phantom.png_bytes(PIXELS))
    write(top / "patient", **{f"{i}": data for i, data in enumerate(slices("1.2.3"))})
    write(top / "study", volume__nii__gz=nifti_bytes(block(), affine_ras((0, 1, 2), (1, 1, 1), (1, 1, 1)), packed=True))
    return top


class TestFolders:
    def test_slices_of_one_series_are_one_case_and_everything_else_is_one_a_file(self, folder: Path) -> None:
        write(folder, s__zip=zipped(slices("1.2.4")), chest__jpg=b"\xff\xd8\xff", single__dcm=slices("1.2.5", 1)[0])
        listing = listed(folder)
        assert named(listing, folder) == {
            "a.png": (1, False),
            "chest.jpg": (1, False),
            "patient": (3, True),
            "s.zip": (1, True),
            "single.dcm": (1, False),
            "study/volume.nii.gz": (1, True),
            "z": (1, False),
        }
        assert listing.left_out == 2
        assert [one.name for one in listing.sources] == sorted(one.name for one in listing.sources)

    def test_series_that_share_a_folder_are_called_by_their_first_file(self, folder: Path) -> None:
        write(folder / "patient", **{f"b{i}": data for i, data in enumerate(slices("1.2.9", 2))})
        assert {"patient/0": (3, True), "patient/b0": (2, True)}.items() <= named(listed(folder), folder).items()

    def test_a_series_may_lie_in_several_folders(self, folder: Path) -> None:
        for i, data in enumerate(slices("1.2.8", 4)):
            write(folder / "cd" / f"{i % 2}", **{f"{i}": data})
        assert named(listed(folder), folder)["cd"] == (4, True)

    def test_radiographs_of_one_series_are_a_case_each(self, folder: Path) -> None:
        both = [edited(SeriesInstanceUID="1.2.7", SOPInstanceUID=generate_uid()) for _ in range(2)]
        write(folder / "chest", pa=both[0], lateral=both[1])
        assert {"chest/pa": (1, False), "chest/lateral": (1, False)}.items() <= named(listed(folder), folder).items()

    def test_what_is_no_image_of_a_patient_is_left_out(self, folder: Path) -> None:
        before = listed(folder)
        write(folder, report__dcm=report_without_pixels())
        write(
            folder,
            overview__dcm=file_of(
                dicom_slice(np.zeros((64, 64), np.int16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
            ),
        )
        after = listed(folder)
        assert after.sources == before.sources
        assert after.left_out == before.left_out + 2

    def test_a_broken_file_that_is_called_a_scan_is_a_case(self, folder: Path) -> None:
        write(folder, broken__dcm=bytes(128) + b"DICM" + b"?" * 50, empty__png=b"", half__nii__gz=b"\x1f\x8b")
        assert {"broken.dcm", "empty.png", "half.nii.gz"} < set(named(listed(folder), folder))

    def test_links_hidden_files_and_the_output_are_left_alone(self, folder: Path, tmp_path: Path) -> None:
        before = listed(folder)
        write(tmp_path / "elsewhere", b__png=phantom.png_bytes(PIXELS))
        (folder / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
        (folder / "linked").symlink_to(tmp_path / "elsewhere")
        (folder / "loop").symlink_to(folder)
        write(folder / ".hidden", b__png=phantom.png_bytes(PIXELS))
        write(folder, **{"__b__png": phantom.png_bytes(PIXELS)})
        write(folder / "results" / "masks", b__png=phantom.png_bytes(PIXELS))
        assert listed(folder, output=folder / "results").sources == before.sources

    def test_places_are_apart_and_the_same_each_time(self, folder: Path, tmp_path: Path) -> None:
        write(folder, a__dcm=slices("1.2.5", 1)[0], a=phantom.png_bytes(PIXELS))
        write(tmp_path / "other" / "scans", a__png=phantom.png_bytes(PIXELS))
        given = (folder, tmp_path / "other" / "scans", folder / "a.png")
        places = [one.place for one in listed(*given).sources]
        assert len(set(places)) == len(places)
        assert None not in places
        assert places == [one.place for one in listed(*given).sources]
        assert str(listed(folder).sources[0].place) == "a"

    def test_a_file_that_is_named_again_is_read_once(self, folder: Path) -> None:
        assert [one.name for one in listed(folder, folder / "a.png").sources].count(str(folder / "a.png")) == 1

    def test_a_folder_without_scans_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "texts", notes__txt=b"hello")
        with pytest.raises(RequestError, match=r"expected scans in .*texts, got none in 1 files"):
            listed(tmp_path / "texts")


class TestNames:
    def test_files_are_cases_in_the_order_given_whatever_they_share(self, folder: Path) -> None:
        files = [folder / "patient" / "2", folder / "patient" / "0", folder / "missing.png"]
        assert listed(*files).sources == tuple(Source(str(file), (file,), is_study=False) for file in files)

    def test_with_a_series_chosen_a_folder_is_one_study(self, folder: Path) -> None:
        assert listed(folder, series=0).sources == (Source(str(folder), (folder,), is_study=True),)

    @pytest.mark.parametrize(
        ("name", "stem"), [("a/CT.nii.gz", "CT"), ("CT.NII.GZ", "CT"), ("x.1.dcm", "x.1"), ("patient", "patient")]
    )
    def test_stems(self, name: str, stem: str) -> None:
        assert Source(name, (), is_study=True).stem == stem
