"""`kdbench bench`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.errors import UserError
from kdbench.progress import bars


@click.command(short_help="Measure ONNX files, or a run, against a baseline.")
@click.argument("models", type=options.FILE, nargs=-1, required=True, metavar="MODEL.onnx... | RUN_DIR | PACKED")
@click.option(
    "--baseline",
    type=options.FILE,
    metavar="TEACHER.onnx",
    help="What the others are compared with.  [default: the run's teacher, or the first model]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="NAME[:PRECISION][@PYTHON]",
    help="One of `kdbench backends`, under another environment's interpreter if one is named. May be repeated.",
)
@options.backend_options
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
@click.option("--pack", type=options.FILE, help="Measure accuracy on this .npz too.  [default: the run's]")
@options.dims
@click.option(
    "--out", type=options.FILE, default=Path("bench"), show_default=True, help="Folder for results and report."
)
@click.option("--strict", is_flag=True, help="End with an error where a claim of a cell does not hold.")
@click.option("--publish", is_flag=True, help="Also copy the results to results/<machine>/<date>-<name>.json.")
def bench(
    models: tuple[Path, ...],
    baseline: Path | None,
    backends: tuple[str, ...],
    backend_options: dict[str, dict[str, str]],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    budget: float,
    pack: Path | None,
    dims: dict[str, int],
    out: Path,
    publish: bool,
    strict: bool,
) -> None:
    """Measure ONNX models, or all rungs of a run, against a baseline.

    Every artifact runs in five fresh processes on every backend and thread count; the cells take turns in random
    order. A ratio whose 95 % interval covers 1 reads “no difference”. What can't be measured says why.

    PACKED is a file that `kdbench pack` made of a run. It is measured as its plan says, except where options are given
    here, needs neither torch nor the data, and leaves one file of results to be brought back.

    \b
    kdbench bench fp32.onnx int8.onnx --batch 1 --batch 32
    kdbench bench runs/digits --backend cpu --backend openvino --threads 1 --threads 2 --out threads
    kdbench bench fp32.onnx --backend openvino:bf16 --backend cuda@envs/gpu/bin/python
    kdbench bench bert.onnx --dim sequence=128 --budget 60
    kdbench bench digits.kdbench.zip --threads 4
    """
    from kdbench import pipeline
    from kdbench.cli.show import remark, show_report

    with bars() as progress:
        report = pipeline.bench(
            models,
            baseline=baseline,
            backends=options.given("backends", backends),
            backend_options=options.given("backend_options", backend_options),
            batches=options.given("batches", batches),
            threads=options.given("threads", threads),
            budget_s=options.given("budget", budget),
            pack=pack,
            dims=dims,
            out=out,
            publish=publish,
            progress=progress,
            say=remark,
        )
    show_report(report)
    errors = [row.error for row in report.ladder.rows]
    if all(errors):
        raise UserError("nothing was measured: every cell failed, each for the reason in the table")
    broken = [
        f"{row.rung} on {row.backend} (threads {row.threads}, batch {row.batch}): {'; '.join(row.broken_claims)}"
        for row in report.ladder.rows
        if row.broken_claims
    ]
    if strict and broken:
        raise UserError(f"--strict: of {len(errors)} cells {len(broken)} are not what they claim: {' | '.join(broken)}")
