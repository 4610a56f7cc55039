"""How a network learns: its training, and the losses by which it is distilled."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdbench.records.base import Count, NotNegative, Positive, Record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Training(Record):
    """How long, how fast and in what precision a network learns."""

    epochs: Count
    """Passes over the training samples."""
    learning_rate: Positive
    """The highest of the schedule."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """At least two: batch norm learns nothing from a single sample. Of all processes together."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd` with Nesterov's momentum; Adam's second beta is 0.999."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; Adam's first beta."""
    weight_decay: NotNegative = 5e-4
    """Added to the gradient as L2 penalty; by `adamw` decoupled from it."""
    decay_norms: bool = True
    """Whether weight decay is also for the weights of norms and for biases."""
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = "cosine"
    """Of the learning rate, after the warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in which the learning rate rises: linearly, in `one_cycle` along a cosine."""
    step_epochs: Annotated[tuple[Count, ...], Field(validate_default=True)] = ()
    """Of the schedule `step`: epochs after which the learning rate is multiplied by `step_factor`."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """See `step_epochs`."""
    clip_norm: Positive | None = None
    """Gradients whose norm, over all parameters together, is larger are shortened to it."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of an exponential moving average of the weights, which is then what is judged, kept and exported."""
    patience_epochs: Count | None = None
    """Training ends after as many epochs without a better one on the held-out samples."""
    keep: Literal["last", "best"] = "last"
    """Which epoch goes on along the ladder: the last, or the best on the held-out samples."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """`bf16`: autocast, with images channels-last. `auto`: what a few steps of both show to be faster."""

    @field_validator("step_epochs")
    @classmethod
    def _within(cls, epochs: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        total, stepped = info.data.get("epochs"), info.data.get("schedule") == "step"
        if stepped and not epochs:
            raise PydanticCustomError("missing_steps", "epochs after which the learning rate falls, such as [10, 20]")
        if epochs and not stepped:
            raise PydanticCustomError("unused_steps", "left out where schedule is not 'step'")
        if total is not None and any(epoch >= total for epoch in epochs):
            raise PydanticCustomError("late_steps", f"epochs before the last one, {total}")
        return epochs


class Schedule(Record):
    """From `start` to `end` in `epochs` epochs, and `end` from then on; a plain number stays what it is."""

    start: NotNegative
    """In the first epoch."""
    end: NotNegative
    """In the last one of them."""
    shape: Literal["linear", "cosine"] = "linear"
    """Of the way between."""
    epochs: Count = 1
    """How many that takes."""

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        return {"start": value, "end": value} if _is_number(value) else value


def _positive(schedule: Schedule) -> Schedule:
    if not schedule.start or not schedule.end:
        raise PydanticCustomError("positive", "greater than 0")
    return schedule


Temperature = Annotated[Schedule, AfterValidator(_positive)]


class CommonOptions(Record):
    """What every loss of a recipe takes. Epochs are counted from 1."""

    weight: Schedule = Schedule(start=1.0, end=1.0)
    """In the sum of losses: a number, 1 where nothing is said, or a schedule."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """The weight rises linearly in as many epochs."""
    from_epoch: Count = 1
    """The loss's first epoch; warm-up and schedules are counted from it."""
    until_epoch: Count | None = None
    """The loss's last epoch."""
    stop_below: Positive | None = None
    """The loss ends for good after an epoch in which its mean, without weight, is below this."""


class Loss(CommonOptions):
    """A loss of a recipe, or its weight alone; its own options are checked where it is built."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _weight_alone(cls, value: Any) -> Any:
        return {"weight": value} if _is_number(value) else value


class Distill(Record):
    """Which losses the student learns by."""

    mode: Literal["offline", "mutual"] = "offline"
    """`mutual`: student and teacher learn together, each from the other; the teacher's own training is left out."""
    losses: Annotated[dict[str, Loss], Field(min_length=1)]
    """By name, or as `module.py:function`: a table of options, or the weight alone."""
    temperature: Positive = 4.0
    """Of every loss that has one and names no other."""
    start_from: dict[str, str] = {}
    """Submodules of the student that start with the weights of one of the teacher's, of the same shapes."""
    cache: bool = True
    """Keep the teachers' answers where views of a sample come again and no loss reads features: see data.augment.views.
    """
