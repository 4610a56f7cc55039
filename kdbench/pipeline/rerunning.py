"""The same artifacts measured again: does what was published hold?"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.backends import pick_backend
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import load_pack
from kdbench.data.sizes import Sweep, sweep_of, written
from kdbench.errors import UserError
from kdbench.machine import describe
from kdbench.pipeline.measuring import measured
from kdbench.pipeline.rungs import run_subjects
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Bench, Measurement, ResultFile, parse
from kdbench.report.again import command
from kdbench.report.text import points, three_digits
from kdbench.store import Arrays, RunFolder, load_result, sha256_of_file

RUNS = Path("runs")

DISAGREES = "DISAGREES"

SHOWN = 4
"""Names in a sentence, at most."""


@dataclass(frozen=True)
class RerunCell:
    """A cell that was measured twice."""

    label: str
    before: str
    """The speed-up with its interval, as it was; a dash for the baseline and where there is none."""
    again: str
    p: float | None
    """Of both speed-ups being one (Welch's t-test of the rounds' log ratios), by Holm's correction for all cells."""
    answers: str
    """Whether the answers are the same, and what follows from it."""
    same_answers: bool
    """Or no others than chance would give, through other versions."""
    level: float
    """With 1 − `level` for the p-value below which the speed-ups disagree."""

    @property
    def p_shown(self) -> str:
        return "–" if self.p is None else f"{self.p:.2g}"

    @property
    def agrees(self) -> bool:
        return self.verdict != DISAGREES and self.same_answers

    @property
    def verdict(self) -> str:
        return "–" if self.p is None else "agrees" if self.p >= 1 - self.level else DISAGREES


@dataclass(frozen=True)
class Rerun:
    """A measurement beside the earlier one of the same artifacts."""

    cells: tuple[RerunCell, ...]
    remarks: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return all(cell.agrees for cell in self.cells)


def results_rerun(
    file: str | Path,
    run_dir: str | Path | None = None,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Rerun:
    """Measures the artifacts of a result file again, by its plan, and compares each cell's speed-up and answers.

    The artifacts are those of the folder `run_dir` (default `runs/<name>`), found by their sha256. Nothing is written.
    Raises UserError where one is missing, on a machine of other hardware, and for scenarios.
    """
    file = Path(file)
    before, arrays = load_result(file)
    folder = RunFolder(Path(run_dir or RUNS / before.name))
    here = describe()
    if before.machine.hardware != here.hardware:
        raise UserError(
            f"{file}: was measured on {before.machine.name} ({before.machine.hardware}), and this is {here.name} "
            f"({here.hardware}): only the same hardware can repeat it"
        )
    if before.scenarios:
        raise UserError(f"{file}: was measured by scenarios, which --rerun does not repeat: bench them again")
    subjects = _subjects(file, before, folder)
    pack = load_pack(folder.pack) if before.inputs == "data" else None
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        report = measured(
            subjects,
            before.baseline,
            _plan(file, before),
            pack,
            Path(scratch),
            name=before.name,
            seed=before.settings.seed,
            dims=_sweep(file, before),
            progress=progress,
            say=say,
        )
        after, new = load_result(report.results)
    return compared_again((before, arrays), (after, new))


def _subjects(file: Path, before: ResultFile, folder: RunFolder) -> list[Subject]:
    """The artifacts as they lie in the run folder, in the order of the result file and under its names."""
    how = "name the folder that holds them behind --rerun"
    if before.recipe:
        how = f"'kdbench {command(before)} {before.recipe.name}' makes them again, or {how}"
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such run folder: {how}")
    measured = {artifact.sha256 for artifact in before.artifacts}
    subjects = run_subjects(folder, lambda artifact: artifact.sha256 in measured)
    found = {subject.artifact.sha256: subject for subject in subjects}
    missing = [f"{a.rung} ({a.sha256[:12]}…)" for a in before.artifacts if a.sha256 not in found]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"{folder.path}: not the artifacts of {file}: missing {', '.join(missing[:SHOWN])}{more}: {how}"
        )
    if before.inputs == "data" and not (folder.pack.is_file() and sha256_of_file(folder.pack) == before.inputs_sha256):
        raise UserError(f"{folder.pack}: not the samples that {file} was measured on: {how}")
    return [Subject(artifact, found[artifact.sha256].model) for artifact in before.artifacts]


def _plan(file: Path, before: ResultFile) -> Bench:
    """How it was measured: the settings, and what its cells tell."""
    able = [m for m in before.measurements if m.error is None]
    elsewhere = sorted({m.backend for m in able if "@" in m.backend})
    if elsewhere:
        raise UserError(f"{file}: {', '.join(elsewhere)}: ran under another interpreter, which it does not name")
    if not able:
        raise UserError(f"{file}: no cell of it was measured: nothing to repeat")
    fields: dict[str, Any] = {
        name: value
        for name, value in before.settings.model_dump(mode="json").items()
        if name in Bench.model_fields and name != "reference" and value is not None
    }
    fields |= {
        "backends": list(dict.fromkeys(m.backend for m in able)),
        "batches": list(dict.fromkeys(m.batch for m in able)),
        "threads": list(dict.fromkeys(m.threads for m in able)),
    }
    if before.recipe:
        names = {pick_backend(name).row.name for name in fields["backends"]}
        known = before.recipe.bench.model_dump(mode="json")["options"]
        fields["options"] = {name: options for name, options in known.items() if name in names}
    return parse(Bench, fields, str(file))


def _sweep(file: Path, before: ResultFile) -> Sweep:
    """The sizes that were measured; dimensions that changed together do so again."""
    sweep = sweep_of(m.dims for m in before.measurements)
    if sweep is None:
        raise UserError(f"{file}: its sizes are no sweep that could be measured again: bench them one by one")
    return sweep


def compared_again(before: tuple[ResultFile, Arrays], after: tuple[ResultFile, Arrays]) -> Rerun:
    """Two measurements of the same artifacts, cell by cell: those that gave a number the first time."""
    (old, old_arrays), (new, new_arrays) = before, after
    changed = _changed(old, new)
    stopped = any(result.settings.precision is not None for result in (old, new))
    level = stats.STOPPED_TWICE_LEVEL if stopped else stats.LEVEL
    remarks = [f"other versions this time: {', '.join(changed)}"] if changed else []
    twins = {_place(m): m for m in new.measurements if m.error is None}
    pairs = [(m, twins.get(_place(m))) for m in old.measurements if m.error is None]
    ratios = [(_ratios(old, m, old_arrays), _ratios(new, twin, new_arrays) if twin else None) for m, twin in pairs]
    tested = [None if was is None or now is None else stats.same_mean(was, now) for was, now in ratios]
    corrected = iter(stats.holm([p for p in tested if p is not None]))
    cells = []
    for (m, twin), (was, now), p in zip(pairs, ratios, tested, strict=True):
        if twin and m.provider_options != twin.provider_options:
            remarks.append(f"{_label(m)}: ran with other provider options than before")
        same, words = _answers(m, before, after, bool(changed)) if twin else (False, "not measured this time")
        holm = None if p is None else next(corrected)
        cells.append(RerunCell(_label(m), _shown(was), _shown(now), holm, words, same, level))
    return Rerun(tuple(cells), tuple(remarks))


def _place(m: Measurement) -> tuple[str, str, int, int, str]:
    return m.rung, m.backend, m.threads, m.batch, written(m.dims)


def _label(m: Measurement) -> str:
    threads = f", {m.threads} threads" if m.threads > 1 else ""
    return f"{m.rung}, {m.backend}{threads}, batch {m.batch}{f', {written(m.dims)}' if m.dims else ''}"


def _changed(old: ResultFile, new: ResultFile) -> list[str]:
    """Versions of what computes that are others now; kdbench itself computes no answers."""
    was, now = ({"Python": result.machine.python, **result.machine.versions} for result in (old, new))
    names = sorted((was.keys() | now.keys()) - {"kdbench"})
    return [
        f"{name} {was.get(name, 'none')} → {now.get(name, 'none')}" for name in names if was.get(name) != now.get(name)
    ]


def _ratios(result: ResultFile, m: Measurement, arrays: Arrays) -> NDArray[np.float64] | None:
    """Logarithms of the cell's speed-up against the baseline, one a round; None for the baseline itself, and where it
    was not measured."""
    place = (result.baseline, *_place(m)[1:])
    baseline = next((b for b in result.measurements if _place(b) == place and b.error is None), None)
    if baseline is None or m.rung == result.baseline:
        return None
    slow, fast = _medians(baseline, arrays), _medians(m, arrays)
    rounds = sorted(slow.keys() & fast.keys())
    return np.log([slow[r] for r in rounds]) - np.log([fast[r] for r in rounds])


def _medians(m: Measurement, arrays: Arrays) -> dict[int, float]:
    return stats.process_medians(arrays[f"latencies.{m.raw}"], arrays[f"rounds.{m.raw}"]) if m.raw is not None else {}


def _shown(ratios: NDArray[np.float64] | None) -> str:
    found = None if ratios is None else stats.paired_difference(ratios, np.zeros_like(ratios))
    if found is None:
        return "–"
    value, low, high = (three_digits(math.exp(number)) for number in (found.value, found.low, found.high))
    return f"{value}× [{low}, {high}]"


def _answers(
    m: Measurement, before: tuple[ResultFile, Arrays], after: tuple[ResultFile, Arrays], other_versions: bool
) -> tuple[bool, str]:
    """Whether a cell's answers are those of before, or through other versions as good as chance allows; in words."""
    was, now = (_predictions(m, *measurement) for measurement in (before, after))
    if was is None or now is None:
        return was is now, "–" if was is now else "not evaluated both times"
    if was.shape == now.shape and (was == now).all():
        return True, "the same"
    if was.shape != now.shape:
        return False, "of other samples: DISAGREE"
    differ = int((was != now).reshape(len(was), -1).any(axis=1).sum())
    words, labels = f"{differ} of {len(was)} differ", before[1].get("labels")
    if not other_versions:
        return False, f"{words}: DISAGREE"
    if labels is None:
        return True, words
    if labels.ndim == 2:
        found = stats.f1_difference(now, was, labels)
    else:
        found = stats.accuracy_difference(now == labels, was == labels)
    same = found.low <= 0 <= found.high
    return same, f"{words}, {points(found)} points: {'agree' if same else 'DISAGREE'}"


def _predictions(m: Measurement, result: ResultFile, arrays: Arrays) -> NDArray[Any] | None:
    place = (m.rung, m.backend, m.threads)
    judged = (e.raw for e in result.evaluations if (e.rung, e.backend, e.threads) == place)
    raw = next(judged, None)
    return None if raw is None else arrays[f"predictions.{raw}"]
