"""What has been measured of a cell so far, and how it becomes a measurement and raw arrays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.client import SLICE_FACTS
from kdbench.benchmark.cells import Cell
from kdbench.records import Measurement, Process
from kdbench.store import Arrays

FACTS = ("start_s", "package_j", *SLICE_FACTS)
"""Of each slice: when it began, in seconds after the measurement, the energy of the CPU's packages in joules, and what
the worker said."""


@dataclass
class Raw:
    """Everything of one cell. The three lists on slices are of equal length."""

    cell: Cell
    error: str | None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the worker's interpreter, numpy and runtime."""
    processes: list[Process] = field(default_factory=list)
    medians: dict[int, float] = field(default_factory=dict)
    """Of the rounds that are over."""
    latencies: list[NDArray[np.float32]] = field(default_factory=list)
    slices: list[tuple[int, int]] = field(default_factory=list)
    """Round and number of each slice."""
    facts: list[Mapping[str, float | None]] = field(default_factory=list)
    """`FACTS` of each slice; a fact is None, or missing, where it can't be told."""
    under_way: int = 0
    """Slices of the round that is not over yet."""
    sums: tuple[float, float] = (0.0, 0.0)
    """Of their medians, and of the squares of these."""

    def add(
        self, number: int, slice_number: int, latencies: NDArray[np.float32], facts: Mapping[str, float | None]
    ) -> None:
        """A slice of round `number`."""
        self.latencies.append(latencies)
        self.slices.append((number, slice_number))
        self.facts.append(facts)
        median = float(np.median(latencies))
        self.under_way += 1
        self.sums = self.sums[0] + median, self.sums[1] + median**2

    def uncertainty(self) -> float:
        """The standard error of the median of the round under way, as a share of it, by the spread of its slices'.

        Infinite for fewer than three slices.
        """
        if self.under_way < 3:
            return math.inf
        mean = self.sums[0] / self.under_way
        variance = max(0.0, self.sums[1] / self.under_way - mean**2) / (self.under_way - 1)
        return math.sqrt(variance) / mean

    def end_round(self, number: int, throttled_s: float | None) -> None:
        """Tells the round's median, and writes down for how long the container's quota stopped the round."""
        if self.under_way:
            self.medians[number] = float(np.median(np.concatenate(self.latencies[-self.under_way :])))
        self.under_way, self.sums = 0, (0.0, 0.0)
        if throttled_s is not None and self.processes and self.processes[-1].round == number:
            self.processes[-1] = self.processes[-1].model_copy(update={"throttled_s": throttled_s})

    def measurement(self, raw: str) -> Measurement:
        """The cell's record, its raw arrays named by `raw` where it has any."""
        artifact = self.cell.subject.artifact
        return Measurement(
            rung=artifact.rung,
            artifact_sha256=artifact.sha256,
            backend=self.cell.backend.label,
            provider_options=self.cell.backend.options(self.cell.threads),
            versions=self.versions,
            precision=artifact.precision,
            batch=self.cell.batch,
            threads=self.cell.threads,
            dims=dict(self.cell.dims),
            processes=tuple(self.processes),
            raw=raw if self.latencies else None,
            error=self.error,
        )

    def arrays(self, raw: str) -> Arrays:
        """Latencies [runs] in seconds with each one's round and slice, and the facts [slices] that can be told."""
        if not self.latencies:
            return {}
        lengths = [len(latencies) for latencies in self.latencies]
        rounds, numbers = zip(*self.slices, strict=True)
        arrays: Arrays = {
            f"latencies.{raw}": np.concatenate(self.latencies),
            f"rounds.{raw}": np.repeat(np.asarray(rounds, dtype=np.uint16), lengths),
            f"slices.{raw}": np.repeat(np.asarray(numbers, dtype=np.uint32), lengths),
        }
        for name in FACTS:
            values = np.asarray([_number(facts.get(name)) for facts in self.facts], dtype=np.float32)
            if not np.isnan(values).all():
                arrays[f"{name}.{raw}"] = values
        return arrays


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def common_rounds(ours: Raw, theirs: Raw) -> tuple[Sequence[float], Sequence[float]]:
    """The medians of the rounds that both have, in seconds, paired by round."""
    rounds = sorted(ours.medians.keys() & theirs.medians.keys())
    return [ours.medians[r] for r in rounds], [theirs.medians[r] for r in rounds]
