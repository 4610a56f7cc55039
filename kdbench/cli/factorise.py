"""`kdbench factorise`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Make layers of a weights file products of smaller ones.")
@click.argument("weights", type=options.FILE)
@options.out_weights
@click.option(
    "--energy",
    callback=options.maybe_share,
    metavar="SHARE",
    help="Of its squared singular values that each layer keeps.",
)
@click.option(
    "--macs", callback=options.maybe_share, metavar="SHARE", help="In its place: of the MACs that are left at most."
)
@options.layers("Factorise this submodule only.  [default: all layers that get cheaper]")
@options.ignore
@options.code
def factorise(
    weights: Path,
    out: Path,
    energy: float | None,
    macs: float | None,
    layers: tuple[str, ...],
    ignore: tuple[str, ...],
    code: Path | None,
) -> None:
    """Make layers of a WEIGHTS file (.safetensors, as `kdbench distill` writes) products of two smaller ones.

    Linear layers and convolutions, by their singular values, where that is cheaper. To train on with them, give a
    recipe the section [factorise].

    \b
    kdbench factorise runs/digits/student.safetensors --energy 0.95 --out low-rank.safetensors
    """
    from kdbench.pipeline.learning import needs_torch
    from kdbench.records import Factorise, parse
    from kdbench.report.text import count

    needs_torch()
    from kdbench.steps.factorise import factorise as factorise_step

    chosen = {"energy": energy, "macs": macs, "layers": layers, "ignore": ignore}
    made = factorise_step(weights, out, parse(Factorise, chosen, "factorise"), code)
    kept = f"{100 * made.energy:.3g} % of the squared singular values of each"
    click.echo(
        f"{out}: {len(made.ranks)} layers factorised, with {kept}; "
        f"{count(made.macs_after)} MACs, {made.macs_after / made.macs:.3f} of {count(made.macs)}"
    )
    for name, rank in made.ranks.items():
        click.echo(f"  {name}: rank {rank}")
    for why in dict.fromkeys(made.left.values()):
        names = [name for name, reason in made.left.items() if reason == why]
        click.echo(f"  left alone: {', '.join(names)}: {why}")
