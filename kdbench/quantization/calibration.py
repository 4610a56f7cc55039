"""Ranges of a model's tensors from samples that stream through a worker, in memory that doesn't grow with their number.

The worker runs the model with all tensors to calibrate as outputs, keeps lowest and highest values and histograms
(`worker/calibrate.py`), and no activation leaves it.
"""

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import pick_backend
from kdbench.backends.client import PATIENCE_S, Worker, WorkerError
from kdbench.data.generated import sample_count, shared_inputs, taken
from kdbench.errors import UserError
from kdbench.onnxfile import inputs_of, load_model
from kdbench.progress import Progress, silent
from kdbench.quantization.histograms import Histogram, range_of, trimmed
from kdbench.records import Quantize
from kdbench.store import Arrays

if TYPE_CHECKING:
    import onnx

Ranges = dict[str, tuple[float, float]]
"""By tensor: the lowest and the highest value to represent."""

Batches = Callable[[], Iterator[Arrays]]
"""The calibration samples from the beginning, a batch at a time: inputs by name."""

LARGE_BYTES = 2**30
"""From which on weights are written beside the graph, as a message of more than 2 GB can't be written."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What a model's tensors held, over all samples."""

    histograms: dict[str, Histogram]
    samples: int
    same_outputs: tuple[str, ...]
    """Outputs of the model that were the same for all samples, where there were several."""

    def ranges(self, options: Quantize) -> Ranges:
        return {name: range_of(histogram, options) for name, histogram in self.histograms.items()}


def observe(
    model: "Path | onnx.ModelProto",
    batches: Batches,
    tensors: Collection[str] | None = None,
    counted: bool = True,
    progress: Progress = silent,
    total: int = 0,
    name: str = "the model",
) -> Observed:
    """Runs all samples once, `total` of them if that is known; histograms only if they are to be `counted`.

    Raises UserError, which begins with the model's path or `name`, where there are none, where they are all the same,
    hold NaN or infinite values or make some in the model, and where the model can't run.
    """
    graph = load_model(model) if isinstance(model, Path) else model
    name = str(model) if isinstance(model, Path) else name
    typed = float_tensors(graph)
    chosen = typed if tensors is None else frozenset(tensors)
    wanted = [tensor for tensor in typed if tensor in chosen]
    outputs = [value.name for value in graph.graph.output if value.name in typed]
    specs = inputs_of(graph)
    shared = shared_inputs(specs)
    asked: dict[str, Any] = {
        "tensors": wanted,
        "outputs": [output for output in outputs if output not in {spec.name for spec in specs}],
        "counted": counted,
        "independent": not any(isinstance(spec.shape[0], int) for spec in specs if spec.name not in shared),
        "shared": sorted(shared),
    }
    target, threads = pick_backend("cpu"), available_cpus()
    samples, first, alike = 0, None, True
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, Worker(target, threads, PATIENCE_S) as worker:
        try:
            worker.load(_written(watched(graph, wanted), Path(scratch)), plain=True)
            for given in batches():
                batch = taken(specs, given)
                _check_finite(batch, samples)
                own = {input_: values for input_, values in batch.items() if input_ not in shared}
                first = first or {input_: values[:1].copy() for input_, values in own.items()}
                alike = alike and all(_same(values, first[input_]) for input_, values in own.items())
                reply, _ = worker.ask("observe", batch, **asked)
                if reply["not_finite"]:
                    raise UserError(f"{name}: {_not_finite(graph, reply['not_finite'])}")
                samples += sample_count(specs, batch)
                progress("calibrate", samples, max(samples, total))
            if not samples:
                raise UserError(f"{name}: no calibration samples: give some")
            reply, arrays = worker.ask("observed")
        except WorkerError as error:
            raise UserError(f"{name}: can't be calibrated: {error}") from None
    if alike and samples > 1:
        raise UserError(f"{name}: all {samples} calibration samples are the same: give different ones")
    found = zip(reply["names"], reply["exponents"], arrays["ranges"], arrays["counts"], strict=True)
    histograms = {
        tensor: trimmed(float(low), float(high), 2.0**exponent, counts)
        if counted
        else Histogram(float(low), float(high), 0.0, counts[:0])
        for tensor, exponent, (low, high), counts in found
        if low <= high
    }
    return Observed(histograms, samples, tuple(reply["same"]) if samples > 1 else ())


def float_tensors(model: "onnx.ModelProto") -> dict[str, int]:
    """ONNX's element types of the float tensors that nodes take and make, by name; those whose type is known, and no
    initializers."""
    import onnx

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    graph = model.graph
    if not graph.value_info and len(graph.node) > 1:
        graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    initializers = {tensor.name for tensor in graph.initializer}
    used = dict.fromkeys(name for node in graph.node for name in (*node.input, *node.output))
    return {name: types[name] for name in used if types.get(name) in kinds and name not in initializers}


def watched(model: "onnx.ModelProto", tensors: Collection[str]) -> "onnx.ModelProto":
    """A copy of the model with these tensors among its outputs; inputs are known without."""
    import onnx

    types = float_tensors(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None) for name in tensors if name not in known
    )
    return copy


def available_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _written(model: "onnx.ModelProto", folder: Path) -> Path:
    import onnx

    path = folder / "watched.onnx"
    onnx.save(model, str(path), save_as_external_data=model.ByteSize() > LARGE_BYTES)
    return path


def _same(values: NDArray[Any], first: NDArray[Any]) -> bool:
    """Whether all samples [N, …] are equal to the first one [1, …]."""
    return values.shape[1:] == first.shape[1:] and bool((values == first).all())


def _check_finite(batch: Mapping[str, NDArray[Any]], samples: int) -> None:
    """Raises UserError that names the first sample with a value that is not finite, after so many."""
    for name, values in batch.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            rows = np.isfinite(np.atleast_1d(values))
            bad = np.flatnonzero(~rows.reshape(len(rows), -1).all(axis=1))
            raise UserError(
                f"calibration sample {samples + int(bad[0]) + 1} has NaN or infinite values in '{name}': remove it"
            )


def _not_finite(model: "onnx.ModelProto", tensors: Collection[str]) -> str:
    """Which tensor has no range, and the nodes to leave out for it."""
    graph = model.graph
    made = {output: number for number, node in enumerate(graph.node) for output in node.output}
    tensor = min(tensors, key=lambda name: made.get(name, -1))
    nodes = [node.name for node in graph.node if tensor in (*node.input, *node.output) and node.name]
    options = " ".join(f"--exclude {node}" for node in nodes)
    return f"tensor '{tensor}' becomes NaN or infinite on the calibration samples: leave its nodes in float, {options}"
