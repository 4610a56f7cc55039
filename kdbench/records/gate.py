"""What a gate says: two models or two measurements, compared against bounds."""

from typing import Literal

from kdbench.records.base import Count, Record, Versioned
from kdbench.records.results import Machine

Outcome = Literal["within", "beyond", "can't tell"]
"""The whole interval keeps the bound; the whole interval breaks it; it holds the bound itself."""

Quantity = Literal["speed", "accuracy", "F1", "agreement", "size"]


class Check(Record):
    """One quantity of one cell, old and new. A change is one from old to new; shares are plain: 0.05 for 5 %."""

    quantity: Quantity
    rung: str = ""
    """Empty where two models are compared."""
    backend: str = ""
    threads: Count | None = None
    batch: Count | None = None
    """None of an accuracy, which all batches share."""
    dims: str = ""
    """Sizes of symbolic dimensions, such as `height=32 width=32`."""
    old: float | None = None
    """Of speed the median latency in seconds; of accuracy and F1 a share; of size bytes."""
    new: float | None = None
    change: float | None = None
    """Of speed and size by what share the new one is slower or larger; of accuracy and F1 new minus old."""
    low: float | None = None
    """Limits of the change's 95 % interval, however often the gate has looked; a size has none."""
    high: float | None = None
    bound: float
    """The largest change that is allowed; of accuracy and F1 the lowest, below zero."""
    outcome: Outcome
    seen: int | None = None
    """Rounds of processes, or samples, behind the interval: of two files on the side that has fewer."""
    settle: str = ""
    """What would settle it, where it can't be told."""
    notes: tuple[str, ...] = ()
    """What should be known of it: flags of both cells among them."""


class Gate(Versioned):
    """A verdict, and all that it rests on."""

    kdbench: str
    date: str
    """UTC, ISO 8601."""
    old: str
    new: str
    passed: bool
    strict: bool = False
    """Whether what can't be told, or is missing in NEW, makes it fail."""
    checks: tuple[Check, ...] = ()
    failures: tuple[str, ...] = ()
    """What NEW no longer does: a cell that fails, a claim that does not hold, and OLD's did."""
    missing: tuple[str, ...] = ()
    """Cells that only OLD has."""
    notes: tuple[str, ...] = ()
    """What should be known of the whole comparison."""
    machine: Machine

    @property
    def beyond(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "beyond")

    @property
    def open(self) -> tuple[Check, ...]:
        """Those that can't be told."""
        return tuple(check for check in self.checks if check.outcome == "can't tell")
