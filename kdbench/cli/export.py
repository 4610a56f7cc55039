"""`kdbench export`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Export a weights file to ONNX.")
@click.argument("weights", type=options.FILE)
@options.out_file
@click.option(
    "--pack", type=options.FILE, help="Compare PyTorch and onnxruntime on its samples, not on generated ones."
)
@options.code
def export(weights: Path, out: Path, pack: Path | None, code: Path | None) -> None:
    """Export the model of a WEIGHTS file (.safetensors, as `kdbench distill` writes) to ONNX.

    The batch is free. Nothing is written where onnxruntime's outputs differ from PyTorch's.

    \b
    kdbench export runs/digits/student.safetensors --pack runs/digits/pack.npz --out student.onnx
    """
    from kdbench.cli.show import show_artifact
    from kdbench.pipeline.learning import needs_torch

    needs_torch()
    from kdbench.steps.export import export as export_step

    show_artifact(export_step(weights, out, pack, code=code), out)
