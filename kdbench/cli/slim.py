"""`kdbench slim`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Rewrite an ONNX file with fewer nodes.")
@click.argument("model", type=options.FILE)
@options.out_file
@click.option("--pack", type=options.FILE, help="Compare outputs on its calibration samples, not on generated inputs.")
@click.option(
    "--fuse",
    is_flag=True,
    help="Of transformers, also make one node of each attention, layer norm and GELU. Such a file runs in onnxruntime "
    "alone.",
)
@options.dims
@options.given_inputs
def slim(model: Path, out: Path, pack: Path | None, fuse: bool, dims: dict[str, int], inputs: dict[str, str]) -> None:
    """Rewrite an ONNX MODEL with fewer nodes and the same outputs; nothing is written where an output moves.

    \b
    kdbench slim model.onnx --out slim.onnx
    kdbench slim bert.onnx --dim sequence=128 --fuse --out slim.onnx
    kdbench slim bert.onnx --dim sequence=128 --input token_type_ids=0..1 --out slim.onnx
    """
    from kdbench.cli.show import remark, show_artifact
    from kdbench.report.operators import operator_table
    from kdbench.steps.slim import slim as slim_step

    artifact = slim_step(model, out, pack=pack, dims=dims, fuse=fuse, inputs=inputs)
    for line in operator_table(artifact):
        click.echo(line)
    show_artifact(artifact, out)
    for sentence in artifact.options["remarks"]:
        remark(sentence)
