"""`kdbench evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli import options
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.evaluation import F1, Accuracy


@click.command(short_help="Accuracy or F1 of an ONNX file, or its parity with another.")
@click.argument("model", type=options.FILE)
@click.argument("pack", type=options.FILE, required=False)
@click.option("--against", type=options.FILE, metavar="OTHER", help="Compare with this model's outputs.")
@click.option(
    "--backend",
    default="cpu",
    show_default=True,
    metavar="NAME[:PRECISION][@PYTHON]",
    help="One of `kdbench backends`.",
)
@options.backend_options
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@options.dims
def evaluate(
    model: Path,
    pack: Path | None,
    against: Path | None,
    backend: str,
    backend_options: dict[str, dict[str, str]],
    threads: int,
    batch: int,
    dims: dict[str, int],
) -> None:
    """Accuracy of an ONNX MODEL on a PACK, or its parity with another model, or both.

    A pack is an .npz with 'x_test' and 'y_test', as a run folder has one. Where samples have any number of labels, the
    F1 over all labels (micro) and its mean over them (macro) take the place of accuracy; a label holds above logit 0,
    or above 0.5 where all outputs lie from 0 to 1. Without a pack, --against compares on generated inputs.

    \b
    kdbench evaluate model.onnx pack.npz
    kdbench evaluate int8.onnx pack.npz --against model.onnx
    kdbench evaluate slim.onnx --against model.onnx
    """
    from kdbench import evaluate as judge
    from kdbench import parity
    from kdbench.backends import pick_backends
    from kdbench.data.pack import load_pack

    if pack is None and against is None:
        raise UserError("nothing to evaluate on: give a PACK, or --against OTHER.onnx")
    (target,) = pick_backends([backend], backend_options)
    if pack is not None:
        if against is not None and load_pack(pack).y_test is None:
            click.echo(f"accuracy   –  no labels in {pack}: only how alike the two answer can be told")
        else:
            click.echo(_told(judge(model, pack, batch=batch, backend=target, threads=threads), target.label))
    if against is not None:
        check = parity(model, against, pack=pack, batch=batch, backend=target, dims=dims)
        kind = "evaluation samples" if pack is not None else "generated inputs"
        click.echo(
            f"parity     on {check.samples} {kind}: largest difference {check.largest_difference:.3g} "
            f"(largest output {check.largest_output:.3g}), same answer in {100 * check.agreement:.2f} %"
        )


def _told(found: "Accuracy | F1", backend: str) -> str:
    """The metric of the task."""
    from kdbench.evaluation import F1

    if isinstance(found, F1):
        return (
            f"F1         micro {100 * found.micro:.2f} %, macro {100 * found.macro:.2f} %  "
            f"({found.labels} labels of {found.samples} samples) on {backend}"
        )
    return f"accuracy   {100 * found.accuracy:.2f} %  ({found.correct} of {found.samples}) on {backend}"
