"""Fewer nodes, the same outputs: onnxslim to a fixed point, refused where an output moves."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.data.generated import batch_size, generate
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, first_line
from kdbench.evaluation import Parity, parity_on
from kdbench.onnxfile import inspect, known_artifact, load_model, portable
from kdbench.records import Artifact
from kdbench.store import Arrays, output_file, part_of, save_artifact, write_atomic

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest change of an output, as a share of the largest output."""

SAMPLES = 128
"""On which outputs are compared, at most."""

BATCH = 32
MOST_PASSES = 5


def slim(
    model: str | Path,
    out: str | Path,
    rung: str | None = None,
    pack: EvalPack | str | Path | None = None,
    dims: Mapping[str, int] | None = None,
) -> Artifact:
    """Writes the slimmed model to `out`, its record beside it.

    Outputs are compared on the pack's calibration samples, or on generated ones; raises UserError with the figures,
    and writes nothing, where one moves by more than TOLERANCE.
    """
    model, out = Path(model), Path(out)
    parent = known_artifact(model)
    slimmed = slimmed_graph(load_model(model), model)
    inputs, batch = comparison_inputs(parent, open_pack(pack), dims or {})
    part = part_of(output_file(out, model), "-unproven")
    write_atomic(part, portable(slimmed))
    try:
        check = parity_on(part, model, inputs, batch, task=parent.task)
        if not check.largest_difference <= TOLERANCE * max(check.largest_output, 1.0):
            raise UserError(
                f"{out}: not written: slimming moved an output by {check.largest_difference:.3g}, more than "
                f"{TOLERANCE:g} of the largest output {check.largest_output:.3g}: keep {model}"
            )
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return save_artifact(out.parent, derived(out, rung, parent, "slim", {}, check))


def slimmed_graph(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """The model with fewer nodes; raises UserError where onnxslim can't take it."""
    import onnxslim

    # Below 4 every initializer has to be a graph input too, which onnxslim and the opset converter don't keep up.
    model.ir_version = max(model.ir_version, 4)
    for _ in range(MOST_PASSES):
        before = model.SerializeToString(deterministic=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                slimmed = onnxslim.slim(model)
        except (Exception, SystemExit) as error:  # onnxslim raises what it likes, and may leave the interpreter
            raise UserError(f"{path}: onnxslim can't slim it: {first_line(error, 160)}") from None
        if slimmed is None:
            raise UserError(f"{path}: onnxslim can't slim it, and doesn't say why")
        model = slimmed
        if model.SerializeToString(deterministic=True) == before:
            break
    return model


def comparison_inputs(artifact: Artifact, pack: EvalPack | None, dims: Mapping[str, int]) -> tuple[Arrays, int]:
    """Samples on which a rewritten model is compared with its parent, and the batch to run them in."""
    batch = batch_size(artifact.inputs)
    if pack is not None:
        inputs = pack.calibration_inputs(artifact.inputs, artifact.preprocessing)
        return {name: values[:SAMPLES] for name, values in inputs.items()}, batch or BATCH
    return generate(artifact.inputs, batch or BATCH, dims), batch or BATCH


def derived(
    out: Path,
    rung: str | None,
    parent: Artifact,
    step: str,
    options: dict[str, object],
    check: Parity,
    warnings: tuple[str, ...] = (),
) -> Artifact:
    """The record of a file made from `parent`, which hands down what the file itself can't tell."""
    metrics = {"parity_largest_difference": check.largest_difference, "parity_agreement": check.agreement}
    return inspect(
        out,
        rung,
        step=step,
        options=options,
        parent=parent.rung,
        parent_sha256=parent.sha256,
        task=parent.task,
        classes=parent.classes,
        preprocessing=parent.preprocessing,
        metrics=metrics,
        warnings=(*parent.warnings, *warnings),
    )
