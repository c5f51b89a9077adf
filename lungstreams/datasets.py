"""The command ``data``: where scans come from, what a folder of them holds, and fetching those with a plain address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lungstreams.console import EXIT_SOME_FAILED, err, examples, out, spinner
from lungstreams.extras import extra

app: Final = typer.Typer(
    help="Where scans come from, and what a folder of them holds.",
    rich_markup_mode="rich",
    invoke_without_command=True,
    epilog=examples("lungstreams data", "lungstreams data check FOLDER", "lungstreams data download medseg100"),
)


@app.callback()
def _root(context: typer.Context) -> None:
    """List the datasets that training takes: what they are, their licences, and whether they can be downloaded.

    Licences are as known, and were not checked at the origin.
    """
    if context.invoked_subcommand is None:
        _list_origins()


@app.command(epilog=examples("lungstreams data check ../shared/data", "lungstreams data check FOLDER --pictures seen"))
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of scans, laid out in any way that training takes.")],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write some scans there as the models see them, with their masks outlined."),
    ] = None,
) -> None:
    """Say what a folder of scans is, how many there are of each label and split, and what is missing.

    Exit code 0 if everything is there, 1 if files are missing, 2 if nothing in it can be used.
    """
    data, origins = extra("train.data"), extra("train.origins")
    with spinner("Reading the folder ..."):
        reports = origins.check(data.data_root(folder))
    for report in reports:
        out.print(_shown(report, origins.SPLITS))
        if pictures is not None:
            written = extra("train.pictures").save_pictures(report.examples, folder, pictures)
            typer.echo(f"  {len(written)} pictures in {pictures}")
    if any(report.missing for report in reports):
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command(
    epilog=examples("lungstreams data download medseg100", "lungstreams data download ieee8023 --out scans/ieee8023")
)
def download(
    name: Annotated[str, typer.Argument(help="Which dataset, see `lungstreams data`.")],
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where it goes. [dim]Default: data/NAME[/dim]")
    ] = None,
) -> None:
    """Fetch a dataset that has a plain address. Started again, it goes on where it was broken off.

    Mind its licence: it is yours to read and to keep.
    """
    downloads = extra("train.downloads")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        shown: dict[str, Any] = {}

        def advance(file: str, done: int, total: int | None) -> None:
            if file not in shown:
                shown[file] = bar.add_task(file, total=total)
            bar.update(shown[file], completed=done, total=total)

        written = downloads.download(name, folder or Path("data") / name, advance)
    typer.echo(f"downloaded {written}")
    typer.echo(f"licence: {downloads.ORIGINS[name].licence}; see {downloads.ORIGINS[name].page}")


def _list_origins() -> None:
    origins = extra("train.downloads").ORIGINS.values()
    table = Table("name", "what", "for", "licence, as known", "download", show_lines=True)
    for origin in origins:
        how = "yes" if origin.files else f"no: {origin.by_hand}"
        table.add_row(origin.name, origin.what, ", ".join(origin.tasks), origin.licence, how)
    out.print(table)
    # Below, and on one line each: an address that a table has cut in two can not be copied.
    for origin in origins:
        typer.echo(f"{origin.name:<12} {origin.page}")


def _shown(report: Any, splits: tuple[str, ...]) -> Group:
    table = Table("label", *splits)
    for label, counts in report.counts.items():
        table.add_row(Text(label), *map(str, counts))
    lines = [Text(f"missing: {line}", style="red") for line in report.missing] + [Text(line) for line in report.notes]
    title = Text(f"{report.name}, for {' and '.join(report.tasks)}", style="bold")
    return Group(title, *([table] if report.counts else []), *(Padding(line, (0, 0, 0, 2)) for line in lines))
