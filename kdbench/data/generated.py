"""Inputs made up from what an ONNX file says of its own: for models that come without data."""

from collections.abc import Mapping, Sequence

import numpy as np

from kdbench.errors import UserError, nearest
from kdbench.records import TensorSpec
from kdbench.store import Arrays

MOST_ELEMENTS = 2**28

SMALL = 100
"""Most integer inputs are indices into a table, and the file doesn't say of what length."""


def batch_size(inputs: Sequence[TensorSpec]) -> int | None:
    """The batch that the model is fixed to, or None where its first dimension is free."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(sizes) else None


def generate(
    inputs: Sequence[TensorSpec], batch: int, dims: Mapping[str, int], seed: int = 0, below: int = SMALL
) -> Arrays:
    """Standard-normal floats, integers from 0 to `below` − 1 and fair booleans, of the shapes that the model states.

    The first dimension of each input is the batch unless it is fixed; `dims` gives sizes to the other symbolic ones.
    Raises UserError for a dimension without a size, and for element types that can't be made up.
    """
    symbols = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    for name in dims:
        if name not in symbols:
            known = nearest(name, symbols) if symbols else "all are fixed"
            raise UserError(f"--dim {name}: the model has no such dimension: {known}")
    shapes = {spec.name: _shape(spec, batch, dims) for spec in inputs}
    check_elements(shapes)
    generator = np.random.default_rng(seed)
    return {spec.name: _values(spec, shapes[spec.name], generator, below) for spec in inputs}


def check_elements(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError for inputs that no machine should be asked to hold."""
    for name, shape in shapes.items():
        if np.prod(shape, dtype=np.float64) > MOST_ELEMENTS:
            elements = " × ".join(map(str, shape))
            raise UserError(f"input '{name}': {elements} elements are too many: choose a smaller --batch or --dim")


def _shape(spec: TensorSpec, batch: int, dims: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif isinstance(size, str) and size in dims:
            shape.append(dims[size])
        elif axis == 0:
            shape.append(batch)
        elif size is None:
            raise UserError(f"input '{spec.name}': dimension {axis} has neither size nor name: give data instead")
        else:
            raise UserError(f"input '{spec.name}': dimension '{size}' has no size: add --dim {size}=N")
    return tuple(shape)


def _values(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator, below: int) -> np.ndarray:
    if spec.dtype == "object":
        raise UserError(f"input '{spec.name}': text or an unknown element type: inputs can't be generated, give data")
    dtype = np.dtype(spec.dtype)
    if np.issubdtype(dtype, np.floating) or dtype.kind == "V":
        return generator.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.integers(0, below, shape).astype(dtype)
