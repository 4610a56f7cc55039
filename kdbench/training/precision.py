"""float32, or bf16 autocast with images channels-last; which of them is faster here is measured."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter as now
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]

WORTHWHILE = 1.15
"""How many times faster bf16 must be to be chosen."""
ROUNDS = 5
"""Steps of each that are timed, in turns, after one of each that is not."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """For forward passes; in fp32 nothing is cast, whatever is around it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def arranged(x: Tensor, precision: Precision) -> Tensor:
    """Samples as they are fed: images [N, C, H, W] channels-last in bf16."""
    return x.contiguous(memory_format=torch.channels_last) if precision == "bf16" and x.ndim == 4 else x


def arrange(model: nn.Module, precision: Precision) -> None:
    """Lays out the model's weights as `arranged` does samples; their values stay."""
    model.to(memory_format=torch.channels_last if precision == "bf16" else torch.contiguous_format)  # type: ignore[call-overload]


def choose(step: Callable[[Precision], Callable[[], object]]) -> tuple[Precision, float]:
    """The faster precision, and how many times faster bf16 is than fp32: the median of ROUNDS ratios.

    `step(precision)` prepares a training step on copies, so that nothing is changed by it.
    """
    steps = [step("fp32"), step("bf16")]
    for run in steps:
        run()
    ratios = []
    for _ in range(ROUNDS):
        times = []
        for run in steps:
            start = now()
            run()
            times.append(now() - start)
        ratios.append(times[0] / times[1])
    speedup = statistics.median(ratios)
    return ("bf16" if speedup >= WORTHWHILE else "fp32"), speedup
