"""What every record is: frozen, validated on reading, versioned; read from plain data and JSON."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from kdbench.errors import UserError, nearest

SCHEMA = 1
"""Version of every file format but that of results (`RESULTS_SCHEMA`). History: 1, the first."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Task = Literal["classification", "multi_label"]
"""Of several classes one holds for a sample, or any number of them."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


ABSOLUTE = re.compile(r"(file:)?[/~\\]|[A-Za-z]:[/\\]")
"""How a path begins that means something on one machine alone."""

FOLDERS = re.compile(r"""(?<![\w.:/~“])(?:file:)?~?/(?:[^\s/:'"]+/)+""")
"""Of such a path in the middle of a text. Names inside an ONNX file stand there in “ and ”: errors put ' or " around a
path."""

SPOKEN = (
    "class_map",
    "classes",
    "description",
    "dims",
    "exclude",
    "inputs",
    "keep",
    "left_in_float",
    "nodes",
    "outputs",
    "probabilities",
)
"""Fields of words, and of names inside an ONNX file, which are no paths whatever they begin with."""
SAID = ("doubts", "error", "reasons", "remarks", "said", "warnings")
"""Fields of sentences, which may have paths in them."""


def slug(text: str) -> str:
    """`text` as a Name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="strings")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    @classmethod
    def check_seal(cls, data: Mapping[str, Any], where: str) -> None:
        """Raises UserError where the content of a file is not what was sealed; most kinds have no seal."""


R = TypeVar("R", bound=Record)


class Versioned(Record):
    schema_version: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    """Of the format."""


def parse(kind: type[R], data: Mapping[str, Any], where: str) -> R:
    """`data` as a record of `kind`; raises UserError naming `where` and the first field that is wrong."""
    check_version(kind, data, where)
    try:
        return kind.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what helps.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(f"{where}: {_described(kind, problem)}") from None


def as_record(kind: type[R], given: R | Mapping[str, Any], where: str) -> R:
    """A record of `kind` as it is, and plain data as `parse` has it."""
    return given if isinstance(given, Record) else parse(kind, given, where)


def check_version(kind: type[R], data: Mapping[str, Any], where: str) -> None:
    """Raises UserError for data in a schema that came after this kdbench."""
    if not issubclass(kind, Versioned):
        return
    newest, version = kind.model_fields["schema_version"].default, data.get("schema")
    if isinstance(version, int) and version > newest:
        by = f", {str(data['kdbench'])[:20]}" if "kdbench" in data else ""
        raise UserError(
            f"{where}: written by a newer kdbench{by} (schema {version}, this one reads up to {newest}): upgrade"
        )


def from_json(kind: type[R], text: str, where: str) -> R:
    """A JSON document as a record; raises UserError naming `where` for one that is cut off or does not fit."""
    data = json_object(text, where)
    check_version(kind, data, where)
    kind.check_seal(data, where)
    return parse(kind, data, where)


def json_object(text: str, where: str) -> dict[str, Any]:
    """What a JSON document holds; raises UserError naming `where` for one that is cut off or no object."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); was it cut off? make it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: not a kdbench file: expected a JSON object")
    return data


def placeless(kind: type[R], record: R) -> R:
    """The record with absolute paths cut to their last part: what lies before it tells of a machine and its user."""

    def cut(value: Any, sentence: bool = False) -> Any:
        if isinstance(value, dict):
            return {cut(key): inner if key in SPOKEN else cut(inner, key in SAID) for key, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner, sentence) for inner in value]
        if not isinstance(value, str):
            return value
        if ABSOLUTE.match(value) and not sentence:
            return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        return FOLDERS.sub("", value)

    return parse(kind, cut(record.model_dump(mode="json", by_alias=True)), "record")


def read_text(path: Path) -> str:
    """The file's text; raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None


def _written(location: tuple[int | str, ...]) -> str:
    """A field as it stands in the file: without the tags that tell one table from several, entries counted from 1."""
    parts = [str(part + 1 if isinstance(part, int) else part) for part in location if not str(part).startswith("<")]
    return ".".join(parts) or "file"


def _described(kind: type[BaseModel], error: ErrorDetails) -> str:
    field = _written(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key '{field}': {nearest(str(error['loc'][-1]), _keys(kind, error['loc'][:-1]))}"
        case "missing":
            return f"'{field}' is missing: add it"
        case _:
            reason = error["msg"].removeprefix("Input ").removeprefix("should be ")
            told = "" if _of_section(error) else f", not {json.dumps(error['input'], default=str)[:60]}"
            named = f"'{field}' " if error["loc"] else ""
            return f"{named}should be {reason}{told}"


def _of_section(error: ErrorDetails) -> bool:
    """Whether a section's own rule is broken, by its fields together."""
    return isinstance(error["input"], Mapping) and not error["type"].endswith("_type")


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The known keys of the section at `path` below `kind`."""
    for part in path:
        field = next((f for name, f in kind.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            continue  # an index into a list of records
        kind = next(_records(field.annotation), kind)
    return [field.alias or name for name, field in kind.model_fields.items()]


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """The kinds of record within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)
