"""Structured pruning: the least important channels and blocks go, until a share of the cost is left, or by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.progress import Progress, silent
from kdbench.pruning import blocks, channels, ratios, shortcuts
from kdbench.pruning.changes import CHANGES, Change
from kdbench.pruning.graph import Graph, Group, all_cuts, differs, follow, heads_left, proof
from kdbench.pruning.importance import Gradients, unit_scores
from kdbench.pruning.targets import MEASUREMENTS, Cost, Ranking, Removal, cost, cost_without, least
from kdbench.records import Prune

Measure = Callable[[nn.Module], float]
"""What is measured of a network, such as the seconds that it takes where it is to be fast."""

PROOF = 4
"""Samples by which a pruned network is compared with what it should compute."""


class UnreachableError(UserError):
    """Of this network so much can't be taken away; less may."""


@dataclass(frozen=True)
class Pruned:
    """A network after pruning, and how it came about."""

    model: nn.Module
    changes: tuple[Change, ...]
    before: Cost
    after: Cost
    share: float
    """Of what was to fall, so much is left; by ratios, of the channels of all layers that can be pruned."""
    left: Mapping[str, str]
    """Why the channels of these layers were left alone."""


def prune(
    model: nn.Module,
    options: Prune,
    x: Tensor,
    *,
    gradients: Gradients | None = None,
    measure: Measure | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Pruned:
    """A pruned copy of a network, in evaluation mode, proven on the first of the samples `x` [N, …].

    Blocks are judged by all of them. `gradients` are what the importance `taylor` asks for, `measure` the latency.
    Raises UnreachableError where nothing can be pruned, and where the target can't be reached, with the closest that
    can; UserError for unknown names in `ignore` and `ratios`.
    """
    whole = deepcopy(model).eval()
    before = cost(whole, x)
    if options.target is None:
        made = _rewritten(whole, x)
        found, share, left = _by_ratios(whole, options, x, gradients, seed)
        made.append(_done(whole, x, "channels", found))
        return Pruned(whole, tuple(made), before, cost(whole, x), share, left)
    what, target = options.target
    left = {}
    price = _price(what, x, measure, progress, 1 + options.blocks)
    share_of = partial(_share, price, price(whole))
    made = []
    current, share = whole, 1.0
    if options.blocks:
        current, share, made = _without_blocks(whole, options, x, share_of, seed, progress)
    if share > target:
        made += _rewritten(current, x)
        narrow, narrowest, graph = _narrowed(current, options, x, share_of, gradients, seed)
        left = graph.left
        if narrow is None:
            raise _unreachable(options, graph, min(share, narrowest))
        share = narrowest
        made.append(_done(current, x, "channels", narrow))
    return Pruned(current, tuple(made), before, cost(current, x), share, left)


def check(model: nn.Module, options: Prune, x: Tensor, measure: Measure | None = None) -> None:
    """Raises UserError where a network of this structure can't be pruned so, as far as that can be told without its
    weights: of a latency by one look at the narrowest network beside the whole one, if there is a `measure`."""
    blind = options.model_copy(update={"importance": "l2"}) if options.importance == "taylor" else options
    if options.latency is None:
        prune(model, blind, x)
        return
    whole, narrow = deepcopy(model).eval(), deepcopy(model).eval()
    if options.blocks:
        blocks.redo(narrow, x, {"blocks": blocks.removable(narrow, x[:PROOF], options.ignore)})
    _rewritten(narrow, x)
    graph, ranking = _ranked(narrow, blind, x, None, 0)
    channels.redo(narrow, x, _cut(graph.groups, ranking.removal(ranking.length)))
    if cost(narrow, x).parameters == cost(whole, x).parameters:
        raise _unreachable(options, Graph((), graph.left), 1.0)
    if measure is None:
        return
    price = _price("latency", x, measure, silent)
    closest = _share(price, price(whole), narrow)
    if closest > options.latency:
        raise _unreachable(options, graph, closest)


def _price(
    what: str, x: Tensor, measure: Measure | None, progress: Progress, searches: int = 1
) -> Callable[[nn.Module], float]:
    if what != "latency":
        return lambda model: float(getattr(cost(model, x), what))
    if measure is None:
        raise UserError("prune.latency: there is nothing here to measure it with: take macs")
    taken = 0

    def seconds(model: nn.Module) -> float:
        nonlocal taken
        progress("measure latency", taken, searches * (1 + MEASUREMENTS))  # one of the whole, or of a block less
        taken += 1
        return measure(model)

    return seconds


def _share(price: Callable[[nn.Module], float], full: float, model: nn.Module) -> float:
    return price(model) / full


def _without_blocks(
    model: nn.Module,
    options: Prune,
    x: Tensor,
    share_of: Callable[[nn.Module], float],
    seed: int,
    progress: Progress,
) -> tuple[nn.Module, float, list[Change]]:
    """Without as many blocks as can go before the target is missed; the share that is left, and the change."""
    assert options.target is not None
    what, target = options.target
    names = blocks.removable(model, x[:PROOF], options.ignore)
    order: Iterator[str]
    if options.importance == "random":
        generator = torch.Generator().manual_seed(seed)
        order = (names[place] for place in torch.randperm(len(names), generator=generator).tolist())
    else:
        order = blocks.removal_order(model, names, x, progress)
    gone: list[str] = []
    shares = {0: 1.0}

    def without(number: int) -> nn.Module:
        gone.extend(islice(order, max(0, number - len(gone))))
        tried = deepcopy(model)
        blocks.redo(tried, x, {"blocks": gone[:number]})
        return tried

    def share(number: int) -> float:
        if number not in shares:
            shares[number] = share_of(without(number))
        return shares[number]

    if what == "latency":
        reached = least(len(names), share, target, MEASUREMENTS) if names else 0
    else:  # one after the other, for the order is what takes time
        reached = next((number for number in range(1, len(names) + 1) if share(number) <= target), None)
    number = len(names) if reached is None else reached if share(reached) == target else max(0, reached - 1)
    if not number:
        return model, 1.0, []
    return without(number), share(number), [Change(kind="blocks", options={"blocks": sorted(gone[:number])})]


def _narrowed(
    model: nn.Module,
    options: Prune,
    x: Tensor,
    share_of: Callable[[nn.Module], float],
    gradients: Gradients | None,
    seed: int,
) -> tuple[dict[str, Any] | None, float, Graph]:
    """The options of the change that reaches the target and the share that is left then; None where none does, with
    the lowest that can be reached. And the graph of what can be taken out."""
    assert options.target is not None
    what, target = options.target
    graph, ranking = _ranked(model, options, x, gradients, seed)
    groups = graph.groups
    shares: dict[tuple[tuple[int, ...], ...], float] = {}  # of different numbers the same may go

    def done(removal: Removal) -> nn.Module:
        narrow = deepcopy(model)
        channels.redo(narrow, x, _cut(groups, removal))
        return narrow

    counted, now = cost(model, x), share_of(model) if what != "latency" else 1.0

    def told(removal: Removal) -> float:
        cuts, heads = all_cuts(groups, removal), heads_left(groups, removal)
        parameters, macs = cost_without(model, counted, cuts, heads)
        return now * (macs / counted.macs if what == "macs" else parameters / counted.parameters)

    def share(number: int) -> float:
        removal = ranking.removal(number)
        key = tuple(tuple(removal[group.name]) for group in groups)
        if key not in shares:
            shares[key] = told(removal) if what != "latency" else share_of(done(removal))
        return shares[key]

    if not any(ranking.removal(ranking.length).values()):
        return None, 1.0, Graph((), graph.left)
    number = least(ranking.length, share, target, MEASUREMENTS if what == "latency" else None)
    if number is None:
        return None, share(ranking.length), graph
    return _proven(model, x, groups, ranking.removal(number)), share(number), graph


def _by_ratios(
    model: nn.Module, options: Prune, x: Tensor, gradients: Gradients | None, seed: int
) -> tuple[dict[str, Any], float, dict[str, str]]:
    """The options of the change by which each layer loses its share, the share of all channels that is left then, and
    why layers stay as they are."""
    graph, ranking = _ranked(model, options, x, gradients, seed)
    asked = ratios.by_group(model, graph, options.ratios)
    removal = ranking.without({group.name: len(group.units) * asked.get(group.name, 0) for group in graph.groups})
    whole = f"it keeps all of its channels, rounded to a multiple of {options.round_to}: lower round_to"
    left = {**graph.left, **{name: whole for name in asked if not removal[name]}}
    if not any(removal.values()):
        name = next(iter(asked))
        raise UnreachableError(f"prune.ratios: nothing would go: '{name}': {left[name]}")
    gone = sum(len(removal[group.name]) * len(group.units[0]) for group in graph.groups)
    return _proven(model, x, graph.groups, removal), 1 - gone / ranking.length, left


def _ranked(
    model: nn.Module, options: Prune, x: Tensor, gradients: Gradients | None, seed: int
) -> tuple[Graph, Ranking]:
    """What can be taken out of a network, and in which order."""
    graph = follow(model, x[:PROOF], options.ignore)
    scores = unit_scores(options.importance, model, graph.groups, gradients, seed)
    untold = {
        name: f"it has nothing that '{options.importance}' reads" for name in scores if scores[name].isnan().any()
    }
    groups = tuple(group for group in graph.groups if group.name not in untold)
    return Graph(groups, {**graph.left, **untold}), Ranking(groups, scores, options.scope, options.round_to)


def _cut(groups: Sequence[Group], removal: Removal) -> dict[str, Any]:
    """The options of the change that takes these units out."""
    return channels.options(all_cuts(groups, removal), heads_left(groups, removal))


def _proven(model: nn.Module, x: Tensor, groups: Sequence[Group], removal: Removal) -> dict[str, Any]:
    """The same, where the network computes without them what it should."""
    why = differs(proof(model, x[:PROOF]), groups, removal)
    if why is not None:
        raise UnreachableError(f"pruning: the network as a whole doesn't stand it, though each layer does: {why}")
    return _cut(groups, removal)


def _rewritten(model: nn.Module, x: Tensor) -> list[Change]:
    """Rewrites shortcuts, in place, so that single channels can be taken out of them; the change, if it is one."""
    names = shortcuts.rewritable(model)
    return [_done(model, x, "shortcuts", {"layers": names})] if names else []


def _done(model: nn.Module, x: Tensor, kind: str, options: dict[str, Any]) -> Change:
    """A change, done to the model."""
    CHANGES[kind](model, x, options)
    return Change(kind=kind, options=options)


def _unreachable(options: Prune, graph: Graph, closest: float) -> UnreachableError:
    assert options.target is not None
    what, target = options.target
    some = [f"'{name}': {why}" for name, why in graph.left.items()][:2]
    reasons = f" (left alone: {'; '.join(some)}{', …' if len(graph.left) > 2 else ''})" if some else ""
    if closest >= 1 and what == "latency" and graph.groups:
        return UnreachableError(
            f"prune.latency: {target:g} can't be reached: with the least left of every layer it is as slow{reasons}: "
            "take macs, lower round_to, or leave pruning out"
        )
    if closest >= 1:
        return UnreachableError(
            f"prune: no layer of this network can be pruned{reasons}: lower round_to, or leave pruning out"
        )
    return UnreachableError(
        f"prune.{what}: {target:g} can't be reached: {closest:.3f} is the closest, with the least left of every layer"
        f"{reasons}: ask for {closest:.3f} or more, or lower round_to"
    )
