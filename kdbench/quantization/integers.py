"""Integer weights without calibration, by onnxruntime's own quantizers: dynamic int8, and int4 weight-only."""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError
from kdbench.machine import saturates_in_int8
from kdbench.quantization.preparing import own_copy
from kdbench.quantization.quiet import quietly
from kdbench.quantization.weights import attribute
from kdbench.records import Convert

if TYPE_CHECKING:
    import onnx

INT8_ACTIVATIONS = 4
"""The `accuracy_level` of MatMulNBits at which it multiplies in int8: activations are quantized block by block."""


def dynamic_int8(model: "onnx.ModelProto", options: Convert, left: Collection[str]) -> "onnx.ModelProto":
    """Weights signed int8; activations uint8 with the range that each run finds. Nodes named in `left` stay in float.

    A Gemm becomes a MatMul and an Add, as onnxruntime has no dynamic one.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, quietly():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        out = Path(scratch, "int8.onnx")
        quantize_dynamic(
            with_own_weights(model),
            str(out),
            op_types_to_quantize=["MatMul", "Conv", "LSTM", "Gather", "Attention", "EmbedLayerNormalization"],
            per_channel=options.per_channel,
            reduce_range=saturates_in_int8(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*left, *(f"{name}_MatMul" for name in left)],
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(str(out))


def int4_weights(model: "onnx.ModelProto", options: Convert, left: Collection[str]) -> "onnx.ModelProto":
    """Weights of products as 4 bits in blocks along the summed axis, each with a scale, by rounding to the nearest.

    In the operator form also tables of Gather. Raises UserError where what onnxruntime's quantizer needs isn't there.
    """
    with quietly():
        try:
            from onnxruntime.quantization import QuantFormat
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
            from onnxruntime.quantization.onnx_model import ONNXModel
        except ImportError as error:
            raise UserError(f"int4 needs '{error.name}', which is not installed: pip install onnx-ir") from None
        operators = ("MatMul", "Gather") if options.form == "operator" else ("MatMul",)
        prepared = ONNXModel(with_own_weights(model))
        prepared.replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(
            prepared.model,
            bits=4,
            block_size=options.block_size,
            is_symmetric=options.symmetric,
            accuracy_level=INT8_ACTIVATIONS if options.activations == "int8" else None,
            nodes_to_exclude=[*left, *(f"{name}_MatMul" for name in left)],
            quant_format=QuantFormat.QOperator if options.form == "operator" else QuantFormat.QDQ,
            op_types_to_quantize=operators,
        )
        quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    return _without_repeats(found)


def with_own_weights(model: "onnx.ModelProto", transposing: bool = True) -> "onnx.ModelProto":
    """A copy in which no weight is shared by operators of different kinds, nor by Gemms of which one transposes it.

    onnxruntime's quantizers change a weight in its place, once for each node that has it. Those that are `transposing`
    a Gemm's weight want none shared by two Gemms at all.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    own: dict[str, dict[tuple[str, int, str], str]] = {}
    """By weight and use the name of the copy; of the first use its own."""
    for node in copy.graph.node:
        for place, name in enumerate(node.input):
            if name not in weights:
                continue
            one = node.name if transposing else str(attribute(node, "transB", 0))
            use = (node.op_type, place, one if node.op_type == "Gemm" else "")
            known = own.setdefault(name, {})
            if use not in known:
                known[use] = own_copy(copy, weights[name]) if known else name
            node.input[place] = known[use]
    return copy


def _without_repeats(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """With each weight once: the quantizer adds those that two nodes share for each of them."""
    kept = {tensor.name: tensor for tensor in reversed(model.graph.initializer)}
    tensors = list(reversed(kept.values()))
    if len(tensors) < len(model.graph.initializer):
        copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
    return model
