"""Which of several files of one model is the fastest on a backend: timed in turns, with the proofs of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from kdbench.records import Bench, BenchSettings, Measurement, parse
from kdbench.report.claims import kernels, proven
from kdbench.report.doubts import disturbances_of, doubts_of
from kdbench.report.flags import noisy
from kdbench.report.rows import Row
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
    doubts: tuple[str, ...] = ()
    """What speaks against its times or those of the first, as `kdbench bench` says it: noise, drift, neighbours."""


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
        raise UserError(f"{baseline.rung} on {cells[0].backend.label}: {by_rung[baseline.rung].error}")
    paired = {theirs.cell.subject.artifact.rung: common_rounds(ours, theirs) for ours, theirs in schedule.pairs()}
    around = [said for one in disturbances_of(schedule.settings, records, arrays).values() for said in one]
    first = [f"{baseline.rung}: {said}" for said in _doubts(by_rung[baseline.rung], arrays, schedule.settings, None)]
    found = {}
    for subject in subjects[1:]:
        rung, record = subject.artifact.rung, by_rung[subject.artifact.rung]
        pair = paired.get(rung)
        ratio = stats.speedup(*pair, stats.STOPPED_LEVEL) if pair else None
        own = _proven(subject, cells[0].backend, place, record, arrays, ratio)
        doubts = (*_doubts(record, arrays, schedule.settings, pair), *first, *around)
        found[rung] = own if record.error else replace(own, doubts=doubts)
    return found


def _doubts(
    record: Measurement,
    arrays: Arrays,
    settings: BenchSettings,
    pair: tuple[Sequence[float], Sequence[float]] | None,
) -> list[str]:
    """Of a file by itself; with the medians of the rounds that it shares with the first one, of their ratio too."""
    if record.error is not None or record.raw is None:
        return []
    latencies, rounds = arrays[f"latencies.{record.raw}"], arrays[f"rounds.{record.raw}"]
    ratio = stats.speedup(*pair, stats.STOPPED_LEVEL) if pair else None
    row = Row(record.rung, None, record.backend, record.precision, record.batch, record.threads)
    if pair and ratio:
        row = replace(
            row,
            speedup=ratio.value,
            speedup_low=ratio.low,
            speedup_high=ratio.high,
            smallest_difference=stats.smallest_difference(*pair, stats.STOPPED_LEVEL),
        )
    vary = noisy(record, stats.process_medians(latencies, rounds))
    return [*filter(None, [vary]), *doubts_of(settings, row, record, stats.outliers(latencies, rounds))]


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
