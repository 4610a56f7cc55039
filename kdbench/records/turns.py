"""The turns of a spiral: the journal that it goes on from, and what its table says."""

from typing import Literal

from kdbench.records.base import Record, Versioned
from kdbench.records.budget import Estimate

Refusal = Literal["accuracy", "unreachable", "repeated", "nothing"]
"""Below the floor; no such pruning; the same as was refused before; MACs or parameters did not fall."""

Limit = Literal["target", "accuracy", "step", "nothing", "turns"]
"""What ended a spiral: the target was reached; the accuracy floor, a step that became too small, or a pruning that
removed nothing stopped it; or it had all of its turns."""


class TurnRecord(Record):
    """A turn: what was asked for, and what came of it."""

    number: int
    """From 1; its rung is `spiral-NUMBER`."""
    parent: int
    """Number of the turn whose model was pruned; 0 for the first model."""
    step: float
    """Share that a turn takes away, halved with each refusal."""
    keep: float
    """Share of the parent's MACs or parameters that was asked for."""
    refusal: Refusal | None = None
    """Why it was not taken: below the floor, no such pruning, the same as was refused before, nothing fell; None for
    one that was taken."""
    said: str = ""
    """Of a refused one, in words."""
    share: float | None = None
    """Of the first model's target quantity, so much is left; None where that was not measured."""
    macs: int | None = None
    """Left; None where it came to no pruning."""
    parameters: int | None = None
    """Left, likewise."""
    size_bytes: int | None = None
    """Of the ONNX file; None where it came to none."""
    score: float | None = None
    """Accuracy or micro F1 on the held-out samples."""
    drop: Estimate | None = None
    """Below the first model's, as a share, paired by sample."""
    p: float | None = None
    """Of McNemar's exact test against the first model; None where a sample has several labels."""
    speedup: Estimate | None = None
    """Over the first model, on `[spiral] backend`; None where it was not timed."""
    doubts: tuple[str, ...] = ()
    """What speaks against that ratio: noise, drift, busy neighbours."""
    mark: str | None = None
    """Of what it was trained from: of one parent, equal ones need not be trained again."""
    onnx_sha256: str | None = None
    """Of the ONNX file; None where it came to none."""
    duration_s: float = 0.0
    """For this turn alone."""


class SpiralRecord(Versioned):
    """A spiral, as far as it has come."""

    fingerprint: str
    """Of everything that the first turn started from; a journal of another one is begun anew."""
    first: str
    """Rung of the first model."""
    metric: Literal["accuracy", "micro F1"]
    """Of the scores."""
    score: float
    """Of the first model, on the held-out samples."""
    samples: int
    """Held out."""
    target: str | None = None
    """What is to fall, to `goal`; None where only the accuracy ends it."""
    goal: float = 0.0
    """Share of the first model's, to be reached."""
    max_drop: float
    """In points."""
    macs: int | None
    """Of the first model, as the next two."""
    parameters: int
    size_bytes: int
    turns: tuple[TurnRecord, ...] = ()
    """In their order, refused ones too."""
    final: TurnRecord | None = None
    """The last training of the best one, without pruning; its number is 0."""
    limit: Limit | None = None
    """What ended it; None while it is under way."""
    best: str = ""
    """Rung of the model that it ended with."""
    remarks: tuple[str, ...] = ()
    """What ended it, and what the held-out samples can't tell."""
