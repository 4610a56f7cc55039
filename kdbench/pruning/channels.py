"""Channels that are taken out of layers: which ones of which layer, kept as runs of indices, and the taking out."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError

Cuts = dict[tuple[str, str], frozenset[int]]
"""By submodule and the part of it, one of `parts()`: the channels to be removed."""

MISSING = "pruning needs torch-pruning, which is not installed: pip install torch-pruning"


@cache
def parts() -> dict[str, Callable[[nn.Module, list[int]], object]]:
    """torch-pruning's functions that narrow a layer in place, by what of it they narrow."""
    try:
        import torch_pruning
    except ImportError:
        raise UserError(MISSING) from None
    return {
        "conv.out": torch_pruning.prune_conv_out_channels,
        "conv.in": torch_pruning.prune_conv_in_channels,
        "depthwise": torch_pruning.prune_depthwise_conv_out_channels,
        "linear.out": torch_pruning.prune_linear_out_channels,
        "linear.in": torch_pruning.prune_linear_in_channels,
        "batch_norm": torch_pruning.prune_batchnorm_out_channels,
        "instance_norm": torch_pruning.prune_instancenorm_out_channels,
        "prelu": torch_pruning.prune_prelu_out_channels,
        "embedding": torch_pruning.prune_embedding_out_channels,
    }


READS = ("conv.in", "linear.in")
"""Parts that read channels; all others make them or pass them on."""


def size(module: nn.Module, part: str) -> int:
    """How many channels a part of a layer has."""
    attributes = {
        "conv.out": "out_channels",
        "conv.in": "in_channels",
        "depthwise": "out_channels",
        "linear.out": "out_features",
        "linear.in": "in_features",
        "batch_norm": "num_features",
        "instance_norm": "num_features",
        "prelu": "num_parameters",
        "embedding": "embedding_dim",
    }
    return int(getattr(module, attributes[part]))


def rows(module: nn.Module, part: str, tensor: Tensor) -> Tensor:
    """What `tensor`, the weight of a layer or its gradient, has for each channel of a part: [channels, numbers]."""
    if part == "conv.in" and module.groups != 1:  # the weight's second axis counts within a group
        groups = int(module.groups)  # type: ignore[arg-type]
        grouped = tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
        return grouped.transpose(1, 2).reshape(groups * tensor.shape[1], -1)
    if part in READS or part == "embedding":
        return tensor.transpose(0, 1).flatten(1)
    return tensor.reshape(tensor.shape[0], -1)


def silence(model: nn.Module, cuts: Cuts) -> None:
    """Sets the weights to 0, in place, that read the channels of `cuts`: the same as to go without them."""
    modules = dict(model.named_modules())
    for (layer, part), removed in cuts.items():
        module, places = modules[layer], sorted(removed)
        if part not in READS:
            continue
        with torch.no_grad():
            weight = module.weight.clone()
            module.weight = nn.Parameter(weight)
            if part == "conv.in" and module.groups != 1:
                groups, each = int(module.groups), weight.shape[1]
                by_group = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
                for place in places:
                    by_group[place // each, :, place % each] = 0
            else:
                weight[:, places] = 0


def light_copy(model: nn.Module) -> nn.Module:
    """A network of its own structure, with the same tensors: whoever changes one has to put a new one in its place."""
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def options(cuts: Cuts, heads: Mapping[str, int]) -> dict[str, Any]:
    """Plain data by which `redo` does it again; `heads` are those that attention modules have left, by name."""
    same: dict[tuple[int, ...], list[list[str]]] = {}
    for (layer, part), removed in cuts.items():
        if removed:
            same.setdefault(tuple(sorted(removed)), []).append([layer, part])
    found: dict[str, Any] = {"cuts": [{"removed": runs(removed), "of": of} for removed, of in same.items()]}
    return found | ({"heads": dict(heads)} if heads else {})


def redo(model: nn.Module, example: Tensor, options: Mapping[str, Any]) -> None:
    """Takes the channels out, in place; raises ValueError where a layer doesn't have them, or would be emptied."""
    modules = dict(model.named_modules())
    for cut in options["cuts"]:
        removed = indices(cut["removed"])
        for layer, part in cut["of"]:
            _cut(modules[layer], layer, part, removed)
    for name, heads in options.get("heads", {}).items():
        if not 1 <= heads <= int(modules[name].heads):
            raise ValueError(f"{name} can't have {heads} heads")
        modules[name].heads = int(heads)


def _cut(module: nn.Module, layer: str, part: str, removed: list[int]) -> None:
    channels = size(module, part)
    if not removed or removed[0] < 0 or removed[-1] >= channels or len(removed) >= channels:
        raise ValueError(f"{layer} has {channels} channels, of which these can't be removed")
    frozen = [name for name, parameter in module.named_parameters(recurse=False) if not parameter.requires_grad]
    with torch.no_grad():
        parts()[part](module, removed)
    for name in frozen:
        getattr(module, name).requires_grad_(False)


def runs(places: Iterable[int]) -> list[list[int]]:
    """Ascending indices as runs [first, last]."""
    found: list[list[int]] = []
    for place in places:
        if found and place == found[-1][1] + 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found


def indices(runs: Iterable[Iterable[int]]) -> list[int]:
    """Runs [first, last] as ascending indices."""
    return sorted({place for first, last in runs for place in range(first, last + 1)})
