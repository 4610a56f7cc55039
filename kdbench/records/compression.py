"""What a recipe says of pruning and quantizing."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kdbench.records.base import Count, Positive, Record

Share = Annotated[float, Field(gt=0, lt=1)]


class Quantize(Record):
    """Static int8; the defaults are the fastest on x86 CPUs."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    """Of the weights: a scale for each output channel."""
    calibration: Literal["minmax", "entropy", "percentile", "mse"] = "minmax"
    operators: tuple[str, ...] = ()
    """Operators to quantize, such as Conv and MatMul; all that onnxruntime can where none is named."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Percent of a tensor's values that its range holds, where `calibration` is percentile."""
    format: Literal["qdq", "qoperator"] = "qdq"
    """QuantizeLinear and DequantizeLinear around float nodes, or integer nodes such as QLinearConv."""
    weights: Literal["int8", "uint8"] = "int8"
    """Signed ones are symmetric: their zero point is 0."""
    symmetric: bool = False
    """Whether the ranges of activations are symmetric about 0."""
    reduce_range: bool | None = None
    """Weights of 7 bits, for x86 without VNNI; where nothing is said, as this machine needs it."""
    float_weights: bool = False
    """Weights stay in float behind QuantizeLinear and DequantizeLinear, a pair for each use, and biases in float
    without: what TensorRT reads."""
    nodes: tuple[str, ...] = ()
    """Names of the nodes to quantize; all where none is named."""
    exclude: tuple[str, ...] = ()
    """Names of nodes that stay in float."""
    target: str | None = None
    """What the file is for, such as x86-vnni or tensorrt: it fills in what isn't said here."""


class Sparse(Record):
    """A training before pruning that draws what will be pruned towards zero."""

    kind: Literal["l1", "batch_norm", "group", "growing"] = "group"
    """L1 on all weights or on the scales of batch norm; L2 on groups of channels, the least important most, in
    `growing` more so from epoch to epoch."""
    strength: Positive = 1e-4
    epochs: Count


class Prune(Record):
    """Structured pruning: whole channels, or whole residual blocks. One of the three targets is the share to keep."""

    macs: Share | None = None
    parameters: Share | None = None
    latency: Share | None = None
    """Of the measured latency on `backend`, at batch 1 and one thread."""
    backend: str = "cpu"
    """As in bench.backends: where `latency` is measured."""
    importance: Literal["l1", "l2", "group", "batch_norm", "taylor", "random"] = "group"
    scope: Literal["global", "layer"] = "global"
    """The least important channels of all layers, or the same share of each layer's."""
    round_to: Count = 8
    """What is left of a layer's channels is a multiple of this, or all of them."""
    blocks: bool = False
    """Whole residual blocks first, the least important ones, as far as the target is not missed by that."""
    ignore: tuple[str, ...] = ()
    """Submodules whose channels and blocks stay."""
    samples: Count = 512
    """Training samples by which `taylor` and blocks are judged."""

    @property
    def target(self) -> tuple[Literal["macs", "parameters", "latency"], float]:
        """What is to fall, and the share of it to keep."""
        if self.macs is not None:
            return "macs", self.macs
        if self.parameters is not None:
            return "parameters", self.parameters
        assert self.latency is not None
        return "latency", self.latency

    @model_validator(mode="after")
    def _one_target(self) -> "Prune":
        if sum(share is not None for share in (self.macs, self.parameters, self.latency)) != 1:
            raise PydanticCustomError("target", "with one of macs, parameters and latency: the share of it to keep")
        return self
