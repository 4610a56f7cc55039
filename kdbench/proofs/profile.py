"""`kdbench profile`: where a model's time goes, by operator, node and layer."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import Target, pick_backend
from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Cell, Subject, check_backends, inputs
from kdbench.data.generated import batch_size, shared_inputs
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, check_counts
from kdbench.onnxfile import known_artifact, load_model
from kdbench.proofs.layers import MOVERS, QUANTIZERS, WEIGHT_INPUT, Origins, pair_layers
from kdbench.records import Artifact
from kdbench.store import load_artifact, sha256_of_file, sidecar

if TYPE_CHECKING:
    import onnx

SECONDS = 2.0
RUNS = 500
TURNS = 5
LARGER = 8
"""By how much the batch is multiplied to see what a larger one would gain."""


@dataclass(frozen=True)
class Kernel:
    """What one run of it takes, as traced."""

    name: str
    operator: str
    provider: str
    time_s: float
    layer: str | None
    """The layer of the file that it comes from; None for operators that do little work of their own."""


@dataclass(frozen=True)
class Profile:
    """A model on a backend, run by run: all times are of one run."""

    artifact: Artifact
    model: "onnx.ModelProto"
    backend: str
    batch: int
    threads: int
    runs: int
    latency_s: float
    """Without the trace."""
    larger_latency_s: float | None
    """Of a batch `LARGER` times as large, without the trace; None where the model's batch is fixed."""
    kernels: tuple[Kernel, ...]
    """In the order of a run; empty where the provider tells of none."""
    placement: dict[str, dict[str, int]]
    """Nodes by provider and operator, before the provider fuses them."""
    running: "onnx.ModelProto | None"
    """The graph that runs, where the runtime saves it."""

    @property
    def kernels_s(self) -> float:
        return sum(kernel.time_s for kernel in self.kernels)

    @property
    def outside_share(self) -> float:
        """Share of a run outside its kernels, at least: tracing makes kernels longer."""
        return max(0.0, 1 - self.kernels_s / self.latency_s)

    def by_operator(self) -> list[tuple[str, int, float]]:
        """Operator, its kernels and their time, the longest first."""
        names = dict.fromkeys(kernel.operator for kernel in self.kernels)
        found = [(name, [kernel.time_s for kernel in self.kernels if kernel.operator == name]) for name in names]
        return sorted(((name, len(times), sum(times)) for name, times in found), key=lambda row: -row[2])

    def slowest(self, count: int = 10) -> list[Kernel]:
        return sorted(self.kernels, key=lambda kernel: -kernel.time_s)[:count]

    def time_share(self, operators: tuple[str, ...]) -> float:
        """Share of the kernels' time in these operators; 0 without kernels."""
        spent = sum(kernel.time_s for kernel in self.kernels if kernel.operator in operators)
        return spent / self.kernels_s if self.kernels else 0.0


@dataclass(frozen=True)
class Beside:
    """A layer of two models: the operator and the time of each, None for one that lacks it."""

    name: str
    first: str
    first_s: float | None
    second: str
    second_s: float | None


def profile(
    model: str | Path,
    other: str | Path | None = None,
    *,
    backend: str = "cpu",
    batch: int = 1,
    threads: int = 1,
    pack: EvalPack | str | Path | None = None,
    dims: Mapping[str, int] | None = None,
    seconds: float = SECONDS,
) -> list[Profile]:
    """Profiles of a model and of the one that it is set beside, the fp32 one first.

    That is `other`; without it the fp32 parent of a model in less, if it lies in the same folder. Inputs are a pack's
    evaluation samples, else generated. Raises UserError where the backend can't run them.
    """
    check_counts(batch=batch, threads=threads)
    model, opened = Path(model), open_pack(pack)
    (target,) = check_backends([backend])
    artifact = known_artifact(model)
    beside = Path(other) if other is not None else _parent(artifact, model)
    paths = [model] if beside is None else [model, beside]
    if beside is not None and known_artifact(beside).precision == "fp32" and artifact.precision != "fp32":
        paths.reverse()
    return [profile_one(path, target, batch, threads, opened, dims or {}, seconds) for path in paths]


def profile_one(
    path: Path,
    backend: str | Target,
    batch: int,
    threads: int,
    pack: EvalPack | None,
    dims: Mapping[str, int],
    seconds: float,
    artifact: Artifact | None = None,
) -> Profile:
    """Of one file; of its inputs the `artifact`, where it is given, may say what the file doesn't."""
    import onnx

    artifact, target = artifact or known_artifact(path), pick_backend(backend)
    fixed = batch_size(artifact.inputs)
    batch = fixed or batch
    cell = Cell(Subject(artifact, path), target, threads, batch, dims=dims)
    feed = inputs(cell, pack)
    shared = shared_inputs(artifact.inputs)
    larger = None if fixed else {n: v if n in shared else np.repeat(v, LARGER, axis=0) for n, v in feed.items()}
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, Worker(target, threads) as worker:
        written = Path(scratch, "running.onnx") if target.row.saves_optimized else None
        try:
            worker.load(path, explain=True, optimized=written, first=feed)
            placement = worker.explain()
            latency_s, *rest = _latencies_s(worker, [feed, larger] if larger else [feed], seconds)
            told = worker.profile(path, feed, seconds, RUNS)
        except WorkerError as error:
            raise UserError(f"{path} on {target}: {error}") from None
        running = onnx.load(str(written)) if written else None
    graph = load_model(path)
    origins = Origins(graph.graph, running.graph if running else None)
    return Profile(
        artifact=artifact,
        model=graph,
        backend=str(target),
        batch=batch,
        threads=threads,
        runs=told["runs"],
        latency_s=latency_s,
        larger_latency_s=rest[0] if rest else None,
        kernels=tuple(
            Kernel(k["name"], k["operator"], k["provider"], k["us"] * 1e-6, origins.layer(k["name"], k["operator"]))
            for k in told["kernels"]
        ),
        placement=placement,
        running=running,
    )


def _latencies_s(worker: Worker, feeds: Sequence[Mapping[str, NDArray[Any]]], seconds: float) -> list[float]:
    """Median latency of each feed, which take turns in short slices for so many seconds."""
    found: list[list[NDArray[Any]]] = [[] for _ in feeds]
    for slot, feed in enumerate(feeds):
        worker.feed(str(slot), dict(feed))
    slice_s = seconds / TURNS / len(feeds)
    for _ in range(TURNS):
        for slot, latencies in enumerate(found):
            _, arrays = worker.ask("slice", slot=str(slot), seconds=slice_s, runs=RUNS, extra_s=slice_s)
            latencies.append(arrays["latencies_s"])
    return [float(np.median(np.concatenate(latencies))) for latencies in found]


def side_by_side(first: Profile, second: Profile) -> list[Beside]:
    """Two profiles by layer, and what is no layer's: conversions, other kernels, and all of a run."""
    ours, theirs = (
        {k.layer or k.name: k for k in p.kernels if k.layer or k.operator in WEIGHT_INPUT} for p in (first, second)
    )
    rows = []
    for name, other in pair_layers(
        {n: k.operator for n, k in ours.items()}, {n: k.operator for n, k in theirs.items()}
    ):
        left, right = ours.get(name or ""), theirs.get(other or "")
        rows.append(
            Beside(
                name or other or "",
                left.operator if left else "",
                left.time_s if left else None,
                right.operator if right else "",
                right.time_s if right else None,
            )
        )
    moved = [sum(k.time_s for k in p.kernels if k.operator in QUANTIZERS + MOVERS) for p in (first, second)]
    layers = [sum(k.time_s for k in p.kernels if k.operator in WEIGHT_INPUT) for p in (first, second)]
    others = [p.kernels_s - a - b for p, a, b in zip((first, second), moved, layers, strict=True)]
    runs = [first.latency_s, second.latency_s]
    rest = (("conversions", moved), ("other kernels", others), ("a run", runs))
    return [*rows, *(Beside(name, "", a, "", b) for name, (a, b) in rest)]


def _parent(artifact: Artifact, model: Path) -> Path | None:
    """The fp32 model that one in less was made from, if its file lies in the same folder and is still the same."""
    if artifact.precision == "fp32" or artifact.parent_sha256 is None:
        return None
    for path in sorted(model.parent.glob("*.onnx")):
        beside = sidecar(path)
        found = load_artifact(beside).sha256 if beside.is_file() else sha256_of_file(path)
        if path != model and found == artifact.parent_sha256:
            parent = known_artifact(path)
            return path if parent.sha256 == artifact.parent_sha256 and parent.precision == "fp32" else None
    return None
