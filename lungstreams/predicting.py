"""``lungstreams predict``: files and folders in, a line of JSON or a table for each case out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lungstreams.cases import CaseResult, failed_case
from lungstreams.cluster import Cluster
from lungstreams.console import EXIT_SOME_FAILED, complain, fail, out, stopped_by_signals, unstoppable
from lungstreams.ledger import LINES_NAME, TABLE_NAME, Ledger, fingerprint
from lungstreams.masks import MaskFolder
from lungstreams.progress import Bars
from lungstreams.reading import Ask, Reader
from lungstreams.sources import Listing, Source, list_sources
from lungstreams.tables import table_of, warning_of
from serving import exports, pipeline
from serving.client import PipelineClient
from serving.errors import RequestError, ScanError, ServerUnreachable
from serving.labels import REQUESTED_MODALITIES, RequestedModality
from serving.results import resolve_thresholds
from serving.series import read_study
from serving.tls import ClientTls

EXIT_STOPPED: Final = 130
MASKS_NAME: Final = "masks"


@dataclass(frozen=True)
class Output:
    """Where and how cases are written.

    Attributes:
        as_json: Lines of JSON on standard output in the place of tables.
        folder: Of masks and exports, and of a batch's record; None for none.
        resume: Whether a batch goes on from its record.
    """

    as_json: bool = False
    folder: Path | None = None
    resume: bool = True


def parse_thresholds(given: Sequence[str]) -> dict[str, float]:
    """``NAME=VALUE`` pairs as thresholds.

    Raises:
        RequestError: If one is no such pair, or is not one that the pipeline has.
    """
    thresholds = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        try:
            thresholds[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise RequestError(f"threshold: expected NAME=VALUE, as in ground_glass=0.3, got {pair!r}")
    resolve_thresholds(thresholds)
    return thresholds


def parse_modality(given: str) -> RequestedModality:
    """A modality by its name.

    Raises:
        RequestError: If there is no such modality.
    """
    for modality in REQUESTED_MODALITIES:
        if given == modality:
            return modality
    raise RequestError(f"modality: expected one of {', '.join(REQUESTED_MODALITIES)}, got {given!r}")


def parse_exports(given: Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """Kinds of exports by their names.

    Raises:
        RequestError: If there is no such kind, or no folder for them.
    """
    for kind in given:
        if kind not in exports.KINDS:
            raise RequestError(f"export: expected one of {', '.join(exports.KINDS)}, got {kind!r}")
    if given and folder is None:
        raise RequestError("--export: expected a folder to write to, got none: add --out DIR")
    return tuple(dict.fromkeys(given))


def parse_explain(given: bool, folder: Path | None) -> bool:
    """Whether to explain.

    Raises:
        RequestError: If there is no folder for the pictures.
    """
    if given and folder is None:
        raise RequestError("--explain: expected a folder to write to, got none: add --out DIR")
    return given


def parse_engine(given: str, address: str | None, url: str, ask: Ask, tls: ClientTls | None) -> Cluster | None:
    """The cluster that the cases are done on; None for this process. Ends the command where Ray is not installed.

    Raises:
        RequestError: If there is an address for nothing.
    """
    if given == "ray":
        return Cluster(address, url, ask, tls)
    if address is not None:
        raise RequestError("--ray-address: expected --engine ray with it, got it alone")
    return None


def list_series(given: Sequence[Path]) -> int:
    """Write the series of each archive and folder, with the number that ``--series`` takes: the exit code."""
    failed = False
    for path in given:
        try:
            study = read_study(path)
        except ScanError as error:
            failed = True
            complain(f"{path}: {type(error).__name__}: {error}")
            continue
        out.print(str(path), markup=False, highlight=False, soft_wrap=True)
        for number, series in enumerate(study.series):
            out.print(f"  {number}: {series.summary}", markup=False, highlight=False, soft_wrap=True)
        for left in study.left_out:
            out.print(f"  not read: {left.words}", markup=False, highlight=False, soft_wrap=True)
    return EXIT_SOME_FAILED if failed else 0


def predict_files(
    given: Sequence[Path],
    url: str,
    ask: Ask,
    output: Output,
    tls: ClientTls | None = None,
    cluster: Cluster | None = None,
) -> int:
    """Ask for each file and each scan of each folder, and write what came: the exit code.

    Args:
        given: Files and folders.
        url: Triton's gRPC address.
        ask: What is asked.
        output: Where and how cases are written.
        tls: For a server that speaks TLS.
        cluster: Where the cases are done, with the same address, question and TLS; None: in this process.

    Raises:
        RequestError: If there is nothing to read, or another run writes to the folder.
        ServerError: If the server can not be asked at all.
    """
    code = EXIT_STOPPED
    with stopped_by_signals(), PipelineClient(url, tls=tls) as client, cluster or nullcontext():
        try:
            client.check()
        except ServerUnreachable as error:
            raise ServerUnreachable(
                f"{error}; start a server with `lungstreams serve`, or name one with --url"
            ) from error
        listing = list_sources(given, ask.series, output.folder)
        run = _Run(client, ask, output, cluster)
        code = run.batch(listing) if listing.folders else run.by_hand(listing)
    return code


class _Run:
    def __init__(self, client: PipelineClient, ask: Ask, output: Output, cluster: Cluster | None) -> None:
        self._client = client
        self._ask = ask
        self._output = output
        self._cluster = cluster
        self._outcomes: Counter[bool] = Counter()

    def by_hand(self, listing: Listing) -> int:
        masks = MaskFolder(self._output.folder) if self._output.folder is not None else None
        with Bars(len(listing.sources)) as bars:
            for _, cases in self._cases(listing.sources, masks, bars, at_once=1):
                bars.done()
                self._count(cases)
                self._write(cases, bars, in_short=False)
        return EXIT_SOME_FAILED if self._outcomes[True] else 0

    def batch(self, listing: Listing) -> int:
        unread = [failed_case(str(error.filename), error) for error in listing.unread]
        with Bars(len(listing.sources)) as bars:
            self._count(unread)
            self._write(unread, bars, in_short=True)
            try:
                earlier = self._batch(listing, bars)
            except KeyboardInterrupt:
                with bars.above():
                    complain(f"stopped; {self._outcomes.total():,} cases were done and are kept")
                raise
        self._outcomes.update(earlier)
        self._summary(listing, earlier)
        return EXIT_SOME_FAILED if self._outcomes[True] else 0

    def _batch(self, listing: Listing, bars: Bars) -> Counter[bool]:
        folder = self._output.folder
        if folder is None:
            self._read(listing.sources, None, None, bars)
            return Counter()
        asked = {
            "modality": self._ask.modality,
            "thresholds": resolve_thresholds(self._ask.thresholds),
            "exports": sorted(self._ask.exports),
            # A record from when masks went beyond the body does not count: a folder would hold both kinds.
            "masks": "within the body",
            # Not there where it was not asked for: a record from before it could be still counts.
            **({"explain": True} if self._ask.explain else {}),
            "models": self._client.versions(),
        }
        wanted = {source.name: fingerprint(source, asked) for source in listing.sources}
        with Ledger(folder, wanted, listing.folders, resume=self._output.resume) as ledger:
            bars.done(len(ledger.done))
            left = (source for source in listing.sources if source.name not in ledger.done)
            self._read(left, MaskFolder(folder / MASKS_NAME), ledger, bars)
            return ledger.outcomes

    def _read(self, sources: Iterable[Source], masks: MaskFolder | None, ledger: Ledger | None, bars: Bars) -> None:
        for source, cases in self._cases(sources, masks, bars, at_once=pipeline.MAX_BATCH_SIZE):
            # A line without its row, or one that is not counted, would be no whole case.
            with unstoppable():
                if ledger is not None:
                    try:
                        ledger.add(source, cases)
                    except OSError as error:
                        fail(f"--out: {ledger.folder} can not be written: {error.strerror or error}")
                self._count(cases)
            bars.done()
            self._write(cases, bars, in_short=True)

    def _cases(
        self, sources: Iterable[Source], masks: MaskFolder | None, bars: Bars, *, at_once: int
    ) -> Iterator[tuple[Source, tuple[CaseResult, ...]]]:
        if self._cluster is not None:
            # Whoever names files expects their order; a batch would rather have done with each.
            return self._cluster.read(sources, masks, in_order=at_once == 1)
        return Reader(self._client, self._ask, masks, in_flight=at_once, slices=bars.slices).read(sources)

    def _count(self, cases: Sequence[CaseResult]) -> None:
        self._outcomes.update(case.failed for case in cases)

    def _write(self, cases: Sequence[CaseResult], bars: Bars, *, in_short: bool) -> None:
        with bars.above():
            for case in cases:
                if self._output.as_json:
                    out.file.write(f"{case.line}\n")
                    out.file.flush()
                    continue
                if "error" not in case.data and in_short:
                    out.print(case.sentence, markup=False, highlight=False, soft_wrap=True)
                elif "error" not in case.data:
                    if case.doubts:
                        out.print(warning_of(case))
                    out.print(table_of(case))
                for complaint in case.complaints:
                    complain(complaint)

    def _summary(self, listing: Listing, earlier: Counter[bool]) -> None:
        total, failed = self._outcomes.total(), self._outcomes[True]
        said = [f"cases: {total:,}, failed: {failed:,}"]
        if earlier.total():
            said.append(f"done by an earlier run: {earlier.total():,}")
        if listing.left_out:
            said.append(f"files left out, which are no scans: {listing.left_out:,}")
        if self._output.folder is not None:
            said.append(f"see {self._output.folder / TABLE_NAME} and {LINES_NAME}")
        complain("; ".join(said))
