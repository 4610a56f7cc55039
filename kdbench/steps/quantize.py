"""Static int8: slimmed, calibrated on training samples that stream, quantized by onnxruntime's quantizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.data.generated import batch_size, described, generate, hint, in_batches
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError
from kdbench.evaluation import parity_on, told_by
from kdbench.machine import saturates_in_int8
from kdbench.onnxfile import MAX_IR, QUANTIZED, known_artifact, load_model, portable
from kdbench.progress import Progress, silent
from kdbench.proofs.layers import RECURRENT
from kdbench.quantization.calibration import Batches, Observed, observe
from kdbench.quantization.samples import BATCH, samples_of
from kdbench.quantization.static import (
    check_options,
    left_out,
    nothing_in,
    prepare,
    quantizable,
    static_int8,
    tensors_to_calibrate,
)
from kdbench.quantization.targets import targeted
from kdbench.records import Artifact, Quantize, as_record
from kdbench.steps.slim import check_opset, comparison_inputs, derived, slimmed_graph
from kdbench.store import output_file, part_of, save_artifact, write_atomic

if TYPE_CHECKING:
    import onnx

GENERATED_SAMPLES = 128

LEAST_AGREEMENT = 0.95
"""With its parent, on the samples (or their single labels) that the two are compared on; below it the record carries a
warning."""

GENERATED_WARNING = "calibrated on generated inputs: its accuracy is a matter of luck, give --calibration PACK"

JUDGED = ("max_drop", "backend", "bias_correction", "equalization")
"""Options of a search among several files, which are judged on samples."""

SHOWN = 3
"""Names of nodes in a warning."""


def quantize(
    model: str | Path,
    out: str | Path,
    pack: EvalPack | str | Path | None = None,
    options: Quantize | Mapping[str, Any] | None = None,
    rung: str | None = None,
    dims: Mapping[str, int] | None = None,
    progress: Progress = silent,
    inputs: Mapping[str, str] | None = None,
) -> Artifact:
    """Writes the int8 model to `out`, its record beside it.

    Activations are calibrated on the pack's calibration samples; without a pack on generated inputs, which the record
    says as a warning, and of which `inputs` say what the file doesn't: see `described`. Raises UserError where the
    model is quantized already or nothing in it can be, and for options that take a search: see `fastest_int8`.
    """
    model, out = Path(model), Path(out)
    pack, options = open_pack(pack), targeted(as_record(Quantize, options or {}, "options"))
    asked_for = options.model_dump(include=set(JUDGED), by_alias=True)
    unheard = [name for name, value in asked_for.items() if value is not None and value is not False]
    if unheard:
        raise UserError(f"options: {', '.join(unheard)}: judged on samples: use fastest_int8")
    (parent,) = described([told_by(float_artifact(model), pack)], inputs or {}, pack.name if pack else None)
    graph, notes = prepare(slimmed_graph(load_model(model), model), model, options.per_channel)
    check_options(graph, options, model)
    observed = observed_of(graph, parent, model, pack, options, dims, progress)
    quantized = static_int8(graph, observed.ranges(options), options, name=str(model))
    if not any(node.op_type in QUANTIZED for node in quantized.graph.node):
        able = set(quantizable(graph))
        others = ", ".join(sorted({node.op_type for node in graph.graph.node if node.name in able})[:8])
        if others and (asked := options.operators or options.nodes):
            raise UserError(f"{model}: onnxruntime can't quantize {', '.join(asked)} in it, but {others}: name these")
        raise UserError(f"{model}: {nothing_in(graph)}")
    warnings: tuple[str, ...] = () if pack is not None else (GENERATED_WARNING,)
    warnings += warnings_of(graph, quantized, options, observed)
    used = options.model_dump(exclude=set(JUDGED)) | notes
    if options.reduce_range is None:
        used["reduce_range"] = saturates_in_int8()
    return write_quantized(quantized, out, model, parent, pack, used, warnings, rung, dims)


def float_artifact(model: Path) -> Artifact:
    """The record of a model that can be quantized; raises UserError for one that is quantized or in half precision, or
    newer than onnxruntime reads."""
    parent = known_artifact(model)
    if parent.precision != "fp32":
        state = "quantized already" if parent.precision in ("int8", "int4") else "in half precision"
        raise UserError(f"{model}: is {state}: give its fp32 parent")
    check_opset(model, parent)
    if parent.ir_version > MAX_IR:
        raise UserError(
            f"{model}: of IR version {parent.ir_version}, and onnxruntime reads up to {MAX_IR}: 'kdbench slim' makes "
            "a file of it that it reads"
        )
    return parent


def observed_of(
    graph: "onnx.ModelProto",
    parent: Artifact,
    model: Path,
    pack: EvalPack | None,
    options: Quantize,
    dims: Mapping[str, int] | None = None,
    progress: Progress = silent,
) -> Observed:
    """What the tensors of a `model`'s prepared graph held that the options are to quantize, over the calibration
    samples."""
    total = GENERATED_SAMPLES if pack is None or pack.x_calibration is None else len(pack.x_calibration)
    tensors, counted = tensors_to_calibrate(graph, options), options.calibration != "minmax"
    try:
        return observe(graph, calibration_batches(parent, pack, dims), tensors, counted, progress, total, str(model))
    except UserError as error:
        raise UserError(str(error) if pack else hint(str(error), parent.inputs)) from None


def calibration_batches(parent: Artifact, pack: EvalPack | None, dims: Mapping[str, int] | None = None) -> Batches:
    """The pack's calibration samples as the model takes them, each batch preprocessed when its turn comes; or whole
    batches of generated ones."""
    if pack is not None:
        return samples_of(pack, parent.inputs, parent.preprocessing).batches
    size = batch_size(parent.inputs)
    made = generate(parent.inputs, size or GENERATED_SAMPLES, dims or {})
    return lambda: in_batches(parent.inputs, made, size or BATCH)


def write_quantized(
    quantized: "onnx.ModelProto",
    out: Path,
    model: Path,
    parent: Artifact,
    pack: EvalPack | None,
    options: dict[str, object],
    warnings: tuple[str, ...] = (),
    rung: str | None = None,
    dims: Mapping[str, int] | None = None,
) -> Artifact:
    """Writes a quantized model and its record, which holds its parity with `model`; raises UserError, and writes
    nothing, where outputs are not finite."""
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
    if check.label_agreement < LEAST_AGREEMENT:
        compared_on = "the labels of " if parent.task == "multi_label" else ""
        warnings += (
            f"answers otherwise than {parent.rung} in {1 - check.label_agreement:.0%} of "
            f"{compared_on}{check.samples} compared samples: "
            "quantize fewer operators, such as --operator Conv --operator Gemm --operator MatMul",
        )
    return save_artifact(out.parent, derived(out, rung, parent, "quantize", options, check, warnings))


def warnings_of(
    graph: "onnx.ModelProto", quantized: "onnx.ModelProto", options: Quantize, observed: Observed
) -> tuple[str, ...]:
    """That the outputs of a prepared model don't depend on the samples, and what in it can't be quantized."""
    same = f"its outputs are the same for all {observed.samples} calibration samples: is the model trained?"
    stay = (_stays(operator, nodes) for operator, nodes in left_out(graph, quantized, options).items())
    return (*([same] if observed.same_outputs else []), *stay)


def _stays(operator: str, nodes: list[str]) -> str:
    """That nodes stay in float, and why."""
    if operator in RECURRENT:
        return f"its {operator} layers stay in float: static int8 knows no recurrent ones"
    more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    names = ", ".join(f"“{name}”" for name in nodes[:SHOWN]) + more
    return f"its {operator} nodes stay in float, as onnxruntime can't quantize them: {names}"
