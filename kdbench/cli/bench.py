"""`kdbench bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kdbench.cli import options
from kdbench.errors import UserError
from kdbench.progress import bars

if TYPE_CHECKING:
    from kdbench.report.table import Ladder


@click.command(short_help="Measure ONNX files, or a run, against a baseline.")
@click.argument("models", type=options.FILE, nargs=-1, metavar="MODEL.onnx... | RUN_DIR | PACKED")
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
    help="Time for all cells together; each gets at least one slice in each of five processes.",
)
@click.option(
    "--precision",
    callback=options.share,
    default="2%",
    show_default=True,
    metavar="SHARE",
    help="End earlier, once the interval of each ratio reaches no further to either side.",
)
@click.option(
    "--affinity",
    callback=options.cpus,
    metavar="CPUS",
    help="Pin the measured processes to these, such as 0-3,6.  [default: all that they may run on]",
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
@click.option(
    "--price",
    callback=options.price,
    metavar="PRICE/h",
    help="Of the machine, such as 0.08/h or $0.08/h: adds what a million inferences cost.",
)
@click.option(
    "--reference",
    metavar="RUNG[@BACKEND]",
    help="Also compare each cell with this one, of the same batch on the first --threads.  [default backend: cpu]",
)
@click.option("--pack", type=options.FILE, help="Measure accuracy on this .npz too.  [default: the run's]")
@options.sweep
@options.given_inputs
@click.option(
    "--out", type=options.FILE, default=Path("bench"), show_default=True, help="Folder for results and report."
)
@click.option("--strict", is_flag=True, help="End with an error where a claim of a cell does not hold.")
@click.option("--publish", is_flag=True, help="Also copy the results to results/<machine>/<date>-<name>.json.")
@click.option(
    "--self-test",
    is_flag=True,
    help="Instead, compare each model, or a generated one, with itself and with a copy made slower by 5 %: exit status "
    "1 where either comes out wrong.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    models: tuple[Path, ...],
    baseline: Path | None,
    backends: tuple[str, ...],
    backend_options: dict[str, dict[str, str]],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    budget: float,
    precision: float,
    affinity: tuple[int, ...],
    scenarios: tuple[str, ...],
    bound: float | None,
    sessions: tuple[int, ...],
    price: tuple[float, str] | None,
    reference: str | None,
    pack: Path | None,
    dims: dict[str, tuple[int, ...]],
    inputs: dict[str, str],
    out: Path,
    publish: bool,
    strict: bool,
    self_test: bool,
) -> None:
    """Measure ONNX models, or all rungs of a run, against a baseline.

    Every artifact runs in five or more fresh processes on every backend and thread count, until each ratio is known to
    --precision or --budget is spent; the cells take turns in random order. A ratio whose 95 % interval covers 1 reads
    “no difference”. What can't be measured says why.

    PACKED is a file that `kdbench pack` made of a run. It is measured as its plan says, except where options are given
    here, needs neither torch nor the data, and leaves one file of results to be brought back.

    With --scenario, MLPerf's loadgen sends the queries (pip install mlcommons-loadgen): the next one on an answer, the
    same by eights, by chance at the highest rate that keeps the bound, or all at once.

    \b
    kdbench bench fp32.onnx int8.onnx --batch 1 --batch 32
    kdbench bench runs/digits --backend cpu --backend openvino --threads 1 --threads 2 --out threads
    kdbench bench fp32.onnx --backend openvino:bf16 --backend cuda@envs/gpu/bin/python
    kdbench bench bert.onnx --dim sequence=64,128,256 --budget 60 --precision 1%
    kdbench bench digits.kdbench.zip --threads 4
    kdbench bench --self-test                  whether this machine is quiet enough to be believed
    kdbench bench runs/digits --backend cpu --backend cuda --price 0.08/h --reference teacher@cpu
    kdbench bench runs/digits --scenario server --bound 10ms --scenario offline --sessions 2
    """
    if self_test:
        _test_itself(
            ctx,
            models,
            backends=backends,
            backend_options=backend_options,
            batches=batches,
            threads=threads,
            budget_s=budget,
            precision=precision,
            affinity=affinity,
            dims=dims,
            inputs=inputs,
        )
    if not models:
        raise click.UsageError("Missing argument 'MODEL.onnx... | RUN_DIR'.", ctx)
    if bound is not None and "server" not in scenarios:
        raise UserError("--bound is for the server scenario: add --scenario server")
    if sessions and not scenarios:
        raise UserError("--sessions is for scenarios: add --scenario offline, or another one")
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
            precision=options.given("precision", precision),
            affinity=options.given("affinity", affinity),
            scenarios=options.given("scenarios", scenarios),
            bound_s=bound,
            sessions=options.given("sessions", sessions),
            price_per_h=price and price[0],
            currency=price and price[1],
            reference=reference,
            pack=pack,
            dims=dims,
            inputs=inputs,
            out=out,
            publish=publish,
            progress=progress,
            say=remark,
        )
    show_report(report)
    _end(report.ladder, strict)


def _test_itself(ctx: click.Context, models: tuple[Path, ...], **chosen: Any) -> NoReturn:
    """Compares each model with itself and ends the command: with 1 where that comes out wrong."""
    useless = ("baseline", "pack", "out", "publish", "strict", "scenarios", "bound", "sessions", "price", "reference")
    for name in useless:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--self-test has no use for --{name}", ctx)
    from kdbench.cli.show import show_self_test
    from kdbench.pipeline.self_test import self_test

    with bars() as progress:
        found = self_test(models, **chosen, progress=progress)
    show_self_test(found)
    ctx.exit(0 if all(check.right for check in found) else 1)


def _end(ladder: "Ladder", strict: bool) -> None:
    """Raises UserError where nothing was measured, and with `strict` where a claim of a cell does not hold."""
    errors = [*(row.error for row in ladder.rows), *(row.error for row in ladder.scenarios)]
    if all(errors):
        raise UserError("nothing was measured: every cell failed, each for the reason in the table")
    broken = [
        f"{row.rung} on {row.backend} ({place}): {'; '.join(row.broken_claims)}"
        for row in ladder.rows
        for place in [f"threads {row.threads}, batch {row.batch}{f', {row.dims}' if row.dims else ''}"]
        if row.broken_claims
    ]
    if strict and broken:
        raise UserError(f"--strict: of {len(errors)} cells {len(broken)} are not what they claim: {' | '.join(broken)}")
