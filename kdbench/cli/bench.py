"""`kdbench bench`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.errors import UserError
from kdbench.progress import bars


@click.command(short_help="Measure ONNX files, or a run, against a baseline.")
@click.argument("models", type=options.FILE, nargs=-1, required=True, metavar="MODEL.onnx... | RUN_DIR")
@click.option(
    "--baseline",
    type=options.FILE,
    metavar="TEACHER.onnx",
    help="What the others are compared with.  [default: the run's teacher, or the first model]",
)
@click.option("--backend", "backends", multiple=True, default=("cpu",), show_default=True, help="May be repeated.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True, help="May be repeated."
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for all cells together; each gets at least one slice in each process.",
)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(["single_stream", "multi_stream", "server", "offline"]),
    multiple=True,
    help="Measure under MLPerf's load instead. May be repeated.",
)
@click.option(
    "--bound", callback=options.seconds, metavar="TIME", help="Of the p99 of --scenario server.  [default: 10ms]"
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help="Sessions side by side in a --scenario. May be repeated.  [default: 1]",
)
@click.option("--pack", type=options.FILE, help="Measure accuracy on this .npz too.  [default: the run's]")
@options.dims
@click.option(
    "--out", type=options.FILE, default=Path("bench"), show_default=True, help="Folder for results and report."
)
@click.option("--publish", is_flag=True, help="Also copy the results to results/<machine>/<date>-<name>.json.")
def bench(
    models: tuple[Path, ...],
    baseline: Path | None,
    backends: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    budget: float,
    scenarios: tuple[str, ...],
    bound: float | None,
    sessions: tuple[int, ...],
    pack: Path | None,
    dims: dict[str, int],
    out: Path,
    publish: bool,
) -> None:
    """Measure ONNX models, or all rungs of a run, against a baseline.

    Every artifact runs in five fresh processes on every backend and thread count; the cells take turns in random
    order. A ratio whose 95 % interval covers 1 reads “no difference”. What can't be measured says why.

    With --scenario, MLPerf's loadgen sends the queries (pip install "kdbench[loadgen]"): the next one on an answer, the
    same by eights, by chance at the highest rate that keeps the bound, or all at once.

    \b
    kdbench bench fp32.onnx int8.onnx --batch 1 --batch 32
    kdbench bench runs/digits --backend cpu --backend openvino --threads 1 --threads 2 --out threads
    kdbench bench bert.onnx --dim sequence=128 --budget 60
    kdbench bench runs/digits --scenario server --bound 10ms --scenario offline --sessions 2
    """
    from kdbench import pipeline
    from kdbench.cli.show import show_report

    if bound is not None and "server" not in scenarios:
        raise UserError("--bound is for the server scenario: add --scenario server")
    if sessions and not scenarios:
        raise UserError("--sessions is for scenarios: add --scenario offline, or another one")
    with bars() as progress:
        report = pipeline.bench(
            models,
            baseline=baseline,
            backends=backends,
            batches=batches,
            threads=threads,
            budget_s=budget,
            scenarios=scenarios,
            bound_s=bound or 0.01,
            sessions=sessions or (1,),
            pack=pack,
            dims=dims,
            out=out,
            publish=publish,
            progress=progress,
        )
    show_report(report)
    errors = [*(row.error for row in report.ladder.rows), *(row.error for row in report.ladder.scenarios)]
    if all(errors):
        raise UserError("nothing was measured: every cell failed, each for the reason in the table")
