"""Which of several files of one model is the fastest on a backend: timed in turns, with the proofs of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench import stats
from kdbench.backends import Target
from kdbench.benchmark.cells import Subject, inputs, plan
from kdbench.benchmark.raw import common_rounds
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.data.generated import batch_size
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.progress import Progress, silent
from kdbench.records import Bench, Measurement, parse
from kdbench.report.claims import kernels, proven
from kdbench.stats import Interval
from kdbench.store import Arrays


@dataclass(frozen=True)
class Place:
    """Where and how files are timed."""

    backend: str
    """As it was asked for."""
    options: Mapping[str, Mapping[str, Any]]
    """Of backends, by name."""
    threads: int = 1
    batch: int = 1
    budget_s: float = 30.0
    """For all files together."""
    seed: int = 0


@dataclass(frozen=True)
class Raced:
    """How a file did against the first one."""

    speedup: Interval | None
    int8_kernels: float | None
    """Of the convolutions and matrix products that run, those in int8; None where the backend doesn't tell."""
    broken_claims: tuple[str, ...]
    error: str | None


def raced(subjects: Sequence[Subject], place: Place, pack: EvalPack, progress: Progress = silent) -> dict[str, Raced]:
    """Each subject but the first, by rung, against the first: on the pack's evaluation samples.

    Raises UserError where the first can't be timed.
    """
    baseline = subjects[0].artifact
    asked = {
        "backends": [place.backend],
        "options": {name: dict(options) for name, options in place.options.items()},
        "threads": [place.threads],
        "batches": [batch_size(baseline.inputs) or place.batch],
        "budget_s": place.budget_s,
    }
    options = parse(Bench, asked, "bench")
    cells = plan(subjects, options, pack=pack)
    feeds = {cell.subject.artifact.rung: inputs(cell, pack) for cell in cells if not cell.error}
    schedule = Schedule(
        cells,
        settings_of(options, place.seed),
        lambda cell: feeds[cell.subject.artifact.rung],
        baseline=baseline.rung,
    )
    for _ in schedule.rounds(progress):
        pass
    records, arrays = schedule.records()
    by_rung = {record.rung: record for record in records}
    if by_rung[baseline.rung].error:
        raise UserError(f"{baseline.rung} on {place.backend}: {by_rung[baseline.rung].error}")
    ratios = {
        theirs.cell.subject.artifact.rung: stats.speedup(*common_rounds(ours, theirs), stats.STOPPED_LEVEL)
        for ours, theirs in schedule.pairs()
    }
    return {
        rung: _proven(subject, cells[0].backend, place, by_rung[rung], arrays, ratios.get(rung))
        for subject in subjects[1:]
        for rung in [subject.artifact.rung]
    }


def _proven(
    subject: Subject,
    backend: Target,
    place: Place,
    record: Measurement,
    arrays: Arrays,
    speedup: Interval | None,
) -> Raced:
    if record.error:
        return Raced(None, None, (), record.error)
    evaluation, _ = judge(subject.artifact, subject.model, None, record.batch, backend, place.threads)
    int8, floating, _ = kernels(evaluation)
    claims = proven(subject.artifact, record, evaluation, arrays)["broken_claims"]
    return Raced(speedup, int8 / (int8 + floating) if int8 + floating else None, claims, evaluation.error)
