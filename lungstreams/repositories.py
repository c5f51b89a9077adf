"""``lungstreams repository``: the folder that Triton serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lungstreams.access import ADMIN_KEY_VARIABLE, TlsCa, TlsCert, TlsKey, Url, admin_key, client_tls
from lungstreams.console import EXIT_SOME_FAILED, examples, fail

app = typer.Typer(
    help="Check or write the folder that Triton serves, or publish a version into it.", rich_markup_mode="rich"
)

Repository = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The model repository. [dim]Default: LUNGSTREAMS_REPOSITORY, or the one that ships[/dim]"
    ),
]


@app.command("check", epilog=examples("lungstreams repository check"))
def check_repository(repository: Repository = None) -> None:
    """Hold a model repository against the code: configs, graphs, label order, wiring.

    Writes one problem a line and exits with 1, or one line that starts with [bold]ok[/bold] and exits with 0.
    """
    from serving.repository import DEFAULT_REPOSITORY, check

    folder = repository or DEFAULT_REPOSITORY
    problems = check(folder)
    for problem in problems:
        typer.echo(" ".join(problem.split()))
    if problems:
        raise typer.Exit(EXIT_SOME_FAILED)
    typer.echo(f"ok {folder}")


@app.command("write", epilog=examples("lungstreams repository write --repository ./model_repository"))
def write_repository(repository: Repository = None) -> None:
    """Write every config.pbtxt from serving/pipeline.py. Models are left as they are."""
    from serving.repository import DEFAULT_REPOSITORY, write_configs

    folder = repository or DEFAULT_REPOSITORY
    write_configs(folder)
    typer.echo(f"written {folder}")


@app.command(
    "publish",
    epilog=examples(
        "lungstreams repository publish recognition exported/recognition/1",
        "lungstreams repository publish segment_all model.onnx --url gpu-box:8001 --tls-ca ca.pem",
    ),
)
def publish_version(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Whose version it is, as in recognition.")],
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="An ONNX file, or a folder as [bold]lungstreams export[/bold] writes."),
    ],
    repository: Repository = None,
    url: Url = None,
    allow_change: Annotated[
        bool,
        typer.Option(
            "--allow-change", help="Publish a network without reference.npz that answers otherwise than what is served."
        ),
    ] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Publish a network as the next version of a model, while the server serves; no request fails.

    For a server with [bold]--model-control explicit[/bold] over the same repository, and its LUNGSTREAMS_ADMIN_KEY. The
    network is checked before anything is written: what it takes and gives, its provenance, its answers on drawn scans,
    and those against its own reference.npz, or else against the version that is served. A bad one is refused in one
    line; one that the server can not load is removed again, and the old version serves on.
    """
    key = admin_key()
    if key is None:
        fail(f"expected the server's admin key in {ADMIN_KEY_VARIABLE}, got none")
    from serving.client import DEFAULT_URL
    from serving.publishing import Publisher
    from serving.repository import DEFAULT_REPOSITORY

    folder, tls = repository or DEFAULT_REPOSITORY, client_tls(tls_ca, tls_cert, tls_key)
    with Publisher(folder, url or DEFAULT_URL, key, tls) as publisher:
        published = publisher.publish(model, source, allow_change=allow_change)
    typer.echo(f"published {published.folder} (before: {published.before or 'none'})")
