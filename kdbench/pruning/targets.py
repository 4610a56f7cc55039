"""What a network costs, and the least pruning that brings it down to a share of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from kdbench.pruning.graph import Group

MEASUREMENTS = 8
"""Of a latency, at most, in one search."""
NEAR = 0.02
"""A measured share that is below the target by no more than this is not searched any closer."""


@dataclass(frozen=True)
class Cost:
    """Of a network, for one sample."""

    parameters: int
    macs: int
    """Multiply-accumulates in convolutions, matrix products and attention."""
    layers: Mapping[str, tuple[int, int]]
    """Parameters and MACs of each submodule that has weights of its own, by name."""


def cost(model: nn.Module, x: Tensor) -> Cost:
    """Counted on the first of the samples `x`."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attended(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
        return sdpa_flop_count(query, key, value)

    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={attention: attended}) as counter:
        model.eval()(x[:1])
    flops = {name.partition(".")[2]: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    layers = {}
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own:
            layers[name] = (own, flops.get(name, 0) // 2)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, layers)


Removal = dict[str, list[int]]
"""By name of a group: the units that go."""


class Ranking:
    """All units of all groups, the least important first: in one row for all layers, or a row for each."""

    def __init__(self, groups: Sequence[Group], scores: Mapping[str, Tensor], scope: str, round_to: int) -> None:
        self.groups = groups
        self.orders = {group.name: torch.argsort(scores[group.name], stable=True).tolist() for group in groups}
        self.scope = scope
        self.steps = {group.name: group.step(round_to) for group in groups}
        everything = sorted(
            (float(score), group.name, unit)
            for group in groups
            for unit, score in enumerate(scores[group.name])
            for _ in group.units[unit]
        )
        self.row = [name for _, name, _ in everything]
        """The group of each channel, from the least important one."""

    @property
    def length(self) -> int:
        """The largest argument of `removal`."""
        return len(self.row)

    def removal(self, number: int) -> Removal:
        """About `number` channels go, the least important ones, but of each layer so many that what is left comes in
        multiples of what they are rounded to, and at least one of these."""
        found = {}
        for group in self.groups:
            units, each = len(group.units), len(group.units[0])
            gone = (
                self.row[:number].count(group.name) / each if self.scope == "global" else units * number / self.length
            )
            step = self.steps[group.name]
            left = max(step, step * round((units - gone) / step)) if gone else units
            found[group.name] = sorted(self.orders[group.name][: max(0, units - left)])
        return found


def least(high: int, share: Callable[[int], float], target: float, tries: int | None = None) -> int | None:
    """The smallest number up to `high` whose share is not above the target, where shares fall as numbers rise; None
    where that of `high` is above it.

    With a number of `tries` the share is a measurement: the search ends with them, or within NEAR.
    """
    low, asked = 0, 1  # the share of 0 is 1
    if share(high) > target:
        return None
    while high - low > 1 and (tries is None or asked < tries):
        middle = (low + high) // 2
        found = share(middle)
        asked += 1
        low, high = (low, middle) if found <= target else (middle, high)
        if tries is not None and target - NEAR <= found <= target:
            break
    return high
