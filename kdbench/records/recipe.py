"""The recipe: TOML in, one record a section."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
)
from pydantic_core import PydanticCustomError

from kdbench.errors import UserError
from kdbench.records.artifacts import Preprocessing
from kdbench.records.base import Count, Name, NotNegative, Positive, Record, Versioned, parse
from kdbench.records.learning import Distill, Training
from kdbench.records.sections import FactoriseSection, PruneSection, QuantizeSection, SparsifySection, SpiralSection


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
    """What is learnt and judged on."""

    source: str
    """A kind of data source; see README, "Your own data"."""
    options: dict[str, Any] = {}
    """Of the source."""
    train_samples: Count | None = None
    """Learn from so many of the training samples alone, of each class its share."""
    calibration_samples: Count = 256
    """Training samples that go into the pack: static int8 is calibrated and judged on them."""
    split: Literal["test", "validation"] = "test"
    """What the rungs are evaluated on. `validation` is a part of the training set, then left out of it: for choosing
    options without a look at the test split."""
    validation_samples: Count = 300
    """How many that part has."""
    held_out_samples: Annotated[int, Field(ge=0)] = 0
    """Training samples that are set aside, on which each epoch is judged: for the best epoch and early stopping."""
    augment: Augment = Augment()
    """Of images."""


class Network(Record):
    """A student: what it is and how it learns."""

    model: str
    """Of the zoo by name, or `module.py:function`."""
    options: dict[str, Any] = {}
    """Of the model: arguments of its function."""
    training: Training
    """Under its teachers, and alone for `student-alone`."""


class Teacher(Record):
    """A teacher: where it comes from, and what it knows."""

    source: str = "zoo"
    """Where models of that name come from: see docs/teachers.md."""
    model: str
    """Of the zoo by name, or `module.py:function`; of a hub by name or folder; an ONNX file by path."""
    options: dict[str, Any] = {}
    """Of the model, as its source takes them."""
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


ScenarioName = Literal["single_stream", "multi_stream", "server", "offline"]


class Bench(Record):
    """What is measured, and how long."""

    backends: Annotated[tuple[str, ...], Field(min_length=1)] = ("cpu",)
    """Each as NAME[:PRECISION][@PYTHON]."""
    options: dict[str, dict[str, Any]] = {}
    """By the name of a backend: its precision, and what is passed on to its provider."""
    batches: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    """Numbers of samples a call: a cell for each, as for each of `threads`."""
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
    """Of the run folder and of published results: small letters, digits, - and _."""
    description: str = ""
    """In one line, for `kdbench zoo`."""
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    """Training threads. Weights are bit-identical for equal seed, threads and versions."""
    data: Data
    """What is learnt."""
    teacher: OneOrSeveral
    """Who teaches; `[[teacher]]` for several."""
    student: Network
    """Who learns."""
    distill: Distill
    """How it is taught."""
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
    """Of the int8 rungs."""
    bench: Bench = Bench()
    """Of the measurement."""
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
