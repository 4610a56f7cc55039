"""The losses of a recipe together: their options checked, their weights and temperatures by epoch, their sum."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import PydanticUserError, create_model
from torch import Tensor, nn

from kdbench import functions
from kdbench.errors import UserError, first_line, pick
from kdbench.losses import LOSSES, custom
from kdbench.losses.features import Pairs
from kdbench.losses.outputs import Outputs
from kdbench.losses.several import Voice, conditional
from kdbench.records import CommonOptions, Loss, Schedule, Task, Temperature, parse

TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Term:
    """A loss of a recipe, its options checked, not built yet."""

    name: str
    build: Callable[..., nn.Module]
    common: CommonOptions
    options: dict[str, Any]
    """Its own, the temperature apart."""
    temperature: Schedule | None
    tasks: tuple[Task, ...] = TASKS
    """That it is for."""
    labelled: bool = False
    """Whether it looks at the labels."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Submodules of student and teacher whose features it reads."""
        return list(self.options.get("pairs") or [])

    def at(self, schedule: Schedule, epoch: int) -> float:
        return value_at(schedule, epoch - self.common.from_epoch + 1)


def terms(
    losses: Mapping[str, Loss], temperature: float, folder: Path, epochs: int, where: str = "distill"
) -> list[Term]:
    """The losses by name, each with `temperature` where it has one and names none; `folder` is the recipe's.

    Raises UserError, which begins with `where`, for unknown losses and options, and where an epoch would be left
    without a loss.
    """
    found = [_term(name, losses[name], temperature, folder, f"{where}.losses.{name}") for name in sorted(losses)]
    for epoch in range(1, epochs + 1):
        if not any(weight_at(term, epoch) > 0 and term.common.stop_below is None for term in found):
            raise UserError(
                f"{where}.losses: none is left in epoch {epoch}: give one a weight there that 'stop_below' can't end"
            )
    return found


def check_data(terms: Sequence[Term], task: Task, labelled: bool, section: str = "distill") -> None:
    """Raises UserError where a loss can't learn from data of this task, with labels or without, and names others.

    A user's own function is taken at its word.
    """
    others = [name for name, loss in LOSSES.items() if task in tasks_of(loss) and (labelled or not labelled_by(loss))]
    for term in terms:
        where = f"{section}.losses.{term.name}"
        if task not in term.tasks:
            mine, data = "one class", "any number of them"
            if task == "classification":
                mine, data = "any number of classes", "one"
            # Losses on features are for every task: what stands in for this one is a loss made for the data's.
            instead = " or ".join(name for name in others if tasks_of(LOSSES[name]) != TASKS)
            raise UserError(f"{where}: is for {mine} a sample, this data has {data}: take {instead} instead")
        if term.labelled and not labelled:
            raise UserError(
                f"{where}: learns from labels, and the training set has none: leave it out, or take one of "
                f"{', '.join(others)}"
            )


def tasks_of(loss: type[nn.Module]) -> tuple[Task, ...]:
    """The tasks that a loss is for."""
    found: tuple[Task, ...] = getattr(loss, "tasks", TASKS)
    return found


def labelled_by(loss: type[nn.Module]) -> bool:
    """Whether a loss looks at the labels."""
    return bool(getattr(loss, "labelled", False))


def value_at(schedule: Schedule, epoch: int) -> float:
    """`start` in epoch 1, `end` once `epochs` epochs have passed."""
    share = min(max(epoch - 1, 0) / schedule.epochs, 1.0)
    if schedule.shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return schedule.start + (schedule.end - schedule.start) * share


def weight_at(term: Term, epoch: int) -> float:
    """In an epoch counted from 1. Schedule and warm-up, min(epoch / warmup_epochs, 1), start with the loss's own."""
    own = epoch - term.common.from_epoch + 1
    if own < 1 or (term.common.until_epoch is not None and epoch > term.common.until_epoch):
        return 0.0
    warmup = min(own / term.common.warmup_epochs, 1.0) if term.common.warmup_epochs else 1.0
    return warmup * term.at(term.common.weight, epoch)


def history_key(name: str) -> str:
    """Under which the history of a training keeps an epoch's mean of a loss, without its weight."""
    return f"loss.{name}"


class WeightedSum(nn.Module):
    """Σ weight · loss, computed in float32 also under autocast."""

    def __init__(
        self, terms: Sequence[Term], student: Outputs, teacher: Outputs, task: Task = "classification"
    ) -> None:
        """Builds each loss from sample outputs, for the first epoch; `task` is the data's."""
        super().__init__()
        self.exclusive = task == "classification"
        self.terms = list(terms)
        self.weights: dict[str, float] = {}
        with torch.no_grad():
            self.losses = nn.ModuleList(
                term.build(
                    student,
                    teacher,
                    **term.options,
                    **({"temperature": term.temperature.start} if term.temperature else {}),
                )
                for term in terms
            )
        self.begin(1, [])

    def begin(self, epoch: int, history: Sequence[Mapping[str, float]]) -> None:
        """Sets weights and temperatures of an epoch, counted from 1.

        `history` has the means of the epochs before: a loss that fell below its `stop_below` in one of them is over.
        """
        for term, loss in zip(self.terms, self.losses, strict=True):
            if term.temperature:
                setattr(loss, "temperature", term.at(term.temperature, epoch))  # noqa: B010 — no Tensor, no Module
            stop, key = term.common.stop_below, history_key(term.name)
            over = stop is not None and any(entry.get(key, math.inf) < stop for entry in history)
            self.weights[term.name] = 0.0 if over else weight_at(term, epoch)

    def forward(
        self, student: Outputs, teacher: Outputs | Sequence[Voice], target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, and each loss of this epoch by name, without weight and gradient; `target` is None without labels.

        Several teachers that don't know the same classes come as voices.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            values = {
                term.name: _value(loss, student, teacher, target, self.exclusive)
                for term, loss in zip(self.terms, self.losses, strict=True)
                if self.weights[term.name]
            }
            total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}


def _value(
    loss: nn.Module, student: Outputs, teacher: Outputs | Sequence[Voice], target: Tensor | None, exclusive: bool
) -> Tensor:
    if not isinstance(teacher, Outputs) and getattr(loss, "taught", True):
        return conditional(loss, student, teacher, target, exclusive)
    value: Tensor = loss(student, teacher if isinstance(teacher, Outputs) else student, target)
    return value


def _term(name: str, loss: Loss, temperature: float, folder: Path, where: str) -> Term:
    own = functions.is_own(name)
    function = custom.load(name, folder) if own else pick(LOSSES, name, "loss")
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[3 if own else 2 :]
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            stars = "*" if p.kind is p.VAR_POSITIONAL else "**"
            raise UserError(f"{where}: '{stars}{p.name}' can't be checked: name its options one by one")
    fields: dict[str, Any] = {
        p.name: (
            Any if p.annotation is p.empty else p.annotation,
            ... if p.default is p.empty else p.default,
        )
        for p in parameters
    }
    if "temperature" in fields:
        fields["temperature"] = (Temperature, Schedule(start=temperature, end=temperature))
    if own and "pairs" in fields:  # whatever the function says of them: they name features
        fields["pairs"] = (Pairs, fields["pairs"][1])
    try:
        known = create_model("Options", __base__=CommonOptions, **fields)
    except (PydanticUserError, NameError) as error:
        raise UserError(f"{where}: its options can't be read from a recipe: {first_line(error)}") from None
    read = parse(known, loss.model_dump(), where)
    options = {field: getattr(read, field) for field in fields}
    scheduled = options.pop("temperature", None)

    def build(student: Outputs, teacher: Outputs, **values: Any) -> nn.Module:
        return custom.Custom(name, function, values) if own else function(student, teacher, **values)

    if own:
        return Term(name, build, read, options, scheduled)
    return Term(name, build, read, options, scheduled, tasks_of(LOSSES[name]), labelled_by(LOSSES[name]))
