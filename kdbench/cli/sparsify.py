"""`kdbench sparsify`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Set weights of a weights file to zero.")
@click.argument("weights", type=options.FILE)
@options.out_weights
@click.option("--sparsity", callback=options.maybe_share, metavar="SHARE", help="Share of zeros, such as 0.8 or 80%.")
@click.option("--threshold", type=float, metavar="VALUE", help="In its place: what is smaller becomes zero.")
@click.option(
    "--method",
    type=click.Choice(["magnitude", "random"]),
    default="magnitude",
    show_default=True,
    help="Which weights go first: the smallest, or any.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "layer"]),
    default="global",
    show_default=True,
    help="The share is of all weights together, or of each layer's.",
)
@options.layers("Choose from this submodule or weight only.  [default: all but embeddings]")
@options.ignore
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the method random.")
@options.code
def sparsify(
    weights: Path,
    out: Path,
    sparsity: float | None,
    threshold: float | None,
    method: str,
    scope: str,
    layers: tuple[str, ...],
    ignore: tuple[str, ...],
    seed: int,
    code: Path | None,
) -> None:
    """Set weights of a WEIGHTS file (.safetensors, as `kdbench distill` writes) to zero, at once.

    A compressed file gets smaller by it, and dense kernels no faster. For zeros that come by and by, and training with
    them, give a recipe the section [sparsify].

    \b
    kdbench sparsify runs/digits/student.safetensors --sparsity 0.8 --out sparse.safetensors
    """
    from kdbench.cli.show import remark
    from kdbench.pipeline.learning import needs_torch
    from kdbench.records import Sparsify, parse
    from kdbench.report.text import percent, size

    needs_torch()
    from kdbench.steps.sparsify import WORTH
    from kdbench.steps.sparsify import sparsify as sparsify_step

    chosen = {
        "method": method,
        "sparsity": sparsity,
        "threshold": threshold,
        "scope": scope,
        "layers": layers,
        "ignore": ignore,
    }
    done = sparsify_step(weights, out, parse(Sparsify, chosen, "sparsify"), seed, code)
    compressed = f"{size(done.compressed_size_bytes)} compressed instead of {size(done.compressed_size_before_bytes)}"
    click.echo(f"{out}: {percent(done.sparsity)} of {done.weights:,} weights are zero, {compressed}")
    remark(WORTH)
