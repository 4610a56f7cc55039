"""In which precision a backend computes, whatever it was asked for: told from how far its outputs are off.

The reference is the same file on onnxruntime's CPU provider in fp32, without any optimization; of a file of 16-bit
floats it is the same with all of its tensors made float32 (`widening`), of an int8 file its weights with activations
that are not rounded (`dequantizing`). The bands are the errors of that model with its layers' operands rounded to each
precision (`rounding`), on the same samples.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import pick_backend
from kdbench.backends.client import Worker, WorkerError
from kdbench.data.generated import batch_size, in_batches, sample_count
from kdbench.onnxfile import load_model
from kdbench.proofs.dequantizing import dequantized
from kdbench.proofs.rounding import PRECISIONS, SIGNIFICAND_BITS, rounded
from kdbench.proofs.widening import widened
from kdbench.records import Artifact
from kdbench.store import Arrays

if TYPE_CHECKING:
    import onnx

SAMPLES = 64
FEWEST_SAMPLES = 4
UNKNOWN_SAMPLES = 16
"""Of a model whose MACs can't be counted."""
MACS = 2e9
"""Of all samples together: larger models are compared on fewer of them."""
FLOATS: "Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]]" = {
    "fp32": lambda model: model,
    "fp16": widened,
    "bf16": widened,
    "int8": dequantized,
}
"""By the precision of a file: what it is in float32, of which the bands are; None where that can't be told."""
LARGEST_BYTES = 2**30
"""Of a model of which rounded copies are written."""

WIDEST_FP32 = 2**-4
"""Of the band next to it: a CPU provider that itself computes in less can't widen the band of fp32 to its own error."""

ALIKE = 1.25
"""Bands that are farther from an error by no more than this factor than the nearest one may be meant too."""
WRONG = 4.0
"""Times the widest band above which it is no matter of rounding any more."""


@dataclass(frozen=True)
class Error:
    """Of outputs against the reference, relative to it: of all their numbers the root mean square, and the largest
    difference against the largest output. That of the output that is worst off; infinite where only one is NaN."""

    rms: float
    largest: float


Outputs = Sequence[NDArray[Any] | None]
"""In the file's order; None for one that can't be told apart by sample."""

Bands = Mapping[str, tuple[float, float]]
"""RMS errors by precision, from least to most: rounding the operands of layers only, and all tensors."""


@dataclass(frozen=True)
class Reference:
    """What a model should answer, and how far off the rounded ones are."""

    outputs: "Outputs"
    bands: Bands
    """Of a model that computes in floats or in int8, without those that can't be told."""


def samples_of(artifact: Artifact) -> int:
    """How many samples a model is compared on."""
    wanted = UNKNOWN_SAMPLES if artifact.macs is None else int(MACS / max(artifact.macs, 1))
    return max(FEWEST_SAMPLES, min(SAMPLES, wanted))


def reference(artifact: Artifact, model: Path, feed: Arrays) -> Reference | None:
    """The model's answers to all samples (first axis of each input), and its bands; None where the CPU can't tell.

    Of an int8 file they are those of its weights with activations that are not rounded (`dequantized`), where it has
    such: its own error against these is the band of int8.
    """
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, Worker(pick_backend("cpu"), threads=1) as worker:

        def run(path: Path, plain: bool = True) -> Outputs:
            worker.load(path, plain=plain)
            return answers(worker, artifact, feed)

        def off(path: Path, plain: bool = True) -> float | None:
            """How far a model's answers are from the expected ones; None where it refuses."""
            try:
                found = error(run(path, plain), outputs)
            except WorkerError:
                return None
            return found.rms if found is not None and math.isfinite(found.rms) else None

        def copied(copy: "onnx.ModelProto", name: str) -> Path:
            path = Path(scratch, name)
            path.write_bytes(copy.SerializeToString())
            return path

        try:
            outputs = run(model)
        except WorkerError:
            return None
        in_float = FLOATS.get(artifact.precision) if artifact.size_bytes <= LARGEST_BYTES else None
        graph, whole = in_float and in_float(load_model(model)), model
        if graph is None:
            return Reference(outputs, {})
        if artifact.precision != "fp32":
            try:
                whole = copied(graph, "float.onnx")
                outputs = run(whole)
            except WorkerError:
                return Reference(outputs, {})
        bands: dict[str, tuple[float, float]] = {}
        for precision in PRECISIONS:
            if precision == "int8" and artifact.precision == "int8":
                errors = [rms for rms in [off(model)] if rms]
            else:
                ways = (False, True) if precision in SIGNIFICAND_BITS else (False,)
                copies = [rounded(graph, precision, everywhere) for everywhere in ways]
                found = [off(copied(copy, "rounded.onnx")) for copy in copies if copy is not None]
                errors = [rms for rms in found if rms is not None]
            if errors:
                bands[precision] = min(errors), max(errors)
        return Reference(outputs, bands | _fp32_band(off(whole, plain=False), bands))


def _fp32_band(noise: float | None, bands: Bands) -> dict[str, tuple[float, float]]:
    """How far fp32 is from itself when sums are taken in another order: up to where the CPU's optimized graph is.

    From the finest of the other bands on, narrowed by the bits that fp32 has more.
    """
    finest = min((name for name in bands if name in SIGNIFICAND_BITS), key=lambda name: bands[name], default=None)
    if finest is None or noise is None:
        return {}
    least = bands[finest][0] / 2 ** (24 - SIGNIFICAND_BITS[finest])
    return {"fp32": (least, max(least, min(noise, WIDEST_FP32 * bands[finest][0])))}


def answers(worker: Worker, artifact: Artifact, feed: Arrays, batch: int | None = None) -> Outputs:
    """Outputs of a loaded model for all samples, in batches of `batch` or all at once; in those of its own if it has a
    fixed one."""
    samples = sample_count(artifact.inputs, feed)
    batch = batch_size(artifact.inputs) or batch or samples
    parts = [list(worker.predict(part).values()) for part in in_batches(artifact.inputs, feed, batch)]
    if batch == samples:
        return parts[0]
    return [
        np.concatenate([part[number] for part in parts])[:samples]
        if all(part[number].ndim and len(part[number]) == batch for part in parts)
        else None
        for number in range(len(parts[0]))
    ]


def error(outputs: Outputs, expected: Outputs) -> Error | None:
    """Of the outputs that are numbers; None where none of them is, or the expected ones are not finite."""
    found = []
    for ours, theirs in zip(outputs, expected, strict=True):
        if ours is None or theirs is None:
            continue
        if not np.issubdtype(theirs.dtype, np.floating) or not np.isfinite(theirs).all() or not theirs.any():
            continue
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            found.append(Error(math.inf, math.inf))
            continue
        rms = math.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
        found.append(Error(rms, float(np.abs(a - b).max() / np.abs(b).max())))
    return max(found, key=lambda one: one.rms, default=None)


def implied(rms: float, bands: Bands) -> tuple[str, ...]:
    """The precision whose band an error is nearest to, on a logarithmic scale, with those that can't be told from it.

    Empty without bands, and for an error `WRONG` times beyond all of them.
    """
    if not bands or rms > WRONG * max(high for _, high in bands.values()):
        return ()
    off = {name: _distance(max(rms, 1e-30), *(max(end, 1e-30) for end in band)) for name, band in bands.items()}
    nearest = min(off.values())
    return tuple(name for name in ("fp32", *PRECISIONS) if name in off and off[name] <= nearest + math.log(ALIKE))


def _distance(value: float, low: float, high: float) -> float:
    return max(0.0, math.log(low / value), math.log(value / high))
