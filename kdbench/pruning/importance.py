"""How important the channels of a group are. To add a kind: a function, its line in IMPORTANCE.

A function is given the network, its groups and the gradients of batches, and gives for each group one number a channel.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, pick
from kdbench.pruning.channels import READS, rows
from kdbench.pruning.graph import Group, Member

Gradients = Callable[[nn.Module], Iterable[object]]
"""Runs a batch at a time through a network: whenever it yields, the weights' gradients are those of one batch alone."""

Scores = dict[str, Tensor]
"""By name of a group: [channels], or [units]."""

MAKES = ("conv.out", "linear.out", "embedding")


def unit_scores(
    kind: str, model: nn.Module, groups: Sequence[Group], gradients: Gradients | None = None, seed: int = 0
) -> Scores:
    """The importance of each unit of each group: the mean of its channels'; NaN where it can't be told.

    Raises UserError for an unknown kind, and where `taylor` has no gradients.
    """
    scores = pick(IMPORTANCE, kind, "importance")(model, groups, gradients, seed)
    return {
        group.name: torch.stack([scores[group.name][list(unit)].mean() for unit in group.units]) for group in groups
    }


def magnitude(
    model: nn.Module,
    groups: Sequence[Group],
    gradients: Gradients | None,
    seed: int,
    *,
    power: int,
    of: tuple[str, ...],
    relative: bool,
) -> Scores:
    """Mean over a group's layers of Σ|w|^power of each channel; `relative` to the mean over the group's channels."""
    modules = dict(model.named_modules())
    found = {}
    for group in groups:
        parts = [
            _summed(group, member, rows(modules[member.layer], member.part, weight.detach()).abs().pow(power).sum(1))
            for member in group.members
            if member.part in of and (weight := trained(modules[member.layer])) is not None
        ]
        score = torch.stack(parts).mean(0) if parts else torch.full((_channels(group),), torch.nan)
        score = score.sqrt() if power == 2 and of == MAKES else score
        found[group.name] = score / score.mean().clamp(min=torch.finfo(score.dtype).tiny) if relative else score
    return found


def taylor(model: nn.Module, groups: Sequence[Group], gradients: Gradients | None, seed: int) -> Scores:
    """Mean over batches of (Σ w · ∂L/∂w)² over all weights that read a channel (Molchanov et al., 1906.10771).

    This sum is the loss's derivative by a gate on the channel: the paper's own, which puts gates behind batch norms.
    Of the weights that make the channel it would be 0 where a batch norm follows.
    """
    if gradients is None:
        raise UserError("importance 'taylor' needs data to take gradients on: give --pack, or take l2")
    gated = deepcopy(model).requires_grad_(True)
    modules = dict(gated.named_modules())
    totals, batches = {group.name: torch.zeros(_channels(group)) for group in groups}, 0
    for _ in gradients(gated):
        batches += 1
        for group in groups:
            gate = torch.zeros(_channels(group))
            for member in group.members:
                weight = getattr(modules[member.layer], "weight", None)
                if member.part in READS and isinstance(weight, Tensor) and weight.grad is not None:
                    product = (weight * weight.grad).detach().cpu()
                    gate += _summed(group, member, rows(modules[member.layer], member.part, product).sum(1))
            totals[group.name] += gate.square()
    return {name: total / max(batches, 1) for name, total in totals.items()}


def drawn(model: nn.Module, groups: Sequence[Group], gradients: Gradients | None, seed: int) -> Scores:
    """Random numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(_channels(group), generator=generator) for group in groups}


IMPORTANCE: dict[str, Callable[[nn.Module, Sequence[Group], Gradients | None, int], Scores]] = {
    # Li et al., 1608.08710: the filters that make a channel
    "l1": partial(magnitude, power=1, of=MAKES, relative=True),
    "l2": partial(magnitude, power=2, of=MAKES, relative=True),
    # Fang et al., 2301.12900: all that goes with a channel
    "group": partial(
        magnitude, power=2, of=("conv.out", "conv.in", "linear.out", "linear.in", "batch_norm"), relative=True
    ),
    # Liu et al., 1708.06519: one threshold for the scales of all layers
    "batch_norm": partial(magnitude, power=1, of=("batch_norm",), relative=False),
    "taylor": taylor,
    "random": drawn,
}


def trained(module: nn.Module) -> nn.Parameter | None:
    """Its weight, where it has one that is trained."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.requires_grad else None


def _channels(group: Group) -> int:
    return sum(map(len, group.units))


def _summed(group: Group, member: Member, values: Tensor) -> Tensor:
    """Values of a layer's channels [channels of the layer], added up for each channel of the group."""
    total = torch.zeros(_channels(group), dtype=values.dtype)
    return total.index_add(0, torch.tensor(member.roots), values[list(member.places)].cpu())
