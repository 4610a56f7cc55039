"""`kdbench quantize`."""

from pathlib import Path
from typing import Any

import click

from kdbench.cli import options
from kdbench.progress import bars


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
    "--for",
    "backend",
    metavar="BACKEND",
    help="Choose types, format and scales as this backend of this machine likes them; options below go before.",
)
@click.option(
    "--method",
    "calibration",
    type=click.Choice(["minmax", "entropy", "percentile", "mse"]),
    default="minmax",
    show_default=True,
    help="How ranges are found: all values, or less for finer steps. Any number of samples streams through.",
)
@click.option(
    "--percentile",
    type=float,
    default=99.99,
    show_default=True,
    help="Percent of a tensor's values that its range holds, for --method percentile.",
)
@click.option(
    "--activations",
    type=click.Choice(["uint8", "int8"]),
    default="uint8",
    show_default=True,
    help="uint8 is the fast one on x86.",
)
@click.option(
    "--symmetric/--asymmetric", default=False, help="Ranges of activations about 0 or not.  [default: --asymmetric]"
)
@click.option(
    "--weights",
    type=click.Choice(["int8", "uint8"]),
    default="int8",
    show_default=True,
    help="int8 ones have no zero point.",
)
@click.option("--per-channel/--per-tensor", default=True, show_default=True, help="Scales of the weights.")
@click.option(
    "--reduce-range/--full-range",
    default=None,
    help="Weights of 7 or 8 bits.  [default: 7 on x86 without VNNI]",
)
@click.option(
    "--format",
    type=click.Choice(["qdq", "qoperator"]),
    default="qdq",
    show_default=True,
    help="Quantizers around float nodes, which each backend fuses as it can, or integer nodes.",
)
@click.option(
    "--operator",
    "operators",
    multiple=True,
    metavar="NAME",
    help="Quantize this kind of operator only. May be repeated.  [default: all that onnxruntime can]",
)
@click.option(
    "--node", "nodes", multiple=True, metavar="NAME", help="Quantize this node only. May be repeated.  [default: all]"
)
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave this node in float. May be repeated.")
@options.dims
def quantize(model: Path, pack: Path | None, out: Path, backend: str | None, dims: dict[str, int], **said: Any) -> None:
    """Quantize an ONNX MODEL to static int8: slimmed first, calibrated, then written with its record.

    \b
    kdbench quantize model.onnx --calibration pack.npz --out int8.onnx
    kdbench quantize model.onnx --calibration pack.npz --method mse --exclude /head/Gemm --out int8.onnx
    kdbench quantize model.onnx --calibration pack.npz --for tensorrt --out int8.onnx
    """
    from kdbench.cli.show import show_artifact
    from kdbench.quantization.targets import candidates
    from kdbench.records import Quantize, parse
    from kdbench.steps.quantize import quantize as quantize_step

    given = {name: value for name, value in said.items() if options.given(name, value) is not None}
    chosen = parse(Quantize, given, "options")
    if backend is not None:
        chosen = candidates(backend)[0].over(chosen)
    with bars() as progress:
        made = quantize_step(model, out, pack, chosen, dims=dims, progress=progress)
    show_artifact(made, out)
