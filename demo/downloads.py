"""What can be taken away: a button for each kind of file that can be made of a case.

A file is made when it is asked for, in a folder of its own that is gone as soon as Gradio has copied it into the page's
cache, from where it goes after `demo.folders.KEPT_S` like everything else. Its name says nothing of the visitor's file.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo import panels
from demo.parts import html, shown
from demo.site import Site
from serving import exports
from serving.errors import LungstreamsError

_TITLES: Final = {
    "json": "JSON",
    "csv": "CSV",
    "overlay": "PNG",
    "nifti": "NIfTI",
    "seg": "DICOM SEG",
    "sr": "DICOM SR",
    "pdf": "PDF",
}
_PREFIX: Final = "lungstreams"

_MAKING: Final = '<p class="ls-note" role="status">Making the file …</p>'
_GONE: Final = "the case is not kept any more"


class Downloads:
    """The buttons of one tab.

    Args:
        prefix: What the ids of its components begin with.
        site: The page; files are made in its folder.
        case_of: The case behind a session's state; None if it is not kept any more.
    """

    def __init__(self, prefix: str, site: Site, case_of: Callable[[Any], exports.Case | None]) -> None:
        self._site = site
        self._case_of = case_of
        with gr.Column(visible=False, elem_id=f"{prefix}downloads", elem_classes="ls-downloads") as self.box:
            html('<h2 class="ls-small">Take it away</h2>')
            with gr.Row(elem_classes="ls-kinds"):
                self.buttons = {
                    kind: gr.Button(_TITLES.get(kind, kind), size="sm", visible=False, elem_id=f"{prefix}export-{kind}")
                    for kind in exports.KINDS
                }
            self.said = html(visible=False)
            self.file = gr.File(
                label="Your file", visible=False, interactive=False, elem_id=f"{prefix}file", elem_classes="ls-file"
            )

    @property
    def outputs(self) -> list[Any]:
        """In the order of `offered`."""
        return [self.box, self.said, self.file, *self.buttons.values()]

    def offered(self, case: exports.Case | None) -> list[Any]:
        """Show a button for each kind that can be made of a case; none without one."""
        kinds = () if case is None else exports.possible(case)
        return [
            gr.update(visible=bool(kinds)),
            shown(""),
            gr.update(value=None, visible=False),
            *(gr.update(visible=kind in kinds) for kind in self.buttons),
        ]

    def wire(self, state: Any) -> None:
        """Connect the buttons; `state` is what `case_of` takes."""
        for kind, button in self.buttons.items():
            made = button.click(
                self._maker(kind),
                inputs=[state],
                outputs=[self.said, self.file],
                show_progress="hidden",
                concurrency_limit=1,
                concurrency_id="exports",
                api_visibility="private",
            )
            made.then(None, js=fetch(self.file.elem_id))

    def _maker(self, kind: str) -> Callable[[gr.Request, Any], Iterator[list[Any]]]:
        # No `partial`: of that Gradio would not see that it wants to know who asks.
        def make(request: gr.Request, state: Any) -> Iterator[list[Any]]:
            yield from self.make(kind, request.username, state)

        return make

    def make(self, kind: str, user: str | None, state: Any) -> Iterator[list[Any]]:
        """Write one kind of file and show it."""
        yield [shown(_MAKING), gr.update(value=None, visible=False)]
        case = self._case_of(state)
        if case is None:
            yield [shown(panels.message("There is nothing to take away", _GONE)), gr.skip()]
            return
        with tempfile.TemporaryDirectory(dir=self._site.folder) as folder:
            try:
                path = _one_file(exports.write(case, [kind], Path(folder), _PREFIX)[kind], Path(folder), kind)
                outcome = [shown(f'<p class="ls-note" role="status">{exports.KINDS[kind]}</p>')]
            except LungstreamsError as error:
                self._site.audit.export(user, case.report, kind, error)
                yield [shown(panels.alert(error)), gr.skip()]
                return
            self._site.audit.export(user, case.report, kind)
            # Gradio has copied the file when it asks for more, and the folder goes.
            yield [*outcome, gr.update(value=str(path), visible=True)]


def _one_file(paths: Sequence[Path], folder: Path, kind: str) -> Path:
    if len(paths) == 1:
        return paths[0]
    together = folder / f"{_PREFIX}-{kind}.zip"
    with zipfile.ZipFile(together, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)
    return together


def fetch(elem_id: str) -> str:
    """JavaScript that takes the file which the `gr.File` of that id shows: asked for was a file, not a link to one."""
    return f"""() => {{
  let left = 40;
  const take = () => {{
    const link = document.querySelector("#{elem_id} a[href]");
    if (link) link.click();
    else if (left--) setTimeout(take, 50);
  }};
  take();
}}"""
