"""What a recipe says of pruning and quantizing."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kdbench.records.base import Count, Positive, Record

Share = Annotated[float, Field(gt=0, lt=1)]


class Quantize(Record):
    """Static int8; the defaults are the fastest on x86 CPUs."""

    activations: Literal["uint8", "int8"] = "uint8"
    """What they are rounded to."""
    per_channel: bool = True
    """Of the weights: a scale for each output channel."""
    calibration: Literal["minmax", "entropy", "percentile", "mse"] = "minmax"
    """How the range of an activation is found."""
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
    backend: Annotated[Annotated[str, Field(min_length=1)] | None, Field(alias="for")] = None
    """As NAME[:PRECISION][@PYTHON]: the fastest of the int8 files that are plausible for it is taken."""
    max_drop: Annotated[float, Field(ge=0, lt=100)] | None = None
    """Points of accuracy (of F1; of agreement with fp32 without labels) that may be lost on held-out calibration
    samples: layers stay in float where that takes it. Where nothing is said, nothing is judged."""
    bias_correction: bool | None = None
    """Whether biases make up for what int8 adds on average; where nothing is said, where it helps to keep `max_drop`.
    """
    equalization: bool | None = None
    """Whether neighbouring layers share their ranges first; where nothing is said, likewise."""

    @property
    def filled_in(self) -> bool:
        """Whether what isn't said is chosen: by the target, or among what is plausible for a backend or a bound. A
        default that is said is then another choice than none."""
        return self.target is not None or self.backend is not None or self.max_drop is not None


class Sparse(Record):
    """A training before pruning that draws what will be pruned towards zero."""

    kind: Literal["l1", "batch_norm", "group", "growing"] = "group"
    """L1 on all weights or on the scales of batch norm; L2 on groups of channels, the least important most, in
    `growing` more so from epoch to epoch."""
    strength: Positive = 1e-4
    """Of the penalty: it is multiplied by this."""
    epochs: Count
    """As many of the student's training."""


class Pruning(Record):
    """Which channels and blocks go first."""

    importance: Literal["l1", "l2", "group", "batch_norm", "taylor", "random"] = "group"
    """By which a channel is judged: see docs/pruning.md."""
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


class Prune(Pruning):
    """Structured pruning: whole channels, or whole residual blocks. One of the three targets is the share to keep, or
    ratios say what goes of which layer."""

    macs: Share | None = None
    """Of the multiply-accumulates."""
    parameters: Share | None = None
    """Of the parameters."""
    latency: Share | None = None
    """Of the measured latency on `backend`, at batch 1 and one thread."""
    backend: str = "cpu"
    """As in bench.backends: where `latency` is measured."""
    ratios: dict[str, Share] = {}
    """In the place of a target: the share of its channels that a layer loses, or every layer of a module, by name."""

    @property
    def target(self) -> tuple[Literal["macs", "parameters", "latency"], float] | None:
        """What is to fall, and the share of it to keep; None where ratios are given."""
        if self.macs is not None:
            return "macs", self.macs
        if self.parameters is not None:
            return "parameters", self.parameters
        return None if self.latency is None else ("latency", self.latency)

    @model_validator(mode="after")
    def _one_target(self) -> "Prune":
        if sum(share is not None for share in (self.macs, self.parameters, self.latency, self.ratios or None)) != 1:
            raise PydanticCustomError(
                "target", "with one of macs, parameters and latency: the share of it to keep; or with ratios alone"
            )
        if self.ratios and (self.blocks or self.scope != "global"):
            raise PydanticCustomError("ratios", "without blocks and scope where ratios say what goes of which layer")
        return self


class Sparsify(Record):
    """Unstructured pruning: single weights become zero."""

    method: Literal["magnitude", "gradient", "random"] = "magnitude"
    """Which go first: the smallest weights, those of the smallest |weight · gradient|, or any."""
    sparsity: Share | None = None
    """Share of zeros in the end."""
    threshold: Annotated[Positive | None, Field(validate_default=True)] = None
    """In the place of `sparsity`: what is smaller becomes zero."""
    scope: Literal["global", "layer"] = "global"
    """The share is of all weights together, or of those of each layer."""
    layers: tuple[str, ...] = ()
    """Submodules or weights to choose from; all but embeddings where none is named."""
    ignore: tuple[str, ...] = ()
    """Submodules or weights that stay as they are."""

    @field_validator("threshold")
    @classmethod
    def _instead(cls, threshold: float | None, info: ValidationInfo) -> float | None:
        if threshold is None and info.data.get("sparsity", 0) is None:
            raise PydanticCustomError("no_sparsity", "given where sparsity is not: name one of the two")
        if threshold is not None and info.data.get("sparsity") is not None:
            raise PydanticCustomError("two_sparsities", "left out where sparsity is given")
        if threshold is not None and info.data.get("method", "magnitude") != "magnitude":
            raise PydanticCustomError("unused_threshold", "left out where method is not 'magnitude'")
        return threshold


class Factorise(Record):
    """Low rank: layers become products of two smaller ones, where that is cheaper."""

    energy: Share | None = None
    """Share of its squared singular values that each layer keeps at least."""
    macs: Annotated[Share | None, Field(validate_default=True)] = None
    """In the place of `energy`: share of the multiply-accumulates that is left at most."""
    layers: tuple[str, ...] = ()
    """Submodules to factorise; all where none is named."""
    ignore: tuple[str, ...] = ()
    """Submodules that stay as they are."""

    @field_validator("macs")
    @classmethod
    def _instead(cls, macs: float | None, info: ValidationInfo) -> float | None:
        if macs is None and info.data.get("energy", 0) is None:
            raise PydanticCustomError("no_target", "given where energy is not: name one of the two")
        if macs is not None and info.data.get("energy") is not None:
            raise PydanticCustomError("two_targets", "left out where energy is given")
        return macs


class Spiral(Pruning):
    """Prune a little, distil, evaluate, and again. Of the four targets at most one, as a share of the first model's."""

    macs: Share | None = None
    """Of the multiply-accumulates."""
    parameters: Share | None = None
    """Of the parameters."""
    size: Share | None = None
    """Of the ONNX file."""
    latency: Share | None = None
    """On `backend`. Without any target it goes on until the accuracy stops it."""
    backend: str = "cpu"
    """As in bench.backends: where each turn is timed beside the first model, at batch 1 on one thread."""
    max_drop: Annotated[float, Field(ge=0, le=100)] = 0.5
    """Points of accuracy (of F1) that a model may be below the first one on the held-out samples; 100 for no floor."""
    step: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the MACs that a turn takes away, or of the parameters where they or the size are the target; halved
    where a turn is refused."""
    smallest_step: Annotated[Share, Field(validate_default=True)] = 0.02
    """No smaller step is tried."""
    turns: Count = 20
    """Refused ones too."""
    start: Literal["student", "teacher"] = "student"
    """The first model: the distilled student, or the teacher itself."""
    teachers: Literal["previous", "original", "both"] = "both"
    """Who teaches a turn: the model that it was pruned from, the recipe's teachers, or all of them."""

    @property
    def target(self) -> tuple[Literal["macs", "parameters", "size", "latency"], float] | None:
        """What is to fall, and the share of it to reach."""
        given: dict[Literal["macs", "parameters", "size", "latency"], float | None] = {
            "macs": self.macs,
            "parameters": self.parameters,
            "size": self.size,
            "latency": self.latency,
        }
        return next(((what, share) for what, share in given.items() if share is not None), None)

    @field_validator("smallest_step")
    @classmethod
    def _no_larger(cls, smallest: float, info: ValidationInfo) -> float:
        if smallest > info.data.get("step", 1.0):
            raise PydanticCustomError("large_step", "no larger than step, {step}", {"step": info.data["step"]})
        return smallest

    @model_validator(mode="after")
    def _one_target(self) -> "Spiral":
        if sum(share is not None for share in (self.macs, self.parameters, self.size, self.latency)) > 1:
            raise PydanticCustomError("targets", "with one of macs, parameters, size and latency, or none of them")
        return self
