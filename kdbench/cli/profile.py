"""`kdbench profile`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli import options
from kdbench.errors import printable

if TYPE_CHECKING:
    from kdbench.proofs.profile import Profile


@click.command(short_help="Where a model's time goes, and why.")
@click.argument("model", type=options.FILE)
@click.argument("other", type=options.FILE, required=False)
@click.option("--backend", default="cpu", show_default=True, help="One of `kdbench backends`.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--pack", type=options.FILE, help="Run samples of this .npz.  [default: generated inputs]")
@options.dims
def profile(
    model: Path, other: Path | None, backend: str, batch: int, threads: int, pack: Path | None, dims: dict[str, int]
) -> None:
    """Time of MODEL by operator and node, the slowest ten, and what is known to help.

    An int8 model is set beside its fp32 parent, layer by layer, if that lies in the same folder; any two models are,
    if OTHER is given. Kernels are timed under a trace, which makes short ones longer: compare those of one table.

    \b
    kdbench profile student.onnx
    kdbench profile student-int8.onnx --batch 32
    kdbench profile int8.onnx fp32.onnx --threads 2
    """
    from kdbench import profile as measure
    from kdbench.proofs.explanations import explain

    found = measure(model, other, backend=backend, batch=batch, threads=threads, pack=pack, dims=dims)
    for one in found:
        _show(one)
    if len(found) == 2 and all(one.kernels for one in found):
        _show_beside(*found)
    sentences = [(one.artifact.rung, sentence) for one in found for sentence in explain(one)]
    for rung, sentence in sentences:
        click.echo(printable(f"{rung}: {sentence}"))
    if not sentences:
        click.echo("none of the known causes of lost time shows here")


def _show(profile: "Profile") -> None:
    """Totals, operators and the slowest ten."""
    from kdbench.report.text import percent, seconds

    plural = "s" if profile.threads > 1 else ""
    click.echo(
        f"{profile.artifact.rung} on {profile.backend}, {profile.threads} thread{plural}, batch {profile.batch}: "
        f"{seconds(profile.latency_s)} a run"
    )
    if not profile.kernels:
        click.echo("  its provider compiles the model and tells nothing of single kernels\n")
        return
    if profile.kernels_s > profile.latency_s:
        click.echo(
            f"  its kernels take {seconds(profile.kernels_s)} under the trace, longer than a run without it: "
            "times below 5 µs are mostly the trace's own"
        )
    else:
        click.echo(f"  at least {percent(profile.outside_share)} of it outside kernels")
    total = profile.kernels_s
    _table(
        ("operator", "kernels", "time", "share"),
        [(name, str(n), seconds(time), percent(time / total)) for name, n, time in profile.by_operator()],
        left=1,
    )
    _table(
        ("slowest nodes", "operator", "layer", "time", "share"),
        [
            (kernel.name, kernel.operator, kernel.layer or "", seconds(kernel.time_s), percent(kernel.time_s / total))
            for kernel in profile.slowest()
        ],
        left=3,
    )


def _show_beside(first: "Profile", second: "Profile") -> None:
    """Both, layer by layer."""
    from kdbench.proofs.profile import side_by_side
    from kdbench.report.text import seconds, three_digits

    rows = []
    for row in side_by_side(first, second):
        ratio = f"{three_digits(row.first_s / row.second_s)}×" if row.first_s and row.second_s else "–"
        times = (seconds(row.first_s), seconds(row.second_s))
        rows.append((row.name, f"{row.first} {times[0]}".strip(), f"{row.second} {times[1]}".strip(), ratio))
    _table(("layer", first.artifact.rung, second.artifact.rung, "speed-up"), rows, left=1)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Columns as wide as they need to be, long names cut in their middle; the first `left` of them to the left."""
    shown = [header, *([_shortened(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    for row in shown:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(printable(f"  {'  '.join(cells)}".rstrip()))
    click.echo()


def _shortened(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
