"""What a recipe says of pruning and quantizing."""

from typing import Annotated, Literal

from pydantic import Field

from kdbench.records.base import Record


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
