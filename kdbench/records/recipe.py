"""The recipe: TOML in, one record a section."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdbench.errors import UserError
from kdbench.records.artifacts import Preprocessing
from kdbench.records.base import Count, Name, NotNegative, Positive, Record, Versioned, parse
from kdbench.records.compression import Factorise, Prune, Quantize, Sparse, Sparsify, Spiral


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Augment(Record):
    """How training images are varied. What a view does to a sample depends on sample, seed and view alone."""

    shift_px: Annotated[int, Field(ge=0)] = 0
    """Images are padded and cropped: moved by up to this many pixels each way."""
    flip: bool = False
    """Half of the images are mirrored left to right."""
    mixup_alpha: NotNegative = 0.0
    """Images are blended with another one, by a share of a Beta(alpha, alpha) distribution; 0 leaves them."""
    cutmix_alpha: NotNegative = 0.0
    """A box of another image is pasted in. With mixup, each sample gets one of the two."""
    erase_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the images of which a box is erased."""
    views: Annotated[int, Field(ge=0)] = 0
    """Number of views of each sample, which the epochs take in turn; 0 for a new one in every epoch."""


class Data(Record):
    source: str
    options: dict[str, Any] = {}
    train_samples: Count | None = None
    """Learn from so many of the training samples alone, of each class its share."""
    calibration_samples: Count = 256
    split: Literal["test", "validation"] = "test"
    """What the rungs are evaluated on. `validation` is a part of the training set, then left out of it: for choosing
    options without a look at the test split."""
    validation_samples: Count = 300
    held_out_samples: Annotated[int, Field(ge=0)] = 0
    """Training samples that are set aside, on which each epoch is judged: for the best epoch and early stopping."""
    augment: Augment = Augment()


class Training(Record):
    epochs: Count
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


class Network(Record):
    """A student: what it is and how it learns."""

    model: str
    """Of the zoo by name, or `module.py:function`."""
    options: dict[str, Any] = {}
    training: Training


class Teacher(Record):
    """A teacher: where it comes from, and what it knows."""

    source: str = "zoo"
    model: str
    """Of the zoo by name, or `module.py:function`; of a hub by name or folder; an ONNX file by path."""
    options: dict[str, Any] = {}
    weights: str | None = None
    """A state_dict of the model: a .safetensors, .pth or .th file, seen from the recipe's folder."""
    new_head: bool = False
    """The last layer is replaced by one for the data's classes, which `training` then teaches it."""
    training: Training | None = None
    """How it is trained on the data, from random weights or the loaded ones; it is taken as it is without."""
    preprocessing: Preprocessing | None = None
    """Of its own inputs; the data's without."""
    classes: tuple[str, ...] = ()
    """Its own, in the order of its outputs; the data's without."""
    class_map: dict[str, str] = {}
    """From its own classes to the data's: those that are left out are not taught."""
    weight: Positive = 1.0
    """Of its answers among those of several teachers."""


OneOrSeveral = Annotated[
    Annotated[Teacher, Tag("<one>")] | Annotated[tuple[Teacher, ...], Field(min_length=1), Tag("<several>")],
    Discriminator(lambda value: "<several>" if isinstance(value, list | tuple) else "<one>"),
]
"""`[teacher]`, or several as `[[teacher]]`."""


class Schedule(Record):
    """From `start` to `end` in `epochs` epochs, and `end` from then on; a plain number stays what it is."""

    start: NotNegative
    end: NotNegative
    shape: Literal["linear", "cosine"] = "linear"
    epochs: Count = 1

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


class PruneSection(Prune):
    """With the trainings around it, both of the student under its teachers."""

    sparse: Sparse | None = None
    """Before pruning."""
    training: Training | None = None
    """After it; without one half of the student's epochs, at a fifth of its learning rate."""


class SparsifySection(Sparsify):
    """Of the student: when its weights become zero, and how it learns with the others, under its teachers."""

    begin_epoch: Annotated[int, Field(ge=0)] = 0
    """Of a gradual schedule: the last epoch before the first zeros."""
    end_epoch: Annotated[Count | None, Field(validate_default=True)] = None
    """The first epoch with all of them. Without it they are set at once, before the first epoch."""
    rewind_epoch: Count | None = None
    """All that is not zero goes back to what it was after that epoch of the student's training."""
    training: Training | None = None
    """Without one half of the student's epochs, at a fifth of its learning rate; after rewinding the student's own."""

    @field_validator("end_epoch")
    @classmethod
    def _gradual(cls, end: int | None, info: ValidationInfo) -> int | None:
        begin = info.data.get("begin_epoch", 0)
        if end is None and begin:
            raise PydanticCustomError("no_end", "given where begin_epoch is")
        if end is not None and end <= begin:
            raise PydanticCustomError("early_end", "after begin_epoch, {begin}", {"begin": begin})
        if end is not None and info.data.get("threshold") is not None:
            raise PydanticCustomError("gradual_threshold", "left out with a threshold: a schedule is of a sparsity")
        return end

    @field_validator("rewind_epoch")
    @classmethod
    def _at_once(cls, epoch: int | None, info: ValidationInfo) -> int | None:
        if epoch is not None and info.data.get("end_epoch") is not None:
            raise PydanticCustomError(
                "gradual_rewind", "left out where end_epoch is given: it is for zeros set at once"
            )
        return epoch


class FactoriseSection(Factorise):
    """Of the student, which then learns again under its teachers."""

    training: Training | None = None
    """Without one half of the student's epochs, at a fifth of its learning rate."""


class QuantizeSection(Quantize):
    """With the training of the rung whose training knows that it will be quantized."""

    aware: bool = False
    """The student's int8 file is trained further under its teachers, its rounding simulated."""
    all_rungs: bool = False
    """The sparse and the low-rank student and the last model of the spiral are slimmed and quantized too."""
    training: Training | None = None
    """Of that; without it a tenth of the student's epochs, at a tenth of its learning rate."""

    @field_validator("training")
    @classmethod
    def _in_float(cls, training: Training | None, info: ValidationInfo) -> Training | None:
        if training is not None and not info.data.get("aware"):
            raise PydanticCustomError("unused_training", "left out where aware is not true")
        if training is not None and training.precision != "fp32":
            raise PydanticCustomError("rounded_twice", "in fp32, in which the rounding to int8 is simulated")
        return training

    @property
    def static(self) -> Quantize:
        """What makes the int8 file without a training."""
        return Quantize(**self.model_dump(include=self.model_fields_set & Quantize.model_fields.keys()))

    def training_after(self, student: Training) -> Training:
        """That of the rung, after the student's own."""
        return self.training or Training(
            epochs=max(1, round(student.epochs * AWARE_SHARE)),
            learning_rate=student.learning_rate * AWARE_SHARE,
            **student.model_dump(include={"batch_size", "optimizer", "momentum", "weight_decay", "decay_norms"}),
            clip_norm=student.clip_norm,
        )


class SpiralSection(Spiral):
    """With its trainings, all by `distill`."""

    sparse: Sparse | None = None
    """Of each turn, before pruning."""
    training: Training | None = None
    """Of each turn, after pruning; without one a quarter of the student's epochs, at a fifth of its learning rate."""
    final: Training | None = None
    """Of the last accepted model, once more; without one there is no rung of it."""


AWARE_SHARE = 0.1
"""Of the student's epochs and learning rate: what a training with simulated rounding takes where nothing is said."""

ScenarioName = Literal["single_stream", "multi_stream", "server", "offline"]


class Bench(Record):
    backends: Annotated[tuple[str, ...], Field(min_length=1)] = ("cpu",)
    """Each as NAME[:PRECISION][@PYTHON]."""
    options: dict[str, dict[str, Any]] = {}
    """By the name of a backend: its precision, and what is passed on to its provider."""
    batches: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    threads: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    processes: Annotated[int, Field(ge=5)] = 5
    """Fresh processes for each cell, at least: the unit of replication."""
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Rounds of fresh processes go on until each ratio's interval reaches no further than this share to either side."""
    budget_s: Positive = 30.0
    """At which they end in any case, for all cells together; every cell gets at least one slice in each process."""
    affinity: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """CPUs that the workers are pinned to; empty for all that they may run on."""
    scenarios: tuple[ScenarioName, ...] = ()
    """Of MLPerf, by its loadgen, in the place of the latency of batches that follow each other."""
    bound_s: Positive = 0.01
    """What the server scenario's p99 has to stay under."""
    sessions: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    """Of a scenario: sessions that answer side by side in one process."""
    price_per_h: Positive | None = None
    """What an hour of the machine costs: it turns throughput into the cost of a million inferences."""
    currency: Annotated[str, Field(pattern=r"^(\p{Sc}|\p{L}{1,3})?$")] = ""
    """Of the price, as it is written in front of a number: a sign, or up to three letters."""
    reference: Annotated[str, Field(min_length=1)] | None = None
    """As RUNG[@BACKEND], `cpu` without: the fixed cell that every other one is compared with too, whatever it runs on.
    """


class Recipe(Versioned):
    name: Name
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    """Training threads. Weights are bit-identical for equal seed, threads and versions."""
    data: Data
    teacher: OneOrSeveral
    student: Network
    distill: Distill
    methods: dict[Name, Distill] = {}
    """Other ways to distil the same student, by name: `kdbench distill --seeds` compares them with `distill`."""
    prune: PruneSection | None = None
    """Pruning of the student, which then learns again; without it there is no rung of it."""
    sparsify: SparsifySection | None = None
    """Unstructured pruning of the student; without it there is no rung of it."""
    factorise: FactoriseSection | None = None
    """Low rank, likewise."""
    spiral: SpiralSection | None = None
    """Of `kdbench spiral` alone."""
    quantize: QuantizeSection = QuantizeSection()
    bench: Bench = Bench()
    _folder: Path = PrivateAttr(default=Path())

    @field_validator("methods")
    @classmethod
    def _names(cls, methods: dict[str, Distill]) -> dict[str, Distill]:
        """Other rows of the comparison, and files of the run folder, have these names."""
        for name in methods:
            if name in ("alone", "distilled") or name.startswith("teacher") or name.endswith(("-best", "-last")):
                raise PydanticCustomError("taken_name", f"without the name '{name}', which means something else")
        return methods

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Of their rungs."""
        several = isinstance(self.teacher, tuple) and len(self.teacher) > 1
        return tuple(f"teacher-{number}" for number in range(1, len(self.teachers) + 1)) if several else ("teacher",)

    @property
    def teacher_fields(self) -> tuple[str, ...]:
        """As overrides and messages name them: counted from 1, as their rungs are."""
        several = isinstance(self.teacher, tuple)
        return tuple(f"teacher.{number}" for number in range(1, len(self.teachers) + 1)) if several else ("teacher",)

    @property
    def folder(self) -> Path:
        """Where the recipe's file lies: not part of the record, which is the same wherever that is."""
        return self._folder

    def placed(self, folder: Path) -> "Recipe":
        placed = self.model_copy()
        placed._folder = folder
        return placed


def recipe_from_toml(text: str, where: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A recipe with `overrides` (dotted field → TOML value, or plain text) laid over it.

    Several sections of one name are told apart by their number, from 1: `teacher.2.weight`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None
    for field, value in (overrides or {}).items():
        *sections, key = field.split(".")
        target: Any = data
        for section in sections:
            if isinstance(target, list) and any(isinstance(entry, dict) for entry in target):
                if not section.isdecimal() or not 1 <= int(section) <= len(target):
                    count = len(target)
                    raise UserError(f"--set {field}: there are {count}: name one by its number, 1 to {count}")
                target = target[int(section) - 1]
            else:
                target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UserError(f"--set {field}: '{'.'.join(sections)}' is a value, not a section")
        target[key] = toml_value(value)
    return parse(Recipe, data, where)


def toml_value(text: str) -> Any:
    """What is written behind a `=`: a TOML value, or plain text where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
