"""`kdbench quantize`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Quantize an ONNX file to static int8.")
@click.argument("model", type=options.FILE)
@click.option(
    "--calibration",
    "pack",
    type=options.FILE,
    metavar="PACK",
    help="Calibrate on the 'x_calibration' of this .npz. Without it on generated inputs, for speed tests only.",
)
@options.out_file
@click.option(
    "--method",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    show_default=True,
    help="How ranges are found. The last two keep every activation in memory.",
)
@click.option(
    "--activations",
    type=click.Choice(["uint8", "int8"]),
    default="uint8",
    show_default=True,
    help="uint8 is the fast one on x86.",
)
@click.option("--per-channel/--per-tensor", default=True, show_default=True, help="Scales of the weights.")
@click.option(
    "--operator",
    "operators",
    multiple=True,
    metavar="NAME",
    help="Quantize this kind of operator only. May be repeated.  [default: all that onnxruntime can]",
)
@options.dims
def quantize(
    model: Path,
    pack: Path | None,
    out: Path,
    method: str,
    activations: str,
    per_channel: bool,
    operators: tuple[str, ...],
    dims: dict[str, int],
) -> None:
    """Quantize an ONNX MODEL to static int8: slimmed first, then in QDQ format with signed int8 weights.

    \b
    kdbench quantize model.onnx --calibration pack.npz --out int8.onnx
    """
    from kdbench.cli.show import show_artifact
    from kdbench.records import Quantize, parse
    from kdbench.steps.quantize import quantize as quantize_step

    chosen = {"activations": activations, "per_channel": per_channel, "calibration": method, "operators": operators}
    show_artifact(quantize_step(model, out, pack, parse(Quantize, chosen, "options"), dims=dims), out)
