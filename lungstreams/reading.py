"""Sources through the pipeline, in their order: scans several at a time, studies one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lungstreams.cases import EXPLANATION, CaseResult, failed_case, scan_case, study_case
from lungstreams.masks import MaskFolder
from lungstreams.sources import Source
from serving import exports
from serving.activation import CAUTION
from serving.client import PipelineClient
from serving.dicom_volumes import series_volume
from serving.errors import GeometryError, InferenceFailed, RequestError, ScanError
from serving.labels import STREAM_NAMES, RequestedModality
from serving.limits import check_file_size
from serving.nifti import HEAD_BYTES, is_nifti
from serving.results import CaseReport
from serving.scans import decode
from serving.series import Series, Study, read_study
from serving.studies import open_volume
from serving.study_reading import read_volume
from serving.volumes import Volume
from serving.wire import new_request_id

OF_ONE_CASE: Final = (ScanError, RequestError, InferenceFailed, GeometryError, OSError)
"""What is wrong with one case; anything else is wrong with all of them."""

_OfOneCase = ScanError | RequestError | InferenceFailed | GeometryError | OSError
_NO_MASKS: Final[Mapping[str, str | None]] = dict.fromkeys(STREAM_NAMES)


@dataclass(frozen=True)
class Ask:
    """What is asked of every case.

    Attributes:
        modality: What scans are.
        thresholds: In `[0, 1]` by name.
        series: Which series of a study, from 0; None where there must be only one.
        exports: Kinds of `serving.exports.KINDS` that are written of each case.
        explain: Whether a picture of what speaks for the answer is written of each single scan.
    """

    modality: RequestedModality
    thresholds: Mapping[str, float]
    series: int | None = None
    exports: tuple[str, ...] = ()
    explain: bool = False

    @property
    def draws(self) -> bool:
        """Whether a scan itself is needed once its report is there."""
        return bool(self.exports) or self.explain


@dataclass(frozen=True, eq=False)
class _Sent:
    source: Source
    answer: Future[CaseReport] | _OfOneCase
    data: bytes | None
    request_id: str


class Reader:
    """Reads sources.

    Args:
        client: Stays open.
        ask: What is asked.
        masks: Where masks and exports go; None for nowhere.
        in_flight: How many scans are under way at most.
        slices: Called while a study is read, with how many of its slices are, and of how many.
    """

    def __init__(
        self,
        client: PipelineClient,
        ask: Ask,
        masks: MaskFolder | None,
        *,
        in_flight: int = 1,
        slices: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self._client = client
        self._ask = ask
        self._masks = masks
        self._in_flight = max(1, in_flight)
        self._slices = slices

    def read(self, sources: Iterable[Source]) -> Iterator[tuple[Source, tuple[CaseResult, ...]]]:
        """Cases of each source, in the order of the sources; one that can not be read is a case with an error.

        Raises:
            ServerError: If the server can not be asked at all.
        """
        waiting: deque[_Sent] = deque()
        try:
            for source in sources:
                while len(waiting) >= (1 if source.is_study else self._in_flight):
                    yield waiting[0].source, (self._received(waiting.popleft()),)
                if source.is_study:
                    yield source, tuple(self._study(source))
                else:
                    waiting.append(self._send(source))
                if self._in_flight == 1:
                    # Nothing is held back: whoever reads the lines of a pipe waits for this one.
                    while waiting:
                        yield waiting[0].source, (self._received(waiting.popleft()),)
            while waiting:
                yield waiting[0].source, (self._received(waiting.popleft()),)
        finally:
            for left in waiting:
                if isinstance(left.answer, Future):
                    left.answer.cancel()

    def _send(self, source: Source) -> _Sent:
        request_id = new_request_id()
        try:
            if self._ask.series:
                raise RequestError(f"series: expected a study, or series 0 of a scan, got {self._ask.series} of a scan")
            data = _read(source.paths[0])
            answer = self._client.submit(
                data, self._ask.modality, self._ask.thresholds, explain=self._ask.explain, request_id=request_id
            )
        except OF_ONE_CASE as error:
            return _Sent(source, error, None, request_id)
        return _Sent(source, answer, data if self._ask.draws else None, request_id)

    def _received(self, sent: _Sent) -> CaseResult:
        try:
            if not isinstance(sent.answer, Future):
                raise sent.answer
            return self._scan(sent.source, sent.answer.result(), sent.data)
        except OF_ONE_CASE as error:
            return failed_case(sent.source.name, error, sent.request_id)

    def _scan(self, source: Source, report: CaseReport, data: bytes | None, part: int = 0) -> CaseResult:
        if self._masks is None:
            return scan_case(source.name, report, _NO_MASKS)
        prefix = self._prefix(source, part)
        with _written_to(self._masks.folder):
            case = scan_case(source.name, report, self._masks.write(prefix, report))
            if data is not None and self._ask.explain:
                picture = self._masks.write_explanation(prefix, report, decode(data, report.modality).pixels)
                case = CaseResult({**case.data, EXPLANATION: picture}, f"{case.caption} {CAUTION}")
            if data is None or not self._ask.exports:
                return case
            return self._exported(case, exports.Case.of_scan(data, report), prefix)

    def _study(self, source: Source) -> Iterator[CaseResult]:
        request_id = new_request_id()
        try:
            if self._ask.modality == "xray":
                raise RequestError("modality: expected ct or auto for a study, got 'xray'")
            if _is_nifti(source.paths[0]):
                yield self._volume(source, open_volume(source.paths[0], self._ask.series), request_id)
                return
            study = read_study(source.paths[0] if len(source.paths) == 1 else source.paths)
            every = study.series if source.every_series else (study.choose(self._ask.series),)
        except OF_ONE_CASE as error:
            yield failed_case(source.name, error, request_id)
            return
        for part, series in enumerate(every):
            # Each series is a case of its own.
            request_id = new_request_id()
            try:
                yield self._series(source, study, series, part, request_id)
            except OF_ONE_CASE as error:
                yield failed_case(source.name, error, request_id)

    def _series(self, source: Source, study: Study, series: Series, part: int, request_id: str) -> CaseResult:
        if source.every_series and len(series.planes) == 1 and series.planes[0].frame_count == 1:
            data = series.planes[0].blob.read()
            report = self._client.predict(
                data, self._ask.modality, self._ask.thresholds, explain=self._ask.explain, request_id=request_id
            )
            return self._scan(source, report, data if self._ask.draws else None, part)
        return self._volume(source, series_volume(series), request_id, study, series, part)

    def _volume(
        self,
        source: Source,
        volume: Volume,
        request_id: str,
        study: Study | None = None,
        series: Series | None = None,
        part: int = 0,
    ) -> CaseResult:
        report = read_volume(self._client, volume, self._ask.thresholds, request_id=request_id, progress=self._slices)
        summary = None if series is None else series.summary
        left_out = () if study is None else study.left_out
        if self._masks is None:
            return study_case(source.name, report, _NO_MASKS, summary, left_out)
        prefix, case = self._prefix(source, part), exports.Case.of_volume(volume, report)
        with _written_to(self._masks.folder):
            masks = self._masks.write_study(prefix, case, report)
            result = study_case(source.name, report, masks, summary, left_out)
            if self._ask.explain:
                result = CaseResult({**result.data, EXPLANATION: None}, result.caption)
            return self._exported(result, case, prefix)

    def _exported(self, result: CaseResult, case: exports.Case, prefix: str) -> CaseResult:
        if self._masks is None or not self._ask.exports:
            return result
        place = self._masks.folder / prefix
        made, refused = exports.write_possible(case, self._ask.exports, place.parent, place.name)
        data = {
            **result.data,
            "exports": {kind: [str(path) for path in made.get(kind, ())] for kind in self._ask.exports},
            **({"export_errors": refused} if refused else {}),
        }
        return CaseResult(data, result.caption)

    def _prefix(self, source: Source, part: int) -> str:
        assert self._masks is not None
        if source.place is None:
            return self._masks.prefix(source.stem)
        place = source.place if not part else source.place.with_name(f"{source.place.name}.{part + 1}")
        # Of a file's own name alone: exports refuse it, for it would be a path elsewhere.
        return str(place.with_name(place.name.replace("\\", "_")))


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Says of an error in writing that it is one, and where: the case itself may be as good as any."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{folder} can not be written: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    # Held against the limit before reading: nobody wants a disk image in memory to be told that it is too large.
    check_file_size(path)
    return path.read_bytes()


def _is_nifti(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as stream:
        return is_nifti(stream.read(HEAD_BYTES))
