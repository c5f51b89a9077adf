"""How the page looks: a reading room. Light or dark as the visitor's system; around the film always dark.

Every font is served by the page itself or by the visitor's system, so that it works without a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

FILM: Final = "#05080a"
"""Around scans, whatever the room: grey is judged beside it."""


@dataclass(frozen=True)
class _Room:
    """The colours of the page in one light. Text on what it stands on has a contrast of 4.5 and more (WCAG 1.4.3).

    Attributes:
        ink, muted: Text.
        line: Borders.
        room, panel, field, field_hover: Backgrounds, from the wall to what is typed into.
        accent, accent_hover, on_accent: Of the one button that matters, of focus, and text on it.
        knob: Of sliders and ticked boxes.
        error, error_line, error_ink: Of what went wrong.
        note, note_line, note_ink: Of what has to be known.
        track, tick, time: Of bars.
        soft: Text on a panel, less loud than ink.
        dashed, hatch: Of what did not run.
        good, up, down: Nothing found; the server's state.
    """

    ink: str
    muted: str
    line: str
    room: str
    panel: str
    field: str
    field_hover: str
    accent: str
    accent_hover: str
    on_accent: str
    knob: str
    error: str
    error_line: str
    error_ink: str
    note: str
    note_line: str
    note_ink: str
    track: str
    tick: str
    time: str
    soft: str
    dashed: str
    hatch: str
    good: str
    up: str
    down: str


_DARK: Final = _Room(
    ink="#e8edf0",
    muted="#9fb0ba",
    line="#2a363f",
    room="#0d1318",
    panel="#141d24",
    field="#1b262e",
    field_hover="#22303a",
    accent="#f1e7cf",
    accent_hover="#fff8e8",
    on_accent="#0d1318",
    knob="#5f7380",
    error="#2d1a1a",
    error_line="#b4534d",
    error_ink="#ffc9c4",
    note="#2b2415",
    note_line="#54461f",
    note_ink="#f6dfa6",
    track="#24313a",
    tick="#f2f5f6",
    time="#8fa3ae",
    soft="#b8c5cc",
    dashed="#52636e",
    hatch="#18222a",
    good="#9ad9b8",
    up="#58c594",
    down="#e8746d",
)
_LIGHT: Final = _Room(
    ink="#15212a",
    muted="#4c5d68",
    line="#cfd9df",
    room="#edf1f3",
    panel="#ffffff",
    field="#f4f7f8",
    field_hover="#e6ecef",
    accent="#1b4b60",
    accent_hover="#123848",
    on_accent="#ffffff",
    knob="#4c6977",
    error="#fdecea",
    error_line="#c2483f",
    error_ink="#7a1f18",
    note="#fdf4dc",
    note_line="#e2cf96",
    note_ink="#5b4708",
    track="#dfe6ea",
    tick="#15212a",
    time="#6b818d",
    soft="#33444f",
    dashed="#8496a0",
    hatch="#f0f4f6",
    good="#1d6a45",
    up="#1f8a58",
    down="#c2483f",
)
_SCALE: Final = gr.themes.Color(
    c50="#f4f7f8",
    c100="#e6ecef",
    c200="#cfd9df",
    c300="#b8c5cc",
    c400="#9fb0ba",
    c500="#73858f",
    c600="#4c5d68",
    c700="#394953",
    c800="#22303a",
    c900="#141d24",
    c950="#0d1318",
    name="room",
)


def theme() -> Any:
    """The Gradio theme: two rooms, of which the visitor's system chooses."""
    base = gr.themes.Base(
        primary_hue=_SCALE,
        secondary_hue=_SCALE,
        neutral_hue=_SCALE,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"],
    )
    dark = {f"{name}_dark": value for name, value in _settings(_DARK).items() if hasattr(base, f"{name}_dark")}
    return base.set(**_settings(_LIGHT), **dark)


def _settings(room: _Room) -> dict[str, str]:
    return {
        "body_background_fill": room.room,
        "body_text_color": room.ink,
        "body_text_color_subdued": room.muted,
        "background_fill_primary": room.panel,
        "background_fill_secondary": room.field,
        "border_color_primary": room.line,
        "border_color_accent": room.accent,
        "color_accent": room.accent,
        "color_accent_soft": room.field_hover,
        "block_background_fill": room.panel,
        "block_border_color": room.line,
        "block_label_background_fill": room.field,
        "block_label_text_color": room.muted,
        "block_title_text_color": room.ink,
        "block_title_text_weight": "700",
        "block_info_text_color": room.muted,
        "block_shadow": "none",
        "input_background_fill": room.field,
        "input_background_fill_focus": room.field,
        "input_border_color": room.line,
        "input_border_color_focus": room.accent,
        "input_placeholder_color": room.muted,
        "slider_color": room.time,
        "loader_color": room.accent,
        "error_background_fill": room.error,
        "error_border_color": room.error_line,
        "error_text_color": room.error_ink,
        **_boxes(room),
        **_buttons(room),
    }


def _boxes(room: _Room) -> dict[str, str]:
    return {
        "checkbox_background_color": room.room,
        "checkbox_background_color_hover": room.room,
        "checkbox_background_color_focus": room.room,
        "checkbox_background_color_selected": room.knob,
        "checkbox_border_color": room.knob,
        "checkbox_border_color_hover": room.knob,
        "checkbox_border_color_focus": room.accent,
        "checkbox_border_color_selected": room.knob,
        "checkbox_label_background_fill": room.field,
        "checkbox_label_background_fill_hover": room.field_hover,
        "checkbox_label_background_fill_selected": room.field_hover,
        "checkbox_label_border_color": room.line,
        "checkbox_label_border_color_selected": room.knob,
        "checkbox_label_text_color": room.ink,
        "checkbox_label_text_color_selected": room.ink,
        "checkbox_label_shadow": "none",
    }


def _buttons(room: _Room) -> dict[str, str]:
    return {
        "button_primary_background_fill": room.accent,
        "button_primary_background_fill_hover": room.accent_hover,
        "button_primary_text_color": room.on_accent,
        "button_primary_text_color_hover": room.on_accent,
        "button_primary_border_color": room.accent,
        "button_secondary_background_fill": room.field,
        "button_secondary_background_fill_hover": room.field_hover,
        "button_secondary_border_color": room.line,
        "button_secondary_text_color": room.ink,
        "button_secondary_text_color_hover": room.ink,
    }


def _variables(room: _Room) -> str:
    return "".join(f"--ls-{name.replace('_', '-')}:{value};" for name, value in vars(room).items())


HEAD: Final = (
    '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
    # Gradio marks the body, so what it inherits is light and what is dark overrides it.
    f"<style>:root{{--ls-film:{FILM};color-scheme:light;{_variables(_LIGHT)}}}"
    # The theme has one accent for both rooms, and sets it on `:root .dark`.
    f":root body.dark{{color-scheme:dark;--color-accent:{_DARK.accent};{_variables(_DARK)}}}</style>"
)
"""What the page's head holds; `demo.script.SCRIPT` goes there too."""
