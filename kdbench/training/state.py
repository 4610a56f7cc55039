"""What a training changes step by step, and what its checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdbench.losses.outputs import below
from kdbench.losses.weighted import WeightedSum
from kdbench.pruning.masks import Masks
from kdbench.records import Training
from kdbench.training import optimizer as optimizers
from kdbench.training import precision as precisions
from kdbench.training.mutual import MutualSum
from kdbench.training.precision import Precision


@dataclass
class State:
    """A model in training, with everything that goes on from one epoch to the next."""

    model: nn.Module
    loss: WeightedSum | MutualSum
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    """Of the weights, exponentially moving; so are the statistics of batch norm, which belong to them."""
    precision: Precision
    best: dict[str, Tensor] = field(default_factory=dict)
    """The state of `result` after its best epoch so far, where epochs are judged."""
    masks: Masks | None = None
    """Of the weights that are zero and stay so."""

    @property
    def result(self) -> nn.Module:
        """The model that is judged and kept: with averaged weights where they are averaged."""
        return self.model if self.average is None else self.average.module

    @property
    def networks(self) -> list[nn.Module]:
        """The model and, where its weights are averaged, their average."""
        return [self.model, *([self.average.module] if self.average else [])]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        parts = {
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": optimizers.tensors_of(self.optimizer),
            "average": self.average.state_dict() if self.average else {},
            "best": self.best,
            "zeros": self.masks.zeros if self.masks else {},
        }
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what a checkpoint of the same training holds."""
        self.model.load_state_dict(below(tensors, "model"))
        self.loss.load_state_dict(below(tensors, "loss"))
        optimizers.restore(self.optimizer, below(tensors, "optimizer"))
        if self.average:
            self.average.load_state_dict(below(tensors, "average"))
        self.best = below(tensors, "best")
        if self.masks:
            self.masks.restore(below(tensors, "zeros"), next(self.model.parameters()).device)


def begin(model: nn.Module, loss: WeightedSum | MutualSum, training: Training, precision: Precision) -> State:
    """Before the first step; `model` is laid out for the precision."""
    precisions.arrange(model, precision)
    average = None
    if training.ema_decay is not None:
        decayed = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=decayed, use_buffers=True)
    return State(model, loss, optimizers.make(training, model, loss), average, precision)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they are now, in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
