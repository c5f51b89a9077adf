"""The tab for many files: a row a case, as they come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo import folder, panels
from demo.downloads import fetch
from demo.folders import kept
from demo.parts import AT_ONCE, SHOW_RESULT, chosen_thresholds, directory_button, html, shown, threshold_sliders
from demo.site import Site, Stops
from serving.errors import LungstreamsError

FOLDERS_AT_ONCE: Final = 1

_INTRO: Final = panels.steps(
    "No cases yet",
    (
        "<strong>A row for each file</strong>: scans, and studies as NIfTI, zip, or DICOM of many frames.",
        "<strong>A file that can not be read</strong> is a row that says why.",
        "<strong>A CSV</strong> of all of them to take away.",
    ),
)
_Updates = dict[Any, Any]


class FolderTab:
    """The components of the tab, and its events.

    Args:
        site: The page.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stops = Stops()

    def lay_out(self) -> None:
        """Place the components: input left, table right."""
        with gr.Row(elem_classes="ls-bench"):
            with gr.Column(elem_classes="ls-input"):
                self.files = gr.File(
                    label="Scans and studies, as many as you like",
                    file_count="multiple",
                    type="filepath",
                    elem_id="files",
                )
                self.folder = directory_button("Or choose a whole folder", "directory")
                self.thresholds = threshold_sliders("folder-")
                self.go = gr.Button("Read the files", variant="primary", elem_id="folder-go", elem_classes="ls-go")
                self.cancel = gr.Button(
                    "Stop reading", visible=False, elem_id="folder-cancel", elem_classes="ls-cancel"
                )
                self.progress = html(elem_id="folder-progress", visible=False)
            with gr.Column(elem_classes="ls-result"):
                self.alert = html(elem_id="folder-alert", visible=False)
                self.table = html(_INTRO, elem_id="cases")
                self.csv = gr.Button("Take it away as CSV", visible=False, elem_id="folder-csv", size="sm")
                self.file = gr.File(
                    label="Your file", visible=False, interactive=False, elem_id="folder-file", elem_classes="ls-file"
                )
        self.rows = gr.State(None, time_to_live=self.site.kept_s)
        # For the endpoint alone, see `demo.scan_tab`.
        self.asked = gr.Button(visible=False)
        self.answer = gr.JSON(visible=False)

    def wire(self) -> None:
        """Connect the events."""
        read: dict[str, Any] = {
            "fn": self.read,
            "inputs": [self.files, *self.thresholds],
            "outputs": [self.progress, self.cancel, self.alert, self.table, self.csv, self.file, self.rows],
            "show_progress": "hidden",
            "concurrency_limit": FOLDERS_AT_ONCE,
            "concurrency_id": "folders",
            "js": SHOW_RESULT,
            "api_visibility": "private",
        }
        self.go.click(**read)
        self.files.upload(**read)
        taken = self.folder.upload(lambda paths: paths, inputs=[self.folder], outputs=[self.files], **AT_ONCE)
        taken.then(**read)
        self.files.clear(self.emptied, outputs=read["outputs"], **AT_ONCE)
        self.cancel.click(self.stop, outputs=[self.cancel], **AT_ONCE)
        made = self.csv.click(
            self.make_csv,
            inputs=[self.rows],
            outputs=[self.file],
            show_progress="hidden",
            api_visibility="private",
        )
        made.then(None, js=fetch("folder-file"))
        self.asked.click(
            self.predict,
            inputs=[self.files, *self.thresholds],
            outputs=[self.answer],
            concurrency_limit=FOLDERS_AT_ONCE,
            concurrency_id="folders",
            api_name="predict_folder",
        )

    def read(self, request: gr.Request, paths: Sequence[str] | None, *thresholds: float | None) -> Iterator[_Updates]:
        """Read the files; the table grows as they come."""
        if not paths:
            yield self.emptied(panels.message("There is nothing to read", "upload some files first"))
            return
        stop, noted = self.stops.start(request.session_hash), self._noted(request)
        rows: list[folder.Row] = []
        yield {**self.emptied(), **self._told(0, len(paths))}
        alert = ""
        try:
            asked = chosen_thresholds(thresholds)
            for row in folder.read_folder(self.site.url, kept(paths), asked, stop, tls=self.site.tls, ended=noted):
                rows.append(row)
                yield {**self._told(len(rows), len(paths)), self.table: folder.table(rows)}
        except LungstreamsError as error:
            noted(error)
            alert = panels.alert(error)
        finally:
            self.stops.end(stop)
        if len(rows) < len(paths) and not alert:
            alert = panels.message("Stopped", f"{len(rows):,} of {len(paths):,} files were read")
        yield {
            self.progress: shown(""),
            self.cancel: gr.update(visible=False),
            self.alert: shown(alert),
            self.csv: gr.update(visible=bool(rows)),
            self.rows: tuple(rows),
        }

    def stop(self, request: gr.Request) -> Any:
        """Ask the session's reading to stop; what was read stays."""
        self.stops.stop(request.session_hash)
        return gr.update(value="Stopping …", interactive=False)

    def make_csv(self, rows: Sequence[folder.Row] | None) -> Iterator[Any]:
        """Write the table."""
        if rows is None:
            gr.Info("These cases are not kept any more: read them again.")
            yield gr.skip()
            return
        with tempfile.TemporaryDirectory(dir=self.site.folder) as place:
            path = Path(place) / "lungstreams.csv"
            path.write_text(folder.csv_text(rows), encoding="utf-8")
            # Gradio has copied the file when it asks for more, and the folder goes.
            yield gr.update(value=str(path), visible=True)

    def predict(
        self,
        request: gr.Request,
        paths: Sequence[str] | None,
        covid19: float | None,
        ground_glass: float | None,
        consolidation: float | None,
        pleural_effusion: float | None,
    ) -> list[dict[str, object]]:
        """Read many files: for each its ``number``, ``file``, and what ``/predict`` or ``/predict_volume`` says of it.

        Args:
            request: Gradio's; names the user.
            paths: The files.
            covid19: Threshold of the gate before the manifestations, in `[0, 1]`.
            ground_glass: Threshold of its stream.
            consolidation: Threshold of its stream.
            pleural_effusion: Threshold of its stream.
        """
        stop, noted = self.stops.start(None), self._noted(request)
        thresholds = chosen_thresholds([covid19, ground_glass, consolidation, pleural_effusion])
        try:
            reading = folder.read_folder(
                self.site.url, kept(paths or ()), thresholds, stop, tls=self.site.tls, ended=noted
            )
            rows = list(reading)
        except LungstreamsError as error:
            noted(error)
            return [panels.error_json(error)]
        return [row.to_json() for row in sorted(rows, key=lambda row: row.number)]

    def _noted(self, request: gr.Request) -> Callable[[folder.Outcome], None]:
        return lambda outcome: self.site.audit.ended(request.username, outcome)

    def emptied(self, alert: str = "") -> _Updates:
        """No result, and perhaps why."""
        return {
            self.progress: shown(""),
            self.cancel: gr.update(visible=False),
            self.alert: shown(alert),
            self.table: _INTRO,
            self.csv: gr.update(visible=False),
            self.file: gr.update(value=None, visible=False),
            self.rows: None,
        }

    def _told(self, done: int, of: int) -> _Updates:
        return {
            self.progress: shown(panels.progress(f"File {done:,} of {of:,}", done, of)),
            self.cancel: gr.update(visible=True, value="Stop reading", interactive=True),
        }
