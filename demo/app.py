"""The page: a scan in; a diagnosis, manifestations and switchable masks out.

A case is asked for once. What it takes to draw it stays in the visitor's session, so that switching a layer or
changing the opacity draws again and infers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo import guard, panels
from demo.case import View, read_case
from demo.css import CSS
from demo.examples import Example, draw_examples
from demo.folders import make_private_folder
from demo.style import HEAD, theme
from demo.watch import ServerWatch
from serving import scans
from serving.errors import LungstreamsError
from serving.labels import ALL_STREAM, DIAGNOSES, MANIFESTATIONS, STREAMS, RequestedModality
from serving.pipeline import THRESHOLD_NAMES, THRESHOLDS
from serving.results import CaseReport
from serving.tls import ClientTls

FILE_TYPES: Final = [".png", ".jpg", ".jpeg", ".dcm"]
DEFAULT_OPACITY: Final = 0.45
_POLL_S: Final = 2.0
_CACHE_S: Final = (3600, 3600)
"""Uploads are deleted an hour after they came; looked for once an hour."""

_SHOW_RESULT: Final = """(...inputs) => {
  if (window.innerWidth <= 860) document.getElementById("result").scrollIntoView();
  return inputs;
}"""
"""On a phone the result is below the input: go there when a scan is sent. 860 px is where `demo.css` stacks them."""

_SESSIONS: Final = 128
_CASES_AT_ONCE: Final = 2
_QUEUE: Final = 32


class _Page:
    """The components that the events share, and the events."""

    def __init__(self, url: str, tls: ClientTls | None, examples: Sequence[Example]) -> None:
        self.url = url
        self.tls = tls
        self.watch = ServerWatch(url, tls)
        self.examples = examples

    def lay_out(self) -> None:
        """Place the components: input left, result right."""
        with gr.Row(elem_classes="ls-masthead"):
            _html(panels.header())
            self.pill = _html(elem_id="server")
        self.banner = _html(elem_id="banner", visible=False)
        self.shown = gr.State("")
        with gr.Row(elem_classes="ls-bench"):
            with gr.Column(elem_classes="ls-input"):
                self._lay_out_input()
            with gr.Column(elem_classes="ls-result", elem_id="result"):
                self._lay_out_result()

    def _lay_out_input(self) -> None:
        self.file = gr.File(label="Scan: PNG, JPEG or DICOM", file_types=FILE_TYPES, type="filepath", elem_id="scan")
        with gr.Column(elem_classes="ls-examples"):
            _html('<h2 class="ls-small">Or try a drawn phantom</h2>')
            self.buttons = [_example_button(example) for example in self.examples]
        self.modality = gr.Radio(
            [("Auto", "auto"), ("CT", "ct"), ("X-ray", "xray")], value="auto", label="Modality", elem_id="modality"
        )
        with gr.Accordion("Thresholds of the gates", open=False, elem_id="gates"):
            _html(
                '<p class="ls-note">A stage runs when the score before it reaches its threshold: COVID-19 opens the '
                "manifestations, and each of them its own stream. 0 always opens.</p>"
            )
            titles = {label.name: label.title for label in (*DIAGNOSES, *MANIFESTATIONS)}
            self.thresholds = [
                gr.Slider(0, 1, value=THRESHOLDS[name], step=0.01, label=titles[name], elem_id=f"threshold-{name}")
                for name in THRESHOLD_NAMES
            ]
        self.go = gr.Button("Read the scan", variant="primary", elem_id="go")

    def _lay_out_result(self) -> None:
        _html(panels.disclaimer())
        self.alert = _html(elem_id="alert", visible=False)
        with gr.Row(elem_classes="ls-reading"):
            with gr.Column(elem_classes="ls-viewer"):
                self.image = gr.Image(
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                    alt_text="The scan with the chosen masks over it",
                )
                with gr.Group(visible=False, elem_id="layers-box") as self.layers_box:
                    self.layers = gr.CheckboxGroup(label="Layers", elem_id="layers")
                    self.opacity = gr.Slider(0, 1, value=DEFAULT_OPACITY, step=0.05, label="Opacity", elem_id="opacity")
                self.layers_note = _html(elem_id="layers-note")
            with gr.Column(elem_classes="ls-findings"):
                self.diagnosis = _html(panels.intro(), elem_id="diagnosis")
                self.manifestations = _html(elem_id="manifestations", visible=False)
                self.how = _html(elem_id="how", visible=False)
        self.view = gr.State(None)

    def wire(self, page: gr.Blocks) -> None:
        """Connect the events."""
        self._wire_reading()
        redraw: dict[str, Any] = {
            "fn": self.redraw,
            "inputs": [self.view, self.layers, self.opacity],
            "outputs": [self.image],
            "show_progress": "hidden",
            "trigger_mode": "always_last",
            "concurrency_limit": _CASES_AT_ONCE,
            "api_visibility": "private",
        }
        self.layers.input(**redraw)
        self.opacity.input(**redraw)
        poll: dict[str, Any] = {
            "fn": self.poll,
            "inputs": [self.shown],
            "outputs": [self.banner, self.pill, self.shown],
            "show_progress": "hidden",
            "queue": False,
            "api_visibility": "private",
        }
        page.load(**poll)
        gr.Timer(_POLL_S).tick(**poll)

    def _wire_reading(self) -> None:
        read: dict[str, Any] = {
            "fn": self.read,
            "inputs": [self.file, self.modality, self.opacity, *self.thresholds],
            "outputs": self.outputs,
            "concurrency_limit": _CASES_AT_ONCE,
            "concurrency_id": "cases",
            "show_progress_on": [self.image],
        }
        at_once: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.go.click(**read, js=_SHOW_RESULT, api_name="read")
        self.file.clear(_empty, outputs=self.outputs, **at_once)
        # Another file: what was said of the one before goes first, so that it is never taken for an answer to this.
        replaced = [self.file.upload(_empty, outputs=self.outputs, **at_once)]
        for button, example in zip(self.buttons, self.examples, strict=True):
            outputs = [self.file, self.modality, *self.outputs]
            replaced.append(button.click(_pick(example), outputs=outputs, **at_once))
        for event in replaced:
            event.then(**read, js=_SHOW_RESULT, api_visibility="private")

    @property
    def outputs(self) -> list[Any]:
        """What a new case fills, in the order of `_fill`."""
        return [
            self.view,
            self.image,
            self.layers_box,
            self.layers,
            self.layers_note,
            self.diagnosis,
            self.manifestations,
            self.how,
            self.alert,
        ]

    def read(
        self, path: str | None, modality: RequestedModality, opacity: float | None, *thresholds: float | None
    ) -> list[Any]:
        """Read the uploaded file; an error becomes a message where the result would be."""
        if path is None:
            return _empty(panels.message("There is no scan to read", "upload a file or try a phantom first"))
        try:
            given = zip(THRESHOLD_NAMES, thresholds, strict=True)
            # A field that was emptied reads None: the default then.
            chosen = {name: value for name, value in given if value is not None}
            return _fill(
                *read_case(self.url, Path(path).read_bytes(), modality, chosen, self.tls), _or_default(opacity)
            )
        except LungstreamsError as error:
            return _empty(panels.alert(error))
        except FileNotFoundError:
            return _empty(panels.message("The upload is not kept any more", "upload the file again"))

    def redraw(self, view: View | None, streams: Sequence[str], opacity: float | None) -> Any:
        """Draw the same case again."""
        if view is None:
            gr.Info("This case is not kept any more: read the scan again.")
            return gr.skip()
        return view.draw(streams, _or_default(opacity))

    def poll(self, shown: str) -> tuple[Any, Any, str]:
        """Show or hide the banner, and touch nothing while nothing has changed."""
        health = self.watch.health()
        banner = panels.server_banner(health, self.url)
        pill = panels.server_pill(health, self.url)
        if banner + pill == shown:
            return gr.skip(), gr.skip(), shown
        return gr.update(value=banner, visible=bool(banner)), pill, banner + pill


def _html(value: str = "", **options: Any) -> Any:
    # Gradio's own prose style would fight `demo.css`.
    return gr.HTML(value, apply_default_css=False, **options)


def _example_button(example: Example) -> Any:
    button = gr.Button(example.title, icon=example.thumbnail, size="sm", elem_classes="ls-example")
    # Else Gradio takes the icon for an upload, and deletes it after an hour.
    button.keep_in_cache.add(button.icon["path"])
    return button


def _or_default(opacity: float | None) -> float:
    return DEFAULT_OPACITY if opacity is None else opacity


def _pick(example: Example) -> Callable[[], list[Any]]:
    # Bound here and not an input of the event: what a visitor sends can not name another file.
    return lambda: [str(example.path), "auto", *_empty()]


def _empty(alert: str = "") -> list[Any]:
    hidden = gr.update(value="", visible=False)
    nothing = gr.update(choices=[], value=[])
    shown = gr.update(value=alert, visible=bool(alert))
    return [None, None, gr.update(visible=False), nothing, "", panels.intro(), hidden, hidden, shown]


def _fill(view: View, report: CaseReport, opacity: float) -> list[Any]:
    # `all` is off at first: its classes are those of the single streams, and would hide them.
    on = [name for name in view.masks if name != ALL_STREAM.name]
    choices = [(stream.title, stream.name) for stream in STREAMS if stream.name in view.masks]
    return [
        view,
        view.draw(on, opacity),
        gr.update(visible=bool(choices)),
        gr.update(choices=choices, value=on),
        panels.layers_note(report),
        panels.diagnosis(report),
        gr.update(value=panels.manifestations(report), visible=True),
        gr.update(value=panels.how(report), visible=True),
        gr.update(value="", visible=False),
    ]


def build_app(url: str, tls: ClientTls | None = None) -> gr.Blocks:
    """The page, not yet served.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint. It need not answer yet.
        tls: For a Triton that speaks TLS.
    """
    page = _Page(url, tls, draw_examples(make_private_folder()))
    with gr.Blocks(title="lungstreams", analytics_enabled=False, fill_width=True, delete_cache=_CACHE_S) as blocks:
        page.lay_out()
        page.wire(blocks)
    blocks.queue(max_size=_QUEUE)
    return blocks


def launch(
    url: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    prevent_thread_lock: bool = False,
    access: guard.PageAccess | None = None,
    tls: ClientTls | None = None,
) -> gr.Blocks:
    """Serve the page.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        host: Address to listen at; the default is this machine only.
        port: Port to listen at.
        prevent_thread_lock: Return at once and serve in the background, until the result's `close()`.
        access: Who may use the page; by default whoever reaches it, at loopback alone.
        tls: For a Triton that speaks TLS.

    Returns:
        The page; where it is served is its `local_url`.

    Raises:
        RequestError: If others reach `host` and `access` does not say who of them may use the page.
    """
    guarded = guard.options(host, ServerWatch(url, tls), access or guard.PageAccess())
    blocks = build_app(url, tls)
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=prevent_thread_lock,
        share=False,
        quiet=True,
        show_error=False,
        max_file_size=scans.MAX_FILE_BYTES,
        state_session_capacity=_SESSIONS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
        **guarded,
    )
    return blocks
