"""The tab for one scan: a file in; a diagnosis, manifestations and switchable masks out.

A case is asked for once. What it takes to draw it stays in the visitor's session, so that switching a layer or
changing the opacity or the window draws again and infers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo import caution, panels
from demo.case import KeptReport, View, read_case, read_file
from demo.downloads import Downloads
from demo.examples import Example, example_button
from demo.folders import UploadGone
from demo.parts import (
    AT_ONCE,
    CASES_AT_ONCE,
    REDRAW,
    SHOW_RESULT,
    Layers,
    chosen_thresholds,
    html,
    or_default,
    seen_through,
    shown,
    threshold_sliders,
)
from demo.site import Site
from serving import exports
from serving.activation import CAUTION
from serving.errors import LungstreamsError, RequestError, UnreadableScan, UnsupportedScan
from serving.labels import ALL_STREAM, DIAGNOSES, STREAMS, RequestedModality
from serving.results import CaseReport
from serving.studies import is_study_file

_OFF: Final = ""
"""No diagnosis: the masks are drawn."""

_READS_STUDIES: Final = "the tab Volume reads studies"
_FORGOTTEN: Final = "This case is not kept any more: read the scan again."


class ScanTab:
    """The components of the tab, and its events.

    Args:
        site: The page.
        examples: Scans to try.
    """

    def __init__(self, site: Site, examples: Sequence[Example]) -> None:
        self.site = site
        self.examples = examples

    def lay_out(self) -> None:
        """Place the components: input left, result right."""
        with gr.Row(elem_classes="ls-bench"):
            with gr.Column(elem_classes="ls-input"):
                self._lay_out_input()
            with gr.Column(elem_classes="ls-result", elem_id="result"):
                self._lay_out_result()

    def _lay_out_input(self) -> None:
        # Of any ending: DICOM files often have none, and Gradio refuses another by an exception and not in words.
        self.file = gr.File(label="Scan: PNG, JPEG or DICOM", type="filepath", elem_id="scan")
        with gr.Column(elem_classes="ls-examples"):
            html('<h2 class="ls-small">Or try a drawn phantom</h2>')
            self.buttons = [example_button(example) for example in self.examples]
        self.modality = gr.Radio(
            [("Auto", "auto"), ("CT", "ct"), ("X-ray", "xray")], value="auto", label="Modality", elem_id="modality"
        )
        self.thresholds = threshold_sliders()
        self.go = gr.Button("Read the scan", variant="primary", elem_id="go", elem_classes="ls-go")

    def _lay_out_result(self) -> None:
        self.alert = html(elem_id="alert", visible=False)
        # Above the picture, too: masks are no less doubtful, and on a phone they come first.
        self.doubts = html(elem_id="doubts", visible=False)
        with gr.Row(elem_classes="ls-reading"):
            with gr.Column(elem_classes="ls-viewer"):
                self.empty = html(panels.film("", "Upload a scan, or try a phantom"), elem_id="no-overlay")
                self.image = gr.Image(
                    visible=False,
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                    alt_text="The scan with the chosen masks over it",
                )
                self.layers = Layers()
                with gr.Group(visible=False, elem_id="why-box", elem_classes="ls-controls") as self.why_box:
                    choices = [("Off", _OFF), *((label.title, label.name) for label in DIAGNOSES)]
                    self.why = gr.Radio(choices, value=_OFF, label="Why this diagnosis", elem_id="why")
                    html(f'<p class="ls-note ls-inset">{escape(CAUTION)} Drawn in place of the masks.</p>')
            with gr.Column(elem_classes="ls-findings"):
                self.diagnosis = html(panels.intro(), elem_id="diagnosis")
                self.manifestations = html(elem_id="manifestations", visible=False)
                self.burden = html(elem_id="slice-burden", visible=False)
                self.meaning = html(elem_id="meaning", visible=False)
                self.downloads = Downloads("", self.site, _case_of)
                self.how = html(elem_id="how", visible=False)
        self.view = gr.State(None, time_to_live=self.site.kept_s)
        self.kept = gr.State(None, time_to_live=self.site.kept_s)
        # For the endpoint alone: what a program asks for is data and not a page.
        self.asked = gr.Button(visible=False)
        self.answer = gr.JSON(visible=False)

    def wire(self) -> None:
        """Connect the events."""
        read: dict[str, Any] = {
            "fn": self.read,
            "inputs": [self.file, self.modality, self.layers.opacity, *self.thresholds, *self.layers.inputs[2:]],
            "outputs": self.outputs,
            "concurrency_limit": CASES_AT_ONCE,
            "concurrency_id": "cases",
            "show_progress_on": [self.image, self.empty],
        }
        self.go.click(**read, js=SHOW_RESULT, api_name="read")
        self.file.clear(self.emptied, outputs=self.outputs, **AT_ONCE)
        # Another file: what was said of the one before goes first, so that it is never taken for an answer to this.
        replaced = [self.file.upload(self.emptied, outputs=self.outputs, **AT_ONCE)]
        for button, example in zip(self.buttons, self.examples, strict=True):
            outputs = [self.file, self.modality, *self.outputs]
            replaced.append(button.click(self._picked(example), outputs=outputs, **AT_ONCE))
        for event in replaced:
            event.then(**read, js=SHOW_RESULT, api_visibility="private")
        inputs = [self.view, *self.layers.inputs, self.why]
        self.layers.on_input(fn=self.redraw, inputs=inputs, outputs=[self.image])
        self.why.input(fn=self.redraw, inputs=inputs, outputs=[self.image], **REDRAW)
        self.downloads.wire(self.kept)
        self.asked.click(
            self.predict,
            inputs=[self.file, self.modality, *self.thresholds],
            outputs=[self.answer],
            concurrency_limit=CASES_AT_ONCE,
            concurrency_id="cases",
            api_name="predict",
        )

    @property
    def outputs(self) -> list[Any]:
        """What a new case fills, in the order of `_filled`."""
        return [
            self.view,
            self.kept,
            self.empty,
            self.image,
            self.diagnosis,
            self.manifestations,
            self.burden,
            self.how,
            self.doubts,
            self.meaning,
            self.alert,
            self.why_box,
            self.why,
            *self.layers.outputs,
            *self.downloads.outputs,
        ]

    def read(
        self,
        request: gr.Request,
        path: str | None,
        modality: RequestedModality,
        opacity: float | None,
        covid19: float | None,
        ground_glass: float | None,
        consolidation: float | None,
        pleural_effusion: float | None,
        window: str | None = "lung",
        level_hu: float | None = None,
        width_hu: float | None = None,
    ) -> list[Any]:
        """Read the uploaded file; an error becomes a message where the result would be."""
        if path is None:
            return self.emptied(panels.message("There is no scan to read", "upload a file or try a phantom first"))
        try:
            given = [covid19, ground_glass, consolidation, pleural_effusion]
            view, report = self._case(request, path, modality, given, explain=True)
            seen = seen_through(window, level_hu, width_hu)
        except LungstreamsError as error:
            return self.emptied(panels.alert(error))
        # `all` is off at first: its classes are those of the single streams, and would hide them.
        on = [name for name in view.masks if name != ALL_STREAM.name]
        choices = [(stream.title, stream.name) for stream in STREAMS if stream.name in view.masks]
        kept = KeptReport.of(Path(path), report)
        return [
            view,
            kept,
            gr.update(visible=False),
            gr.update(value=view.draw(on, or_default(opacity), seen), visible=True),
            panels.diagnosis(report),
            shown(panels.manifestations(report)),
            shown(panels.burden(report)),
            shown(panels.how(report)),
            shown(caution.doubts(report)),
            shown(caution.meaning(report)),
            shown(""),
            gr.update(visible=view.maps is not None),
            _OFF,
            *self.layers.filled(choices, on, has_hu=view.hu is not None, note=panels.layers_note(report)),
            *self.downloads.offered(_case_of(kept)),
        ]

    def emptied(self, alert: str = "") -> list[Any]:
        """No result, and perhaps why."""
        nothing = [panels.intro(), *[shown("") for _ in range(5)], shown(alert), gr.update(visible=False), _OFF]
        film = [gr.update(visible=True), gr.update(value=None, visible=False)]
        return [None, None, *film, *nothing, *self.layers.emptied(), *self.downloads.offered(None)]

    def redraw(
        self,
        view: View | None,
        streams: Sequence[str],
        opacity: float | None,
        window: str | None,
        level_hu: float | None,
        width_hu: float | None,
        why: str | None,
    ) -> Any:
        """Draw the same case again."""
        if view is None:
            gr.Info(_FORGOTTEN)
            return gr.skip()
        try:
            return view.draw(streams, or_default(opacity), seen_through(window, level_hu, width_hu), why or _OFF)
        except RequestError as error:
            gr.Info(str(error))
            return gr.skip()

    def predict(
        self,
        request: gr.Request,
        path: str | None,
        modality: RequestedModality,
        covid19: float | None,
        ground_glass: float | None,
        consolidation: float | None,
        pleural_effusion: float | None,
    ) -> dict[str, object]:
        """Read one scan: `CaseReport.to_json`, or an `error` with its type and a message.

        Args:
            request: Gradio's; names the user.
            path: A PNG, JPEG or DICOM file.
            modality: ``auto``, ``ct`` or ``xray``.
            covid19: Threshold of the gate before the manifestations, in `[0, 1]`.
            ground_glass: Threshold of its stream.
            consolidation: Threshold of its stream.
            pleural_effusion: Threshold of its stream.
        """
        try:
            if path is None:
                raise RequestError("expected a file, got none")
            given = [covid19, ground_glass, consolidation, pleural_effusion]
            _, report = self._case(request, path, modality, given, explain=False)
        except LungstreamsError as error:
            return panels.error_json(error)
        return report.to_json()

    def _case(
        self,
        request: gr.Request,
        path: str,
        modality: RequestedModality,
        given: Sequence[float | None],
        *,
        explain: bool,
    ) -> tuple[View, CaseReport]:
        with self.site.audit.case(request.username) as case:
            thresholds, data = chosen_thresholds(given), read_file(Path(path))
            try:
                view, case.report = read_case(
                    self.site.url,
                    data,
                    modality,
                    thresholds,
                    explain=explain,
                    tls=self.site.tls,
                    request_id=case.request_id,
                )
            except (UnreadableScan, UnsupportedScan) as error:
                if not is_study_file(Path(path)):
                    raise
                raise type(error)(f"{error}; {_READS_STUDIES}") from None
        return view, case.report

    def _picked(self, example: Example) -> Callable[[], list[Any]]:
        # Bound here and not an input of the event: what a visitor sends can not name another file.
        return lambda: [str(example.path), "auto", *self.emptied()]


def _case_of(kept: KeptReport | None) -> exports.Case | None:
    if kept is None:
        return None
    try:
        return exports.Case.of_scan(read_file(kept.path), kept.report())
    except UploadGone:
        return None
