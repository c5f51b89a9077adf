"""The ``lungstreams`` command. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import importlib.metadata
import logging
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lungstreams import repositories, working
from lungstreams.access import TlsCa, TlsCert, TlsKey, Users, admin_key, client_tls, server_access
from lungstreams.console import (
    EXIT_REFUSED,
    PROGRAM,
    URL_VARIABLE,
    complain,
    drop_output,
    embedded_server,
    examples,
    fail,
    spinner,
    stopped_by_signals,
)
from lungstreams.paging import page_launcher, wait
from lungstreams.repositories import Repository
from serving.errors import LungstreamsError, is_no_room

# Whatever typer raises over a command line that it can not read; typer itself names only some of its kinds.
_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "lungstreams demo",
        "lungstreams serve",
        "lungstreams predict scan.png --out masks",
        "lungstreams predict --help",
    ),
)
app.add_typer(repositories.app, name="repository")

Url = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLE, metavar="HOST:PORT", help="Triton's gRPC address. [dim]Default 127.0.0.1:8001[/dim]"
    ),
]


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, to standard error.")] = False,
) -> None:
    """COVID-19 chest scans: recognition, manifestations, segmentation in specialised streams, on NVIDIA Triton.

    [yellow]Research use only, not a medical device.[/yellow]
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if version:
        typer.echo(importlib.metadata.version(PROGRAM))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


class Accelerator(str, Enum):
    """As `serving.tritonserver.ServerConfig.accelerator`."""

    openvino = "openvino"


@app.command(
    epilog=examples(
        "lungstreams serve",
        "lungstreams serve --grpc-port 0 --http-port 0 --metrics-port 0 --threads 2",
        "lungstreams serve --repository ./model_repository &",
        "lungstreams serve --public --tls-cert server.pem --tls-key server.key --client-ca clients.pem",
    )
)
def serve(
    repository: Repository = None,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of HTTP; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics; 0 picks a free one.")] = 8002,
    threads: Annotated[int | None, typer.Option(help="Threads of each network. [dim]Default: one a core[/dim]")] = None,
    accelerator: Annotated[
        Accelerator | None, typer.Option(help="Compute the networks by this instead of ONNX Runtime.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let other machines reach gRPC; needs TLS.")] = False,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="--public: IPv4 address of gRPC. [dim]Default: 0.0.0.0[/dim]")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="gRPC's certificate, as PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The private key of --tls-cert.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Let in only clients whose certificate this signed.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="--public without TLS, in spite of all.")] = False,
) -> None:
    """Start the embedded Triton on this machine and serve until SIGTERM or Ctrl-C. If Triton ends, it is started again.

    Writes one line, [bold]ready grpc=127.0.0.1:8001[/bold], to standard output when every model is ready. It binds to
    loopback: for other machines deploy NVIDIA's container, which serves the same folder. With --public gRPC is open to
    them all the same; HTTP and the metrics never are.
    """
    from serving.repository import DEFAULT_REPOSITORY
    from serving.supervision import keep_up
    from serving.tritonserver import ServerConfig, TritonServer

    address, tls = server_access(host, tls_cert, tls_key, client_ca, public=public, insecure=insecure)
    config = ServerConfig(
        repository or DEFAULT_REPOSITORY,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        threads=threads,
        accelerator=accelerator.value if accelerator else None,
        host=address,
        tls=tls,
        insecure=insecure,
        admin_key=admin_key(),
    )
    server = TritonServer(config)
    with stopped_by_signals():
        try:
            with spinner("Starting Triton ..."):
                server.start()
            typer.echo(f"ready grpc={server.config.host}:{server.config.grpc_port}")
            keep_up(server, complain)
        finally:
            with spinner("Stopping Triton ..."):
                server.stop()


@app.command(
    epilog=examples(
        "lungstreams demo",
        "lungstreams demo --port 8080",
        "lungstreams demo --url gpu-box:8001 --tls-ca ca.pem --host 0.0.0.0 --users users.txt",
    )
)
def demo(
    url: Url = None,
    host: Annotated[str, typer.Option(help="Address that the page listens at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that the page listens at.")] = 7860,
    users: Users = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Another --host without --users, behind a proxy that knows them.")
    ] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Open the web page: upload a scan, see the diagnosis, the manifestations and the masks.

    Writes one line, [bold]ready page=http://127.0.0.1:7860/[/bold], to standard output when the page is there. Without
    --url it uses the server at 127.0.0.1:8001 if one is there, and starts an embedded one of its own if not, which it
    starts again if it ends.
    """
    launch = page_launcher(host, port, users, client_tls(tls_ca, tls_cert, tls_key), insecure=insecure)
    with stopped_by_signals():
        if url is not None:
            launch(url, wait)
            return
        from serving.client import DEFAULT_URL, PipelineClient
        from serving.supervision import keep_up

        with PipelineClient(DEFAULT_URL, tls=client_tls(tls_ca, tls_cert, tls_key)) as client:
            there = client.is_ready()
        if there:
            launch(DEFAULT_URL, wait)
            return
        if (tls_ca or tls_cert) is not None:
            fail(f"nothing answers at {DEFAULT_URL} by TLS; name a server with --url")
        with embedded_server() as server:
            launch(server.grpc_url, lambda: keep_up(server, complain))


@app.command(
    epilog=examples(
        "lungstreams predict scan.dcm",
        "lungstreams predict *.png --modality ct --threshold ground_glass=0.3 --out masks",
        "lungstreams predict study.nii.gz --out masks --export pdf",
        "lungstreams predict series.zip --list-series",
        "lungstreams predict series.zip --series 1 --json",
        "lungstreams predict scans --out results",
        "lungstreams predict scan.png --out pictures --explain",
    )
)
def predict(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Scans (PNG, JPEG, DICOM), CT studies (NIfTI, multi-frame DICOM, zip), or folders."
        ),
    ],
    url: Url = None,
    modality: Annotated[str, typer.Option(metavar="auto|ct|xray", help="What the scans are.")] = "auto",
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Where a gate opens, in 0..1; 0 always. NAME: covid19 (stage 2), ground_glass, consolidation or "
            "pleural_effusion (the streams). May be given several times.",
        ),
    ] = None,
    series: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Read series N of a zip or folder as one study.", show_default=False),
    ] = None,
    list_series: Annotated[
        bool, typer.Option("--list-series", help="List the DICOM series of zips and folders, and read none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines: one object a case.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write masks there; of folders also cases.jsonl and cases.csv.")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Also write each case to --out as json, csv, overlay, nifti, seg, sr or pdf. May be given several "
            "times.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also write what speaks for a scan's likeliest diagnosis to --out, as heat."),
    ] = False,
    resume: Annotated[bool, typer.Option(help="Leave out what an earlier run over the same folder has done.")] = True,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Ask the server for each scan and show what it says.

    Every file that is named is a case of its own. A zip of several series needs --series. A folder is searched
    through, without links and hidden files: CT slices of one series are one case, files that are no scans are left out.
    With --out a run that was stopped, or killed, goes on when it is given again; what changed since is done again.

    Masks are at the scan's own size, their values are class ids: palette PNG for a scan; for a study NIfTI on its own
    voxels, or a folder of PNG where slices are not equally far apart. Heat says what the network looked at, which may
    lie outside of the lungs, and not where disease is; a study has none.

    Exit code 0 if everything was read, 1 if some could not be (the others are done), 2 if nothing could be asked, 130
    if it was stopped.
    """
    from lungstreams import predicting
    from lungstreams.reading import Ask
    from serving.client import DEFAULT_URL

    if list_series:
        raise typer.Exit(predicting.list_series(files))
    ask = Ask(
        predicting.parse_modality(modality),
        predicting.parse_thresholds(threshold or []),
        series,
        predicting.parse_exports(export or [], out),
        predicting.parse_explain(explain, out),
    )
    output = predicting.Output(as_json, out, resume)
    tls = client_tls(tls_ca, tls_cert, tls_key)
    raise typer.Exit(predicting.predict_files(files, url or DEFAULT_URL, ask, output, tls))


working.register(app)


def main() -> None:
    """Run the command; whatever is the user's to mend becomes one line on standard error."""
    code: Any
    try:
        code = app(standalone_mode=False)
    except LungstreamsError as error:
        complain(error)
        code = EXIT_REFUSED
    except _USAGE_ERROR as error:
        complain(f"{error.format_message()} (see {PROGRAM} --help)")  # type: ignore[attr-defined]
        code = EXIT_REFUSED
    except OSError as error:
        if not is_no_room(error):
            raise
        complain(f"no room to write to: {error}")
        drop_output()
        code = EXIT_REFUSED
    raise SystemExit(code if isinstance(code, int) else 0)
