"""`kdbench quantize`."""

from pathlib import Path
from typing import Any

import click

from kdbench.cli import options
from kdbench.errors import UserError
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
@click.option("--out", type=options.FILE, metavar="FILE", help="The ONNX file to write.  [default: MODEL-int8.onnx]")
@click.option(
    "--for",
    "backend",
    metavar="BACKEND",
    help="Choose types, format and scales as this backend of this machine likes them; options below go before. With "
    "neither --data nor --max-drop the first of its targets, unmeasured.",
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
@click.option("--prove/--no-prove", default=True, show_default=True, help="Set it beside MODEL, and time both.")
@options.budgeted
@options.dims
@options.given_inputs
def quantize(
    model: Path,
    pack: Path | None,
    out: Path | None,
    backend: str | None,
    prove: bool,
    dims: dict[str, int],
    inputs: dict[str, str],
    data: str | None,
    data_options: dict[str, Any],
    preprocess: dict[str, Any],
    samples: int | None,
    backend_options: dict[str, dict[str, str]],
    threads: int,
    batch: int,
    budget: float,
    **said: Any,
) -> None:
    """Quantize an ONNX MODEL to static int8: slimmed first, calibrated, then written with its record.

    With --data the int8 files that are plausible for a backend are judged on samples that they were not calibrated on,
    and timed against fp32 in turns: the fastest within --max-drop is kept, and MODEL-int8.budget.json has all that was
    tried.

    \b
    kdbench quantize model.onnx --calibration pack.npz --out int8.onnx
    kdbench quantize model.onnx --calibration pack.npz --exclude node_linear --out int8.onnx
    kdbench quantize model.onnx --calibration pack.npz --for tensorrt --out int8.onnx
    kdbench quantize model.onnx --data photos/ --for cpu --max-drop 0.5
    """
    from kdbench.backends import pick_backends
    from kdbench.cli.proof import show_proof_of
    from kdbench.cli.show import remark, show_artifact, show_quantized
    from kdbench.pipeline.searches import failed, forget_search
    from kdbench.quantization.targets import candidates
    from kdbench.records import Preprocessing, Quantize, parse
    from kdbench.steps.quantize import quantize as quantize_step

    given = {name: value for name, value in said.items() if options.given(name, value) is not None}
    chosen = parse(Quantize, given, "options")
    pick_backends([backend or "cpu"], backend_options)
    if data is None and chosen.max_drop is None:
        needless = {"data-option": data_options, "preprocess": preprocess, "samples": samples}
        needless |= {name.replace("_", "-"): given.get(name) for name in ("bias_correction", "equalization")}
        for name, value in needless.items():
            if value:
                raise UserError(f"--{name}: goes with --data: add it")
        if backend is not None:
            chosen = candidates(backend)[0].over(chosen)
        with bars() as progress:
            target = out or model.with_name(f"{model.stem}-int8.onnx")
            made = quantize_step(model, target, pack, chosen, dims=dims, progress=progress, inputs=inputs)
        for searched in (target, failed(target)):  # of a file that is no longer there
            forget_search(searched)
        show_artifact(made, target)
        if prove:
            show_proof_of(
                model,
                target,
                pack,
                backend=backend or "cpu",
                backend_options=backend_options,
                batch=batch,
                threads=threads,
                budget_s=options.given("budget", budget),
                dims=dims,
                inputs=inputs,
            )
        return
    proving = options.given("prove", prove) is not None
    for option, here in (("--dim", bool(dims)), ("--input", bool(inputs)), ("--prove/--no-prove", proving)):
        if here:
            raise UserError(f"{option}: for a single file, and here several are judged on samples: leave it out")
    if data is not None and pack is not None:
        raise UserError("--calibration: --data has the samples: leave one of them out")
    from kdbench.pipeline.quantizing import fastest_int8

    with bars() as progress:
        found = fastest_int8(
            model,
            out,
            data or pack,
            chosen.model_copy(update={"backend": backend or "cpu"}),
            backend_options=backend_options,
            data_options=data_options,
            preprocessing=parse(Preprocessing, preprocess, "--preprocess") if preprocess else None,
            samples=samples,
            threads=threads,
            batch=batch,
            budget_s=budget,
            progress=progress,
            say=remark,
        )
    show_quantized(found)
