"""`kdbench evaluate`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.errors import UserError


@click.command(short_help="Accuracy of an ONNX file, or its parity with another.")
@click.argument("model", type=options.FILE)
@click.argument("pack", type=options.FILE, required=False)
@click.option("--against", type=options.FILE, metavar="OTHER", help="Compare with this model's outputs.")
@click.option("--backend", default="cpu", show_default=True, help="One of `kdbench backends`.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@options.dims
def evaluate(
    model: Path, pack: Path | None, against: Path | None, backend: str, threads: int, batch: int, dims: dict[str, int]
) -> None:
    """Accuracy of an ONNX MODEL on a PACK, or its parity with another model, or both.

    A pack is an .npz with 'x_test' and 'y_test', as a run folder has one. Without a pack, --against compares on
    generated inputs.

    \b
    kdbench evaluate model.onnx pack.npz
    kdbench evaluate int8.onnx pack.npz --against model.onnx
    kdbench evaluate slim.onnx --against model.onnx
    """
    from kdbench import evaluate as judge
    from kdbench import parity

    if pack is None and against is None:
        raise UserError("nothing to evaluate on: give a PACK, or --against OTHER.onnx")
    if pack is not None:
        found = judge(model, pack, batch=batch, backend=backend, threads=threads)
        click.echo(f"accuracy   {100 * found.accuracy:.2f} %  ({found.correct} of {found.samples}) on {backend}")
    if against is not None:
        check = parity(model, against, pack=pack, batch=batch, backend=backend, dims=dims)
        kind = "evaluation samples" if pack is not None else "generated inputs"
        click.echo(
            f"parity     on {check.samples} {kind}: largest difference {check.largest_difference:.3g} "
            f"(largest output {check.largest_output:.3g}), same answer in {100 * check.agreement:.2f} %"
        )
