"""`kdbench compare`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Fail where NEW is slower or worse than OLD by more than it may be.")
@click.argument("old", type=options.FILE, metavar="OLD")
@click.argument("new", type=options.FILE, metavar="NEW")
@click.option(
    "--max-slowdown",
    callback=options.allowed,
    default="5%",
    show_default=True,
    metavar="SHARE",
    help="Of the median latency: 5% or 0.05.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Of accuracy or micro F1.  [default: 0.5, where there are samples]",
)
@click.option("--max-growth", callback=options.allowed, metavar="SHARE", help="Of the file's size.  [default: any]")
@click.option("--strict", is_flag=True, help="Fail too where it can't be told, or a cell of OLD is missing in NEW.")
@click.option("--summary", type=options.FILE, metavar="FILE", help="Add a summary in Markdown to the end of FILE.")
@click.option("--json", "json_file", type=options.FILE, metavar="FILE", help="Write verdict and numbers as JSON.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[:PRECISION][@PYTHON]",
    help="As in `kdbench bench`; this and the following are for two models. May be repeated.  [default: cpu]",
)
@options.backend_options
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="May be repeated.  [default: 1]")
@click.option("--threads", type=click.IntRange(min=1), multiple=True, help="May be repeated.  [default: 1]")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for all cells together; each has five rounds at least.  [default: 60]",
)
@click.option("--affinity", callback=options.maybe_cpus, metavar="CPUS", help="Pin the processes to these: 0-3,6.")
@click.option("--pack", type=options.FILE, help="Samples and labels, as a run folder has them.  [default: generated]")
@options.sweep
@options.pairs("--input", "inputs", "NAME=SIZES:LOW..HIGH", "Generated, as in `kdbench bench`. May be repeated.")
@click.option("--out", type=options.FILE, metavar="DIR", help="Folder for the measurement.  [default: compare]")
@click.pass_context
def compare(
    ctx: click.Context,
    old: Path,
    new: Path,
    max_slowdown: float,
    max_drop: float | None,
    max_growth: float | None,
    strict: bool,
    summary: Path | None,
    json_file: Path | None,
    backends: tuple[str, ...],
    backend_options: dict[str, dict[str, str]],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    budget: float | None,
    affinity: tuple[int, ...] | None,
    pack: Path | None,
    dims: dict[str, tuple[int, ...]],
    inputs: dict[str, str],
    out: Path | None,
) -> None:
    """Is NEW slower than OLD, or worse? Exit status 1 if it is by more than it may be, for CI.

    OLD and NEW are two ONNX files: they are measured in turns, in the same rounds of fresh processes, until each bound
    is decided or --budget is spent. Or they are two measurements of one machine, result files or run folders, whose
    cells are compared as they are.

    A comparison is “within” its bound, proven “beyond” it, or it can't be told, and then it says what would settle it:
    that fails with --strict alone. What no longer runs, or no longer holds what it claims, fails by name.

    \b
    kdbench compare old.onnx new.onnx --pack pack.npz --max-slowdown 5% --max-drop 0.5
    kdbench compare old.onnx new.onnx --backend openvino --batch 1 --batch 32 --budget 300
    kdbench compare old.onnx new.onnx --summary "$GITHUB_STEP_SUMMARY" --json gate.json
    kdbench compare results/my-machine/2026-11-21-digits.json runs/digits --strict
    """
    from kdbench.cli.show import show_gate
    from kdbench.pipeline.gate import compare as gate_of
    from kdbench.report.gate.tables import gate_to_markdown
    from kdbench.store import output_file, write_atomic

    for option, file in (("--summary", summary), ("--json", json_file)):
        if file is not None:
            output_file(file, old, new, option=option)
    with bars() as progress:
        gate = gate_of(
            old,
            new,
            max_slowdown=max_slowdown,
            max_drop=max_drop,
            max_growth=max_growth,
            strict=strict,
            backends=backends or None,
            backend_options=backend_options or None,
            batches=batches or None,
            threads=threads or None,
            budget_s=budget,
            affinity=affinity,
            pack=pack,
            dims=dims,
            inputs=inputs,
            out=out,
            progress=progress,
        )
    show_gate(gate)
    if json_file is not None:
        write_atomic(json_file, gate.to_json())
    if summary is not None:
        earlier = summary.read_bytes() if summary.is_file() else b""  # of others, in whatever encoding
        write_atomic(summary, earlier + f"{gate_to_markdown(gate)}\n".encode())
    ctx.exit(0 if gate.passed else 1)
