"""What a recipe says of pruning and quantizing."""

from typing import Literal

from kdbench.records.base import Record


class Quantize(Record):
    """Static int8, weights always signed and symmetric; the defaults are the fastest on x86 CPUs."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    operators: tuple[str, ...] = ()
    """Operators to quantize, such as Conv and MatMul; all that onnxruntime can where none is named."""
