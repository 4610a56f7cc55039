"""Other precisions than static int8: dynamic int8, fp16, bf16 and int4 weights; slimmed before, compared after."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.backends.client import WorkerError
from kdbench.data.generated import described, first_samples, hint
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, pick
from kdbench.evaluation import parity_on, told_by
from kdbench.onnxfile import inputs_of, load_model, portable
from kdbench.onnxgraph import count_macs, count_parameters
from kdbench.proofs.widening import widened
from kdbench.quantization.formats import FORMATS, Converted, converted
from kdbench.quantization.halves import overflowing
from kdbench.records import Artifact, Convert, as_record
from kdbench.steps.quantize import LEAST_AGREEMENT, float_artifact
from kdbench.steps.slim import comparison_inputs, derived, slimmed_graph
from kdbench.store import Arrays, output_file, part_of, save_artifact, write_atomic

if TYPE_CHECKING:
    import onnx

SAMPLES = 16
"""On which fp16 is tried out."""
PASSES = 5
"""In which nodes that overflow are put back to float32: one may hide behind another."""


def convert(
    model: str | Path,
    out: str | Path,
    to: str | Convert | Mapping[str, Any],
    pack: EvalPack | str | Path | None = None,
    rung: str | None = None,
    dims: Mapping[str, int] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Artifact:
    """Writes the model in another precision to `out`, its record beside it.

    `to` is one of FORMATS, or the fields of a Convert. Outputs are compared with the model's on the pack's calibration
    samples, or on generated inputs, of which `inputs` say what the file doesn't: see `described`. An agreement below
    LEAST_AGREEMENT is a warning in the record. Raises UserError where the model isn't fp32, where nothing in it can be
    converted, and where outputs are NaN or infinite; nothing is written then.
    """
    model, out = Path(model), Path(out)
    if isinstance(to, str):
        pick(FORMATS, to, "precision")
        to = {"to": to}
    to = as_record(Convert, to, "options")
    samples = open_pack(pack)
    parent = told_by(float_artifact(model), samples)
    graph = slimmed_graph(load_model(model), model)
    (fed,) = described([parent], inputs or {}, samples.name if samples else None)
    compared, batch = comparison_inputs(fed, samples, dims or {})
    found = converted(graph, to, model)
    warnings: tuple[str, ...] = ()
    if to.to == "fp16":
        found, to, warnings = _within_range(found, graph, to, model, compared, batch)
    part = part_of(output_file(out, model), "-unproven")
    write_atomic(part, portable(found.model))
    # The CPU provider would compute in float32 what a device overflows in, and refuses bf16.
    rounded = widened(found.model, rounding=True)
    stand_in = None if rounded is None else part_of(out, "-emulated")
    try:
        if rounded is not None and stand_in is not None:
            write_atomic(stand_in, portable(rounded))
        try:
            check = parity_on(stand_in or part, model, compared, batch, task=parent.task)
        except UserError as error:
            why = str(error)
            raise UserError(f"{out}: not written: {why if samples else hint(why, fed.inputs)}") from None
        if not np.isfinite(check.largest_difference):
            raise UserError(
                f"{out}: not written: its outputs, or those of {model}, are NaN or infinite: "
                "keep the nodes that overflow in float by --keep"
            )
        part.replace(out)
    finally:
        for scratch in (part, stand_in):
            if scratch is not None:
                scratch.unlink(missing_ok=True)
    warnings += found.warnings
    if check.label_agreement < LEAST_AGREEMENT:
        of = "the labels of " if parent.task == "multi_label" else ""
        warnings += (
            f"answers otherwise than {parent.rung} in {1 - check.label_agreement:.0%} of {of}{check.samples} compared "
            "samples: --keep its first and last layers in float",
        )
    used = to.model_dump() | {"left_in_float": found.left} | found.notes
    # Packed weights and scales can't be told apart in every form, and it is the same work.
    same = {"parameters": count_parameters(graph), "macs": count_macs(graph)}
    made = derived(out, rung, parent, "convert", used, check, warnings).model_copy(update=same)
    return save_artifact(out.parent, made)


def _within_range(
    found: Converted, graph: "onnx.ModelProto", to: Convert, model: Path, compared: Arrays, batch: int
) -> tuple[Converted, Convert, tuple[str, ...]]:
    """The conversion to fp16 with the nodes in float32 that would leave its range on the compared samples.

    A CPU would not show it: it computes such a file in float32, as onnxruntime does, and a GPU answers nonsense.
    """
    few, over = first_samples(inputs_of(graph), compared, SAMPLES), list[str]()
    for _ in range(PASSES):
        try:
            more = [name for name in overflowing(found.before, found.model, few, batch) if name not in to.keep]
        except WorkerError as error:
            return found, to, (f"whether it leaves the range of fp16 could not be tried out: {error}",)
        if not more:
            break
        over += more
        to = to.model_copy(update={"keep": (*to.keep, *more)})
        if {node.name for node in found.before.graph.node} <= set(to.keep):
            raise UserError(f"{model}: all of it leaves the range of fp16 on the compared samples: try --to bf16")
        found = converted(graph, to, model)
    if not over:
        return found, to, ()
    named = ", ".join(f"“{name}”" for name in over[:3]) + (f" and {len(over) - 3} more" if len(over) > 3 else "")
    return found, to, (f"left in float32 for leaving the range of fp16, ±65504, on the compared samples: {named}",)
