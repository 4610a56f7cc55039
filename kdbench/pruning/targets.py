"""What a network costs, and the least pruning that brings it down to a share of that."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kdbench.pruning.channels import READS, Cuts, size
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
    """Multiply-accumulates in convolutions, matrix products, attention and recurrent layers."""
    layers: Mapping[str, tuple[int, int]]
    """Parameters and MACs of each submodule that has any of its own, by name; shared ones are the first one's."""


def cost(model: nn.Module, x: Tensor) -> Cost:
    """Counted on the first of the samples `x`."""
    names = {module: name for name, module in model.named_modules()}
    counter = _Counter()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: counter.within.append(names[module])) for module in names
    ]
    hooks += [module.register_forward_hook(lambda *_: counter.within.pop() and None) for module in names]
    try:
        with torch.no_grad(), counter:
            model.eval()(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    layers, owners = {}, dict[nn.Parameter, str]()
    for module, name in names.items():
        own = sum(
            parameter.numel()
            for parameter in module.parameters(recurse=False)
            if owners.setdefault(parameter, name) == name
        )
        if own or counter.macs[name]:
            layers[name] = (own, counter.macs[name])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, sum(counter.macs.values()), layers)


class _Counter(TorchFunctionMode):
    """Counts the multiply-accumulates of what a network calls, by the submodule that it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.within = [""]
        self.macs = Counter[str]()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        made = function(*args, **named)
        if function in MACS:
            self.macs[self.within[-1]] += MACS[function](made, *args, **named)
        return made


# Their arguments have torch's names, by which they may be given.


def _product(made: Tensor, input: Tensor, *_: Any, **__: Any) -> int:
    return made.numel() * input.shape[-1]


def _added(made: Tensor, input: Tensor, mat1: Tensor, *_: Any, **__: Any) -> int:
    return _product(made, mat1)


def _added_batch(made: Tensor, input: Tensor, batch1: Tensor, *_: Any, **__: Any) -> int:
    return _product(made, batch1)


def _convolution(made: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return made.numel() * weight[0].numel()


def _transposed(made: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return input.numel() * weight[0].numel()


def _attention(made: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _multi_head(made: tuple[Tensor, Any], query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """With its four products by weights; the inputs are [length, N, …], one sample's [length, …]."""
    width = made[0].shape[-1]
    by_weights = (query.numel() + key.numel() + value.numel() + made[0].numel()) * width
    return by_weights + 2 * query[..., 0].numel() * key.shape[0] * width


def _recurrent(made: Any, input: Tensor, hx: Any, params: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return input[..., 0].numel() * sum(weight.numel() for weight in params if weight.ndim > 1)


def _cell(made: Any, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return input[..., 0].numel() * (w_ih.numel() + w_hh.numel())


MACS: dict[Any, Callable[..., int]] = {
    functional.linear: _product,
    torch.matmul: _product,
    torch.bmm: _product,
    torch.mm: _product,
    torch.addmm: _added,
    torch.baddbmm: _added_batch,
    Tensor.matmul: _product,
    Tensor.__matmul__: _product,
    Tensor.bmm: _product,
    Tensor.mm: _product,
    Tensor.addmm: _added,
    Tensor.baddbmm: _added_batch,
    functional.conv1d: _convolution,
    functional.conv2d: _convolution,
    functional.conv3d: _convolution,
    functional.conv_transpose1d: _transposed,
    functional.conv_transpose2d: _transposed,
    functional.conv_transpose3d: _transposed,
    functional.scaled_dot_product_attention: _attention,
    functional.multi_head_attention_forward: _multi_head,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
    torch.lstm_cell: _cell,
    torch.gru_cell: _cell,
    torch.rnn_tanh_cell: _cell,
    torch.rnn_relu_cell: _cell,
}


def cost_without(model: nn.Module, whole: Cost, cuts: Cuts, heads: Mapping[str, int]) -> tuple[int, int]:
    """Parameters and MACs of a network whose cost is `whole`, without what is cut, told without doing it."""
    modules = dict(model.named_modules())
    made: dict[str, float] = defaultdict(lambda: 1.0)  # norms without weights are cut too, and cost nothing
    read = made.copy()
    for (layer, part), removed in cuts.items():
        side = read if part in READS else made
        side[layer] *= 1 - len(removed) / size(modules[layer], part)
    parameters = macs = 0.0
    for name, (own, own_macs) in whole.layers.items():
        module = modules[name]
        weight = getattr(module, "weight", None)
        read_by = weight.numel() if isinstance(weight, Tensor) else 0
        parameters += made[name] * (read[name] * read_by + own - read_by)
        of_heads = heads[name] / int(module.heads) if name in heads else 1.0
        macs += made[name] * read[name] * of_heads * own_macs
    return round(parameters), round(macs)


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
        """About `number` channels go, the least important ones; see `without`."""
        if self.scope == "global":
            row = self.row[:number]
            return self.without({group.name: row.count(group.name) / len(group.units[0]) for group in self.groups})
        return self.without({group.name: len(group.units) * number / self.length for group in self.groups})

    def without(self, gone: Mapping[str, float]) -> Removal:
        """About as many units of each group go, by its name, but so many that what is left of its channels comes in
        multiples of what they are rounded to, and at least one of these."""
        found = {}
        for group in self.groups:
            units, step = len(group.units), self.steps[group.name]
            goes = gone.get(group.name, 0)
            left = max(step, step * round((units - goes) / step)) if goes else units
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
