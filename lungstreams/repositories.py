"""``lungstreams repository``: the folder that Triton serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lungstreams.console import EXIT_SOME_FAILED, examples

app = typer.Typer(help="Check or write the folder that Triton serves.", rich_markup_mode="rich")

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
