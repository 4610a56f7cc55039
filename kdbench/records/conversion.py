"""What is asked of a conversion to another precision than static int8."""

from typing import Literal

from kdbench.records.base import Record


class Convert(Record):
    to: Literal["dynamic", "fp16", "bf16", "int4"]
    operators: tuple[str, ...] = ()
    """Kinds of operators to convert, such as MatMul; all that the precision is known to help where none is named."""
    keep: tuple[str, ...] = ()
    """Nodes by name, or kinds of operators, that stay in float."""
    activations: Literal["float", "int8", "bf16"] = "float"
    """What the products get beside weights of int4 (float, or int8 in each run) or of bf16 (float, or bf16)."""
    per_channel: bool = True
    """Of dynamic int8: scales by output channel."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Of int4: weights that share a scale."""
    symmetric: bool = False
    """Of int4: without a zero point."""
    form: Literal["operator", "qdq"] = "operator"
    """Of int4: onnxruntime's own operator, or DequantizeLinear of the standard (opset 21) in front of each product."""
