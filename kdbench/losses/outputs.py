"""What a loss sees of a model."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """Logits [N, C] and features by submodule name."""

    logits: Tensor
    features: Mapping[str, Tensor] = {}


def full_precision(values: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are: losses are never computed in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
