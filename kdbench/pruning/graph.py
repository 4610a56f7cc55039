"""Which channels hang together, by torch-pruning's dependency graph (DepGraph, Fang et al., 2301.12900), and a proof.

The graph follows a network by its gradients, and takes what it does not know for an elementwise operation. So each
group of channels is proven: without them the network has to compute what it computes at full width with the weights at
0 that read them.
"""

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, first_line, nearest
from kdbench.pruning.channels import MISSING, READS, Cuts, light_copy, options, parts, redo, silence, size
from kdbench.pruning.names import within
from kdbench.pruning.shortcuts import put

CLOSE = 1e-6
"""Largest difference that rounding makes in double precision, as a share of the largest output."""
CLOSE_SINGLE = 1e-3
"""The same for networks that compute in single precision alone."""


@dataclass(frozen=True)
class Member:
    """A part of a layer that belongs to a group."""

    layer: str
    part: str
    """One of `channels.parts()`."""
    places: tuple[int, ...]
    """The layer's channels in the group."""
    roots: tuple[int, ...]
    """For each of them, the channel of the group that it goes with."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be taken out together, throughout the network."""

    name: str
    """Of the layer by which it was found."""
    members: tuple[Member, ...]
    units: tuple[tuple[int, ...], ...]
    """The least that can be taken out: one channel, one of each group of a grouped convolution, or a whole head."""
    attention: str = ""
    """The attention module whose heads the units are."""

    def step(self, round_to: int) -> int:
        """Units by which it can be narrowed, so that channels come in multiples of `round_to`."""
        return round_to // gcd(round_to, len(self.units[0]))

    def cuts(self, units: Iterable[int]) -> Cuts:
        """What is taken out of which layer with these units."""
        removed = {root for unit in units for root in self.units[unit]}
        return {
            (member.layer, member.part): frozenset(
                place for place, root in zip(member.places, member.roots, strict=True) if root in removed
            )
            for member in self.members
        }


@dataclass(frozen=True)
class Graph:
    """The groups of a network that can be narrowed, and why others can't, by layer."""

    groups: tuple[Group, ...]
    left: dict[str, str]


def follow(model: nn.Module, x: Tensor, ignore: Sequence[str] = ()) -> Graph:
    """The groups of a network, each proven on the samples `x` [N, …]; those of submodules named in `ignore` are left.

    What makes the network's outputs is no group. Raises UserError for names in `ignore` that it doesn't have.
    """
    names = [name for name, _ in model.named_modules() if name]
    for name in ignore:
        if name not in names:
            raise UserError(f"prune.ignore: no submodule '{name}': {nearest(name, names)}")
    left: dict[str, str] = {}
    groups = []
    for found in _groups(model, x):
        if isinstance(found, Group):
            made = [member.layer for member in found.members if member.part not in READS]
            if any(within(layer, name) for layer in made for name in ignore):
                left[found.name] = "it is to be left as it is"
            elif len(found.units) > 1:
                groups.append(found)
        else:
            left |= dict([found])
    halves = {group.name: _half(group) for group in groups}
    whole = proof(model, x)
    if differs(whole, groups, halves) is not None:  # which of them?
        for group in list(groups):
            why = differs(whole, [group], halves)
            if why is not None:
                groups.remove(group)
                left[group.name] = why
    return Graph(tuple(groups), left)


def heads_left(groups: Iterable[Group], removed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Of attention modules, with as many units of each group removed."""
    return {
        group.attention: len(group.units) - len(removed[group.name])
        for group in groups
        if group.attention and removed[group.name]
    }


def all_cuts(groups: Iterable[Group], removed: Mapping[str, Sequence[int]]) -> Cuts:
    """What is taken out of which layer; a layer may read the channels of several groups."""
    found: Cuts = {}
    for group in groups:
        for key, places in group.cuts(removed[group.name]).items():
            found[key] = found.get(key, frozenset()) | places
    return found


@dataclass(frozen=True)
class Proof:
    """A network that others are compared with, in double precision where it can compute in it."""

    model: nn.Module
    x: Tensor
    outputs: Tensor
    close: float


def proof(model: nn.Module, x: Tensor) -> Proof:
    """Of a network, on samples `x` [N, …]."""
    with torch.no_grad():
        try:
            exact, samples = deepcopy(model).eval().double(), x.double() if x.is_floating_point() else x
            return Proof(exact, samples, exact(samples), CLOSE)
        except RuntimeError:  # something in it is of single precision whatever its weights are
            exact = deepcopy(model).eval()
            return Proof(exact, x, exact(x), CLOSE_SINGLE)


def differs(whole: Proof, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> str | None:
    """Why a network without these units of its groups is not what it should be; None where it is."""
    cuts = all_cuts(groups, removed)
    silent, narrow = light_copy(whole.model), light_copy(whole.model)
    with torch.no_grad():
        try:
            silence(silent, cuts)
            expected = silent(whole.x)
            redo(narrow, whole.x, options(cuts, heads_left(groups, removed)))
            given = narrow(whole.x)
        except Exception as error:  # whatever is raised where channels are not there, or shapes don't fit any more
            return f"without some of its channels the network fails: {first_line(error, 100)}"
    if given.shape != whole.outputs.shape:
        return "its channels are the network's outputs"
    if not bool((given - expected).abs().max() <= whole.close * expected.abs().max().clamp(min=1.0)):
        return "its channels depend on each other, or are mixed in a way that the dependency graph can't follow"
    return None


class Reordered(nn.Module):
    """Stands, while a network is followed, for a module that puts channels into another order."""

    def __init__(self, order: Callable[[int], list[int]]) -> None:
        super().__init__()
        self.order = order
        self.places: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.places = self.order(x.shape[1])
        return x.index_select(1, torch.tensor(self.places))


def _passing(torch_pruning: Any) -> Any:
    """For torch-pruning a layer that has nothing to lose and passes on what goes."""

    class Passing(torch_pruning.BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Reordered, idxs: Sequence[int]) -> Reordered:
            return layer

        def get_out_channels(self, layer: Reordered) -> int:
            return len(layer.places)

        prune_in_channels = prune_out_channels
        get_in_channels = get_out_channels

    return Passing()


def _map_orders(graph: Any) -> None:
    """Tells the dependency graph which channel comes out where."""

    def mapping(places: Sequence[int]) -> Callable[[Any], Any]:
        return lambda found: [place._replace(idx=places[place.idx]) for place in found]

    for node in graph.module2node.values():
        if isinstance(node.module, Reordered):
            there = {came: place for place, came in enumerate(node.module.places)}
            for before in node.inputs:
                for edge in before.dependencies:
                    if edge.target is node:
                        edge.index_mapping[1] = mapping([there[place] for place in sorted(there)])
                for edge in node.dependencies:
                    if edge.target is before:
                        edge.index_mapping[0] = mapping(node.module.places)


def _half(group: Group) -> list[int]:
    """Half of its units, drawn."""
    drawn = random.Random(len(group.units)).sample(range(len(group.units)), len(group.units) // 2)  # noqa: S311
    return sorted(drawn)


def _groups(model: nn.Module, x: Tensor) -> list[Group | tuple[str, str]]:
    """The groups of the dependency graph; for one with a layer that can't be narrowed, its name and the reason."""
    try:
        import torch_pruning
        from torch_pruning import ops
    except ImportError:
        raise UserError(MISSING) from None
    traced = deepcopy(model).requires_grad_(True).eval()
    for name, module in list(traced.named_modules()):
        if callable(getattr(module, "channel_order", None)):
            put(traced, name, Reordered(module.channel_order))
    names = {module: name for name, module in traced.named_modules()}
    tensors = {parameter: name for name, parameter in traced.named_parameters()}
    known = {function: part for part, function in parts().items()}
    users = Counter(parameter for module in names for parameter in module.parameters(recurse=False))
    found: list[Group | tuple[str, str]] = []
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                traced,
                x,
                forward_fn=lambda module, samples: module(samples),
                customized_pruners={Reordered: _passing(torch_pruning)},
                verbose=False,
            )
            _map_orders(graph)
            items = list(graph.get_all_groups(root_module_types=(ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_EMBED)))
        except Exception as error:  # it takes much for granted
            unknown = [
                f"'{name}', a {type(module).__name__}"
                for module, name in names.items()
                if ops.module2type(module) == ops.OPTYPE.ELEMENTWISE
                and next(module.parameters(recurse=False), None) is not None
            ]
            where = f" with {unknown[0]}" if unknown else ""
            raise UserError(
                f"prune: the dependency graph can't follow this network{where}: {first_line(error)}"
            ) from None
    output = next(iter(graph.module2node))
    for item in items:
        ends = any(entry.dep.target.module is output and known.get(entry.dep.handler) not in READS for entry in item)
        if not ends:
            found.append(_group(names[item[0].dep.target.module], item, names, tensors, known, users))
    return found


def _group(
    root: str,
    item: Any,
    names: Mapping[Any, str],
    tensors: Mapping[Any, str],
    known: Mapping[Any, str],
    users: Mapping[nn.Parameter, int],
) -> Group | tuple[str, str]:
    members, modules = [], {name: module for module, name in names.items()}
    for entry in item:
        module, part = entry.dep.target.module, known.get(entry.dep.handler)
        if isinstance(module, nn.Parameter):
            return root, f"it hangs together with the parameter '{tensors.get(module, '?')}'"
        if module not in names or isinstance(module, Reordered):
            continue  # an operation without weights
        if part == "prelu" and module.num_parameters == 1:
            continue  # one slope for all
        if any(users[parameter] > 1 for parameter in module.parameters(recurse=False)):
            return root, f"it hangs together with '{names[module]}', which shares its weights with another layer"
        if part is None or getattr(module, "transposed", False):
            kind = type(module).__name__
            return root, f"it hangs together with '{names[module]}', a {kind}, whose channels can't be taken out"
        if None in entry.root_idxs:
            return root, f"what becomes of its channels in '{names[module]}' is not known"
        members.append(Member(names[module], part, tuple(entry.idxs), tuple(entry.root_idxs)))
    channels = len(item[0].idxs)
    attention = _attention(members, modules)
    if attention:
        each = channels // int(modules[attention].heads)
        units = [tuple(range(start, start + each)) for start in range(0, channels, each)]
        return Group(root, tuple(members), tuple(units), attention)
    units = _alike_in_all_groups(members, modules, channels)
    if len(set(map(len, units))) > 1 or sum(map(len, units)) != channels:
        return root, "its channels are read in groups, of which not all can lose the same"
    return Group(root, tuple(members), tuple(units))


def _alike_in_all_groups(
    members: Sequence[Member], modules: Mapping[str, nn.Module], channels: int
) -> list[tuple[int, ...]]:
    """The smallest sets of channels of which each group of each grouped convolution has those at the same places."""
    grouped = []
    for member in members:
        layer: Any = modules[member.layer]
        if member.part.startswith("conv.") and layer.groups != 1:
            pairs = list(zip(member.roots, member.places, strict=True))
            grouped.append(
                (dict(pairs), [(place, root) for root, place in pairs], size(layer, member.part) // layer.groups)
            )
    units, seen = [], set[int]()
    for channel in range(channels):
        if channel in seen:
            continue
        unit, new = {channel}, {channel}
        while new:
            found = set[int]()
            for place_of, roots, each in grouped:
                within = {place_of[root] % each for root in new if root in place_of}
                found |= {root for place, root in roots if place % each in within}
            new = found - unit
            unit |= new
        seen |= unit
        units.append(tuple(sorted(unit)))
    return units


def _attention(members: Sequence[Member], modules: Mapping[str, nn.Module]) -> str:
    """The module with an attribute `heads` of which at least two layers make the channels, as query and key do."""
    makers = [member.layer.rpartition(".")[0] for member in members if member.part == "linear.out"]
    for name in makers:
        heads = getattr(modules.get(name), "heads", None)
        if isinstance(heads, int) and makers.count(name) > 1:
            return name
    return ""
