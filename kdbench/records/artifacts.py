"""What an ONNX file is, and where it comes from."""

from typing import Annotated, Any, Literal

from pydantic import Field

from kdbench.records.base import Positive, Record, Task, Versioned

IMPORTED = "import"
"""The step of an ONNX file that was made elsewhere and is taken as it is."""


Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""What most of a file's weights are, or the layers that are quantized; of int8, static and dynamic."""


class Preprocessing(Record):
    """`(x * scale - mean) / std`, with one mean and std for each channel (axis 1), or for all."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)


class TensorSpec(Record):
    name: str
    dtype: str
    """numpy's name of the element type."""
    shape: tuple[int | str | None, ...]
    """A fixed size, the name of a symbolic dimension, or None where the file names neither."""
    integers: tuple[int, int] | None = None
    """Of generated inputs: the smallest and the largest value, where they were given."""


class Artifact(Versioned):
    """An ONNX file: what is in it and where it comes from."""

    rung: str
    file: str
    sha256: str
    size_bytes: int
    parameters: int
    macs: int | None
    """Multiply-accumulates of one sample in convolutions, matrix products and recurrent nodes; None where a shape isn't
    known."""
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    operators: dict[str, int]
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    parent: str | None = None
    parent_sha256: str | None = None
    step: str | None = None
    options: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    warnings: tuple[str, ...] = ()
    """Said beside every number of this artifact."""
    made_in_s: float | None = None
    """What making it took, training and export too, but not what it was made of; None where it isn't known, as in the
    record beside the file, which is the same for equal seeds."""
    fingerprint: str | None = None
    """Of everything that the step started from: equal fingerprints mean that a resumed run may keep the file."""
