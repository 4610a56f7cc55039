"""What an ONNX file says of itself: its `metadata_props` under `kdbench.`, one vocabulary for all that writes there.

Plain names stand there as they are, everything else as JSON. docs/results.md describes every key.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from kdbench.errors import UserError
from kdbench.records.artifacts import Preprocessing
from kdbench.records.base import Record, Task, parse

PREFIX = "kdbench."

IN_JSON = ("classes", "preprocessing", "lineage", "metrics")
"""Fields that are no plain text."""

MOST_SIGNS = 2**24
"""Of one value: a stranger's file could hold any amount."""


class Origin(Record):
    """A file on the way to this one."""

    rung: str
    step: str | None = None
    sha256: str


class Measured(Record):
    """How good answers were, and where that was seen."""

    metric: Literal["accuracy", "f1_micro", "f1_macro"]
    value: float
    low: float | None = None
    """Limits of the 95 % interval over samples, where there is one."""
    high: float | None = None
    samples: int
    backend: str
    threads: int
    machine: str
    cpu: str
    date: str
    """The day."""


class Embedded(Record):
    """What stands in a file. Nothing of it is a path."""

    version: str
    """Of kdbench."""
    task: Task
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    """What samples go through before they are given to the file."""
    probabilities: str | None = None
    """The output that holds them, of a bundled file."""
    step: str | None = None
    """That wrote this file: `card` or `bundle`."""
    parent: str | None = None
    parent_sha256: str | None = None
    lineage: tuple[Origin, ...] = ()
    """What this file was made from, its parent first."""
    recipe: str | None = None
    recipe_sha256: str | None = None
    metrics: tuple[Measured, ...] = ()
    """Of this file, or of that with the same weights and outputs which it was made from."""
    license: str | None = None

    def to_props(self) -> dict[str, str]:
        """Keys and values of `metadata_props`, in a fixed order; what isn't known is left out."""
        plain = self.model_dump(mode="json", exclude_none=True)
        return {
            f"{PREFIX}{name}": json.dumps(value, ensure_ascii=False) if name in IN_JSON else value
            for name, value in sorted(plain.items())
            if value != []
        }


def embedded_in(props: Mapping[str, str]) -> Embedded | None:
    """What `metadata_props` say; None where nothing of ours is in them, or what doesn't fit: a stranger's may hold
    anything. Keys of a newer kdbench are passed over."""
    data: dict[str, Any] = {}
    for name in Embedded.model_fields:
        value = props.get(f"{PREFIX}{name}")
        if value is None:
            continue
        if len(value) > MOST_SIGNS:
            return None
        try:
            data[name] = json.loads(value) if name in IN_JSON else value
        except (ValueError, RecursionError):
            return None
    if not data:
        return None
    try:
        return parse(Embedded, data, "metadata")
    except UserError:
        return None
