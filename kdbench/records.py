"""The data that flows: frozen, validated on reading, versioned. TOML and JSON in, JSON out."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from kdbench.errors import UserError, nearest

SCHEMA = 1
"""Version of every file format below. History: 1, the first."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Task = Literal["classification", "multi_label"]
"""Of several classes one holds for a sample, or any number of them."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


def slug(text: str) -> str:
    """`text` as a Name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="strings")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


R = TypeVar("R", bound=Record)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Versioned(Record):
    schema_version: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA


# --- recipe -----------------------------------------------------------------------------------------------------------


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
    calibration_samples: Count = 256
    split: Literal["test", "validation"] = "test"
    """What the rungs are evaluated on. `validation` is a part of the training set, then left out of it: for choosing
    options without a look at the test split."""
    validation_samples: Count = 300
    augment: Augment = Augment()


class Training(Record):
    epochs: Count
    learning_rate: Positive
    batch_size: Annotated[int, Field(ge=2)] = 64
    """At least two: batch norm learns nothing from a single sample."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in which the learning rate rises linearly; after it, it falls along a cosine."""


class Network(Record):
    model: str
    options: dict[str, Any] = {}
    training: Training


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
    losses: Annotated[dict[str, Loss], Field(min_length=1)]
    """By name, or as `module.py:function`: a table of options, or the weight alone."""
    temperature: Positive = 4.0
    """Of every loss that has one and names no other."""
    start_from: dict[str, str] = {}
    """Submodules of the student that start with the weights of one of the teacher's, of the same shapes."""


class Quantize(Record):
    """Static int8, weights always signed and symmetric; the defaults are the fastest on x86 CPUs."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    operators: tuple[str, ...] = ()
    """Operators to quantize, such as Conv and MatMul; all that onnxruntime can where none is named."""


class Bench(Record):
    backends: Annotated[tuple[str, ...], Field(min_length=1)] = ("cpu",)
    batches: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    threads: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    processes: Annotated[int, Field(ge=5)] = 5
    """Fresh processes for each cell: the unit of replication."""
    budget_s: Positive = 30.0
    """Time for all cells together; every cell gets at least one slice in each process."""


class Recipe(Versioned):
    name: Name
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    """Training threads. Weights are bit-identical for equal seed, threads and versions."""
    data: Data
    teacher: Network
    student: Network
    distill: Distill
    quantize: Quantize = Quantize()
    bench: Bench = Bench()
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where the recipe's file lies: not part of the record, which is the same wherever that is."""
        return self._folder

    def placed(self, folder: Path) -> "Recipe":
        placed = self.model_copy()
        placed._folder = folder
        return placed


# --- artifacts --------------------------------------------------------------------------------------------------------


class Preprocessing(Record):
    """`(x * scale - mean) / std`, with one mean and std for each channel (axis 1), or for all."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)


class TensorSpec(Record):
    name: str
    dtype: str
    """numpy's name of the element type."""
    shape: tuple[int | str | None, ...]
    """A fixed size, the name of a symbolic dimension, or None where the file names neither."""


class Artifact(Versioned):
    """An ONNX file: what is in it and where it comes from."""

    rung: str
    file: str
    sha256: str
    size_bytes: int
    parameters: int
    macs: int | None
    """Multiply-accumulates of one sample in convolutions, matrix products and recurrent nodes; None where a shape isn't
    known."""
    precision: Literal["fp32", "fp16", "int8"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    operators: dict[str, int]
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    parent: str | None = None
    parent_sha256: str | None = None
    step: str | None = None
    options: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    warnings: tuple[str, ...] = ()
    """Said beside every number of this artifact."""
    fingerprint: str | None = None
    """Of everything that the step started from: equal fingerprints mean that a resumed run may keep the file."""


# --- results ----------------------------------------------------------------------------------------------------------


class Machine(Record):
    name: Name
    cpu: str
    features: tuple[str, ...]
    cores_physical: int | None
    cores_logical: int
    governor: str | None
    memory_bytes: int
    os: str
    python: str
    versions: dict[str, str]
    """Of everything that computes."""


class Process(Record):
    """One fresh worker process: what it cost before it was warm."""

    round: int
    load_s: float
    first_run_s: float | None = None
    """Of the batch that this process ran first; None for its later ones, which find it warm."""
    peak_memory_bytes: int | None = None
    """After load and first run, likewise."""


class Measurement(Record):
    """A cell: artifact × backend × threads × batch. Its latencies are the raw array `latencies/<raw>`."""

    rung: str
    artifact_sha256: str
    backend: str
    provider_options: dict[str, str] = {}
    precision: str
    batch: Count
    threads: Count
    processes: tuple[Process, ...] = ()
    raw: str | None = None
    error: str | None = None


class Evaluation(Record):
    """Answers of one artifact through one backend, with the options that are timed: raw array `predictions/<raw>`."""

    rung: str
    artifact_sha256: str
    backend: str
    threads: Count
    batch: Count
    placement: dict[str, dict[str, int]] = {}
    """Nodes by execution provider and operator, before the provider fuses them."""
    optimized_operators: dict[str, int] = {}
    """Operators of the graph that runs, where the runtime tells."""
    raw: str | None = None
    error: str | None = None


class RawFile(Record):
    file: str
    sha256: str


class BenchSettings(Record):
    seed: int
    processes: int
    budget_s: float
    slice_s: float
    slice_runs: int
    """A slice ends after `slice_s` or `slice_runs`, whichever comes first: the cap on raw values."""


class ResultFile(Versioned):
    kdbench: str
    date: str
    """UTC, ISO 8601."""
    name: Name
    complete: bool
    machine: Machine
    recipe: Recipe | None = None
    baseline: str
    settings: BenchSettings
    inputs: Literal["data", "generated"]
    inputs_sha256: str | None = None
    """Of the pack."""
    artifacts: tuple[Artifact, ...]
    evaluations: tuple[Evaluation, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    raw: RawFile


# --- reading ----------------------------------------------------------------------------------------------------------


def parse(kind: type[R], data: Mapping[str, Any], where: str) -> R:
    """`data` as a record of `kind`; raises UserError naming `where` and the first field that is wrong."""
    version = data.get("schema", SCHEMA)
    if issubclass(kind, Versioned) and isinstance(version, int) and version > SCHEMA:
        raise UserError(
            f"{where}: written by a newer kdbench (schema {version}, this one reads up to {SCHEMA}): upgrade"
        )
    try:
        return kind.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what helps.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(f"{where}: {_described(kind, problems[0])}") from None


def from_json(kind: type[R], text: str, where: str) -> R:
    """A JSON document as a record; raises UserError naming `where` for one that is cut off or does not fit."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error}); was it cut off? make it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: not a kdbench file: expected a JSON object")
    return parse(kind, data, where)


def recipe_from_toml(text: str, where: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A recipe with `overrides` (dotted field → TOML value, or plain text) laid over it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None
    for field, value in (overrides or {}).items():
        *sections, key = field.split(".")
        target: Any = data
        for section in sections:
            target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UserError(f"--set {field}: '{'.'.join(sections)}' is a value, not a section")
        target[key] = _toml_value(value)
    return parse(Recipe, data, where)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_text(path: Path) -> str:
    """The file's text; raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None


def _described(kind: type[BaseModel], error: ErrorDetails) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "file"
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key '{field}': {nearest(str(error['loc'][-1]), _keys(kind, error['loc'][:-1]))}"
        case "missing":
            return f"'{field}' is missing: add it"
        case _:
            reason = error["msg"].removeprefix("Input ").removeprefix("should be ")
            return f"'{field}' should be {reason}, not {json.dumps(error['input'], default=str)[:60]}"


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The known keys of the section at `path` below `kind`."""
    for part in path:
        field = next((f for name, f in kind.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            continue  # an index into a list of records
        choices = [field.annotation, *get_args(field.annotation)]
        kind = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), kind)
    return [field.alias or name for name, field in kind.model_fields.items()]
