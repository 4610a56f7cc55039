"""Optimizers, and the schedules of their learning rate and momentum."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.records import Training

START_SHARE = 1 / 25
END_SHARE = START_SHARE / 1e4
MOMENTUM_DIP = 0.1
"""Of one-cycle (Smith and Topin 2019, 1708.07120), as in torch's `OneCycleLR`: where the learning rate starts and
ends, as shares of its highest, and by how much the momentum is lower where the rate is highest (0.95, 0.85)."""


def make(training: Training, *modules: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a recipe for all parameters of `modules`."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not training.decay_norms:  # norms and biases are what has fewer than two axes
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=training.learning_rate,
                momentum=training.momentum,
                nesterov=training.momentum > 0,
                weight_decay=training.weight_decay,
            )
        case name:
            kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
            betas = (training.momentum, 0.999)
            return kind(groups, lr=training.learning_rate, betas=betas, weight_decay=training.weight_decay)


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, such as `0.momentum_buffer`, by parameter number and name."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes up a state of `tensors_of`, each tensor in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = optimizer.state_dict()
    found["state"] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        like = parameters[int(index)]
        shaped = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        found["state"].setdefault(int(index), {})[name] = shaped
    optimizer.load_state_dict(found)


def set_step(optimizer: torch.optim.Optimizer, step: int, steps: int, training: Training) -> None:
    """Sets what the schedule says of step `step` (from 0) of `steps`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, training)
        if training.schedule == "one_cycle":
            beta = momentum(step, steps, training)
            group.update({"betas": (beta, group["betas"][1])} if "betas" in group else {"momentum": beta})


def learning_rate(step: int, steps: int, training: Training) -> float:
    """That of step `step` (from 0) of `steps`."""
    return SCHEDULES[training.schedule](step, steps, training)


def momentum(step: int, steps: int, training: Training) -> float:
    """Of `one_cycle`: falls by MOMENTUM_DIP, at most to 0, while the learning rate rises, and rises while it falls."""
    lowest = max(training.momentum - MOMENTUM_DIP, 0.0)
    return _there_and_back(step, steps, training, training.momentum, lowest, training.momentum)


def cosine(step: int, steps: int, training: Training) -> float:
    """Warm-up, then half a cosine towards zero."""
    warmup = _warmup_steps(steps, training)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def constant(step: int, steps: int, training: Training) -> float:
    """Warm-up, and nothing else."""
    warmup = _warmup_steps(steps, training)
    return training.learning_rate * (step + 1) / warmup if step < warmup else training.learning_rate


def stepped(step: int, steps: int, training: Training) -> float:
    """Warm-up, and a fall by `step_factor` after each of `step_epochs`."""
    epoch = step * training.epochs // steps
    falls = sum(epoch >= end for end in training.step_epochs)
    return constant(step, steps, training) * float(training.step_factor**falls)


def one_cycle(step: int, steps: int, training: Training) -> float:
    """Up from START_SHARE of the highest in `warmup_share` of the steps, and down to END_SHARE, along cosines."""
    highest = training.learning_rate
    return _there_and_back(step, steps, training, START_SHARE * highest, highest, END_SHARE * highest)


def _warmup_steps(steps: int, training: Training) -> float:
    return max(1.0, training.warmup_share * steps) if training.warmup_share else 0.0


def _there_and_back(step: int, steps: int, training: Training, first: float, turn: float, last: float) -> float:
    """Along half cosines from `first` to `turn` at the end of the warm-up, and from there to `last`."""
    top = training.warmup_share * steps - 1
    if step <= top:
        start, end, share = first, turn, step / top if top else 1.0
    else:
        start, end, share = turn, last, (step - top) / (steps - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


SCHEDULES: dict[str, Callable[[int, int, Training], float]] = {
    "cosine": cosine,
    "step": stepped,
    "one_cycle": one_cycle,
    "constant": constant,
}
"""Learning rates by step, number of steps and options."""
