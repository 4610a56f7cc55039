"""ONNX operators in torch: what the graphs of exported classifiers are made of, so that they can be trained further.

Each takes its inputs in their order, None for one that is left out, and its attributes by name. To add one: its line in
OPERATORS. Raises ValueError for what it doesn't know.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor
from torch.nn import functional

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
MAX_POOLS = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
MEAN_POOLS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
"""By the number of axes behind samples and channels, from 1."""


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: int = 1,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int] = (),
    auto_pad: bytes = b"NOTSET",
) -> Tensor:
    axes = x.ndim - 2
    x, padding = _padded(x, pads, auto_pad, 0.0)
    return CONVOLUTIONS[axes - 1](
        x, weight, bias, list(strides or [1] * axes), padding, list(dilations or [1] * axes), group
    )


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: bytes = b"NOTSET",
) -> Tensor:
    axes = x.ndim - 2
    x, padding = _padded(x, pads, auto_pad, -torch.inf)
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    return MAX_POOLS[axes - 1](x, list(kernel_shape), strides, padding, dilations, bool(ceil_mode))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: bytes = b"NOTSET",
) -> Tensor:
    axes = x.ndim - 2
    if not _symmetric(pads) and not count_include_pad:
        raise ValueError("an average that leaves uneven padding out")
    x, padding = _padded(x, pads, auto_pad, 0.0)
    strides = list(strides or [1] * axes)
    pool: Callable[..., Tensor] = MEAN_POOLS[axes - 1]
    return pool(x, list(kernel_shape), strides, padding, bool(ceil_mode), bool(count_include_pad))


def _symmetric(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def _padded(x: Tensor, pads: Sequence[int], auto_pad: bytes, value: float) -> tuple[Tensor, list[int]]:
    """`x`, padded where that is uneven, and the even padding that is left to its operator."""
    if auto_pad not in (b"NOTSET", b"VALID"):
        raise ValueError(f"auto_pad {auto_pad.decode()}")
    half = len(pads) // 2
    if _symmetric(pads):
        return x, list(pads[:half]) or [0] * (x.ndim - 2)
    return functional.pad(x, _reversed_pairs(pads), value=value), [0] * (x.ndim - 2)


def _reversed_pairs(pads: Sequence[int]) -> list[int]:
    """ONNX has all begins, then all ends; torch the begin and end of each axis, the last one first."""
    half = len(pads) // 2
    return [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 — ONNX's name
    transB: int = 0,  # noqa: N803
) -> Tensor:
    product = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1.0:
        product = alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise ValueError("batch norm in training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(x.shape[:axis].numel(), -1)


def transpose(x: Tensor, *, perm: Sequence[int] = ()) -> Tensor:
    return x.permute(list(perm) or list(reversed(range(x.ndim))))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.flatten().tolist()):
        x = x.unsqueeze(axis)
    return x


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    which = list(range(starts.numel())) if axes is None else axes.tolist()
    paces = [1] * starts.numel() if steps is None else steps.tolist()
    if min(paces) < 1:
        raise ValueError("a slice that runs backwards")
    cut = [slice(None)] * x.ndim
    for axis, start, end, pace in zip(which, starts.tolist(), ends.tolist(), paces, strict=True):
        size = x.shape[axis]  # "to the end" is written as the largest integer
        cut[axis] = slice(max(start, -size), max(min(end, size), -size), pace)
    return x[tuple(cut)]


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: bytes = b"constant"
) -> Tensor:
    if mode != b"constant" or axes is not None:
        raise ValueError("padding otherwise than by a constant on all axes")
    return functional.pad(x, _reversed_pairs(pads.tolist()), value=0.0 if value is None else value.item())


def split(x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    each: Any = -(-x.shape[axis] // num_outputs) if sizes is None else sizes.tolist()
    return torch.split(x, each, axis)


def gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    places = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, places.flatten())
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def reduced(
    over: Callable[..., Tensor], x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, **left: int
) -> Tensor:
    if axes is None or not axes.numel():
        if left.get("noop_with_empty_axes"):
            return x
        return over(x, dim=tuple(range(x.ndim)), keepdim=bool(keepdims))
    return over(x, dim=tuple(axes.flatten().tolist()), keepdim=bool(keepdims))


def divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def cast(x: Tensor, *, to: int, **left: int) -> Tensor:
    kinds: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.BOOL: torch.bool,
    }
    if to not in kinds:
        raise ValueError(f"a cast to ONNX's type {to}")
    return x.to(kinds[to])


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape[start:end]), dtype=torch.int64, device=x.device)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    return x + torch.zeros(shape.tolist(), dtype=x.dtype, device=x.device)


def constant_of_shape(shape: Tensor, *, value: TensorProto | None = None) -> Tensor:
    fill = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return fill.to(shape.device).expand(shape.tolist())


def constant(**attributes: Any) -> Tensor:
    (value,) = attributes.values()
    if isinstance(value, TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return torch.tensor(value)


def gelu(x: Tensor, *, approximate: bytes = b"none") -> Tensor:
    return functional.gelu(x, approximate=approximate.decode())


OPERATORS: dict[str, Callable[..., Tensor | Sequence[Tensor]]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "Div": divide,
    "Dropout": lambda x, *unused, **attributes: x,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True),
    "Greater": torch.gt,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Less": torch.lt,
    "MatMul": torch.matmul,
    "Max": lambda *parts: reduce(torch.maximum, parts),
    "MaxPool": max_pool,
    "Min": lambda *parts: reduce(torch.minimum, parts),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Pad": pad,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "ReduceMax": partial(reduced, torch.amax),
    "ReduceMean": partial(reduced, torch.mean),
    "ReduceMin": partial(reduced, torch.amin),
    "ReduceSum": partial(reduced, torch.sum),
    "Relu": torch.relu,
    "Reshape": reshape,
    "Shape": shape_of,
    "Sigmoid": torch.sigmoid,
    "Slice": slice_,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Split": split,
    "Sqrt": torch.sqrt,
    "Squeeze": squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": torch.where,
}
"""As of opset 18; those of a normalization or a pool with one output."""
