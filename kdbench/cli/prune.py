"""`kdbench prune`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Take channels and blocks out of a weights file.")
@click.argument("weights", type=options.FILE)
@options.out_weights
@click.option(
    "--macs",
    callback=options.maybe_share,
    metavar="SHARE",
    help="Keep so much of the multiply-accumulates: 0.5 or 50%.",
)
@click.option("--parameters", callback=options.maybe_share, metavar="SHARE", help="Keep so much of the parameters.")
@click.option(
    "--latency",
    callback=options.maybe_share,
    metavar="SHARE",
    help="Keep so much of the latency measured on --backend.",
)
@click.option("--backend", default="cpu", show_default=True, metavar="NAME[:PRECISION]", help="Where it is measured.")
@click.option(
    "--ratio",
    "ratios",
    multiple=True,
    callback=options.shares,
    metavar="NAME=SHARE",
    help="In the place of a target: the share of its channels that a layer, or every layer of a module, loses. May be "
    "repeated.",
)
@click.option(
    "--importance",
    type=click.Choice(["l1", "l2", "group", "batch_norm", "taylor", "random"]),
    default="group",
    show_default=True,
    help="What tells the channels that matter least.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "layer"]),
    default="global",
    show_default=True,
    help="The least important ones of all layers, or the same share of each.",
)
@click.option("--round-to", type=click.IntRange(1), default=8, show_default=True, help="Of the channels that are left.")
@click.option("--blocks", is_flag=True, help="Whole residual blocks first.")
@options.ignore
@click.option("--pack", type=options.FILE, help="Judge on its calibration samples: for taylor, and for blocks.")
@options.code
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the importance random.")
@click.option("--layers", is_flag=True, help="Print parameters and MACs of each layer, before and after.")
def prune(
    weights: Path,
    out: Path,
    macs: float | None,
    parameters: float | None,
    latency: float | None,
    backend: str,
    ratios: dict[str, float],
    importance: str,
    scope: str,
    round_to: int,
    blocks: bool,
    ignore: tuple[str, ...],
    pack: Path | None,
    code: Path | None,
    seed: int,
    layers: bool,
) -> None:
    """Take the least important channels out of the model of a WEIGHTS file (.safetensors), until a share is left.

    The new file holds the smaller weights and what was taken out, and is exported as any other. It has lost accuracy,
    and should be trained again: `[prune]` in a recipe does both.

    \b
    kdbench prune runs/digits/student.safetensors --macs 0.5 --out pruned.safetensors
    kdbench prune big.safetensors --latency 60% --pack pack.npz --blocks --out small.safetensors
    kdbench prune big.safetensors --ratio stages.0=0.3 --ratio stages.1=0.5 --out small.safetensors
    """
    from kdbench.cli.show import show_pruned
    from kdbench.pipeline.learning import needs_torch
    from kdbench.progress import bars
    from kdbench.records import Prune, parse

    given: dict[str, object] = {"macs": macs, "parameters": parameters, "latency": latency, "backend": backend}
    given |= {"importance": importance, "scope": scope, "round_to": round_to, "blocks": blocks, "ignore": ignore}
    given |= {"ratios": ratios}
    chosen = parse(Prune, {name: value for name, value in given.items() if value is not None}, "prune")
    needs_torch()
    from kdbench.steps.prune import prune as prune_step

    with bars() as progress:
        found = prune_step(weights, out, chosen, pack, code, seed=seed, progress=progress)
    show_pruned(found, layers)
