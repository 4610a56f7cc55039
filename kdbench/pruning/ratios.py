"""Shares of channels that go by name: of single layers, or of all layers of a module."""

from collections.abc import Mapping

from torch import nn

from kdbench.errors import UserError, nearest
from kdbench.pruning.graph import Graph
from kdbench.pruning.importance import MAKES
from kdbench.pruning.names import within


def by_group(model: nn.Module, graph: Graph, ratios: Mapping[str, float]) -> dict[str, float]:
    """The share of its units that each group loses, by the group's name; none for those that nothing names.

    A layer goes by the longest name that it lies within. Layers whose channels are added up lose the same ones: where
    one is named, all do. Raises UserError for names that the network doesn't have, or of which no channels can be
    taken out, and where such layers are given unlike shares.
    """
    names = [name for name, _ in model.named_modules() if name]
    for name in ratios:
        if name not in names:
            raise UserError(f"prune.ratios: no submodule '{name}': {nearest(name, names)}")
    found: dict[str, float] = {}
    used: set[str] = set()
    for group in graph.groups:
        makers = [member.layer for member in group.members if member.part in MAKES]
        asked = sorted({name for layer in makers for name in _around(layer, ratios)[:1]})
        used.update(asked)
        unlike = next((name for name in asked if ratios[name] != ratios[asked[0]]), None)
        if unlike:
            raise UserError(
                f"prune.ratios: '{asked[0]}' and '{unlike}' share the channels of '{group.name}', which go from both: "
                "give both the same share"
            )
        if asked:
            found[group.name] = ratios[asked[0]]
    for name in ratios:
        if name not in used:
            why = next((why for layer, why in graph.left.items() if within(layer, name)), "")
            raise UserError(f"prune.ratios: '{name}' has no channels that can go{why and f': {why}'}: leave it out")
    return found


def _around(layer: str, ratios: Mapping[str, float]) -> list[str]:
    """The names that a layer lies within, the longest first."""
    return sorted((name for name in ratios if within(layer, name)), key=len, reverse=True)
