"""What the tab for a CT study shows: its components, and what they hold while it is read and when it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import gradio as gr

from demo import caution, panels, study_panels
from demo.axis_plot import axis_plot
from demo.downloads import Downloads
from demo.examples import Example, example_button
from demo.parts import Layers, directory_button, html, shown, threshold_sliders
from demo.site import Site
from demo.study import Progress, Shelf, StudyView, picture
from serving import exports
from serving.labels import ALL_STREAM, STREAMS
from serving.windows import Window

_ASK: Final = "Upload a study, or try the phantom"
Updates = dict[Any, Any]
"""What a component is to become, by component; those that are left out stay as they are."""


class VolumeScreen:
    """The components of the tab.

    Args:
        site: The page.
        example: A study to try.
        shelf: Where studies are kept.
    """

    def __init__(self, site: Site, example: Example, shelf: Shelf) -> None:
        self.site = site
        self.example = example
        self.shelf = shelf

    def lay_out(self) -> None:
        """Place the components: input left, result right."""
        with gr.Row(elem_classes="ls-bench"):
            with gr.Column(elem_classes="ls-input"):
                self._lay_out_input()
            with gr.Column(elem_classes="ls-result"):
                self._lay_out_result()

    def _lay_out_input(self) -> None:
        # Of any ending: files of a DICOM series often have none. What they are is told by their first bytes.
        self.files = gr.File(
            label="CT study: NIfTI, zip, or DICOM files", file_count="multiple", type="filepath", elem_id="study"
        )
        self.folder = directory_button("Or choose the folder of a series", "study-directory")
        with gr.Column(elem_classes="ls-examples"):
            html('<h2 class="ls-small">Or try a drawn phantom</h2>')
            self.button = example_button(self.example)
        self.series = gr.Radio(label="Series of this study", visible=False, elem_id="series", elem_classes="ls-series")
        self.thresholds = threshold_sliders("volume-")
        self.go = gr.Button("Read the study", variant="primary", elem_id="volume-go", elem_classes="ls-go")
        self.cancel = gr.Button("Stop reading", visible=False, elem_id="volume-cancel", elem_classes="ls-cancel")
        self.progress = html(elem_id="volume-progress", visible=False)

    def _lay_out_result(self) -> None:
        self.alert = html(elem_id="volume-alert", visible=False)
        self.doubts = html(elem_id="volume-doubts", visible=False)
        self.problems = html(elem_id="volume-problems", visible=False)
        with gr.Row(elem_classes="ls-reading"):
            with gr.Column(elem_classes="ls-viewer"):
                self.film = html(panels.film("", _ASK), elem_id="film")
                self.slice = gr.Slider(
                    1, 2, value=1, step=1, label="Slice, from the feet", visible=False, elem_id="slice", precision=0
                )
                self.words = html(elem_id="slice-words", visible=False)
                self.plot = html(elem_id="axis", visible=False)
                self.layers = Layers("volume-")
            with gr.Column(elem_classes="ls-findings"):
                self.diagnosis = html(study_panels.intro(), elem_id="volume-diagnosis")
                self.manifestations = html(elem_id="volume-manifestations", visible=False)
                self.burden = html(elem_id="burden", visible=False)
                self.meaning = html(elem_id="volume-meaning", visible=False)
                self.downloads = Downloads("volume-", self.site, self._case_of)
                self.how = html(elem_id="volume-how", visible=False)
        self.key = gr.State(None, time_to_live=self.site.kept_s, delete_callback=self.shelf.drop)
        # For the endpoint alone, see `demo.scan_tab`.
        self.asked = gr.Button(visible=False)
        self.number = gr.Number(None, label="series", precision=0, visible=False)
        self.answer = gr.JSON(visible=False)

    @property
    def outputs(self) -> list[Any]:
        """All that a reading may fill."""
        seen = [self.alert, self.doubts, self.problems, self.film, self.slice, self.words, self.plot]
        said = [self.diagnosis, self.manifestations, self.burden, self.meaning, self.how]
        asked = [self.files, self.series, self.cancel, self.progress, self.key]
        return [*asked, *seen, *said, *self.layers.outputs, *self.downloads.outputs]

    def emptied(self, alert: str = "") -> Updates:
        """No result, and perhaps why."""
        first = [self.doubts, self.problems, self.progress]
        said = [self.words, self.plot, self.manifestations, self.burden, self.meaning, self.how]
        return {
            **dict.fromkeys([*first, *said], shown("")),
            self.alert: shown(alert),
            self.key: None,
            self.cancel: gr.update(visible=False),
            self.film: panels.film("", _ASK),
            self.slice: gr.update(visible=False),
            self.diagnosis: study_panels.intro(),
            **dict(zip(self.layers.outputs, self.layers.emptied(), strict=True)),
            **dict(zip(self.downloads.outputs, self.downloads.offered(None), strict=True)),
        }

    def told(self, progress: Progress) -> Updates:
        """How far it is, and the curves so far."""
        words = f"Slice {progress.done:,} of {progress.of:,}" if progress.done else "Finding the lungs …"
        told: Updates = {
            self.progress: shown(panels.progress(words, progress.done, progress.of)),
            self.cancel: gr.update(visible=True, value="Stop reading", interactive=True),
        }
        if progress.slices:
            told[self.plot] = shown(axis_plot(progress.slices, progress.of, progress.done - 1))
        return told

    def filled(self, view: StudyView, key: str, opacity: float, seen: Window) -> Updates:
        """All that was said of a study.

        Args:
            view: The study.
            key: What the session asks for it by.
            opacity: Of the layers.
            seen: The window.
        """
        report = view.report
        on = [name for name in view.streams if name != ALL_STREAM.name]
        titles = [(stream.title, stream.name) for stream in STREAMS if stream.name in view.streams]
        index, count = view.first_shown, report.shape[0]
        downloads = self.downloads.offered(exports.Case.of_volume(view.volume, report))
        layers = self.layers.filled(titles, on, has_hu=view.volume.source.is_hu, note=study_panels.layers_note(report))
        return {
            self.key: key,
            self.alert: shown(""),
            self.doubts: shown(caution.doubts(report)),
            self.problems: shown(study_panels.problems(report)),
            self.progress: shown(""),
            self.cancel: gr.update(visible=False),
            self.film: film(view, index, on, opacity, seen),
            self.slice: gr.update(maximum=max(count, 2), value=index + 1, visible=count > 1),
            self.words: words(view, index),
            self.plot: shown(axis_plot(report.slices, count, index, [one.index for one in report.counted])),
            self.diagnosis: study_panels.diagnosis(report),
            self.manifestations: shown(study_panels.manifestations(report)),
            self.burden: shown(study_panels.burden(report)),
            self.meaning: shown(caution.meaning(report)),
            self.how: shown(study_panels.how(report)),
            **dict(zip(self.layers.outputs, layers, strict=True)),
            **dict(zip(self.downloads.outputs, downloads, strict=True)),
        }

    def _case_of(self, key: str | None) -> exports.Case | None:
        view = self.shelf.get(key)
        return None if view is None else exports.Case.of_volume(view.volume, view.report)


def film(view: StudyView, index: int, streams: Sequence[str], opacity: float, seen: Window) -> str:
    """HTML of a slice; arguments and errors as `StudyView.draw`."""
    words = f"Slice {index + 1} of {view.volume.shape[0]} with the chosen masks over it"
    return panels.film(picture(view.draw(index, streams, opacity, seen)), words)


def words(view: StudyView, index: int) -> Any:
    """What was said of a slice, as an update."""
    return shown(f'<p class="ls-note" role="status">{study_panels.slice_words(view.report, index)}</p>')


def choices(titles: Sequence[str]) -> Any:
    """The series to choose from, as an update."""
    numbered = [(title, number) for number, title in enumerate(titles)]
    return gr.update(choices=numbered, value=None, visible=True, info="There are several: choose one, then read it.")
