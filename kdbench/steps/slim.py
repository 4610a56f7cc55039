"""Fewer nodes, the same outputs: passes over the graph to a fixed point, each left out where it moves an output."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from kdbench.backends.client import WorkerError
from kdbench.data.generated import batch_size, described, generate, hint
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, first_line
from kdbench.evaluation import Parity, answer, compare, told_by
from kdbench.onnxfile import MAX_IR, MAX_OPSET, inspect, known_artifact, load_model, portable
from kdbench.onnxgraph import inlined, nodes_of
from kdbench.proofs.precision import samples_of as samples_for
from kdbench.quantization.quiet import quietly
from kdbench.quantization.samples import samples_of
from kdbench.records import Artifact, Precision, Task
from kdbench.steps.passes import (
    ATTENTION,
    FUSED_DOMAIN,
    by_onnxruntime,
    by_transformers,
    copy_of,
    fused_operators,
    size_of,
    unfit,
)
from kdbench.store import Arrays, output_file, part_of, save_artifact, sha256, write_atomic

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest change of an output, as a share of its own largest number."""

HALF_TOLERANCE = 5e-3
"""The same of a model in half precision, which rounds each number by up to 5e-4 of it."""

SAMPLES = 128
"""On which outputs are compared, at most."""

BATCH = 32
MOST_PASSES = 5

Pass = Callable[["onnx.ModelProto", Path], "onnx.ModelProto"]
"""Gives a model with fewer nodes, or the same one; leaves the given one as it is; raises UserError, with the path."""


def by_onnxslim(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """onnxslim's own choice of rewritings, once; raises UserError where it can't take the model."""
    import onnxslim

    try:
        with quietly():
            slimmed: onnx.ModelProto | None = onnxslim.slim(copy_of(model))
    except (Exception, SystemExit) as error:  # onnxslim raises what it likes, and may leave the interpreter
        raise UserError(f"{path}: onnxslim can't slim it: {first_line(error, 160)}") from None
    if slimmed is None:
        raise UserError(f"{path}: onnxslim can't slim it, and doesn't say why")
    return slimmed


PASSES: Mapping[str, Pass] = {"onnxslim": by_onnxslim, "onnxruntime": by_onnxruntime}
"""That bring operators of the ONNX standard alone, in this order until none changes anything."""

APART = Parity(samples=0, differences=(inf,), sizes=(0.0,), agreement=0.0, label_agreement=0.0)
"""Of outputs that can't be compared."""

ONNXRUNTIME_ALONE = f"runs in onnxruntime alone: its fused operators ({FUSED_DOMAIN}) are not the ONNX standard's"

NO_ATTENTION = "attention was not fused: none in it is written as onnxruntime.transformers knows it"

FUSIONS: Mapping[str, Pass] = {"onnxruntime.transformers": by_transformers}
"""That bring FUSED_DOMAIN's, which only onnxruntime knows: first, while the graph is as its exporter wrote it."""


@dataclass(frozen=True)
class Rewritten:
    """What passes have made of a model."""

    model: "onnx.ModelProto"
    used: tuple[str, ...]
    """The passes that changed something, in their order."""
    left_out: Mapping[str, str]
    """Those that were not used, or not to the end, and why."""


def slim(
    model: str | Path,
    out: str | Path,
    pack: EvalPack | str | Path | None = None,
    rung: str | None = None,
    dims: Mapping[str, int] | None = None,
    fuse: bool = False,
    inputs: Mapping[str, str] | None = None,
) -> Artifact:
    """Writes the slimmed model to `out`, its record beside it; with `fuse` also transformers' layers as one operator
    each, which only onnxruntime knows.

    Outputs are compared on the pack's calibration samples, or on generated inputs, of which `inputs` say what the file
    doesn't: see `described`. A pass that fails, or moves one by more than the tolerance, is left out, which is a remark
    in the record's `options`. Raises UserError, and writes nothing, where then none is left or the file's outputs have
    moved all the same.
    """
    model, out, pack = Path(model), Path(out), open_pack(pack)
    source = inlined(load_model(model))
    (parent,) = described([told_by(known_artifact(model), pack)], inputs or {}, pack.name if pack else None)
    check_opset(model, parent)
    # Below 4 every initializer has to be a graph input too, which onnxslim and the opset converter don't keep up.
    source.ir_version = min(max(source.ir_version, 4), MAX_IR)
    compared, batch = comparison_inputs(parent, pack, dims or {})
    part = part_of(output_file(out, model), "-unproven")
    try:
        expected = _expected(source, parent, model, compared, batch, generated=pack is None)

        def judged(candidate: "onnx.ModelProto") -> tuple[Parity, str | None]:
            write_atomic(part, portable(copy_of(candidate)))
            try:
                check = _compared(_outputs(part, compared, batch), expected, parent.task)
            except WorkerError as error:
                return APART, f"made what onnxruntime can't run: {error}"
            return check, _too_far(check, parent.precision)

        passes = {**FUSIONS, **PASSES} if fuse else PASSES
        found = rewritten(source, model, passes)
        check, far = judged(found.model)
        if far:  # again, looking after each change for what did it
            found = rewritten(source, model, passes, lambda candidate: judged(candidate)[1])
            check, far = judged(found.model)
        why = [f"{name} left out: {reason}" for name, reason in found.left_out.items()]
        if far or (why and not found.used):
            raise UserError(f"{out}: not written: {'; '.join(why) or f'slimming {far}'}: keep {model}")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    options: dict[str, object] = {"passes": found.used, "operators_before": parent.operators}
    if fuse:
        fused = fused_operators(found.model)
        options["fused"] = fused
        why += [] if any(fused.get(name) for name in ATTENTION) else [NO_ATTENTION]
    fused_ones = any(node.domain == FUSED_DOMAIN for node in nodes_of(found.model)) and FUSIONS.keys() & set(found.used)
    warnings = (ONNXRUNTIME_ALONE,) if fused_ones else ()
    artifact = derived(out, rung, parent, "slim", options | {"remarks": tuple(why)}, check, warnings)
    sizes = {"parameters_before": parent.parameters, "size_bytes_before": parent.size_bytes}
    return save_artifact(out.parent, artifact.model_copy(update={"metrics": artifact.metrics | sizes}))


def check_opset(model: Path, artifact: Artifact) -> None:
    """Raises UserError where its operators are newer than onnxruntime knows them."""
    if artifact.opset > MAX_OPSET:
        raise UserError(
            f"{model}: opset {artifact.opset} is newer than onnxruntime reads: export it with {MAX_OPSET} or older"
        )


def rewritten(
    source: "onnx.ModelProto",
    path: Path,
    passes: Mapping[str, Pass],
    moved: Callable[["onnx.ModelProto"], str | None] = lambda candidate: None,
) -> Rewritten:
    """The model after all passes in turn, until none changes anything.

    A pass is used no further once it fails, makes what is not to be shipped (`unfit`), or once `moved` says why its
    result will not do.
    """
    model, state = source, _state(source)
    used: list[str] = []
    left_out: dict[str, str] = {}
    seen: dict[str, str] = {}
    for _ in range(MOST_PASSES):
        start = state
        for name, rewrite in passes.items():
            if name in left_out or seen.get(name) == state:
                continue
            seen[name] = state
            try:
                candidate = rewrite(model, path)
            except UserError as error:
                left_out[name] = str(error).removeprefix(f"{path}: ")
                continue
            after = _state(candidate)
            if after == state or size_of(candidate) > size_of(model):
                continue
            reason = unfit(candidate, model, (FUSED_DOMAIN,) if name in FUSIONS else ()) or moved(candidate)
            if reason:
                left_out[name] = reason
                continue
            model, state = candidate, after
            used += [name] if name not in used else []
        if state == start:
            break
    return Rewritten(model, tuple(used), left_out)


def slimmed_graph(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """The model without functions of its own opset, as onnxslim alone leaves it in the end; raises UserError where
    onnxslim can't take it."""
    model = inlined(model)
    model.ir_version = max(model.ir_version, 4)
    for _ in range(MOST_PASSES):
        before = _state(model)
        model = by_onnxslim(model, path)
        if _state(model) == before:
            break
    return model


def _expected(
    source: "onnx.ModelProto", parent: Artifact, path: Path, inputs: Arrays, batch: int, generated: bool
) -> list[NDArray[Any]]:
    """The source's outputs; raises UserError where it can't run."""
    try:
        if parent.ir_version <= MAX_IR:
            return _outputs(path, inputs, batch)
        with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
            readable = Path(scratch, "readable.onnx")
            write_atomic(readable, source.SerializeToString())
            return _outputs(readable, inputs, batch)
    except WorkerError as error:
        why = hint(str(error), parent.inputs) if generated else str(error)
        raise UserError(f"{path}: onnxruntime can't run it: {why}") from None


def _outputs(path: Path, inputs: Arrays, batch: int) -> list[NDArray[Any]]:
    return list(answer(path, inputs, batch).outputs.values())


def _compared(ours: list[NDArray[Any]], theirs: list[NDArray[Any]], task: Task) -> Parity:
    """Outputs of different shapes are infinitely far apart."""
    same = [output.shape for output in ours] == [output.shape for output in theirs]
    return compare(ours, theirs, task) if same else APART


def _too_far(check: Parity, precision: Precision) -> str | None:
    """How far an output has moved, where that is further than it may, and than numbers about 1 are rounded."""
    whole = precision in ("fp32", "int8")
    share, rounding = (TOLERANCE, 2**-23) if whole else (HALF_TOLERANCE, 2**-10)
    for difference, size in zip(check.differences, check.sizes, strict=True):
        if difference > max(share * size, rounding):
            return f"moved an output by {difference:.3g}, more than {share:g} of its largest number {size:.3g}"
    return None


def _state(model: "onnx.ModelProto") -> str:
    """The same for models that are the same to the last bit."""
    return sha256(model.SerializeToString(deterministic=True))


def comparison_inputs(artifact: Artifact, pack: EvalPack | None, dims: Mapping[str, int]) -> tuple[Arrays, int]:
    """Samples on which a rewritten model is compared with its parent, and the batch to run them in: a small one of a
    large model."""
    batch = batch_size(artifact.inputs) or min(BATCH, samples_for(artifact))
    if pack is not None:
        samples = samples_of(pack, artifact.inputs, artifact.preprocessing)
        return samples.spread(SAMPLES).feed(), batch
    return generate(artifact.inputs, batch, dims), batch


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
