"""Ways to quantize one model, each judged; and how those that lose too much are mended."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kdbench.backends.client import WorkerError
from kdbench.errors import UserError
from kdbench.progress import Progress, silent
from kdbench.quantization.bias import Shifts, bias_corrected
from kdbench.quantization.calibration import Observed, Ranges
from kdbench.quantization.judging import Judge, Loss
from kdbench.quantization.running import Runner
from kdbench.quantization.samples import Samples
from kdbench.quantization.sensitivity import (
    Layer,
    Sensitivity,
    int8_share,
    layers_of,
    names_of,
    sqnr_db,
)
from kdbench.quantization.static import nothing_in, quantizable, static_int8
from kdbench.records import Quantize
from kdbench.records.budget import CandidateRecord, CurvePoint, Estimate, LayerNoise
from kdbench.search.int8_budget import Tried
from kdbench.stats import ROUNDING, Interval

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Ground:
    """What all candidates start from."""

    graph: "onnx.ModelProto"
    """In fp32, prepared to be quantized."""
    calibration: Samples
    judge: Judge
    runner: Runner
    observed: Observed
    max_drop: float | None
    """As a share; None for no bound."""
    progress: Progress = silent


@dataclass(frozen=True)
class Candidate:
    """A way to quantize a model, and how it did."""

    name: str
    options: Quantize
    graph: "onnx.ModelProto"
    """In fp32: the prepared one, or what equalisation has made of it."""
    ranges: Ranges
    layers: tuple[Layer, ...]
    left: frozenset[str] = frozenset()
    """Layers in float, by name."""
    loss: Loss | None = None
    error: str | None = None
    shifts: Shifts = field(default_factory=dict)
    """Of the biases that are corrected."""
    equalized: bool = False
    tried: tuple[Tried, ...] = ()
    noise: tuple[Sensitivity, ...] = ()

    def model(self, left: Collection[str] | None = None) -> "onnx.ModelProto":
        """The int8 model with these layers in float, or with those that it has itself."""
        chosen = self.left if left is None else left
        return self.without(names_of([layer for layer in self.layers if layer.name in chosen]))

    def without(self, nodes: Collection[str]) -> "onnx.ModelProto":
        """The int8 model with these nodes in float; the fp32 one where none is left to quantize."""
        if set(names_of(self.layers)) <= set(nodes):
            return self.graph
        graph = bias_corrected(self.graph, self.shifts, nodes) if self.shifts else self.graph
        return static_int8(graph, self.ranges, self.options, nodes)

    @property
    def drop(self) -> float:
        """Infinite where it can't run."""
        return math.inf if self.loss is None else self.loss.drop.value

    @property
    def record(self) -> CandidateRecord:
        left = tuple(layer.name for layer in self.layers if layer.name in self.left)
        sqnr = None if self.loss is None else sqnr_db(self.loss.noise)
        return CandidateRecord(
            name=self.name,
            options=self.options.model_dump(mode="json"),
            left_in_float=left,
            bias_correction=bool(self.shifts),
            equalization=self.equalized,
            drop=None if self.loss is None else estimate(self.loss.drop),
            sqnr_db=sqnr if sqnr is not None and math.isfinite(sqnr) else None,
            int8_macs=int8_share(self.layers, self.left),
            curve=tuple(
                CurvePoint(
                    left_in_float=tuple(layer.name for layer in self.layers if layer.name in point.left_in_float),
                    drop=estimate(point.drop),
                    int8_macs=int8_share(self.layers, point.left_in_float),
                )
                for point in self.tried
            ),
            layers=tuple(
                LayerNoise(
                    layer=one.layer.name,
                    nodes=one.layer.nodes,
                    operator=one.layer.operator,
                    macs=one.layer.macs,
                    noise=one.noise if math.isfinite(one.noise) else None,
                    left_in_float=one.layer.name in self.left,
                )
                for one in self.noise
            ),
            error=self.error,
        )


def estimate(interval: Interval) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def attempts(ground: Ground, ways: Sequence[Quantize]) -> list[Candidate]:
    """Every way, with all layers in int8, judged; one that can't be made or run has its error."""
    found = []
    for number, options in enumerate(ways):
        ground.progress("candidates", number, len(ways))
        layers = tuple(layers_of(ground.graph, _wanted(ground.graph, options)))
        candidate = Candidate(described(options), options, ground.graph, ground.observed.ranges(options), layers)
        if layers:
            found.append(judged(ground, candidate))
        else:
            found.append(replace(candidate, error=nothing_in(ground.graph)))
    ground.progress("candidates", len(ways), len(ways))
    return found


def keeps(ground: Ground, candidate: Candidate) -> bool:
    """Whether it was judged to be within the budget, with some layers in int8."""
    if candidate.error is not None:
        return False
    return ground.max_drop is None or candidate.drop <= ground.max_drop + ROUNDING


def described(options: Quantize) -> str:
    """`x86-vnni, mse`, or without a target `u8s8 per tensor qoperator, minmax`: what tells one way from another."""
    return f"{kind_of(options)}, {options.calibration}"


def kind_of(options: Quantize) -> str:
    """What decides the speed: all but the calibration."""
    if options.target is not None:
        return options.target
    types = "".join(f"{'u' if kind == 'uint8' else 's'}8" for kind in (options.activations, options.weights))
    parts = [
        types,
        "symmetric" if options.symmetric else "",
        "" if options.per_channel else "per tensor",
        "" if options.format == "qdq" else options.format,
    ]
    return " ".join(filter(None, parts))


def _wanted(graph: "onnx.ModelProto", options: Quantize) -> list[str]:
    """The nodes that these options quantize."""
    return [
        name
        for name in quantizable(graph, options.operators)
        if (not options.nodes or name in options.nodes) and name not in options.exclude
    ]


def judged(ground: Ground, candidate: Candidate) -> Candidate:
    """With its loss, or the reason why it has none."""
    try:
        loss = ground.judge.of(candidate.model(), ground.runner)
    except (UserError, WorkerError) as error:
        return replace(candidate, loss=None, error=str(error))
    if not math.isfinite(loss.noise):
        return replace(candidate, loss=None, error="its outputs, or those in fp32, are NaN or infinite")
    return replace(candidate, loss=loss)
