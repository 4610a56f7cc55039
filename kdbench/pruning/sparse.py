"""Losses on a network's own weights that draw to zero what will be pruned. To add one: a function, its line in SPARSE.

As gradients those on groups are torch-pruning's GroupNormPruner and GrowingRegPruner: γ · w, γ by today's importance.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, pick
from kdbench.pruning import shortcuts
from kdbench.pruning.channels import rows
from kdbench.pruning.graph import Group, follow
from kdbench.pruning.importance import IMPORTANCE, trained
from kdbench.records import Sparse

SPREAD = 16.0
"""How many times stronger the least important channel of a group is drawn than the most important one: 2^4, as in
DepGraph (2301.12900)."""


def penalty(model: nn.Module, options: Sparse, x: Tensor) -> Callable[[nn.Module, int], Tensor]:
    """The loss on the weights of networks like `model`, by epoch from 0; `x` are samples [N, …] that it can take."""
    groups: Sequence[Group] = ()
    if options.kind in ("group", "growing"):
        followed = deepcopy(model)
        shortcuts.redo(followed, x, {"layers": shortcuts.rewritable(followed)})
        groups = follow(followed, x).groups
    return partial(_strong, pick(SPARSE, options.kind, "kind of sparse learning"), groups, options.strength)


def check_drawn(model: nn.Module, options: Sparse, x: Tensor, field: str) -> None:
    """Raises UserError, which names `field`, where the loss draws nothing in networks like `model`."""
    trained = deepcopy(model).requires_grad_(True)
    if not penalty(trained, options, x)(trained, 0).requires_grad:
        missing, other = ABSENT[options.kind]
        raise UserError(f"{field}.kind: this network has {missing}: take {other}")


def _strong(
    loss: Callable[[nn.Module, Sequence[Group], int], Tensor],
    groups: Sequence[Group],
    strength: float,
    model: nn.Module,
    epoch: int,
) -> Tensor:
    return strength * loss(model, groups, epoch)


def all_weights(model: nn.Module, groups: Sequence[Group], epoch: int) -> Tensor:
    """Σ|w| over all weights, norms and biases apart."""
    found = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter.requires_grad]
    return torch.stack([weight.abs().sum() for weight in found]).sum()


def scales(model: nn.Module, groups: Sequence[Group], epoch: int) -> Tensor:
    """Σ|γ| over the scales of batch norms (network slimming, Liu et al., 1708.06519)."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    found = [weight.abs().sum() for norm in norms if (weight := trained(norm)) is not None]
    return torch.stack(found).sum() if found else torch.zeros(())


def grouped(model: nn.Module, groups: Sequence[Group], epoch: int, *, growing: bool) -> Tensor:
    """½ Σ γ_k ‖w_k‖² over the channels k of all groups, w_k all weights that go with a channel.

    With i_k its importance by `group`, √ of that for DepGraph, scaled to 0 … 1 within the group: γ_k = 16^(1 − i_k), or
    `growing`, after 2012.09243, 1 + epoch · (1 − i_k).
    """
    modules = {name: module for name, module in model.named_modules() if trained(module) is not None}
    losses = [torch.zeros(())]
    for group in groups:
        members = [member for member in group.members if member.layer in modules and member.part in PARTS]
        there = Group(group.name, tuple(members), group.units)
        if not members:
            continue
        score = IMPORTANCE["group"](model, [there], None, 0)[group.name].detach()
        score = score if growing else score.sqrt()
        low = (score.max() - score) / (score.max() - score.min()).clamp(min=1e-8)
        gamma = 1 + epoch * low if growing else SPREAD**low
        for member in members:
            module = modules[member.layer]
            weight = trained(module)
            assert weight is not None
            by_channel = rows(module, member.part, weight)[list(member.places)].square().sum(1)
            losses.append(0.5 * (gamma[list(member.roots)].to(by_channel.device) * by_channel).sum())
    return torch.stack([loss.to(losses[-1].device) for loss in losses]).sum()


PARTS = ("conv.out", "conv.in", "linear.out", "linear.in", "batch_norm")

SPARSE: dict[str, Callable[[nn.Module, Sequence[Group], int], Tensor]] = {
    "l1": all_weights,
    "batch_norm": scales,
    "group": partial(grouped, growing=False),
    "growing": partial(grouped, growing=True),
}

ABSENT = {
    "batch_norm": ("no batch norms", "group"),
    "group": ("no channels that can be taken out", "l1"),
    "growing": ("no channels that can be taken out", "l1"),
}
"""What a network lacks in which a loss finds nothing, and another that finds something: l1 always does."""
