"""How the page looks: a reading room, dark around the film, with one pale light-box accent.

Every font is served by the page itself or by the visitor's system, so that it works without a network.
"""

from __future__ import annotations

from typing import Any, Final

import gradio as gr

_INK: Final = "#e8edf0"
_MUTED: Final = "#9fb0ba"
_LINE: Final = "#2a363f"
_ROOM: Final = "#0d1318"
_PANEL: Final = "#141d24"
_FIELD: Final = "#1b262e"
_FIELD_HOVER: Final = "#22303a"
_LIGHT_BOX: Final = "#f1e7cf"
_LIGHT_BOX_HOVER: Final = "#fff8e8"
_FILM: Final = "#05080a"

_SCALE: Final = gr.themes.Color(
    c50=_ROOM,
    c100=_PANEL,
    c200=_LINE,
    c300="#394953",
    c400="#73858f",
    c500=_MUTED,
    c600="#b8c5cc",
    c700="#cfd9de",
    c800=_INK,
    c900="#f2f5f6",
    c950="#ffffff",
    name="room",
)


def theme() -> Any:
    """The Gradio theme: one look, whatever the visitor's system prefers."""
    base = gr.themes.Base(
        primary_hue=_SCALE,
        secondary_hue=_SCALE,
        neutral_hue=_SCALE,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"],
    ).set(
        body_background_fill=_ROOM,
        body_text_color=_INK,
        body_text_color_subdued=_MUTED,
        background_fill_primary=_PANEL,
        background_fill_secondary=_FIELD,
        border_color_primary=_LINE,
        border_color_accent=_LIGHT_BOX,
        color_accent=_LIGHT_BOX,
        color_accent_soft=_FIELD_HOVER,
        block_background_fill=_PANEL,
        block_border_color=_LINE,
        block_label_background_fill=_FIELD,
        block_label_text_color=_MUTED,
        block_title_text_color=_INK,
        block_title_text_weight="700",
        block_info_text_color=_MUTED,
        block_shadow="none",
        checkbox_background_color=_ROOM,
        checkbox_background_color_hover=_ROOM,
        checkbox_background_color_selected="#5f7380",
        checkbox_border_color="#5f7380",
        checkbox_border_color_selected="#5f7380",
        checkbox_label_background_fill=_FIELD,
        checkbox_label_background_fill_hover=_FIELD_HOVER,
        checkbox_label_background_fill_selected=_FIELD_HOVER,
        checkbox_label_border_color=_LINE,
        checkbox_label_border_color_selected="#5f7380",
        checkbox_label_text_color=_INK,
        checkbox_label_text_color_selected=_INK,
        checkbox_label_shadow="none",
        input_background_fill=_FIELD,
        input_background_fill_focus=_FIELD,
        input_border_color=_LINE,
        input_border_color_focus=_LIGHT_BOX,
        slider_color="#8fa3ae",
        loader_color=_LIGHT_BOX,
        button_primary_background_fill=_LIGHT_BOX,
        button_primary_background_fill_hover=_LIGHT_BOX_HOVER,
        button_primary_text_color=_ROOM,
        button_primary_text_color_hover=_ROOM,
        button_primary_border_color=_LIGHT_BOX,
        button_secondary_background_fill=_FIELD,
        button_secondary_background_fill_hover=_FIELD_HOVER,
        button_secondary_border_color=_LINE,
        button_secondary_text_color=_INK,
        button_secondary_text_color_hover=_INK,
        error_background_fill="#2d1a1a",
        error_border_color="#b4534d",
        error_text_color="#ffc9c4",
    )
    for name in [attribute for attribute in vars(base) if attribute.endswith("_dark")]:
        light = getattr(base, name.removesuffix("_dark"), None)
        if light is not None:
            setattr(base, name, light)
    return base


HEAD: Final = '<meta name="color-scheme" content="dark"><meta name="robots" content="noindex">'
