"""Inputs made up from what an ONNX file says of its own: for models that come without data."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kdbench.errors import UserError, nearest
from kdbench.records import Artifact, TensorSpec
from kdbench.store import Arrays

MOST_ELEMENTS = 2**28

SMALL = 100
"""Most integer inputs are indices into a table, and the file doesn't say of what length."""


def batch_size(inputs: Sequence[TensorSpec]) -> int | None:
    """The batch that the model is fixed to, or None where its first dimension is free."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(sizes) else None


def shared_inputs(inputs: Sequence[TensorSpec]) -> set[str]:
    """Names of inputs whose first dimension is not the batch: all samples share them.

    Where that holds for all of them, the first dimension is taken for the batch, of those that have any.
    """
    fixed = batch_size(inputs)
    found = {
        spec.name
        for spec in inputs
        if not spec.shape
        or (isinstance(spec.shape[0], int) and spec.shape[0] != fixed)
        or (isinstance(spec.shape[0], str) and why_not_a_size(inputs, spec.shape[0]) is None)
    }
    return found if len(found) < len(inputs) else {spec.name for spec in inputs if not spec.shape}


def sample_count(inputs: Sequence[TensorSpec], feed: Arrays) -> int:
    """How many samples a feed of these inputs has."""
    shared = shared_inputs(inputs)
    return next((len(values) for name, values in feed.items() if name not in shared), 1)


def first_samples(inputs: Sequence[TensorSpec], feed: Arrays, count: int) -> Arrays:
    """A feed of the first samples alone, or of all where there are no more."""
    shared = shared_inputs(inputs)
    return {name: values if name in shared else values[:count] for name, values in feed.items()}


def taken(inputs: Sequence[TensorSpec], feed: Arrays) -> Arrays:
    """What a model of these inputs takes of a feed: rewriting may have left out one that nobody reads."""
    names = {spec.name for spec in inputs}
    return {name: values for name, values in feed.items() if name in names}


def in_batches(inputs: Sequence[TensorSpec], feed: Arrays, batch: int) -> Iterator[Arrays]:
    """The samples of a feed in whole batches, of which the last is filled up with the first samples."""
    feed = taken(inputs, feed)
    shared, samples = shared_inputs(inputs), sample_count(inputs, feed)
    rows = np.arange(math.ceil(samples / batch) * batch) % samples
    for start in range(0, len(rows), batch):
        own = rows[start : start + batch]
        yield {name: values if name in shared else values[own] for name, values in feed.items()}


def why_not_a_size(inputs: Sequence[TensorSpec], name: str) -> str | None:
    """Why the dimension `name` can't be given a size, or None where it can: a first dimension is the batch, unless
    another one, further back, has its name."""
    if not any(name in spec.shape for spec in inputs):
        return f"--dim {name}: the model has no such dimension"
    if not any(name in spec.shape[1:] for spec in inputs):
        return f"--dim {name}: the first dimension is the batch: use --batch, or leave it out"
    return None


def generate(
    inputs: Sequence[TensorSpec], batch: int, dims: Mapping[str, int], seed: int = 0, below: int = SMALL
) -> Arrays:
    """Standard-normal floats, integers from 0 to `below` − 1 and fair booleans, of the shapes that the model states.

    The first dimension of each input is the batch unless it is fixed; `dims` gives sizes to the other symbolic ones.
    Raises UserError for a dimension without a size or that is the batch, and for element types that can't be made up.
    """
    symbols = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    for name in dims:
        if why := why_not_a_size(inputs, name):
            known = nearest(name, symbols) if symbols else "all are fixed"
            raise UserError(why if name in symbols else f"{why}: {known}")
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
            raise UserError(
                f"input '{spec.name}': dimension {axis} has neither size nor name: give data, or "
                f"'kdbench bench --input {spec.name}=SIZES', all sizes after the first"
            )
        else:
            raise UserError(f"input '{spec.name}': dimension '{size}' has no size: add --dim {size}=N")
    return tuple(shape)


def _values(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator, below: int) -> np.ndarray:
    if spec.dtype == "object":
        raise UserError(f"input '{spec.name}': text or an unknown element type: inputs can't be generated, give data")
    dtype = np.dtype(spec.dtype)
    if spec.integers is not None:
        return generator.integers(*spec.integers, shape, endpoint=True).astype(dtype)
    if np.issubdtype(dtype, np.floating) or dtype.kind == "V":
        return generator.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.integers(0, below, shape).astype(dtype)


_GIVEN = re.compile(r"(?P<sizes>\d+(?:x\d+)*)?(?:(?:(?<=\d):|^)(?P<low>-?\d+)\.\.(?P<high>-?\d+))?")


def described(artifacts: Sequence[Artifact], given: Mapping[str, str], samples: str | None = None) -> list[Artifact]:
    """The artifacts with inputs as they are `given` by name, for what their files don't tell: `SIZES` after the first,
    such as `3x64x64`, the range of whole numbers `LOW..HIGH`, or both as `128:0..29999`.

    `samples` names where samples come from, if not from here. Raises UserError then, for an input that none of them
    has, and for what does not fit one that has it.
    """
    if given and samples is not None:
        raise UserError(f"--input: for generated inputs, and {samples} has samples: leave it out")
    known = {spec.name for artifact in artifacts for spec in artifact.inputs}
    for name in given:
        if name not in known:
            raise UserError(f"--input {name}: the model has no such input: {nearest(name, known)}")
    return [
        artifact.model_copy(
            update={
                "inputs": tuple(
                    _described(spec, given[spec.name]) if spec.name in given else spec for spec in artifact.inputs
                )
            }
        )
        for artifact in artifacts
    ]


def _described(spec: TensorSpec, text: str) -> TensorSpec:
    found, where = _GIVEN.fullmatch(text.replace(" ", "")), f"--input {spec.name}={text}"
    if not text or found is None:
        raise UserError(f"{where}: should read SIZES, LOW..HIGH or both, such as 3x64x64, 0..9 or 128:0..29999")
    changed: dict[str, object] = {}
    if found["sizes"]:
        sizes = [int(size) for size in found["sizes"].split("x")]
        fits = len(sizes) == len(spec.shape) - 1 and all(
            size > 0 and (not isinstance(own, int) or own == size)
            for size, own in zip(sizes, spec.shape[1:], strict=True)
        )
        if not fits:
            shape = " × ".join("?" if size is None else str(size) for size in spec.shape)
            raise UserError(f"{where}: the model's is {shape}: give the sizes after the first")
        changed["shape"] = (*spec.shape[:1], *sizes)
    if found["low"]:
        low, high = int(found["low"]), int(found["high"])
        kind = np.dtype(spec.dtype).kind if spec.dtype != "object" else "O"
        limits = np.iinfo(spec.dtype if kind in "iu" else np.int64)
        if kind == "O" or low > high or low < limits.min or high > min(limits.max, np.iinfo(np.int64).max):
            raise UserError(f"{where}: not a range of {spec.dtype}, from a smaller to a larger number")
        changed["integers"] = (low, high)
    return spec.model_copy(update=changed)


def hint(error: str, inputs: Sequence[TensorSpec]) -> str:
    """The error of a model that was fed generated inputs, with the option that mends it, where it is their range."""
    names = [spec.name for spec in inputs if np.issubdtype(np.dtype(spec.dtype), np.integer)]
    found = re.search(r"out of data bounds, idx=-?\d+ must be within the inclusive range \[-?\d+,(\d+)\]", error)
    if found is None or not names:
        return error
    which = f" for one of {', '.join(names)}" if len(names) > 1 else ""
    option = f"--input {'NAME' if which else names[0]}=0..{found[1]}"
    return f"generated integers are too large for a table of the model: add {option}{which} ({error})"
