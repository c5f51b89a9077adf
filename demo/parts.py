"""Components that more than one tab has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import gradio as gr

from serving import windows
from serving.labels import DIAGNOSES, MANIFESTATIONS
from serving.pipeline import THRESHOLD_NAMES, THRESHOLDS
from serving.windows import LEVEL_RANGE_HU, LUNG, WIDTH_RANGE_HU, WINDOWS, Window

DEFAULT_OPACITY: Final = 0.45
CUSTOM: Final = "custom"

CASES_AT_ONCE: Final = 2

SHOW_RESULT: Final = """(...inputs) => {
  const result = [...document.querySelectorAll(".ls-result")].find((one) => one.offsetParent !== null);
  if (window.innerWidth <= 860 && result) result.scrollIntoView();
  return inputs;
}"""
"""On a phone the result is below the input: go there when a scan is sent. 860 px is where `demo.css` stacks them."""

AT_ONCE: Final[Mapping[str, Any]] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Of events that ask nobody."""

REDRAW: Final[Mapping[str, Any]] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "concurrency_limit": CASES_AT_ONCE,
    "api_visibility": "private",
}
"""Of events that draw what is there already."""


def html(value: str = "", **options: Any) -> Any:
    """An HTML component in the page's own style."""
    # Gradio's own prose style would fight `demo.css`.
    return gr.HTML(value, apply_default_css=False, **options)


def shown(value: str) -> Any:
    """Put HTML into a component, and hide it where there is none."""
    return gr.update(value=value, visible=bool(value))


def directory_button(label: str, elem_id: str) -> Any:
    """What a folder is chosen by, whose files are all sent."""
    return gr.UploadButton(label, file_count="directory", size="sm", elem_id=elem_id, elem_classes="ls-directory")


def threshold_sliders(prefix: str = "") -> list[Any]:
    """The gates' thresholds in an accordion, in the order of `THRESHOLD_NAMES`.

    Args:
        prefix: What their ids begin with.
    """
    with gr.Accordion("Thresholds of the gates", open=False, elem_classes="ls-gates"):
        html(
            '<p class="ls-note">A stage runs when the score before it reaches its threshold: COVID-19 opens the '
            "manifestations, and each of them its own stream. 0 always opens.</p>"
        )
        titles = {label.name: label.title for label in (*DIAGNOSES, *MANIFESTATIONS)}
        return [
            gr.Slider(0, 1, value=THRESHOLDS[name], step=0.01, label=titles[name], elem_id=f"{prefix}threshold-{name}")
            for name in THRESHOLD_NAMES
        ]


def chosen_thresholds(given: Sequence[float | None]) -> dict[str, float]:
    """Thresholds by name; a field that was emptied reads None and is left out: the default then."""
    return {name: value for name, value in zip(THRESHOLD_NAMES, given, strict=True) if value is not None}


class Layers:
    """What is drawn of a scan: masks, their opacity, and the CT window.

    Args:
        prefix: What the ids of its components begin with.
    """

    def __init__(self, prefix: str = "") -> None:
        with gr.Group(visible=False, elem_id=f"{prefix}layers-box", elem_classes="ls-controls") as self.box:
            self.layers = gr.CheckboxGroup(label="Layers", elem_id=f"{prefix}layers", elem_classes="ls-layers")
            self.opacity = gr.Slider(
                0, 1, value=DEFAULT_OPACITY, step=0.05, label="Opacity", elem_id=f"{prefix}opacity"
            )
        self.note = html(elem_id=f"{prefix}layers-note")
        with gr.Group(visible=False, elem_id=f"{prefix}window-box", elem_classes="ls-controls") as self.window_box:
            names = [(f"{name.capitalize()} {_said(seen)}", name) for name, seen in WINDOWS.items()]
            self.window = gr.Radio(
                [*names, ("Custom", CUSTOM)], value="lung", label="CT window", elem_id=f"{prefix}window"
            )
            with gr.Group(visible=False, elem_classes="ls-custom") as self.custom:
                self.level = gr.Slider(*LEVEL_RANGE_HU, value=LUNG.level_hu, step=10, label="Level (HU)")
                self.width = gr.Slider(*WIDTH_RANGE_HU, value=LUNG.width_hu, step=10, label="Width (HU)")
            html('<p class="ls-note ls-inset">For your eyes: the models always see the lung window.</p>')

    @property
    def inputs(self) -> list[Any]:
        """What drawing needs, as `seen` takes the last three."""
        return [self.layers, self.opacity, self.window, self.level, self.width]

    @property
    def outputs(self) -> list[Any]:
        """In the order of `filled` and `emptied`."""
        return [self.box, self.layers, self.window_box, self.note]

    def on_input(self, **redraw: Any) -> None:
        """Draw again whenever something of it changes."""
        for component in (self.layers, self.opacity, self.level, self.width):
            component.input(**redraw, **REDRAW)
        shows = {
            "fn": lambda name: gr.update(visible=name == CUSTOM),
            "inputs": [self.window],
            "outputs": [self.custom],
        }
        self.window.input(**shows, **AT_ONCE)
        self.window.input(**redraw, **REDRAW)

    @staticmethod
    def filled(choices: Sequence[tuple[str, str]], on: Sequence[str], *, has_hu: bool, note: str) -> list[Any]:
        """What a new case shows.

        Args:
            choices: Title and name of each layer.
            on: The names of those that are switched on.
            has_hu: Whether there are Hounsfield units to put a window on.
            note: HTML on the layers.
        """
        return [
            gr.update(visible=bool(choices)),
            gr.update(choices=list(choices), value=list(on)),
            gr.update(visible=has_hu),
            note,
        ]

    @staticmethod
    def emptied() -> list[Any]:
        """Nothing to switch."""
        return Layers.filled([], [], has_hu=False, note="")


def seen_through(name: str | None, level_hu: float | None, width_hu: float | None) -> Window:
    """The window that was chosen; a field that was emptied reads None and is the lung window's.

    Raises:
        RequestError: If there is no such window.
    """
    if name is None:
        return LUNG
    if name != CUSTOM:
        return windows.window(name)
    return Window(LUNG.level_hu if level_hu is None else level_hu, LUNG.width_hu if width_hu is None else width_hu)


def or_default(opacity: float | None) -> float:
    """The opacity; None, of a field that was emptied, is `DEFAULT_OPACITY`."""
    return DEFAULT_OPACITY if opacity is None else opacity


def _said(seen: Window) -> str:
    return f"({seen.level_hu:g} / {seen.width_hu:g})"
