"""One batch of everything: a recipe walked on a small part of its data, and what the whole of it will take."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter as now

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import Target
from kdbench.benchmark.cells import Cell, inputs, plan
from kdbench.benchmark.schedule import SLICE_S
from kdbench.data.dataset import Dataset, Labels, split
from kdbench.data.pack import EvalPack, load_pack
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.pipeline import describing, spiral
from kdbench.pipeline.aware import aware
from kdbench.pipeline.describing import Fact
from kdbench.pipeline.learning import Ground, grounded, learned, loaded, made, needs_torch
from kdbench.pipeline.places import check_places
from kdbench.pipeline.rungs import AWARE, LOW_RANK, PRUNED, SPARSE, compressed, run_subjects
from kdbench.pipeline.turns import race_s
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Recipe, Teacher, Training
from kdbench.store import RunFolder, open_recipe

BATCHES = 4
"""Of each training and of the evaluation: neither the first nor the last is timed."""

LEAST_S = 0.1
"""To time the spiral's first turn: one slice in each of the fewest processes."""

ANSWERS = "teacher's answers"
"""How the label of kept answers begins."""


@dataclass(frozen=True)
class Check:
    """A recipe that can be run."""

    facts: tuple[Fact, ...]
    """What was seen of data, teachers, student, losses and backends."""
    steps_s: dict[str, float]
    """Of each step on the small part."""
    estimate_s: dict[str, float]
    """Of each part of `kdbench run`, on this machine as it is now."""
    spiral_s: float | None = None
    """Of all of `kdbench spiral` without refused turns; of as many as there may be, where the target tells no number.
    None for a recipe without one."""

    @property
    def total_s(self) -> float:
        return sum(self.estimate_s.values())


class Stopwatch:
    """A Progress that remembers when it was told what, and passes it on."""

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.calls: dict[str, list[tuple[float, float]]] = {}
        """By label: when, and how much was done."""

    def __call__(self, label: str, done: float, total: float) -> None:
        self.calls.setdefault(label, []).append((now(), done))
        self.progress(label, done, total)

    def seconds(self, label: str) -> float:
        """All its steps together."""
        return sum(self._steps(label))

    def step_s(self, label: str) -> float:
        """The median step, without the first, which warms up, and the last, behind which files are written."""
        steps = self._steps(label)
        return median(steps[1:-1] or steps or [0.0])

    def unit_s(self, label: str) -> float:
        """Of one of the units that its progress is counted in; 0 where it was told of but once."""
        calls = self.calls.get(label, [])
        return (calls[-1][0] - calls[0][0]) / (calls[-1][1] - calls[0][1]) if len(calls) > 1 else 0.0

    def _steps(self, label: str) -> list[float]:
        calls = self.calls.get(label, [])
        return [t1 - t0 for (t0, before), (t1, after) in pairwise(calls) if after > before]


@dataclass(frozen=True)
class _Opened:
    """A rung that answered a few samples on a backend, or why it can't."""

    cell: Cell
    error: str | None
    start_s: float
    sample_s: float
    samples: int


def check(recipe: Recipe | str | Path, *, progress: Progress = silent, say: Callable[[str], None] = unsaid) -> Check:
    """Walks a recipe (or that of a name or path) once on a few batches, in a scratch folder that is removed.

    Everything that `run` does is done, but for the benchmark: each training for one epoch, in float32 where the recipe
    leaves the precision to a measurement. Accuracies would mean nothing after that, so that none is given. Raises
    UserError where `run` would.
    """
    recipe = open_recipe(recipe)
    check_places(recipe, turns=True)
    needs_torch()
    watch, start = Stopwatch(progress), now()
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        folder = RunFolder(Path(scratch))
        dataset, teachers = loaded(recipe, say)
        steps = {"load, build": now() - start}
        ground = replace(_small(folder, recipe, dataset, watch, say), teachers=teachers)
        weights = learned(ground, alone=True)
        artifacts = made(ground, weights)
        baseline = next(iter(artifacts))
        taught = baseline if baseline.startswith("teacher") else None
        compressed(folder, recipe.quantize, taught, watch, say, recipe.bench.options)
        aware(ground, weights, "student-slim", "student-int8")
        if recipe.spiral:
            spiral.tried(ground)
        subjects, pack = run_subjects(folder), load_pack(folder.pack)
        cells = plan(subjects, recipe.bench)
        opened = [_opened(cell, pack, max(recipe.bench.batches)) for cell in _one_a_place(cells)]
        facts = (
            *describing.data_facts(recipe, dataset),
            *describing.teacher_facts(recipe, dataset, artifacts),
            *describing.student_facts(recipe, artifacts),
            *describing.loss_facts(folder.metrics("student")),
            *describing.backend_facts([(found.cell, found.error) for found in opened]),
        )
    steps |= {label: watch.seconds(label) for label in watch.calls}
    steps["evaluate"] = sum(found.start_s + found.sample_s * found.samples for found in opened)
    estimate = {**steps, **learning_s(recipe, dataset, watch)}
    estimate["evaluate"] = sum(found.start_s + found.sample_s * len(dataset.x_test) for found in opened)
    estimate["bench"] = _bench_s(recipe, cells, opened)
    return Check(facts, steps, estimate, _spiral_s(recipe, dataset, watch, estimate) if recipe.spiral else None)


def tried(recipe: Recipe, dataset: Dataset, progress: Progress = silent) -> dict[str, float]:
    """What the trainings of a recipe will take, by a few steps of each; see `learning_s`."""
    watch = Stopwatch(progress)
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        learned(_small(RunFolder(Path(scratch)), recipe, dataset, watch, unsaid), alone=True)
    return learning_s(recipe, dataset, watch)


def learning_s(recipe: Recipe, dataset: Dataset, watch: Stopwatch) -> dict[str, float]:
    """Seconds of each training of a recipe, from its step on a few batches; and of the teachers' kept answers."""
    from kdbench.training.cache import views_of

    trainings: dict[str, Training | None] = {"student-alone": recipe.student.training}
    trainings |= {name: teacher.training for name, teacher in zip(recipe.teacher_names, recipe.teachers, strict=True)}
    trainings["student"] = recipe.student.training
    trainings[AWARE] = recipe.quantize.training_after(recipe.student.training)
    if recipe.prune:
        from kdbench.steps.prune import fine_tuning, sparse_training

        trainings |= {f"{PRUNED}-sparse": sparse_training(recipe), PRUNED: fine_tuning(recipe)}
    if recipe.sparsify or recipe.factorise:
        from kdbench.steps.lighter import training as taught_again

        sections = {SPARSE: ("sparsify", recipe.sparsify), LOW_RANK: ("factorise", recipe.factorise)}
        trainings |= {rung: taught_again(recipe, name) for rung, (name, section) in sections.items() if section}
    estimate = {
        rung: _training_s(training, rung, recipe, dataset, watch)
        for rung, training in trainings.items()
        if training and rung in watch.calls
    }
    answers = [label for label in watch.calls if label.startswith(ANSWERS)]
    if answers:
        views = min(views_of(recipe.data.augment) or 1, recipe.student.training.epochs)
        answered = _few(recipe, dataset)
        estimate[answers[0]] = sum(map(watch.seconds, answers)) * views * len(dataset.x_train) / answered
    return estimate


def _training_s(
    training: Training,
    label: str,
    recipe: Recipe,
    dataset: Dataset,
    watch: Stopwatch,
    timed: Training | None = None,
) -> float:
    """By the steps of the one under `label`: of itself, or of another one (`timed`), whose batches may be others."""
    batch = min((timed or training).batch_size, _few(recipe, dataset))
    steps = training.epochs * math.ceil(len(dataset.x_train) / training.batch_size)
    return steps * watch.step_s(label) * min(training.batch_size, len(dataset.x_train)) / batch


def _spiral_s(recipe: Recipe, dataset: Dataset, watch: Stopwatch, estimate: dict[str, float]) -> float:
    """Seconds of all turns, each as long as the first, with what comes before and the benchmark behind."""
    from kdbench.steps.spiral import sparse_training, turn_training

    section = recipe.spiral
    assert section is not None

    def learns(training: Training | None, label: str, timed: Training | None = None) -> float:
        return _training_s(training, label, recipe, dataset, watch, timed) if training else 0.0

    before = (*recipe.teacher_names, *(["student"] if section.start == "student" else []))
    own = turn_training(recipe)
    turn = learns(own, "spiral-1") + learns(sparse_training(recipe), "spiral-0-sparse")
    whole = spiral.turns_expected(section) * (turn + race_s(recipe)) + learns(section.final, "spiral-1", own)
    return whole + sum(estimate.get(name, 0.0) for name in (*before, "bench"))


def drawn(labels: Labels | None, total: int, samples: int) -> NDArray[np.int64]:
    """Places of `samples` of `total`, ascending: each class has its share, where there are enough of each."""
    if samples >= total:
        return np.arange(total)
    try:
        return np.sort(split(labels, total, samples)[1])
    except UserError:
        return np.sort(split(None, total, samples)[1])


def _small(folder: RunFolder, recipe: Recipe, dataset: Dataset, watch: Stopwatch, say: Callable[[str], None]) -> Ground:
    """The ground of a recipe cut down to an epoch of a few batches."""
    return grounded(folder, _one_epoch(recipe), _part(dataset, recipe), watch, say)


def _few(recipe: Recipe, dataset: Dataset) -> int:
    """Training samples that make BATCHES of the largest batch."""
    trainings = [recipe.student.training, *(teacher.training for teacher in recipe.teachers if teacher.training)]
    return min(len(dataset.x_train), BATCHES * max(training.batch_size for training in trainings))


def _part(dataset: Dataset, recipe: Recipe) -> Dataset:
    """A few samples of each part of the data."""
    tested = BATCHES * max(recipe.bench.batches)
    train = drawn(dataset.y_train, len(dataset.x_train), _few(recipe, dataset))
    test = drawn(dataset.y_test, len(dataset.x_test), tested)
    part = replace(
        dataset,
        x_train=dataset.x_train[train],
        y_train=None if dataset.y_train is None else dataset.y_train[train],
        x_test=dataset.x_test[test],
        y_test=None if dataset.y_test is None else dataset.y_test[test],
    )
    if dataset.x_held_out is None:
        return part
    held, labels = dataset.x_held_out, dataset.y_held_out
    chosen = drawn(labels, len(held), recipe.student.training.batch_size)
    return replace(part, x_held_out=held[chosen], y_held_out=None if labels is None else labels[chosen])


def _one_epoch(recipe: Recipe) -> Recipe:
    """The recipe with an epoch of each training, in which every loss has its part."""

    def short(training: Training) -> Training:
        precision = "fp32" if training.precision == "auto" else training.precision
        return training.model_copy(update={"epochs": 1, "precision": precision})

    def taught(teacher: Teacher) -> Teacher:
        return teacher.model_copy(update={"training": teacher.training and short(teacher.training)})

    at_once = {"from_epoch": 1, "until_epoch": None, "warmup_epochs": 0}
    losses = {name: loss.model_copy(update=at_once) for name, loss in recipe.distill.losses.items()}
    several = isinstance(recipe.teacher, tuple)
    quantize = recipe.quantize
    if quantize.aware:
        after = short(quantize.training_after(recipe.student.training))
        quantize = quantize.model_copy(update={"training": after})
    prune = recipe.prune
    if prune:
        sparse = prune.sparse and prune.sparse.model_copy(update={"epochs": 1})
        prune = prune.model_copy(update={"training": prune.training and short(prune.training), "sparse": sparse})
    # The weights of a few steps say nothing of how much can go in the end.
    sparsify, factorise = recipe.sparsify, recipe.factorise
    if sparsify:
        some = {"sparsity": 0.5, "threshold": None, "scope": "layer"}
        some |= {"begin_epoch": 0, "end_epoch": sparsify.end_epoch and 1, "rewind_epoch": sparsify.rewind_epoch and 1}
        sparsify = sparsify.model_copy(update=some | {"training": sparsify.training and short(sparsify.training)})
    if factorise:
        least = {"energy": 0.01, "macs": None, "training": factorise.training and short(factorise.training)}
        factorise = factorise.model_copy(update=least)
    turns = recipe.spiral
    if turns:
        turn = turns.training and short(turns.training)
        sparse = turns.sparse and turns.sparse.model_copy(update={"epochs": 1})
        always = {"max_drop": 100.0, "latency": None, "final": None}
        turns = turns.model_copy(update={"training": turn, "sparse": sparse, **always})
    return recipe.model_copy(
        update={
            "bench": recipe.bench.model_copy(update={"budget_s": LEAST_S}),
            "prune": prune,
            "spiral": turns,
            "sparsify": sparsify,
            "factorise": factorise,
            "teacher": tuple(map(taught, recipe.teachers)) if several else taught(recipe.teachers[0]),
            "student": recipe.student.model_copy(update={"training": short(recipe.student.training)}),
            "distill": recipe.distill.model_copy(update={"losses": losses}),
            "quantize": quantize,
        }
    )


def _one_a_place(cells: Sequence[Cell]) -> list[Cell]:
    """For each rung, backend and thread count the first cell that can be measured, or else the first."""
    places: dict[tuple[str, Target, int], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.error is not None):
        places.setdefault((cell.subject.artifact.rung, cell.backend, cell.threads), cell)
    return list(places.values())


def _opened(cell: Cell, pack: EvalPack, batch: int) -> _Opened:
    """The cell's rung on its backend, on the pack's samples; raises UserError where they don't fit it."""
    samples = 0 if pack.x_test is None else len(pack.x_test)
    if cell.error:
        return _Opened(cell, cell.error, 0.0, 0.0, samples)
    inputs(cell, pack)
    watch, start = Stopwatch(), now()
    subject = cell.subject
    record, _ = judge(subject.artifact, subject.model, pack, batch, cell.backend, cell.threads, watch)
    sample_s = watch.unit_s("answering")
    return _Opened(cell, record.error, max(0.0, now() - start - sample_s * samples), sample_s, samples)


def _bench_s(recipe: Recipe, cells: Sequence[Cell], opened: Sequence[_Opened]) -> float:
    """The recipe's budget, or what one slice of each cell in each process takes where that is more."""
    starts = sum(found.start_s for found in opened)
    slices = SLICE_S * sum(cell.error is None for cell in cells)
    return max(recipe.bench.budget_s, recipe.bench.processes * (starts + slices))
