"""Whole residual blocks: which ones can go, in what order, and their removal."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.progress import Progress, silent
from kdbench.pruning.names import within
from kdbench.pruning.shortcuts import put

PART = 64
"""Samples that are answered at a time: of all of them the activations may not fit into memory."""


def removable(model: nn.Module, x: Tensor, ignore: Sequence[str] = ()) -> list[str]:
    """Residual blocks with an identity as shortcut, by name: with all weights at 0 they give back what they are given.

    Of nested ones the innermost; those in or around submodules named in `ignore` stay, and those that the network
    can't do without: it gives them more than a tensor, or asks for what they hold. `x` are samples [N, …].
    """
    model = deepcopy(model).eval()
    seen: dict[str, tuple[tuple[Any, ...], Any]] = {}
    names = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, named, made, name=name: seen.update({name: (() if named else given, made)}),
            with_kwargs=True,
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    found = [name for name in names if name in seen and _passes(model.get_submodule(name), *seen[name])]
    inner = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    asked = [name for name in inner if not any(within(name, kept) or within(kept, name) for kept in ignore)]
    return [name for name in asked if _dispensable(model, name, x)]


def removal_order(model: nn.Module, blocks: Sequence[str], x: Tensor, progress: Progress = silent) -> Iterator[str]:
    """The blocks in the order in which they go: next is the one whose skipping, beside those gone before, changes the
    outputs for samples `x` least (squared difference to those of the whole network).

    Blocks that do the same job are thus told apart: when one has gone, the other is missed. What a block did before
    others went is taken for the least that it does now, so that few are judged again (lazy greedy, Minoux 1978): one
    that does less once others have gone goes later than its turn.
    """
    left, parts = deepcopy(model).eval(), torch.split(x, PART)
    with torch.no_grad():
        whole = [left(part) for part in parts]

    @torch.no_grad()
    def effect(name: str) -> float:
        block = left.get_submodule(name)
        put(left, name, nn.Identity())
        squares = [(left(part) - answer).double().square().sum() for part, answer in zip(parts, whole, strict=True)]
        put(left, name, block)
        return float(sum(squares))

    effects = dict.fromkeys(blocks, 0.0)
    judged: set[str] = set()
    while effects:
        name = min(effects, key=lambda name: (effects[name], name))
        if name not in judged:
            progress("judge blocks", len(blocks) - len(effects), len(blocks))
            effects[name] = effect(name)
            judged.add(name)
            continue
        put(left, name, nn.Identity())
        del effects[name]
        judged.clear()
        yield name


def redo(model: nn.Module, example: Tensor, options: Mapping[str, Any]) -> None:
    """Lets the `blocks` pass on what they are given, in place."""
    for name in options["blocks"]:
        model.get_submodule(name)  # raises where it is not there
        put(model, name, nn.Identity())


def _dispensable(model: nn.Module, name: str, x: Tensor) -> bool:
    """Whether the network runs without a block, and comes by its place."""
    block, skipped, calls = model.get_submodule(name), nn.Identity(), list[Any]()
    skipped.register_forward_hook(lambda *call: calls.append(call))
    put(model, name, skipped)
    try:
        with torch.no_grad():
            model(x)
    except Exception:  # whatever is raised where something is asked of the block that no other module has
        return False
    finally:
        put(model, name, block)
    return bool(calls)


def _passes(block: nn.Module, given: tuple[Any, ...], made: Any) -> bool:
    """Whether a block gives back the one tensor that it is given where its weights are 0."""
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(made, Tensor):
        return False
    if given[0].shape != made.shape or not bool(given[0].any()):
        return False
    silent = deepcopy(block)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
        return bool(torch.equal(silent(given[0]), given[0]))
