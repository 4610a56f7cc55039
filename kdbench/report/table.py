"""The table model: one row a cell, computed from raw values on reading."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.records import Artifact, BenchSettings, Measurement, ResultFile, ScenarioMeasurement
from kdbench.report.claims import proven
from kdbench.report.costs import costs, optimize_s
from kdbench.report.doubts import disturbances, doubts
from kdbench.report.flags import beside_static, flags
from kdbench.report.rows import Metric, Row
from kdbench.report.scenarios import ScenarioRow, scenario_rows
from kdbench.stats import Interval
from kdbench.store import PARTIAL_FILE, RESULTS_FILE, RETURNED, Arrays, find_results, load_result, refuse_twice

AnyRow = TypeVar("AnyRow", Row, ScenarioRow)

Answers = Mapping[tuple[str, str, int], NDArray[Any]]
"""Predictions, classes [N] or 0 and 1 [N, C], by rung, backend and threads."""


JUDGED = (
    "accuracy", "accuracy_diff", "accuracy_diff_low", "accuracy_diff_high", "f1_micro", "f1_macro", "f1_micro_diff",
    "f1_micro_diff_low", "f1_micro_diff_high", "agreement", "teacher_agreement", "parent_diff", "parent_diff_low",
    "parent_diff_high",
)  # fmt: skip
"""Fields of a row that answers tell."""


@dataclass(frozen=True)
class Ladder:
    """A result file as rows, and what the rows can't hold."""

    result: ResultFile
    rows: tuple[Row, ...]
    metric: Metric
    mcnemar: dict[tuple[str, str, int], float]
    """p-value of each rung against the baseline, by rung, backend and threads."""
    scenarios: tuple[ScenarioRow, ...] = ()
    """In the place of rows, where scenarios were measured."""
    arrays: Arrays = field(default_factory=dict, repr=False, compare=False)
    """The raw values that all of this was computed from."""
    source: str = ""
    """What tells its file from others of the same machine."""


def load_ladders(paths: Iterable[Path]) -> list[Ladder]:
    """Every result file below the given files and folders; ratios are formed within a file only.

    Raises UserError where two of them hold the same run.
    """
    found = [(file, *load_result(file)) for path in paths for file in find_results(path)]
    refuse_twice((file, result.raw.sha256) for file, result, _ in found)
    names = _names_of([file for file, _, _ in found], [result.machine.name for _, result, _ in found])
    return [ladder(result, arrays, name) for name, (_, result, arrays) in zip(names, found, strict=True)]


def rows_of(ladders: Sequence[Ladder]) -> list[Row]:
    """The rows of all result files.

    With more than one file, a rung's name is led by machine and file, as two machines never share one ratio.
    """
    return _led(ladders, lambda one: one.rows)


def scenario_rows_of(ladders: Sequence[Ladder]) -> list[ScenarioRow]:
    """The scenarios of all result files, likewise."""
    return _led(ladders, lambda one: one.scenarios)


def _led(ladders: Sequence[Ladder], rows: Callable[[Ladder], Sequence[AnyRow]]) -> list[AnyRow]:
    if len(ladders) == 1:
        return list(rows(ladders[0]))
    return [
        replace(row, rung=f"{_lead(one)}/{row.rung}", parent=f"{_lead(one)}/{row.parent}" if row.parent else None)
        for one in ladders
        for row in rows(one)
    ]


def _lead(one: Ladder) -> str:
    return f"{one.result.machine.name}/{one.source}"


def titles(ladders: Sequence[Ladder]) -> list[str]:
    """Of the sections of a report: what was measured where, and the file too where several would have the same."""
    results = [one.result for one in ladders]
    said = [f"{result.name} on {result.machine.cpu}, {result.machine.cores_logical} cores" for result in results]
    return [
        f"{title} ({_lead(one)})" if said.count(title) > 1 else title for one, title in zip(ladders, said, strict=True)
    ]


def name_of(file: Path) -> str:
    """What tells a result file from others: its folder for a run's, else its own name."""
    return _place(file)[-1]


def _names_of(files: Sequence[Path], machines: Sequence[str]) -> list[str]:
    """Of several of one machine that are alike, with as many of the folders above them as it takes."""
    names = [name_of(file) for file in files]
    alike: dict[tuple[str, str], list[int]] = {}
    for number, key in enumerate(zip(machines, names, strict=True)):
        alike.setdefault(key, []).append(number)
    for numbers in alike.values():
        places, depth = [_place(files[number]) for number in numbers], 1
        while len({place[-depth:] for place in places}) < len(set(places)):
            depth += 1
        for number, place in zip(numbers, places, strict=True):
            names[number] = "/".join(place[-depth:])
    return names


def _place(file: Path) -> tuple[str, ...]:
    """The folders above a result file, and its name: a run's is that of its folder."""
    above = file.resolve().parent.parts[1:]
    if file.name in (RESULTS_FILE, PARTIAL_FILE):
        return above or ("",)
    return (*above, file.name.removesuffix(RETURNED).removesuffix(".json"))


def ladder(result: ResultFile, arrays: Arrays, source: str = "") -> Ladder:
    """The rows of one result file and its raw arrays, in the order of its measurements; `source` names the file."""
    artifacts = {artifact.rung: artifact for artifact in result.artifacts}
    evaluations = {(e.rung, e.backend, e.threads): e for e in result.evaluations}
    labels = arrays.get("labels")
    answers = {key: arrays[f"predictions.{e.raw}"] for key, e in evaluations.items() if e.raw is not None}
    rungs = {artifact.sha256: artifact.rung for artifact in result.artifacts}
    measurements = {_key(m.rung, m): m for m in result.measurements}
    teacher = _teacher(result, rungs)
    around = disturbances(result, arrays)
    level = stats.LEVEL if result.settings.precision is None else stats.STOPPED_LEVEL

    @functools.cache
    def judged(rung: str, backend: str, threads: int) -> Row:
        """With what a rung's answers tell, which all of its batches and sizes share."""
        artifact = artifacts[rung]
        parent = rungs.get(artifact.parent_sha256 or "", "")
        row = _judged(Row(rung, None, backend, artifact.precision, 1, threads), answers, labels, result.baseline)
        row = _beside_teacher(row, answers, teacher)
        return _beside_parent(row, answers, labels, parent, artifact.options.get("aware") is True)

    rows = []
    for m in result.measurements:
        artifact = artifacts[m.rung]
        baseline = measurements.get(_key(result.baseline, m))
        parent_rung = rungs.get(artifact.parent_sha256 or "", "")
        parent = measurements.get(_key(parent_rung, m))
        evaluation = evaluations.get((m.rung, m.backend, m.threads))
        far = _outliers(m, arrays)
        row = _timed(_row(artifact, m), m, baseline, far, arrays, result.settings, level)
        row = _referred(row, m, measurements, result.settings, arrays, level)
        told = judged(m.rung, m.backend, m.threads)
        row = replace(row, **{name: getattr(told, name) for name in JUDGED}, flags=(*row.flags, *told.flags))
        against_parent = (parent_rung, _ratio(parent, m, arrays, level)) if parent else None
        row = replace(row, **proven(artifact, m, evaluation, arrays), optimize_s=optimize_s(row.load_s, evaluation))
        said = flags(result, artifact, m, evaluation, against_parent, _medians(m, arrays), row.broken_claims)
        said = (*row.flags, *said, *doubts(result, row, m, far), *around[m.backend, m.threads])
        rows.append(replace(row, flags=said, machine=result.machine.name, result=result.name))
    metric: Metric = "accuracy" if labels is None or labels.ndim == 1 else "f1"
    if labels is None and answers:
        metric = "agreement"

    def score(m: ScenarioMeasurement) -> float | None:
        told = judged(m.rung, m.backend, m.threads)
        return {"accuracy": told.accuracy, "f1": told.f1_micro, "agreement": told.agreement}[metric]

    loads = scenario_rows(result, arrays, score)
    return Ladder(result, tuple(rows), metric, _mcnemar(answers, labels, result.baseline), loads, arrays, source)


def _key(rung: str, m: Measurement) -> tuple[str, str, int, int, str]:
    """Of the rung's cell that `m` is compared with, or of `m` itself."""
    return rung, m.backend, m.threads, m.batch, written(m.dims)


def _row(artifact: Artifact, m: Measurement) -> Row:
    return Row(
        rung=m.rung,
        parent=artifact.parent,
        backend=m.backend,
        precision=m.precision,
        batch=m.batch,
        threads=m.threads,
        size_bytes=artifact.size_bytes,
        parameters=artifact.parameters,
        macs=artifact.macs,
        made_in_s=artifact.made_in_s,
        error=m.error,
        dims=written(m.dims),
    )


def _outliers(m: Measurement, arrays: Arrays) -> stats.Outliers | None:
    """Of a cell that was measured; one that failed has no numbers, however far it came."""
    if m.error is not None or m.raw is None:
        return None
    return stats.outliers(arrays[f"latencies.{m.raw}"], arrays[f"rounds.{m.raw}"])


def _timed(
    row: Row,
    m: Measurement,
    baseline: Measurement | None,
    far: stats.Outliers | None,
    arrays: Arrays,
    settings: BenchSettings,
    level: float,
) -> Row:
    """The row with its latencies, of which `far` are outliers; as it is for a cell that was not measured."""
    if far is None:
        return row
    latencies = arrays[f"latencies.{m.raw}"].astype(np.float64)
    pairs = _paired(baseline, m, arrays) if baseline and baseline.rung != m.rung else None
    ratio = pairs and stats.speedup(*pairs, level)
    throughput_per_s = m.batch / float(latencies.mean())
    return replace(
        row,
        **costs(m, arrays, settings, throughput_per_s),
        latency_p50_s=stats.percentile(latencies, 50.0),
        latency_p99_s=stats.percentile(latencies, 99.0),
        throughput_per_s=throughput_per_s,
        speedup=ratio.value if ratio else None,
        speedup_low=ratio.low if ratio else None,
        speedup_high=ratio.high if ratio else None,
        rounds=len(_medians(m, arrays)),
        smallest_difference=stats.smallest_difference(*pairs, level) if pairs else None,
        outlier_share=far.count / far.runs,
    )


def _referred(
    row: Row,
    m: Measurement,
    measurements: Mapping[tuple[str, str, int, int, str], Measurement],
    settings: BenchSettings,
    arrays: Arrays,
    level: float,
) -> Row:
    """The row with its ratio to the reference cell in the same batch; that cell itself has none."""
    wanted = settings.reference
    reference = wanted and measurements.get((wanted.rung, wanted.backend, wanted.threads, m.batch, written(m.dims)))
    ratio = _ratio(reference, m, arrays, level) if reference and reference is not m else None
    if ratio is None:
        return row
    return replace(
        row,
        reference_speedup=ratio.value,
        reference_speedup_low=ratio.low,
        reference_speedup_high=ratio.high,
    )


def _judged(row: Row, answers: Answers, labels: NDArray[Any] | None, baseline: str) -> Row:
    """The row with its metric, and its paired difference to the baseline through the same backend."""
    ours, theirs = (answers.get((rung, row.backend, row.threads)) for rung in (row.rung, baseline))
    if ours is None:
        return row
    against = theirs if row.rung != baseline and theirs is not None and theirs.shape == ours.shape else None
    if against is not None:
        row = replace(row, agreement=stats.agreement(ours, against))
    if labels is None:
        return row
    if labels.ndim == 2:
        micro, macro = stats.f1(ours, labels)
        row = replace(row, f1_micro=micro, f1_macro=macro)
        if against is None:
            return row
        found = stats.f1_difference(ours, against, labels)
        return replace(row, f1_micro_diff=found.value, f1_micro_diff_low=found.low, f1_micro_diff_high=found.high)
    row = replace(row, accuracy=float(np.mean(ours == labels)))
    if against is None:
        return row
    found = stats.accuracy_difference(ours == labels, against == labels)
    return replace(row, accuracy_diff=found.value, accuracy_diff_low=found.low, accuracy_diff_high=found.high)


def _teacher(result: ResultFile, rungs: Mapping[str, str]) -> str:
    """The rung that another was distilled from, as a student that is the baseline itself; `rungs` by their files.

    None where that is the baseline: agreement with it is that with the teacher then.
    """
    parents = (rungs.get(artifact.parent_sha256 or "") for artifact in result.artifacts if artifact.step == "distill")
    teacher = next(filter(None, parents), "")
    return "" if teacher == result.baseline else teacher


def _beside_teacher(row: Row, answers: Answers, teacher: str) -> Row:
    """The row with its agreement with the teacher through the same backend; the teacher itself has none."""
    ours, theirs = (answers.get((rung, row.backend, row.threads)) for rung in (row.rung, teacher))
    if row.rung == teacher or ours is None or theirs is None or theirs.shape != ours.shape:
        return row
    return replace(row, teacher_agreement=stats.agreement(ours, theirs))


def _beside_parent(row: Row, answers: Answers, labels: NDArray[Any] | None, parent: str, aware: bool) -> Row:
    """The row with its paired difference to its parent, where that was judged too; said of a rung that was trained in
    int8, whose parent is the static one."""
    ours, theirs = (answers.get((rung, row.backend, row.threads)) for rung in (row.rung, parent))
    if labels is None or ours is None or theirs is None or theirs.shape != ours.shape:
        return row
    if labels.ndim == 2:
        found = stats.f1_difference(ours, theirs, labels)
    else:
        found = stats.accuracy_difference(ours == labels, theirs == labels)
    row = replace(row, parent_diff=found.value, parent_diff_low=found.low, parent_diff_high=found.high)
    if not aware:
        return row
    p = stats.mcnemar(ours == labels, theirs == labels) if labels.ndim == 1 else None
    return replace(row, flags=(*row.flags, beside_static(parent, found, p)))


def _medians(m: Measurement, arrays: Arrays) -> dict[int, float]:
    if m.raw is None:
        return {}
    return stats.process_medians(arrays[f"latencies.{m.raw}"], arrays[f"rounds.{m.raw}"])


def _ratio(baseline: Measurement, m: Measurement, arrays: Arrays, level: float) -> Interval | None:
    """How many times faster `m` is than `baseline`, over the rounds that both have."""
    pairs = _paired(baseline, m, arrays)
    return pairs and stats.speedup(*pairs, level)


def _paired(baseline: Measurement, m: Measurement, arrays: Arrays) -> tuple[list[float], list[float]] | None:
    """The medians of the rounds that both have, in seconds; None where either failed."""
    if baseline.error is not None or m.error is not None:
        return None
    slow, fast = _medians(baseline, arrays), _medians(m, arrays)
    rounds = sorted(slow.keys() & fast.keys())
    return [slow[r] for r in rounds], [fast[r] for r in rounds]


def _mcnemar(answers: Answers, labels: NDArray[Any] | None, baseline: str) -> dict[tuple[str, str, int], float]:
    if labels is None or labels.ndim != 1:
        return {}
    return {
        (rung, backend, threads): stats.mcnemar(ours == labels, answers[baseline, backend, threads] == labels)
        for (rung, backend, threads), ours in answers.items()
        if rung != baseline and (baseline, backend, threads) in answers
    }
