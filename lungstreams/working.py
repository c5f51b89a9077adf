"""The commands that make and measure models: data, train, evaluate, export, loadtest, bench."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from lungstreams import datasets
from lungstreams.access import TlsCa, TlsCert, TlsKey, client_tls
from lungstreams.console import URL_VARIABLE, examples, fail, out
from lungstreams.extras import extra

_DATA_VARIABLE: Final = "LUNGSTREAMS_DATA"

Data = Annotated[
    Path | None,
    typer.Option(
        envvar=_DATA_VARIABLE, metavar="DIR", help="Folder of scans: ours, or a dataset as its origin gives it."
    ),
]
Runs = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs live.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(datasets.app, name="data")
    app.command(
        epilog=examples(
            "lungstreams train --list",
            "lungstreams train recognition_first",
            "lungstreams train all_first --data scans/medseg100",
            "lungstreams train NAME --no-resume",
        )
    )(train)
    app.command(
        epilog=examples(
            "lungstreams evaluate",
            "lungstreams evaluate runs/recognition_first",
            "lungstreams evaluate --test-time-augmentation 51",
            "lungstreams evaluate --confounds --through-triton",
        )
    )(evaluate)
    app.command(
        epilog=examples(
            "lungstreams export runs/recognition_first",
            "lungstreams export --target tensorrt --precision int8 --out build/tensorrt",
            "lungstreams export --target tensorrt --render-only",
        )
    )(export)
    app.command(
        epilog=examples(
            "lungstreams loadtest --duration 60",
            "lungstreams loadtest --url 127.0.0.1:8001 --users 4 --cases xray --budget-s 2",
        )
    )(loadtest)
    app.command(epilog=examples("lungstreams bench", "lungstreams bench --part latency --rounds 50"))(bench)


REPORTS: Final = {
    "paper_task1": ("0.3 h", "the paper's frozen recipe under both protocols; docs/paper_task1.json"),
    "paper_task2": ("0.3 h", "the paper's recipe and a slower one under both protocols; docs/paper_task2.json"),
    "paper_task3": ("0.4 h", "all streams, small and short, under both protocols; docs/paper_task3.json"),
    "ablation": ("0.5 h", "choices of the segmentation recipe, one at a time; docs/ablation.json"),
}
"""Of another kind than the experiments: figures, no weights. Named here so that help needs no TensorFlow."""


class Precision(str, Enum):
    """As `train.devices.Precision`, for which TensorFlow would have to be there."""

    auto = "auto"
    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"


def train(
    experiment: Annotated[str | None, typer.Argument(help="Name of an experiment, see --list.")] = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    resume: Annotated[bool, typer.Option(help="Go on from the last epoch that was saved.")] = True,
    precision: Annotated[
        Precision, typer.Option(help="What layers compute in; auto: bfloat16 where the device has it and gains by it.")
    ] = Precision.auto,
    devices: Annotated[
        int, typer.Option(min=0, help="Accelerators that share a batch (needs KERAS_BACKEND=jax); 0 for all.")
    ] = 0,
    imagenet: Annotated[
        str,
        typer.Option(
            metavar="auto|download|FILE",
            help="ImageNet weights: the file beside the scans, those of keras.applications, or an .npz or .h5.",
        ),
    ] = "auto",
    list_experiments: Annotated[bool, typer.Option("--list", help="Show the experiments and what they cost.")] = False,
) -> None:
    """Train the model of an experiment; what it writes is a run, to be evaluated and exported."""
    if list_experiments:
        _list_experiments()
    elif experiment is None:
        fail("expected the name of an experiment, got none; `lungstreams train --list` shows them")
    elif experiment in REPORTS:
        extra(f"train.{experiment}").main(data, runs)
    else:
        extra("train.fit").main(
            experiment,
            data,
            runs,
            resume=resume,
            precision=precision.value,
            n_devices=devices or None,
            imagenet=imagenet,
        )


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Folders of runs. [dim]Default: what is published[/dim]"),
    ] = None,
    data: Data = None,
    figures: Annotated[Path, typer.Option(metavar="DIR", help="Where plots, and panels that show scans, go.")] = Path(
        "reports/figures"
    ),
    copies: Annotated[
        int,
        typer.Option(
            "--test-time-augmentation", metavar="N", min=0, help="Average over N moved copies of each scan; paper: 51."
        ),
    ] = 0,
    confounds: Annotated[
        bool, typer.Option("--confounds", help="Also test how much the source of a scan explains; docs/confounds.json.")
    ] = False,
    through_triton: Annotated[
        bool,
        typer.Option(
            "--through-triton", help="Also ask the embedded Triton and compare its answers; docs/triton_parity.json."
        ),
    ] = False,
) -> None:
    """Measure runs on patients that they never saw; without any, what is published, into docs/results.md.

    Exit code 2 if --through-triton finds answers or figures that differ.
    """
    extra("train.evaluate").main(
        runs or [], data, figures=figures, copies=copies, confounds=confounds, triton=through_triton
    )


class Target(str, Enum):
    """What to export for."""

    onnx = "onnx"
    tensorrt = "tensorrt"


class EnginePrecision(str, Enum):
    """As `train.tensorrt_configs.EnginePrecision`."""

    fp16 = "fp16"
    int8 = "int8"


NewFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="TensorRT: a new folder for all that is written. [dim]Default: build/tensorrt[/dim]",
        show_default=False,
    ),
]


def export(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run; none for --target tensorrt, which takes what is published.")
    ] = None,
    repository: Annotated[Path | None, typer.Option(metavar="DIR", help="The model repository.")] = None,
    data: Data = None,
    target: Annotated[
        Target, typer.Option(help="onnx publishes a run; tensorrt makes what is published ready for an NVIDIA GPU.")
    ] = Target.onnx,
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(help="TensorRT: what its engines compute in. [dim]Default: fp16[/dim]", show_default=False),
    ] = None,
    folder: NewFolder = None,
    render_only: Annotated[
        bool, typer.Option("--render-only", help="TensorRT: all but the engines; needs no GPU.")
    ] = False,
) -> None:
    """Convert a run to ONNX, check it against Keras, and publish it as a new version. Refuses where they disagree.

    With --target tensorrt: write networks, two model repositories and a script for trtexec into a folder of their own,
    and build the engines. Exit code 2 without a GPU or trtexec, unless --render-only.
    """
    if target is Target.tensorrt:
        _export_tensorrt(run, repository, data, precision or EnginePrecision.fp16, folder, render_only=render_only)
        return
    if run is None:
        fail("expected the folder of a run, got none (see lungstreams export --help)")
    if precision or folder or render_only:
        fail("expected --precision, --out and --render-only with --target tensorrt alone, got them with onnx")
    publish = extra("train.publish").main
    from serving.repository import DEFAULT_REPOSITORY

    publish(run, repository or DEFAULT_REPOSITORY, data)


def _export_tensorrt(
    run: Path | None,
    repository: Path | None,
    data: Path | None,
    precision: EnginePrecision,
    folder: Path | None,
    *,
    render_only: bool,
) -> None:
    if run is not None:
        fail(f"expected no run with --target tensorrt, which takes what is published, got {run}: publish it first")
    main = extra("train.tensorrt").main
    from serving.repository import DEFAULT_REPOSITORY

    report = main(
        repository or DEFAULT_REPOSITORY,
        folder or Path("build/tensorrt"),
        precision.value,
        render_only=render_only,
        data_folder=data,
    )
    typer.echo(f"written {report}")


def loadtest(
    url: Annotated[
        str | None,
        typer.Option(
            envvar=URL_VARIABLE, metavar="HOST:PORT", help="Triton's gRPC address. [dim]Default: an embedded one[/dim]"
        ),
    ] = None,
    duration: Annotated[float, typer.Option(help="How long to load the server, in seconds.")] = 60,
    users: Annotated[int, typer.Option(help="How many ask at the same time.")] = 2,
    cases: Annotated[
        list[str] | None, typer.Option(help="Case by name; may be given several times. [dim]Default: all[/dim]")
    ] = None,
    budget_s: Annotated[float, typer.Option(help="What p95 of each case may be at most, in seconds.")] = 5.33,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the reports go.")] = Path(
        "reports/loadtest"
    ),
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Load a server with scans and judge each kind of case.

    Exit code 1 if a p95 is over the budget, if failures reach 1 %, or if nothing ran.
    """
    names = [name for given in cases or [] for name in given.split(",") if name]
    run = extra("loadtest.run").run
    tls = None if url is None else client_tls(tls_ca, tls_cert, tls_key)
    raise typer.Exit(run(url, duration_s=duration, users=users, cases=names, budget_s=budget_s, out=folder, tls=tls))


def bench(
    repository: Annotated[Path | None, typer.Option(metavar="DIR", help="The model repository.")] = None,
    rounds: Annotated[int, typer.Option(help="Requests of each case that count.")] = 20,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="Part by name; may be given several times. [dim]Default: all[/dim]"),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the reports go.")] = Path("reports/bench"),
) -> None:
    """Latency, throughput and memory of the embedded Triton beside what one would use instead, in one run."""
    extra("loadtest.bench").main(repository, rounds, folder, names=parts or [])


def _list_experiments() -> None:
    experiments = extra("train.experiments").EXPERIMENTS
    table = Table("experiment", "publishes", "cost", "expect")
    for name, experiment in experiments.items():
        table.add_row(name, experiment.publishes or "", experiment.cost, experiment.expect)
    for name, (cost, expect) in REPORTS.items():
        table.add_row(name, "", cost, expect)
    out.print(table)
