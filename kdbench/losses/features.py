"""What the losses on features share: pairs of them, their sizes, and regressors between their channels."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs, full_precision

Pairs = Annotated[list[tuple[str, str]], Field(min_length=1)]
"""Submodules of the student and of the teacher, two by two."""


def paired(student: Outputs, teacher: Outputs, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """Features of each pair, channels first ([N, C] or [N, C, …]), in full precision, the teacher's detached."""
    return [
        (_channels_first(student.features[ours]), _channels_first(teacher.features[theirs].detach()))
        for ours, theirs in pairs
    ]


def same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both average-pooled to the smaller of their sizes, channels apart; to [N, C] where only one has a size."""
    if ours.ndim != theirs.ndim:
        return pooled(ours), pooled(theirs)
    size = [min(pair) for pair in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
    return _resized(ours, size), _resized(theirs, size)


def pooled(features: Tensor) -> Tensor:
    """[N, C]: the mean over everything but samples and channels."""
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


def regressor(source: Tensor, target: Tensor) -> nn.Linear:
    """From the channels of `source` to those of `target`: a 1×1 convolution, written so that it takes any size."""
    return nn.Linear(source.shape[1], target.shape[1], device=source.device, dtype=source.dtype)


def regress(layer: nn.Module, features: Tensor) -> Tensor:
    """Features [N, C, …] with a linear layer applied to their channels."""
    regressed: Tensor = layer(features.movedim(1, -1))
    return regressed.movedim(-1, 1)


def _channels_first(features: Tensor) -> Tensor:
    """[N, tokens, C], as transformers give them, as [N, C, tokens]; others as they are."""
    if features.ndim < 2:
        raise UserError(f"features of shape {tuple(features.shape)} have no channels: name another submodule")
    return full_precision(features.transpose(1, 2) if features.ndim == 3 else features)


def _resized(features: Tensor, size: list[int]) -> Tensor:
    """Features [N, C, …] average-pooled to `size`, each axis by a product: torch's own pooling has no gradient on GPUs
    that repeats bit by bit."""
    for axis, places in enumerate(size, start=2):
        if features.shape[axis] != places:
            means = _means(features.shape[axis], places).to(features)
            features = (features.movedim(axis, -1) @ means).movedim(-1, axis)
    return features


def _means(source: int, target: int) -> Tensor:
    """[source, target]: from an axis to the means of its windows, where adaptive average pooling has them: from
    ⌊i·source/target⌋ to before ⌈(i + 1)·source/target⌉."""
    place, window = torch.arange(source)[:, None], torch.arange(target)
    inside = (place >= window * source // target) & (place < -(-(window + 1) * source // target))
    return inside.double() / inside.sum(dim=0)
