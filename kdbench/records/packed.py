"""A run in one file, for a machine that only measures."""

from typing import Annotated

from pydantic import Field

from kdbench.records.base import Name, Record, Versioned
from kdbench.records.recipe import Bench, Recipe
from kdbench.records.turns import SpiralRecord


class PackedFile(Record):
    name: str
    """Seen from the folder that the run is unpacked into."""
    sha256: str
    size_bytes: Annotated[int, Field(ge=0)]


class PackedRun(Versioned):
    """What lies in a packed run, and how it is to be measured."""

    kdbench: str
    name: Name
    plan: Bench
    baseline: str
    recipe: Recipe | None = None
    """Of the run, where it is known; without folders of the machine that packed it."""
    spiral: SpiralRecord | None = None
    """The journal of the spiral that made the rungs, likewise."""
    files: tuple[PackedFile, ...]
