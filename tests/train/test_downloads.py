from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from lungstreams.cli import app, main
from serving import phantom
from serving.errors import DatasetError
from train import downloads
from train.downloads import Origin, RemoteFile

BODY = bytes(range(256)) * 4000


@dataclass
class Site:
    """Files on loopback.

    Attributes:
        files: Path -> bytes.
        breaks_at: Close the connection after so many bytes of an answer.
        etag: Sent with every file, if any.
        ranges: What was asked for, in order.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    breaks_at: int | None = None
    etag: str | None = '"one"'
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments: object) -> None:
        self.site = site
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.site.ranges.append(asked)
        body = self.site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if asked and self.headers["If-Range"] == self.site.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if self.site.etag:
            self.send_header("ETag", self.site.etag)
        self.end_headers()
        self.wfile.write(body[start:][: self.site.breaks_at])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, served)) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def known(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, Origin]:
    """The table of origins, with addresses on loopback."""
    table = {
        "plain": origin(RemoteFile(f"{site.url}/scan.bin", "scan.bin", "scan.bin")),
        "zipped": origin(RemoteFile(f"{site.url}/all.zip", "all.zip", "metadata.csv", inside="set-*")),
        "account": Origin(
            "account", "scans", ("recognition",), "theirs", "https://example.org", by_hand="it needs one"
        ),
    }
    monkeypatch.setattr(downloads, "ORIGINS", table)
    site.files["/scan.bin"] = BODY
    return table


def origin(file: RemoteFile) -> Origin:
    return Origin("plain", "scans", ("recognition",), "CC0", "https://example.org", (file,))


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestDownload:
    def test_a_file_arrives_whole_and_is_not_fetched_twice(self, site, known, tmp_path):
        told: list[tuple[str, int, int | None]] = []
        downloads.download("plain", tmp_path / "new", lambda *step: told.append(step))
        assert (tmp_path / "new" / "scan.bin").read_bytes() == BODY
        assert left(tmp_path) == {"new/scan.bin"}
        assert told[-1] == ("scan.bin", len(BODY), len(BODY))
        downloads.download("plain", tmp_path / "new")
        assert site.ranges == [None]

    def test_what_is_not_there_leaves_nothing(self, site, known, tmp_path):
        site.files.clear()
        with pytest.raises(DatasetError, match=r"scan.bin: expected the file, got HTTP 404 Not Found"):
            downloads.download("plain", tmp_path)
        assert left(tmp_path) == set()

    def test_a_transfer_that_breaks_off_leaves_no_finished_file_and_is_gone_on_with(self, site, known, tmp_path):
        site.breaks_at = 600_000
        with pytest.raises(DatasetError, match=r"expected 1,024,000 bytes, got 600,000: broken off"):
            downloads.download("plain", tmp_path)
        assert left(tmp_path) == {"scan.bin.partial", "scan.bin.partial.etag"}
        site.breaks_at = None
        downloads.download("plain", tmp_path)
        assert site.ranges == [None, "bytes=600000-"]
        assert (tmp_path / "scan.bin").read_bytes() == BODY
        assert left(tmp_path) == {"scan.bin"}

    @pytest.mark.parametrize("etag", ['"two"', None])
    def test_another_version_is_fetched_from_its_beginning(self, site, known, tmp_path, etag):
        site.breaks_at = 600_000
        with pytest.raises(DatasetError):
            downloads.download("plain", tmp_path)
        site.breaks_at, site.etag, site.files["/scan.bin"] = None, etag, BODY[::-1]
        downloads.download("plain", tmp_path)
        assert (tmp_path / "scan.bin").read_bytes() == BODY[::-1]

    def test_a_server_that_names_no_version_is_asked_for_all_of_it(self, site, known, tmp_path):
        site.breaks_at, site.etag = 600_000, None
        with pytest.raises(DatasetError):
            downloads.download("plain", tmp_path)
        site.breaks_at = None
        downloads.download("plain", tmp_path)
        assert site.ranges == [None, None]
        assert (tmp_path / "scan.bin").read_bytes() == BODY

    def test_one_that_was_killed_at_the_very_end_starts_anew(self, site, known, tmp_path):
        (tmp_path / "scan.bin.partial").write_bytes(BODY)
        (tmp_path / "scan.bin.partial.etag").write_text('"one"')
        downloads.download("plain", tmp_path)
        assert site.ranges == [f"bytes={len(BODY)}-", None]
        assert left(tmp_path) == {"scan.bin"}

    @pytest.mark.parametrize(
        ("what", "expected"),
        [
            ({"size_bytes": 7}, "expected 7 bytes, got 1,024,000"),
            ({"sha256": "0" * 64}, "expected a file of SHA-256 0"),
        ],
    )
    def test_another_file_than_the_known_one_is_refused(self, site, known, tmp_path, what, expected):
        known["plain"] = origin(RemoteFile(f"{site.url}/scan.bin", "scan.bin", "scan.bin", **what))
        with pytest.raises(DatasetError, match=expected):
            downloads.download("plain", tmp_path)
        assert left(tmp_path) == set()

    def test_the_known_file_is_taken(self, site, known, tmp_path):
        what = {"size_bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
        known["plain"] = origin(RemoteFile(f"{site.url}/scan.bin", "scan.bin", "scan.bin", **what))
        downloads.download("plain", tmp_path)
        assert left(tmp_path) == {"scan.bin"}

    def test_an_archive_is_unpacked_without_the_folder_around_it(self, site, known, tmp_path):
        files = {"set-1/metadata.csv": b"a", "set-1/images/1.png": b"b", "__MACOSX/set-1/x": b"c"}
        site.files["/all.zip"] = zipped(files)
        downloads.download("zipped", tmp_path)
        assert left(tmp_path) == {"metadata.csv", "images/1.png"}
        downloads.download("zipped", tmp_path)
        assert len(site.ranges) == 1

    def test_an_archive_can_not_write_outside(self, site, known, tmp_path):
        site.files["/all.zip"] = zipped({"set-1/metadata.csv": b"a", "../../evil": b"b", "/evil": b"c"})
        downloads.download("zipped", tmp_path / "deep" / "er")
        assert left(tmp_path) == {"deep/er/metadata.csv"}

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"no archive", "expected a ZIP archive"),
            (zipped({"set-1/a": b""}), "expected an archive with metadata.csv"),
        ],
    )
    def test_an_archive_that_is_none_or_another_is_refused(self, site, known, tmp_path, data, expected):
        site.files["/all.zip"] = data
        with pytest.raises(DatasetError, match=expected):
            downloads.download("zipped", tmp_path)
        assert left(tmp_path) <= {"all.zip"}

    def test_nobody_at_the_address_is_one_error(self, site, known, tmp_path):
        known["plain"] = origin(RemoteFile("http://127.0.0.1:9/scan.bin", "scan.bin", "scan.bin"))
        with pytest.raises(DatasetError, match=r"scan.bin: expected the whole file, got 0 bytes"):
            downloads.download("plain", tmp_path)


def test_every_origin_says_what_it_is_and_how_to_get_it():
    for name, known_origin in downloads.ORIGINS.items():
        assert name == known_origin.name
        assert known_origin.page.startswith("https://")
        assert bool(known_origin.files) != bool(known_origin.by_hand)
        assert all(file.url.startswith("https://") for file in known_origin.files)
        assert known_origin.licence
        assert known_origin.tasks


class TestDataCommand:
    @staticmethod
    def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lungstreams", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.err

    def test_lists_the_origins(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        result = CliRunner().invoke(app, ["data"])
        assert result.exit_code == 0
        for name, known_origin in downloads.ORIGINS.items():
            assert name in result.stdout
            assert known_origin.page in result.stdout

    def test_downloads_into_a_folder(self, known, tmp_path):
        result = CliRunner().invoke(app, ["data", "download", "plain", "--out", str(tmp_path / "here")])
        assert result.exit_code == 0, result.output
        assert (tmp_path / "here" / "scan.bin").read_bytes() == BODY
        assert "licence: CC0" in result.stdout

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("nothing", "expected one of plain, zipped, account, got 'nothing'"),
            ("account", "account has no plain address: it needs one; see https://example.org"),
            ("zipped", "got HTTP 404"),
        ],
    )
    def test_what_can_not_be_downloaded_is_one_line(self, known, tmp_path, monkeypatch, capfd, name, expected):
        code, complaint = self.run(monkeypatch, capfd, "data", "download", name, "--out", tmp_path)
        assert code == 2
        assert len(complaint.splitlines()) == 1
        assert expected in complaint

    def test_checks_a_folder(self, tmp_path):
        for name, n in (("covid", 3), ("normal", 2)):
            (tmp_path / name).mkdir()
            for i in range(n):
                pixels = phantom.chest_xray(seed=i, size_px=96)
                (tmp_path / name / f"{i}.png").write_bytes(phantom.png_bytes(pixels))
        result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--pictures", str(tmp_path / "seen")])
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "seen").glob("class_folders.*.png"))) == 5
        assert "a folder per class, for recognition" in result.stdout
        for text in ("covid19", "normal", "train", "val", "test", "split by file", "licence:"):
            assert text in result.stdout

    def test_what_is_missing_is_said_and_is_a_failure(self, tmp_path):
        (tmp_path / "xray").mkdir()
        (tmp_path / "xray" / "manifest.csv").write_text("file,label,group_id,patient_id,source_dataset\n")
        result = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
        assert result.exit_code == 1
        assert "missing: expected" in result.stdout
        assert "ct_classification/manifest.csv" in result.stdout.replace("\n  ", "")

    def test_a_folder_of_nothing_known_is_one_line(self, tmp_path, monkeypatch, capfd):
        code, complaint = self.run(monkeypatch, capfd, "data", "check", tmp_path)
        assert code == 2
        assert len(complaint.splitlines()) == 1
        assert "got an empty folder" in complaint
