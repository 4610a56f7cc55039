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
    """Of the sample as it is stored."""
    mean: tuple[float, ...] = (0.0,)
    """After scaling."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    """Standard deviation after scaling."""


class TensorSpec(Record):
    """An input or output."""

    name: str
    """In the file."""
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
    """Its name; it lies beside the record of a run folder."""
    sha256: str
    size_bytes: int
    parameters: int
    macs: int | None
    """Multiply-accumulates of one sample in convolutions, matrix products and recurrent nodes; None where a shape isn't
    known."""
    precision: Precision
    """What most of its weights are, or the layers that are quantized."""
    inputs: tuple[TensorSpec, ...]
    """Those that are fed."""
    outputs: tuple[TensorSpec, ...]
    """What it answers with."""
    opset: int
    """Of ONNX's own operators."""
    ir_version: int
    """Of the ONNX format."""
    operators: dict[str, int]
    """How many nodes of each."""
    task: Task = "classification"
    """Of several classes one holds for a sample, or any number of them."""
    classes: tuple[str, ...] = ()
    """Their names, in the order of the outputs."""
    preprocessing: Preprocessing | None = None
    """What the model wants done to samples; None where they are fed as they are stored."""
    parent: str | None = None
    """The rung that it was made of."""
    parent_sha256: str | None = None
    """Of that rung's file."""
    step: str | None = None
    """That made it: `train`, `distill`, `slim`, `quantize` and so on."""
    options: dict[str, Any] = {}
    """Of that step."""
    metrics: dict[str, float] = {}
    """What that step measured, by name."""
    warnings: tuple[str, ...] = ()
    """Said beside every number of this artifact."""
    made_in_s: float | None = None
    """What making it took, training and export too, but not what it was made of; None where it isn't known, as in the
    record beside the file, which is the same for equal seeds."""
    fingerprint: str | None = None
    """Of everything that the step started from: equal fingerprints mean that a resumed run may keep the file."""
