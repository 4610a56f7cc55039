"""What the losses on features share: pairs of them, their sizes, and regressors between their channels."""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs, full_precision

Pairs = Annotated[list[tuple[str, str]], Field(min_length=1)]
"""Submodules of the student and of the teacher, two by two."""

_POOL: tuple[Callable[..., Tensor], ...] = (
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_avg_pool3d,
)


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
    return features if list(features.shape[2:]) == size else _POOL[len(size) - 1](features, size)
