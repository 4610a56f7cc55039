"""`kdbench slim`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Rewrite an ONNX file with fewer nodes.")
@click.argument("model", type=options.FILE)
@options.out_file
@click.option("--pack", type=options.FILE, help="Compare outputs on its calibration samples, not on generated inputs.")
@options.dims
def slim(model: Path, out: Path, pack: Path | None, dims: dict[str, int]) -> None:
    """Rewrite an ONNX MODEL with fewer nodes and the same outputs; nothing is written where an output moves.

    \b
    kdbench slim model.onnx --out slim.onnx
    kdbench slim bert.onnx --dim sequence=128 --out slim.onnx
    """
    from kdbench.cli.show import show_artifact
    from kdbench.steps.slim import slim as slim_step

    show_artifact(slim_step(model, out, pack=pack, dims=dims), out)
