"""What a loss sees of a model."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """What a model gave for a batch of N samples, and what is known of the samples."""

    logits: Tensor
    """[N, C]."""
    features: Mapping[str, Tensor] = {}
    """By submodule name: [N, C], [N, C, H, W], or [N, tokens, C]."""
    parameters: Mapping[str, Tensor] = {}
    """By name, the live ones: a loss on them has gradients."""
    places: Tensor | None = None
    """[N]: the place of each sample in the training set."""
    labels: Tensor | None = None
    """Of the whole training set; only where losses are built."""


def full_precision(values: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are: losses are never computed in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def below(tensors: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The tensors of submodule `layer`, by their names within it; a tensor's own name gives it as ''."""
    return {
        name.removeprefix(layer).removeprefix("."): tensor
        for name, tensor in tensors.items()
        if name == layer or name.startswith(f"{layer}.")
    }
