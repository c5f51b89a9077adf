"""The tab for a CT study: read slice by slice, stopped when asked, looked at slice by slice.

The session keeps a key of `demo.study.Shelf` and nothing else. A slice that is looked at is read from the visitor's
file again and drawn; no file of it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import gradio as gr

from demo import panels, study_panels
from demo.examples import Example
from demo.folders import kept
from demo.parts import AT_ONCE, REDRAW, SHOW_RESULT, chosen_thresholds, or_default, seen_through, shown
from demo.site import Site, Stops
from demo.study import Progress, Shelf, StudyView, open_study, read_slices, source_of
from demo.volume_screen import Updates, VolumeScreen, choices, film, words
from serving.client import PipelineClient
from serving.errors import AmbiguousStudy, LungstreamsError, RequestError
from serving.studies import open_volume
from serving.study_reading import read_volume
from serving.volumes import Volume
from serving.windows import Window

STUDIES_AT_ONCE: Final = 1
"""Readings side by side: one keeps the server busy, and another would hold its own slices."""

STUDIES_KEPT: Final = 8

_GONE: Final = "This study is not kept any more: read it again."


class VolumeTab:
    """The events of the tab.

    Args:
        site: The page.
        example: A study to try.
    """

    def __init__(self, site: Site, example: Example) -> None:
        self.site = site
        self.shelf = Shelf(STUDIES_KEPT, site.kept_s)
        self.stops = Stops()
        self.screen = VolumeScreen(site, example, self.shelf)

    def wire(self) -> None:
        """Connect the events."""
        screen = self.screen
        read: dict[str, Any] = {
            "fn": self.read,
            "inputs": [screen.key, screen.files, screen.series, *screen.layers.inputs[1:], *screen.thresholds],
            "outputs": screen.outputs,
            "show_progress": "hidden",
            "concurrency_limit": STUDIES_AT_ONCE,
            "concurrency_id": "studies",
            "js": SHOW_RESULT,
            "api_visibility": "private",
        }
        screen.go.click(**read)
        replaced: dict[str, Any] = {"fn": self.replaced, "inputs": [screen.key], "outputs": screen.outputs, **AT_ONCE}
        screen.files.clear(**replaced)
        screen.files.upload(**replaced).then(**read)
        taken = {**replaced, "fn": self.taken, "inputs": [screen.key, screen.folder]}
        screen.folder.upload(**taken).then(**read)
        screen.button.click(**{**replaced, "fn": self.picked}).then(**read)
        screen.cancel.click(self.stop, outputs=[screen.cancel], **AT_ONCE)
        redraw: dict[str, Any] = {
            "fn": self.redraw,
            "inputs": [screen.key, screen.slice, *screen.layers.inputs],
            "outputs": [screen.film, screen.words],
        }
        screen.slice.input(**redraw, **REDRAW)
        screen.layers.on_input(**redraw)
        screen.downloads.wire(screen.key)
        screen.asked.click(
            self.predict,
            inputs=[screen.files, screen.number, *screen.thresholds],
            outputs=[screen.answer],
            concurrency_limit=STUDIES_AT_ONCE,
            concurrency_id="studies",
            api_name="predict_volume",
        )

    def read(
        self,
        request: gr.Request,
        key: str | None,
        paths: Sequence[str] | None,
        series: int | None,
        opacity: float | None,
        window: str | None,
        level_hu: float | None,
        width_hu: float | None,
        *thresholds: float | None,
    ) -> Iterator[Updates]:
        """Read the uploaded study slice by slice; an error becomes a message where the result would be."""
        screen = self.screen
        self.shelf.drop(key)
        if not paths:
            yield screen.emptied(panels.message("There is no study to read", "upload one or try the phantom first"))
            return
        waiting = {screen.progress: shown(study_panels.opening()), screen.film: panels.film("", "Reading the study …")}
        yield {**screen.emptied(), **waiting}
        stop = self.stops.start(request.session_hash)
        try:
            with self.site.audit.case(request.username) as case:
                opened = open_study(kept(paths), series)
                if not isinstance(opened, Volume):
                    case.error = AmbiguousStudy(opened)
                    yield {**screen.emptied(), screen.series: choices(opened)}
                    return
                seen = seen_through(window, level_hu, width_hu)
                asked, tls = chosen_thresholds(thresholds), self.site.tls
                for progress in read_slices(self.site.url, opened, asked, stop, tls=tls, request_id=case.request_id):
                    case.report, case.error = progress.report, progress.error
                    yield screen.told(progress)
            yield self._outcome(opened, progress, or_default(opacity), seen)
        except LungstreamsError as error:
            yield screen.emptied(panels.alert(error))
        finally:
            self.stops.end(stop)

    def stop(self, request: gr.Request) -> Any:
        """Ask the session's reading to stop; it shows what it has read so far."""
        self.stops.stop(request.session_hash)
        return gr.update(value="Stopping …", interactive=False)

    def redraw(
        self,
        key: str | None,
        number: float | None,
        streams: Sequence[str],
        opacity: float | None,
        window: str | None,
        level_hu: float | None,
        width_hu: float | None,
    ) -> tuple[Any, Any]:
        """Draw a slice of the same study."""
        view = self.shelf.get(key)
        if view is None:
            gr.Info(_GONE)
            return gr.skip(), gr.skip()
        index = min(max(int(number or 1), 1), view.volume.shape[0]) - 1
        try:
            seen = seen_through(window, level_hu, width_hu)
            return film(view, index, streams, or_default(opacity), seen), words(view, index)
        except RequestError as error:
            gr.Info(str(error))
        except LungstreamsError:
            gr.Info(_GONE)
        return gr.skip(), gr.skip()

    def predict(
        self,
        request: gr.Request,
        paths: Sequence[str] | None,
        series: float | None,
        covid19: float | None,
        ground_glass: float | None,
        consolidation: float | None,
        pleural_effusion: float | None,
    ) -> dict[str, object]:
        """Read a study: `StudyReport.to_json`, or an `error` with its type and a message.

        Args:
            request: Gradio's; names the user.
            paths: A NIfTI or DICOM file, a zip of a series, or the files of one.
            series: Which of several series, from 0.
            covid19: Threshold of the gate before the manifestations, in `[0, 1]`.
            ground_glass: Threshold of its stream.
            consolidation: Threshold of its stream.
            pleural_effusion: Threshold of its stream.
        """
        try:
            if not paths:
                raise RequestError("expected files, got none")
            with self.site.audit.case(request.username) as case:
                volume = open_volume(source_of(kept(paths)), None if series is None else int(series))
                thresholds = chosen_thresholds([covid19, ground_glass, consolidation, pleural_effusion])
                with PipelineClient(self.site.url, tls=self.site.tls, drain_in_background=True) as client:
                    case.report = read_volume(client, volume, thresholds, request_id=case.request_id)
            return case.report.to_json()
        except LungstreamsError as error:
            return panels.error_json(error)

    def replaced(self, request: gr.Request, key: str | None) -> Updates:
        """Other files, or none: what is being read ends, and what was said goes."""
        self.stops.stop(request.session_hash)
        self.shelf.drop(key)
        return {**self.screen.emptied(), self.screen.series: gr.update(choices=[], value=None, visible=False)}

    def picked(self, request: gr.Request, key: str | None) -> Updates:
        """The drawn study, as if it had been uploaded."""
        return {**self.replaced(request, key), self.screen.files: [str(self.screen.example.path)]}

    def taken(self, request: gr.Request, key: str | None, paths: Sequence[str] | None) -> Updates:
        """The files of a folder, as if they had been uploaded."""
        return {**self.replaced(request, key), self.screen.files: paths}

    def _outcome(self, volume: Volume, progress: Progress, opacity: float, seen: Window) -> Updates:
        """What is shown when a reading is over, however it ended."""
        alert = "" if progress.error is None else panels.alert(progress.error)
        if progress.report is None:
            why = panels.message("Nothing was read", "the reading was stopped before the first slice")
            return self.screen.emptied(alert or why)
        view = StudyView(volume, progress.report)
        return {**self.screen.filled(view, self.shelf.put(view), opacity, seen), self.screen.alert: shown(alert)}
