"""Static int8 by onnxruntime's quantizer: QDQ, slimmed before, calibrated on training samples."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.data.generated import batch_size, generate
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, first_line, nearest
from kdbench.evaluation import parity_on
from kdbench.machine import saturates_in_int8
from kdbench.onnxfile import QUANTIZED, known_artifact, load_model, opset_of, portable
from kdbench.proofs.layers import RECURRENT
from kdbench.records import Artifact, Quantize
from kdbench.steps.slim import comparison_inputs, derived, slimmed_graph
from kdbench.store import Arrays, output_file, part_of, save_artifact, write_atomic

if TYPE_CHECKING:
    import onnx

BATCH = 32
GENERATED_SAMPLES = 128
PER_CHANNEL_OPSET = 13

LEAST_AGREEMENT = 0.95
"""With its parent, on the samples (or their single labels) that the two are compared on; below it the record carries a
warning."""

GENERATED_WARNING = "calibrated on generated inputs: its accuracy is a matter of luck, give --calibration PACK"


def quantize(
    model: str | Path,
    out: str | Path,
    pack: EvalPack | str | Path | None = None,
    options: Quantize | None = None,
    rung: str | None = None,
    dims: Mapping[str, int] | None = None,
) -> Artifact:
    """Writes the int8 model to `out`, its record beside it.

    Activations are calibrated on the pack's calibration samples; without a pack on generated inputs, which the record
    says as a warning. Raises UserError where the model is quantized already or nothing in it can be.
    """
    model, out = Path(model), Path(out)
    pack, options = open_pack(pack), options or Quantize()
    parent = known_artifact(model)
    if parent.precision != "fp32":
        state = "quantized already" if parent.precision == "int8" else "in half precision"
        raise UserError(f"{model}: is {state}: give its fp32 parent")
    graph, notes = _upgraded(slimmed_graph(load_model(model), model), model, options)
    inputs = (
        pack.calibration_inputs(parent.inputs, parent.preprocessing)
        if pack is not None
        else generate(parent.inputs, batch_size(parent.inputs) or GENERATED_SAMPLES, dims or {})
    )
    with tempfile.TemporaryDirectory() as scratch:
        quantized = _quantize_static(
            _with_flat_biases(graph), inputs, batch_size(parent.inputs) or BATCH, options, Path(scratch), model
        )
    if not any(node.op_type in QUANTIZED for node in quantized.graph.node):
        kinds = ", ".join(sorted({node.op_type for node in quantized.graph.node})[:8])
        raise UserError(f"{model}: nothing in it can be quantized (operators: {kinds}): ship it as it is")
    part = part_of(output_file(out, model), "-unproven")
    write_atomic(part, portable(quantized))
    try:
        compared, batch = comparison_inputs(parent, pack, dims or {})
        check = parity_on(part, model, compared, batch, task=parent.task)
        if not np.isfinite(check.largest_difference):
            raise UserError(f"{out}: not written: its outputs, or those of {model}, are NaN or infinite")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    warnings: tuple[str, ...] = () if pack is not None else (GENERATED_WARNING,)
    left = sorted({node.op_type for node in quantized.graph.node} & set(RECURRENT))
    if left:
        warnings += (f"its {' and '.join(left)} layers stay in float: static int8 knows no recurrent ones",)
    if check.label_agreement < LEAST_AGREEMENT:
        compared_on = "the labels of " if parent.task == "multi_label" else ""
        warnings += (
            f"answers otherwise than {parent.rung} in {1 - check.label_agreement:.0%} of "
            f"{compared_on}{check.samples} compared samples: "
            "quantize fewer operators, such as --operator Conv --operator Gemm --operator MatMul",
        )
    used = options.model_dump() | {"format": "qdq", "reduce_range": saturates_in_int8()} | notes
    return save_artifact(out.parent, derived(out, rung, parent, "quantize", used, check, warnings))


def _upgraded(model: "onnx.ModelProto", path: Path, options: Quantize) -> tuple["onnx.ModelProto", dict[str, object]]:
    """The model at an opset that knows per-channel scales, where it can be converted; what was changed for it."""
    from onnx import version_converter

    opset = opset_of(model)
    if opset >= PER_CHANNEL_OPSET:
        return model, {}
    try:
        return version_converter.convert_version(model, PER_CHANNEL_OPSET), {"opset_from": opset}
    except Exception as error:  # a C++ exception, of no class of its own
        if opset < 10:
            raise UserError(
                f"{path}: opset {opset} can't be quantized, nor converted to {PER_CHANNEL_OPSET} "
                f"({first_line(error, 100)}): export it with opset {PER_CHANNEL_OPSET} or newer"
            ) from None
        return model, {"per_channel": False} if options.per_channel else {}


def _with_flat_biases(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model with Gemm biases [1, N] as [N], which broadcast alike: onnxruntime's quantizer fails on the former."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    shared = {name for node in model.graph.node if node.op_type != "Gemm" for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in biases - shared and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]
    return model


def _quantize_static(
    model: "onnx.ModelProto", inputs: Arrays, batch: int, options: Quantize, scratch: Path, path: Path
) -> "onnx.ModelProto":
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Arrays] = _batches(inputs, batch)

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    opset = opset_of(model)
    present = {node.op_type for node in model.graph.node}
    for operator in options.operators:
        if operator not in present:
            raise UserError(f"{path}: has no operator '{operator}': {nearest(operator, present)}")
    prepared = scratch / "prepared.onnx"
    logging.disable(logging.WARNING)  # its advice is to do what has just been done
    try:
        with contextlib.suppress(Exception):  # shapes help, and where they can't be inferred it goes without
            quant_pre_process(model, str(prepared), skip_optimization=True, auto_merge=True)
        if not prepared.is_file():
            onnx.save(model, str(prepared))
        quantize_static(
            str(prepared),
            str(scratch / "int8.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8 if options.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(options.operators) or None,
            per_channel=options.per_channel and opset >= PER_CHANNEL_OPSET,
            reduce_range=saturates_in_int8(),
            calibrate_method=methods[options.calibration],
        )
    except Exception as error:  # the quantizer raises what it likes
        raise UserError(f"{path}: onnxruntime can't quantize it: {first_line(error, 200)}") from None
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(str(scratch / "int8.onnx"))


def _batches(inputs: Arrays, batch: int) -> Iterator[Arrays]:
    """Whole batches; samples left over are joined to none, except where there are fewer than one batch of them."""
    samples = len(next(iter(inputs.values())))
    for start in range(0, max(samples - batch, 0) + 1, batch):
        yield {name: values[start : start + batch] for name, values in inputs.items()}
