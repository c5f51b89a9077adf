"""The page: tabs for a scan, a CT study, many files, and what all this is."""

from __future__ import annotations

from typing import Any, Final

import gradio as gr

from demo import about, guard, panels
from demo.audit import Audit
from demo.css import CSS
from demo.examples import draw_examples, draw_study
from demo.folder_tab import FolderTab
from demo.folders import KEPT_S, SWEEP_S, make_private_folder
from demo.parts import html
from demo.scan_tab import ScanTab
from demo.script import SCRIPT
from demo.site import Site
from demo.style import HEAD, theme
from demo.volume_tab import VolumeTab
from demo.watch import ServerWatch
from serving.limits import MAX_STUDY_BYTES
from serving.tls import ClientTls

_POLL_S: Final = 2.0
_SESSIONS: Final = 128
_QUEUE: Final = 32


class _Page:
    """The tabs, and what stands above them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.watch = ServerWatch(site.url, site.tls)
        self.scan = ScanTab(site, draw_examples(site.folder))
        self.volume = VolumeTab(site, draw_study(site.folder))
        self.folder = FolderTab(site)

    def lay_out(self) -> None:
        """Place the components."""
        with gr.Row(elem_classes="ls-masthead"):
            html(panels.header())
            self.pill = html(elem_id="server")
        html(panels.disclaimer())
        self.banner = html(elem_id="banner", visible=False)
        self.shown = gr.State("")
        with gr.Tabs(elem_classes="ls-tabs"):
            with gr.Tab("Scan", id="scan"):
                self.scan.lay_out()
            with gr.Tab("Volume", id="volume"):
                self.volume.screen.lay_out()
            with gr.Tab("Folder", id="folder"):
                self.folder.lay_out()
            with gr.Tab("About", id="about") as self.about_tab:
                html(about.page(self.site))
                self.versions = html(about.versions(None), elem_id="versions")

    def wire(self, page: gr.Blocks) -> None:
        """Connect the events."""
        self.scan.wire()
        self.volume.wire()
        self.folder.wire()
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.about_tab.select(self.ask_versions, outputs=[self.versions], **quiet)
        poll: dict[str, Any] = {
            "fn": self.poll,
            "inputs": [self.shown],
            "outputs": [self.banner, self.pill, self.shown],
            **quiet,
        }
        page.load(**poll)
        gr.Timer(_POLL_S).tick(**poll)

    def ask_versions(self) -> str:
        """Ask the server which versions it serves."""
        return about.versions(self.watch.versions())

    def poll(self, shown: str) -> tuple[Any, Any, str]:
        """Show or hide the banner, and touch nothing while nothing has changed."""
        health = self.watch.health()
        banner = panels.server_banner(health, self.site.url)
        pill = panels.server_pill(health, self.site.url)
        if banner + pill == shown:
            return gr.skip(), gr.skip(), shown
        return gr.update(value=banner, visible=bool(banner)), pill, banner + pill


def build_app(
    url: str,
    *,
    kept_s: int = KEPT_S,
    sweep_s: int = SWEEP_S,
    tls: ClientTls | None = None,
    audit: Audit | None = None,
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint. It need not answer yet.
        kept_s: How long what a visitor sent, and what was made of it, is kept, in seconds.
        sweep_s: How often the page looks for what is older, in seconds.
        tls: For a Triton that speaks TLS.
        audit: Where cases are noted; by default nowhere.
    """
    page = _Page(Site(url, make_private_folder(), kept_s, sweep_s, tls, audit or Audit()))
    with gr.Blocks(
        title="lungstreams", analytics_enabled=False, fill_width=True, delete_cache=(sweep_s, kept_s)
    ) as blocks:
        page.lay_out()
        page.wire(blocks)
    blocks.queue(max_size=_QUEUE)
    return blocks


def launch(
    url: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    prevent_thread_lock: bool = False,
    *,
    kept_s: int = KEPT_S,
    sweep_s: int = SWEEP_S,
    access: guard.PageAccess | None = None,
    tls: ClientTls | None = None,
    audit: Audit | None = None,
) -> gr.Blocks:
    """Serve the page.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        host: Address to listen at; the default is this machine only.
        port: Port to listen at.
        prevent_thread_lock: Return at once and serve in the background, until the result's `close()`.
        kept_s: See `build_app`.
        sweep_s: See `build_app`.
        access: Who may use the page; by default whoever reaches it, at loopback alone.
        tls: For a Triton that speaks TLS.
        audit: See `build_app`.

    Returns:
        The page; where it is served is its `local_url`.

    Raises:
        RequestError: If others reach `host` and `access` does not say who of them may use the page.
    """
    head = HEAD + SCRIPT
    guarded = guard.options(host, ServerWatch(url, tls), access or guard.PageAccess(), head)
    blocks = build_app(url, kept_s=kept_s, sweep_s=sweep_s, tls=tls, audit=audit)
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=prevent_thread_lock,
        share=False,
        quiet=True,
        show_error=False,
        max_file_size=MAX_STUDY_BYTES,
        state_session_capacity=_SESSIONS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        head=head,
        **guarded,
    )
    return blocks
