"""`kdbench convert`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Convert an ONNX file to dynamic int8, fp16, bf16 or int4 weights.")
@click.argument("model", type=options.FILE)
@click.option("--to", type=click.Choice(["dynamic", "fp16", "bf16", "int4"]), required=True, help="The precision.")
@options.out_file
@click.option(
    "--pack", type=options.FILE, help="Compare and judge on samples of this .npz.  [default: generated inputs]"
)
@click.option(
    "--operator",
    "operators",
    multiple=True,
    metavar="NAME",
    help="Convert this kind of operator only. May be repeated.  [default: all that gain by it]",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="NAME",
    help="Leave this node, or this kind of operator, in float. May be repeated.",
)
@click.option(
    "--activations",
    type=click.Choice(["float", "int8", "bf16"]),
    default="float",
    show_default=True,
    help="Multiply int4 weights in int8; or bf16 ones in bf16, for GPUs.",
)
@click.option("--per-channel/--per-tensor", default=True, show_default=True, help="Scales of dynamic int8.")
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128", "256"]),
    default="32",
    show_default=True,
    help="Weights of int4 that share a scale.",
)
@click.option("--symmetric/--zero-points", default=False, help="Scales of int4.  [default: with zero points]")
@click.option(
    "--form",
    type=click.Choice(["operator", "qdq"]),
    default="operator",
    show_default=True,
    help="Of int4: onnxruntime's own operator, or the standard's DequantizeLinear.",
)
@click.option("--prove/--no-prove", default=True, show_default=True, help="Set it beside MODEL, and time both.")
@click.option("--backend", default="cpu", show_default=True, help="On which. One of `kdbench backends`.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--budget", type=float, metavar="SECONDS", help="For timing them.  [default: 5]")
@options.dims
@options.given_inputs
def convert(
    model: Path,
    to: str,
    out: Path,
    pack: Path | None,
    operators: tuple[str, ...],
    keep: tuple[str, ...],
    activations: str,
    per_channel: bool,
    block_size: str,
    symmetric: bool,
    form: str,
    prove: bool,
    backend: str,
    batch: int,
    threads: int,
    budget: float | None,
    dims: dict[str, int],
    inputs: dict[str, str],
) -> None:
    """Convert an fp32 ONNX MODEL to another precision than the static int8 of `kdbench quantize`.

    dynamic: int8 weights, and activations with the range that each run finds, for transformers and LSTMs. fp16: for
    GPUs and NPUs; inputs and outputs stay float32, and so do nodes that would leave its range. bf16: weights of half
    the size that are computed with in float32. int4: weights of products in 4 bits, for those that don't fit into the
    cache.

    \b
    kdbench convert bert.onnx --to dynamic --pack pack.npz --out bert-int8.onnx
    kdbench convert model.onnx --to fp16 --keep Softmax --out fp16.onnx
    kdbench convert bert.onnx --to int4 --activations int8 --input tokens=128:0..29999 --out int4.onnx
    """
    from kdbench.cli.proof import show_proof_of
    from kdbench.cli.show import remark, show_artifact
    from kdbench.records import Convert, parse
    from kdbench.steps.convert import convert as convert_step

    chosen = {
        "to": to,
        "operators": operators,
        "keep": keep,
        "activations": activations,
        "per_channel": per_channel,
        "block_size": int(block_size),
        "symmetric": symmetric,
        "form": form,
    }
    made = convert_step(model, out, parse(Convert, chosen, "options"), pack, dims=dims, inputs=inputs)
    show_artifact(made, out)
    if left := made.options["left_in_float"]:
        remark(f"left in float: {', '.join(f'{count} {name}' for name, count in left.items())}")
    if prove:
        show_proof_of(
            *(model, out, pack),
            backend=backend,
            batch=batch,
            threads=threads,
            budget_s=budget,
            dims=dims,
            inputs=inputs,
        )
