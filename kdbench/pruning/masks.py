"""Unstructured pruning: single weights are set to zero, and stay exactly that while the others are trained.

Which ones: those of the smallest magnitude (Han et al. 2015, 1506.02626), of the smallest |weight · gradient|, the
first-order change of the loss without it (Molchanov et al. 2017, 1611.06440), or any (random, the baseline to beat).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, nearest, pick
from kdbench.pruning.names import places, within
from kdbench.records import Sparsify, SparsifySection

Weights = Mapping[str, Tensor]
"""By the name of the parameter."""

Zeros = dict[str, Tensor]
"""By the name of the parameter: a tensor of its shape, True where it is zero."""

NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Those whose weights may have several axes; the others' have one, as biases do."""
TABLES = (nn.Embedding, nn.EmbeddingBag)
"""Rows that are looked up: the seldom ones would go first, so that they are masked where they are named alone."""

UNTOUCHED: Zeros = {}


class Masks:
    """Which weights of a network in training are zero, and when they become it; what a checkpoint holds of that.

    Each choice depends on options, seed, epoch and weights alone, and what is zero once stays so.
    """

    def __init__(self, options: SparsifySection, seed: int = 0, rewound: Weights | None = None) -> None:
        """`rewound` is the state of an early epoch, which the network goes back to once its zeros are chosen."""
        self.options = options
        self.seed = seed
        self.rewound = rewound
        self.zeros: Zeros = {}

    def begin_epoch(self, epoch: int, gradients: Callable[[], Weights], model: nn.Module, *copies: nn.Module) -> None:
        """Chooses more zeros where that is due before the epoch, counted from 1.

        `gradients` gives those of the loss, if they are asked for; `copies` get the same zeros.
        """
        if not due(self.options, epoch):
            return
        given = gradients() if self.options.method == "gradient" else {}
        if not self.zeros and self.options.end_epoch:  # what can't go well in the end is said at the start
            choose(model, self.options, self.seed, given)
        self.zeros = choose(model, self.options, self.seed, given, share_in(self.options, epoch), self.zeros)
        if self.rewound is not None:
            model.load_state_dict(self.rewound)
        self.after_step(model, *copies)

    def before_step(self, model: nn.Module) -> None:
        """Clears the gradients of what is zero, so that they count in no norm and in no momentum."""
        parameters = dict(model.named_parameters())
        for name, zeros in self.zeros.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(zeros, 0.0)

    def after_step(self, *models: nn.Module) -> None:
        """Sets to zero again what momentum, decay or averaging have moved."""
        for model in models:
            apply(model, self.zeros)

    def settled(self, epoch: int) -> bool:
        """Whether the network has all of its zeros in the epoch, counted from 1."""
        return self.options.end_epoch is None or epoch >= self.options.end_epoch

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights that can be masked; 0 before the first ones are chosen."""
        return share_of(self.zeros)

    def restore(self, zeros: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes up what a checkpoint holds of `zeros`."""
        self.zeros = {name: tensor.to(device) for name, tensor in zeros.items()}


def cubic(epoch: int, final: float, begin: int, end: int) -> float:
    """The sparsity in an epoch: 0 until `begin`, `final` from `end` on, and between them
    final · (1 − (1 − (epoch − begin) / (end − begin))³), fast while there is much to choose from.

    Zhu and Gupta 2017, 1710.01878, equation 1, with the step of an epoch and nothing at first.
    """
    passed = min(max((epoch - begin) / (end - begin), 0.0), 1.0)
    return final * (1 - (1 - passed) ** 3)


def due(options: SparsifySection, epoch: int) -> bool:
    """Whether zeros are chosen before the epoch, counted from 1."""
    if options.end_epoch is None:
        return epoch == 1
    return options.begin_epoch < epoch <= options.end_epoch


def share_in(options: SparsifySection, epoch: int) -> float | None:
    """The sparsity that the options ask for in the epoch, counted from 1; None where they give a threshold."""
    if options.sparsity is None or options.end_epoch is None:
        return options.sparsity
    return cubic(epoch, options.sparsity, options.begin_epoch, options.end_epoch)


def choose(
    model: nn.Module,
    options: Sparsify,
    seed: int = 0,
    gradients: Weights | None = None,
    share: float | None = None,
    zeros: Zeros = UNTOUCHED,
    field: str = "sparsify",
) -> Zeros:
    """Where the model is to be zero: `share` of its weights, that of the options without one, with those of `zeros`.

    Raises UserError, which names `field`, for an unknown layer, and where nothing would be left of one.
    """
    weights = maskable(model, options.layers, options.ignore, field)
    if options.threshold is not None:
        chosen = {name: weight.detach().abs() < options.threshold for name, weight in weights.items()}
        _check_left(chosen, weights, f"{field}.threshold", options.threshold, _highest_threshold(weights))
        return chosen
    scores = pick(SCORES, options.method, "method")(weights, gradients or {}, seed)
    for name, zero in zeros.items():  # none is lower
        scores[name] = scores[name].masked_fill(zero, -1.0)
    wanted = share if share is not None else options.sparsity or 0.0
    chosen = lowest(scores, wanted, options.scope)
    hint = "lower it" if options.scope == "layer" else 'lower it, take scope = "layer"'
    _check_left(chosen, weights, f"{field}.sparsity", wanted, f"{hint}, or name it in {field}.ignore")
    return chosen


def apply(model: nn.Module, zeros: Zeros) -> None:
    """Sets weights of the model to zero, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, zero in zeros.items():
            parameters[name].masked_fill_(zero, 0.0)  # a product with 0 would leave −0, or NaN


def share_of(zeros: Zeros) -> float:
    """Share of True."""
    total = sum(zero.numel() for zero in zeros.values())
    return sum(int(zero.sum()) for zero in zeros.values()) / total if total else 0.0


def maskable(
    model: nn.Module, layers: Sequence[str] = (), ignore: Sequence[str] = (), field: str = "sparsify"
) -> dict[str, nn.Parameter]:
    """The weights that can be masked, by name: those of two or more axes, so that norms and biases are none of them,
    that are trained.

    Of the submodules or weights `layers` if any are named, without those of `ignore`; tables that are looked up only
    where `layers` names them. Raises UserError for a name without such weights, and where none are left.
    """
    found: dict[str, nn.Parameter] = {}
    tables: set[str] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            own = name.rpartition(".")[2]
            shared = any(parameter is other for other in found.values())
            trained = parameter.requires_grad and not isinstance(module, NORMS)
            if parameter.ndim > 1 and "weight" in own and trained and not shared:
                found[name] = parameter
                tables |= {name} if isinstance(module, TABLES) else set()
    for option, names in (("layers", layers), ("ignore", ignore)):
        for name in names:
            if not any(within(weight, name) for weight in found):
                raise UserError(f"{field}.{option}: no weights to mask in '{name}': {nearest(name, places(found))}")
    chosen = {
        name: parameter
        for name, parameter in found.items()
        if (any(within(name, layer) for layer in layers) if layers else name not in tables)
        and not any(within(name, layer) for layer in ignore)
    }
    if not chosen:
        raise UserError(f"{field}.layers: there are no weights to mask: name some of {', '.join(sorted(found))}")
    return chosen


def lowest(scores: Weights, share: float, scope: Literal["global", "layer"]) -> Zeros:
    """Where the `share` of the lowest scores lies, of all of them together or of those of each tensor.

    That many exactly, but for rounding: of equal scores the first ones.
    """
    if scope == "layer":
        return {name: _lowest(score.flatten(), share).view(score.shape) for name, score in scores.items()}
    marked = _lowest(torch.cat([score.flatten() for score in scores.values()]), share)
    parts = torch.split(marked, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _lowest(scores: Tensor, share: float) -> Tensor:
    marked = torch.zeros_like(scores, dtype=torch.bool)
    marked[torch.sort(scores, stable=True).indices[: round(share * len(scores))]] = True
    return marked


def _magnitude(weights: Weights, gradients: Weights, seed: int) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in weights.items()}


def _gradient(weights: Weights, gradients: Weights, seed: int) -> dict[str, Tensor]:
    """A weight that no gradient reaches changes nothing."""
    return {
        name: (weight.detach() * gradients[name]).abs() if name in gradients else torch.zeros_like(weight)
        for name, weight in weights.items()
    }


def _random(weights: Weights, gradients: Weights, seed: int) -> dict[str, Tensor]:
    """The same for the same seed, whenever it is asked."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator).to(weight.device) for name, weight in weights.items()}


SCORES: dict[str, Callable[[Weights, Weights, int], dict[str, Tensor]]] = {
    "magnitude": _magnitude,
    "gradient": _gradient,
    "random": _random,
}
"""How much each weight matters, from 0 on, by weights, gradients and seed: the lowest go first."""


def _check_left(chosen: Zeros, weights: Weights, field: str, value: float, hint: str) -> None:
    for name, zero in chosen.items():
        if bool(zero.all()):
            raise UserError(f"{field}: {value:g} would leave nothing of '{name}' ({weights[name].numel()}): {hint}")


def _highest_threshold(weights: Weights) -> str:
    """What to do about a threshold that leaves nothing of a layer."""
    most = 0.999 * min(float(weight.detach().abs().max()) for weight in weights.values())  # rounding won't exceed it
    return f"at {most:.4g} something is left of each layer; or name it in ignore"
