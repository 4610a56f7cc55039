"""The table model: one row a cell, computed from raw values on reading."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.records import Artifact, BenchSettings, Measurement, ResultFile, ScenarioMeasurement
from kdbench.report.claims import proven
from kdbench.report.costs import costs
from kdbench.report.doubts import disturbances, doubts
from kdbench.report.flags import beside_static, flags
from kdbench.report.scenarios import ScenarioRow, scenario_rows
from kdbench.stats import Interval
from kdbench.store import PARTIAL_FILE, RESULTS_FILE, RETURNED, Arrays, find_results, load_result

Answers = Mapping[tuple[str, str, int], NDArray[Any]]
"""Predictions, classes [N] or 0 and 1 [N, C], by rung, backend and threads."""


@dataclass(frozen=True)
class Row:
    """A cell. Its fields are the columns of the CSV, in their order; None where there is no number."""

    rung: str
    parent: str | None
    backend: str
    precision: str
    batch: int
    threads: int
    accuracy: float | None = None
    accuracy_diff: float | None = None
    """Minus the baseline's accuracy through the same backend, on the same samples."""
    accuracy_diff_low: float | None = None
    accuracy_diff_high: float | None = None
    agreement: float | None = None
    """Share of samples on which it answers as the baseline does, in all labels where there are several."""
    size_bytes: int = 0
    parameters: int = 0
    macs: int | None = None
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    throughput_per_s: float | None = None
    """Samples a second, one batch after the other."""
    speedup: float | None = None
    """Against the baseline in the same backend, batch, threads and sizes."""
    speedup_low: float | None = None
    speedup_high: float | None = None
    load_s: float | None = None
    first_run_s: float | None = None
    peak_memory_bytes: int | None = None
    flags: tuple[str, ...] = ()
    error: str | None = None
    f1_micro: float | None = None
    """Where samples have any number of labels, instead of accuracy: of all labels together."""
    f1_macro: float | None = None
    """The mean over labels."""
    f1_micro_diff: float | None = None
    """Minus the baseline's through the same backend, on the same samples."""
    f1_micro_diff_low: float | None = None
    f1_micro_diff_high: float | None = None
    rounds: int | None = None
    """Fresh processes that were timed."""
    smallest_difference: float | None = None
    """By what share a model had to be slower than the baseline to be found nine times in ten."""
    outlier_share: float | None = None
    """Of the runs, far from the median of their process; they count like all others."""
    node_share: float | None = None
    """Of the nodes, on the provider that was asked for."""
    time_share: float | None = None
    """Of the kernels' time, likewise."""
    int8_share: float | None = None
    """Of the convolutions and matrix products of an int8 model, those that run in int8."""
    fused_share: float | None = None
    """Of the file's light nodes, such as activations, those that have gone into others."""
    rms_error: float | None = None
    """Of the outputs against those in fp32 on the CPU."""
    ran_as: str | None = None
    """The precision that it implies."""
    threads_used: float | None = None
    """CPU time by wall time."""
    broken_claims: tuple[str, ...] = ()
    """Those of the flags that say that a claim of the cell does not hold."""
    dims: str = ""
    """Sizes of symbolic dimensions, such as `height=32 width=32`."""
    cost_per_million: float | None = None
    """Of inferences, at the price of the plan."""
    reference_speedup: float | None = None
    """Against the fixed reference cell in the same batch and sizes."""
    reference_speedup_low: float | None = None
    reference_speedup_high: float | None = None
    start_s: float | None = None
    """Of the worker's process, until its runtime is imported."""
    steady_memory_bytes: int | None = None
    """Of the worker's process after its timed runs."""
    device_memory_bytes: int | None = None
    """The most at a time, where the runtime tells."""
    energy_j: float | None = None
    """An inference, of all that runs on the CPU's packages and the GPU, idle power included."""
    parent_diff: float | None = None
    """Of the accuracy or the micro F1: minus the parent's through the same backend, on the same samples."""
    parent_diff_low: float | None = None
    parent_diff_high: float | None = None

    @property
    def cold_start_s(self) -> float | None:
        """From nothing to the first answer: process, load and first run."""
        if self.start_s is None or self.load_s is None or self.first_run_s is None:
            return None
        return self.start_s + self.load_s + self.first_run_s

    @property
    def parent_difference(self) -> Interval | None:
        """Of the accuracy or the micro F1 to the parent's."""
        if self.parent_diff is None or self.parent_diff_low is None or self.parent_diff_high is None:
            return None
        return Interval(self.parent_diff, self.parent_diff_low, self.parent_diff_high)

    @property
    def difference(self) -> Interval | None:
        """Of the accuracy or the micro F1 to the baseline's."""
        for value, low, high in (
            (self.accuracy_diff, self.accuracy_diff_low, self.accuracy_diff_high),
            (self.f1_micro_diff, self.f1_micro_diff_low, self.f1_micro_diff_high),
        ):
            if value is not None and low is not None and high is not None:
                return Interval(value, low, high)
        return None


COLUMNS = tuple(field.name for field in fields(Row))


def place(row: Row) -> tuple[str, int, int, str]:
    """What cells of one table share: backend, threads, batch, sizes."""
    return row.backend, row.threads, row.batch, row.dims


Metric = Literal["accuracy", "f1", "agreement"]
"""What tells how good a model's answers are: by labels of one class a sample, or of any number of them, or by the
baseline's answers where the evaluation samples have no labels."""


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


def load_ladders(paths: Iterable[Path]) -> list[Ladder]:
    """Every result file below the given files and folders; ratios are formed within a file only."""
    return [ladder(*load_result(file)) for path in paths for file in find_results(path)]


def load_results(*paths: str | Path) -> list[Row]:
    """The rows of all result files below the given files and folders.

    With more than one file, a rung's name is led by the file's, as two machines never share one ratio.
    """
    files = [file for path in paths for file in find_results(Path(path))]
    found = [(file, ladder(*load_result(file))) for file in files]
    if len(found) == 1:
        return list(found[0][1].rows)
    return [
        replace(row, rung=f"{lead}/{row.rung}", parent=f"{lead}/{row.parent}" if row.parent else None)
        for file, table in found
        for lead in [f"{table.result.machine.name}/{_name_of(file)}"]
        for row in table.rows
    ]


def _name_of(file: Path) -> str:
    """What tells a result file from others: its folder for a run's, else its own name."""
    if file.name in (RESULTS_FILE, PARTIAL_FILE):
        return file.resolve().parent.name
    return file.name.removesuffix(RETURNED).removesuffix(".json")


def ladder(result: ResultFile, arrays: Arrays) -> Ladder:
    """The rows of one result file and its raw arrays, in the order of its measurements."""
    artifacts = {artifact.rung: artifact for artifact in result.artifacts}
    evaluations = {(e.rung, e.backend, e.threads): e for e in result.evaluations}
    labels = arrays.get("labels")
    answers = {key: arrays[f"predictions.{e.raw}"] for key, e in evaluations.items() if e.raw is not None}
    rungs = {artifact.sha256: artifact.rung for artifact in result.artifacts}
    measurements = {_key(m.rung, m): m for m in result.measurements}
    around = disturbances(result, arrays)
    level = stats.LEVEL if result.settings.precision is None else stats.STOPPED_LEVEL
    rows = []
    for m in result.measurements:
        artifact = artifacts[m.rung]
        baseline = measurements.get(_key(result.baseline, m))
        parent_rung = rungs.get(artifact.parent_sha256 or "", "")
        parent = measurements.get(_key(parent_rung, m))
        evaluation = evaluations.get((m.rung, m.backend, m.threads))
        row = _timed(_row(artifact, m), m, baseline, arrays, result.settings, level)
        row = _referred(row, m, measurements, result.settings, arrays, level)
        row = _judged(row, answers, labels, result.baseline)
        row = _beside_parent(row, answers, labels, parent_rung, artifact.options.get("aware") is True)
        against_parent = (parent_rung, _ratio(parent, m, arrays, level)) if parent else None
        row = replace(row, **proven(artifact, m, evaluation, arrays))
        said = flags(result, artifact, m, evaluation, against_parent, _medians(m, arrays), row.broken_claims)
        rows.append(
            replace(row, flags=(*row.flags, *said, *doubts(result, row, m, arrays), *around[m.backend, m.threads]))
        )
    metric: Metric = "accuracy" if labels is None or labels.ndim == 1 else "f1"
    if labels is None and answers:
        metric = "agreement"

    @functools.cache
    def judged(rung: str, backend: str, threads: int) -> float | None:
        shown = Row(rung, None, backend, artifacts[rung].precision, 1, threads)
        shown = _judged(shown, answers, labels, result.baseline)
        return {"accuracy": shown.accuracy, "f1": shown.f1_micro, "agreement": shown.agreement}[metric]

    def score(m: ScenarioMeasurement) -> float | None:
        return judged(m.rung, m.backend, m.threads)

    loads = scenario_rows(result, arrays, score)
    return Ladder(result, tuple(rows), metric, _mcnemar(answers, labels, result.baseline), loads)


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
        error=m.error,
        dims=written(m.dims),
    )


def _timed(
    row: Row, m: Measurement, baseline: Measurement | None, arrays: Arrays, settings: BenchSettings, level: float
) -> Row:
    """The row with its latencies. A cell that failed has none, however far it came."""
    if m.error is not None or m.raw is None:
        return row
    latencies = arrays[f"latencies.{m.raw}"].astype(np.float64)
    pairs = _paired(baseline, m, arrays) if baseline and baseline.rung != m.rung else None
    ratio = pairs and stats.speedup(*pairs, level)
    far = stats.outliers(latencies, arrays[f"rounds.{m.raw}"])
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
