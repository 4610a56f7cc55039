"""Low rank: a layer as the product of two smaller ones, by the singular values of its weights.

A linear layer's weights [out, in] are U S Vᵀ; of the r largest singular values √S Vᵀ becomes a layer to r channels, and
U √S one from there on. Of a convolution [out, in, k, k] the matrix is [out, in · k · k]: one with the same kernel,
stride and padding and r channels, and a 1×1 one behind it (Zhang et al. 2015, 1505.06798, section 2.1). Both cost
r (in + out) in the place of in · out multiply-accumulates, with in · k · k for in.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.pruning.names import places, within
from kdbench.pruning.shortcuts import put
from kdbench.pruning.targets import cost
from kdbench.records import Factorise

FACTORED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""These types, and none derived from them, which may do something else."""
READERS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that read the weights of their layers themselves."""


@dataclass(frozen=True)
class Layer:
    """One that can be factorised."""

    name: str
    inputs: int
    outputs: int
    """Its weights are a matrix [outputs, inputs]."""
    macs: int
    """Of one sample."""
    kept: tuple[float, ...]
    """Share of the squared singular values by rank, from 1 on; the last is 1."""

    def rank(self, energy: float) -> int:
        """The smallest that keeps so much."""
        return min(1 + bisect_left(self.kept, energy), len(self.kept))

    def cost(self, rank: int) -> int:
        """Multiply-accumulates of one sample at a rank, or as it is where that is not more."""
        return min(self.macs, self.macs * rank * (self.inputs + self.outputs) // (self.inputs * self.outputs))

    def cheaper(self, rank: int) -> bool:
        return rank * (self.inputs + self.outputs) < self.inputs * self.outputs


@dataclass(frozen=True)
class Plan:
    """Which layers become of which rank, and why the others don't."""

    ranks: dict[str, int]
    left: dict[str, str]
    """Layers that stay as they are, and why."""
    macs: int
    """Of one sample, as the model is."""
    macs_after: int
    energy: float
    """Share of its squared singular values that each of them keeps at least."""

    def __str__(self) -> str:
        """In one line; reasons that several layers share stand once."""
        said = [f"{len(self.ranks)} layers factorised, {self.macs_after / self.macs:.3f} of the MACs"]
        for why in dict.fromkeys(self.left.values()):
            said.append(f"left alone: {', '.join(name for name, reason in self.left.items() if reason == why)}: {why}")
        return "; ".join(said)


class Product(nn.Sequential):
    """Two layers in the place of one, of whose sizes and weights others can ask as before."""

    @property
    def in_features(self) -> int:
        return int(self._both[0].in_features)

    @property
    def out_features(self) -> int:
        return int(self._both[1].out_features)

    @property
    def in_channels(self) -> int:
        return int(self._both[0].in_channels)

    @property
    def out_channels(self) -> int:
        return int(self._both[1].out_channels)

    @property
    def weight(self) -> Tensor:
        """The product."""
        first, second = self._both
        product: Tensor = second.weight.flatten(1) @ first.weight.flatten(1)
        return product.reshape(len(product), *first.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        found: Tensor | None = self._both[1].bias
        return found

    @property
    def _both(self) -> tuple[Any, Any]:
        first, second = self
        return first, second


def plan(model: nn.Module, example: Tensor, options: Factorise, field: str = "factorise") -> Plan:
    """What the options make of the model, which can take `example`.

    By `macs` all layers keep the same share of their squared singular values, the largest that is cheap enough. Raises
    UserError, which names `field`, for an unknown layer, where nothing gets cheaper, and for a share of MACs that
    can't be reached, with the nearest one that can.
    """
    named, left = candidates(model, options.layers, options.ignore, field)
    found = cost(model, example)
    total, costs = found.macs, {name: macs for name, (_, macs) in found.layers.items()}
    left |= {name: "not called in a forward pass" for name in named if not costs[name]}
    layers = [_layer(name, module, costs[name]) for name, module in named.items() if costs[name]]
    if not layers:
        raise UserError(f"{field}: no layer can be factorised: {_reasons(left)}")
    energy = options.energy
    if energy is None:
        energy = _energy(layers, total, options.macs or 1.0, field)
    ranks = {}
    for layer in layers:
        rank = layer.rank(energy)
        if layer.cheaper(rank):
            ranks[layer.name] = rank
        else:
            left[layer.name] = f"rank {rank} of {len(layer.kept)} would not be cheaper"
    if not ranks:
        most = max((layer.kept[rank - 1] for layer in layers if (rank := _most(layer))), default=None)
        advice = "none ever does" if most is None else f"at {0.999 * most:.4g} one does: lower it"
        raise UserError(f"{field}.energy: at {energy:g} no layer gets cheaper; {advice}")
    saved = sum(layer.macs - layer.cost(ranks[layer.name]) for layer in layers if layer.name in ranks)
    return Plan(ranks, left, total, total - saved, energy)


def candidates(
    model: nn.Module, layers: Sequence[str], ignore: Sequence[str], field: str = "factorise"
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can be factorised by name, and why each other one with a matrix of weights can't.

    Raises UserError, which names `field`, for a name of `layers` or `ignore` that is none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    held = {
        name: module
        for name, module in modules.items()
        if any(p.ndim > 1 for p in module.parameters(recurse=False)) or isinstance(module, FACTORED)
    }
    for option, names in (("layers", layers), ("ignore", ignore)):
        for name in names:
            if not any(within(layer, name) for layer in held):
                raise UserError(f"{field}.{option}: no layer '{name}': {nearest(name, places(held))}")
    users = Counter(parameter for module in held.values() for parameter in module.parameters(recurse=False))
    found, left = {}, {}
    for name, module in held.items():
        parent = modules[name.rpartition(".")[0]]
        if not name:
            left["model"] = "is the whole of it"
        elif any(within(name, layer) for layer in ignore):
            left[name] = f"named in {field}.ignore"
        elif layers and not any(within(name, layer) for layer in layers):
            left[name] = f"not named in {field}.layers"
        elif type(module) not in FACTORED:
            left[name] = f"{type(module).__name__} is not factorised"
        elif getattr(module, "groups", 1) > 1:
            left[name] = f"a convolution of {module.groups} groups"
        elif not module.get_parameter("weight").requires_grad:
            left[name] = "its weights are constants"
        elif any(users[parameter] > 1 for parameter in module.parameters(recurse=False)):
            left[name] = "shares its weights with another layer"
        elif isinstance(parent, READERS):
            left[name] = f"{type(parent).__name__} reads its weights"
        else:
            found[name] = module
    return found, left


def factorise(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Puts the products of two layers in the places of layers, in place, with what their ranks keep of the weights."""
    factors = {}
    for name, rank in ranks.items():
        weight = _matrix(model.get_submodule(name))
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        root = s[:rank].sqrt()
        factors[name] = (root[:, None] * vh[:rank], u[:, :rank] * root)
    split(model, None, {"ranks": dict(ranks)})
    with torch.no_grad():
        for name, parts in factors.items():
            for module, part in zip(model.get_submodule(name).children(), parts, strict=True):
                weight = module.get_parameter("weight")
                weight.copy_(part.reshape(weight.shape))


def split(model: nn.Module, example: Tensor | None, options: dict[str, Any]) -> None:
    """The same structure with weights that mean nothing yet, but for the biases: of `options`, {"ranks": {layer:
    rank}}."""
    for name, rank in options["ranks"].items():
        put(model, name, _pair(model.get_submodule(name), int(rank)))


def _pair(module: nn.Module, rank: int) -> Product:
    """Two layers in the place of one: through `rank` channels, the second with the bias."""
    like: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    biased = module.bias is not None
    first: nn.Module
    second: nn.Module
    if isinstance(module, nn.Linear):
        first = nn.Linear(module.in_features, rank, bias=False, **like)
        second = nn.Linear(rank, module.out_features, bias=biased, **like)
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        kind: Any = type(module)
        first = kind(
            module.in_channels,
            rank,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            bias=False,
            padding_mode=module.padding_mode,
            **like,
        )
        second = kind(rank, module.out_channels, 1, bias=biased, **like)
    else:
        raise ValueError(f"{type(module).__name__} is not factorised")
    if biased:
        with torch.no_grad():
            second.get_parameter("bias").copy_(module.get_parameter("bias"))
    return Product(first, second).train(module.training)


def _layer(name: str, module: nn.Module, cost: int) -> Layer:
    matrix = _matrix(module)
    kept = torch.linalg.svdvals(matrix).square().cumsum(0)
    kept = kept / kept[-1] if float(kept[-1]) > 0 else torch.ones_like(kept)
    return Layer(name, matrix.shape[1], matrix.shape[0], cost, tuple(kept.tolist()))


def _matrix(module: nn.Module) -> Tensor:
    """Its weights [outputs, inputs] in float64."""
    weight = module.get_parameter("weight").detach()
    return weight.reshape(len(weight), -1).double().cpu()


def _energy(layers: Sequence[Layer], total: int, share: float, field: str) -> float:
    """The largest that costs at most a share of the total."""
    rest = total - sum(layer.macs for layer in layers)

    def price(energy: float) -> int:
        return rest + sum(layer.cost(layer.rank(energy)) for layer in layers)

    energies = sorted({kept for layer in layers for kept in layer.kept})
    affordable = bisect_right(energies, share * total, key=price)
    if not affordable:
        raise UserError(
            f"{field}.macs: {share:g} can't be reached: rank 1 in all {len(layers)} layers that can be factorised "
            f"leaves {ceil(1000 * price(energies[0]) / total) / 1000:g} of the MACs: take a larger share"
        )
    return energies[affordable - 1]


def _most(layer: Layer) -> int:
    """The highest rank that is cheaper than the layer; 0 where none is."""
    return max((rank for rank in range(1, len(layer.kept) + 1) if layer.cheaper(rank)), default=0)


def _reasons(left: Mapping[str, str]) -> str:
    said = "; ".join(f"{name} {why}" for name, why in left.items())
    return shorten(said, 160, placeholder=" …") or "the model has none"
