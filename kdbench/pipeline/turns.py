"""One turn of the spiral: pruned, taught again, exported, and judged on held-out samples against the first model."""

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter as now
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.backends import Target, own_options, pick_backends
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack, load_pack
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.onnxfile import inspect
from kdbench.pipeline.candidates import estimate
from kdbench.pipeline.learning import Ground, exported, taught, trained
from kdbench.pipeline.racing import Place, Raced, raced
from kdbench.pipeline.rungs import kept
from kdbench.records import Artifact, Recipe, SpiralSection
from kdbench.records.budget import Estimate
from kdbench.records.turns import Refusal, TurnRecord
from kdbench.search.spiral import Outcome, Plan, refusal
from kdbench.stats import Interval
from kdbench.store import RunFolder, fingerprint, sha256, sha256_of_file

POINT = 0.01
BATCH = 128
"""Samples that are answered at a time."""
RACE_S = 20.0
"""At most, to time a turn's model and the first one in turns."""
FINAL = "spiral-final"


@dataclass(frozen=True)
class First:
    """What every turn is compared with."""

    artifact: Artifact
    weights: Path
    right: NDArray[Any]
    """Its answers to the held-out samples."""


@dataclass(frozen=True)
class Walk:
    """What all turns share."""

    ground: Ground
    section: SpiralSection
    teachers: Mapping[str, Path]
    """The recipe's, by name."""
    first: First
    held_out: EvalPack

    @property
    def place(self) -> Target:
        """Where turns are timed, under the backend's own options."""
        asked = self.section.backend
        (target,) = pick_backends([asked], own_options(asked, self.ground.recipe.bench.options))
        return target

    def rung(self, number: int) -> str:
        return f"spiral-{number}" if number else self.first.artifact.rung

    def sparse(self, number: int) -> str:
        """The name of the same model's weights, drawn towards fewer channels. `student-sparse` is [sparsify]'s."""
        return f"spiral-{number}-sparse"

    def weights(self, number: int) -> Path:
        return self.ground.folder.weights(self.rung(number)) if number else self.first.weights

    def taught_by(self, parent: int) -> dict[str, Path]:
        """The teachers of a turn that starts from `parent`, by name."""
        previous = {self.rung(parent): self.weights(parent)}
        originals = dict(self.teachers)
        return {
            "previous": previous,
            "original": originals,
            "both": originals | previous,
        }[self.section.teachers]


def begun(ground: Ground) -> Walk:
    """The first model, trained where that is to be done, exported and judged.

    Raises UserError where the spiral goes by its MACs, and they can't be counted.
    """
    folder, recipe, dataset = ground.folder, ground.recipe, ground.dataset
    section = recipe.spiral
    assert section is not None
    teachers = dict(zip(recipe.teacher_names, taught(ground), strict=True))
    artifacts = {name: exported(ground, folder, name, path, None) for name, path in teachers.items()}
    if section.start == "student":
        weights = trained(ground, folder, recipe, list(teachers.values()), "student", recipe.distill)
        parent = next((artifact for artifact in artifacts.values() if artifact), None)
        artifact = exported(ground, folder, "student", weights, parent)
    else:
        ((name, weights),) = teachers.items()
        artifact = artifacts[name]
    assert artifact is not None
    by = section.target[0] if section.target else "macs"
    if by == "macs" and artifact.macs is None:
        raise UserError(
            f"spiral.macs: the multiply-accumulates of {folder.onnx(artifact.rung)} can't be counted: take parameters, "
            "size or latency"
        )
    held_out = EvalPack(
        "held-out samples",
        dataset.x_held_out,
        dataset.y_held_out,
        None,
        dataset.classes,
        dataset.preprocessing,
        dataset.task,
    )
    answers = _answers(artifact, folder.onnx(artifact.rung), held_out, recipe.threads)
    return Walk(ground, section, teachers, First(artifact, weights, answers), held_out)


def one_turn(walk: Walk, plan: Plan, before: list[TurnRecord]) -> TurnRecord:
    """What comes of a turn, after those `before`: refused, or taken and exported.

    Raises UserError, and the turn is none, for what says nothing of the step: a full disk, a training that failed.
    """
    from kdbench.pruning.structured import UnreachableError
    from kdbench.steps import spiral as step

    ground, section = walk.ground, walk.section
    folder, recipe, rung, parent = ground.folder, ground.recipe, walk.rung(plan.number), walk.rung(plan.parent)
    source, teachers = walk.weights(plan.parent), walk.taught_by(plan.parent)
    turn = TurnRecord(number=plan.number, parent=plan.parent, step=plan.step, keep=plan.keep)

    def refused(why: Refusal, said: str, **facts: Any) -> TurnRecord:
        return turn.model_copy(update={"refusal": why, "said": said, **facts})

    lesson = replace(ground.lesson, dataset=step.seen_by(ground.dataset, source))
    try:
        start = step.narrowed(folder, rung, walk.sparse(plan.parent), source, plan.keep, teachers, lesson)
    except UnreachableError as error:
        return refused("unreachable", re.sub(r"^prune\.", "pruning ", re.sub(r"^prune:", "pruning:", str(error))))
    whole, left = (step.costs(path, recipe.folder) for path in (source, start))
    facts = {"macs": left.macs, "parameters": left.parameters, "mark": step.structure(start)}
    if left.macs >= whole.macs or left.parameters >= whole.parameters:
        return refused("nothing", _not_fallen((whole.macs, whole.parameters), (left.macs, left.parameters)), **facts)
    for other in before:
        if other.refusal == "accuracy" and (other.parent, other.mark) == (plan.parent, facts["mark"]):
            return refused("repeated", f"the same channels as in turn {other.number}, which was refused", **facts)
    artifact = _taught(walk, rung, start, parent, plan)
    before_it = inspect(folder.onnx(parent), parent)
    if (artifact.macs or 0) >= (before_it.macs or math.inf) or artifact.parameters >= before_it.parameters:
        was, is_now = (before_it.macs, before_it.parameters), (artifact.macs, artifact.parameters)
        return refused("nothing", _not_fallen(was, is_now), **facts)
    facts |= _facts(artifact)
    judged = _judged(walk, artifact)
    if refusal(Outcome(judged["drop"].value), section.max_drop * POINT) is not None:
        return refused("accuracy", f"more than {section.max_drop:g} points below the first model", **facts, **judged)
    time = _timed(walk, artifact)
    return turn.model_copy(update={**facts, **judged, **time, "share": _share(walk, artifact, time["speedup"])})


def _taught(walk: Walk, rung: str, start: Path, parent: str, plan: Plan) -> Artifact:
    """The rung's ONNX file: of the pruned weights in `start`, taught again."""
    from kdbench.steps import spiral as step
    from kdbench.steps import train

    ground = walk.ground
    teachers, training = walk.taught_by(plan.parent), step.turn_training(ground.recipe)
    lesson = replace(ground.lesson, dataset=step.seen_by(ground.dataset, start))
    weights = train.refine(ground.folder, rung, start, teachers, lesson, training=training)
    return _exported(walk, rung, weights, parent, {"step": plan.step, "keep": plan.keep, "teachers": [*teachers]})


def final_turn(walk: Walk, best: TurnRecord, known: TurnRecord | None) -> TurnRecord:
    """The last training of the best turn's model: taken unless it is worse on the held-out samples."""
    from kdbench.steps import spiral as step
    from kdbench.steps import train

    ground, training = walk.ground, walk.section.final
    assert training is not None
    folder, source, begun_s = ground.folder, walk.weights(best.number), now()
    mark = fingerprint(source=sha256_of_file(source), training=training.model_dump())
    if known and known.mark == mark and known.refusal:
        return known
    teachers = walk.taught_by(best.parent)
    lesson = replace(ground.lesson, dataset=step.seen_by(ground.dataset, source))
    weights = train.refine(folder, FINAL, source, teachers, lesson, training=training)
    artifact = _exported(walk, FINAL, weights, walk.rung(best.number), {"final": True, "teachers": [*teachers]})
    turn = TurnRecord(number=0, parent=best.number, step=0.0, keep=1.0, share=best.share, mark=mark)
    timed = {"speedup": best.speedup, "doubts": best.doubts}
    turn = turn.model_copy(update={**_facts(artifact), **_judged(walk, artifact), **timed})
    turn = lasted(folder, FINAL, turn, now() - begun_s)
    assert turn.drop is not None
    assert best.drop is not None
    if turn.drop.value > best.drop.value:
        forget(folder, FINAL)
        return turn.model_copy(update={"refusal": "accuracy", "said": f"worse than {walk.rung(best.number)}"})
    return turn


def _exported(walk: Walk, rung: str, path: Path, parent: str, told: dict[str, Any]) -> Artifact:
    """The rung's ONNX file and its record."""
    from kdbench.steps.export import export
    from kdbench.training import weights

    folder, recipe = walk.ground.folder, walk.ground.recipe
    changes = [change.model_dump(mode="json") for change in weights.record(path).changes]
    parent_sha256 = sha256_of_file(folder.onnx(parent))

    def make(out: Path) -> Artifact:
        artifact = export(path, out, folder.pack, rung, recipe.folder)
        options = {**artifact.options, "spiral": told, "changes": changes}
        lineage = {"parent": parent, "parent_sha256": parent_sha256, "step": "spiral"}
        return artifact.model_copy(update={**lineage, "options": options})

    return kept(folder, rung, make, "export", weights=sha256(path.read_bytes()), parent=parent_sha256, told=told)


def _facts(artifact: Artifact) -> dict[str, Any]:
    sizes = {name: getattr(artifact, name) for name in ("macs", "parameters", "size_bytes")}
    return {**sizes, "onnx_sha256": artifact.sha256}


def _judged(walk: Walk, artifact: Artifact) -> dict[str, Any]:
    """How far it is below the first model on the held-out samples, paired by sample."""
    labels = walk.held_out.y_test
    assert labels is not None
    ground, theirs = walk.ground, walk.first.right
    ours = _answers(artifact, ground.folder.onnx(artifact.rung), walk.held_out, ground.recipe.threads)
    if labels.ndim == 2:
        found, p = stats.f1_difference(ours, theirs, labels), None
    else:
        found = stats.accuracy_difference(ours == labels, theirs == labels)
        p = stats.mcnemar(ours == labels, theirs == labels)
    # Without the sign of zero, which would be printed.
    drop = Interval(0.0 - found.value, 0.0 - found.high, 0.0 - found.low)
    return {"score": score(ours, labels), "drop": estimate(drop), "p": p}


def _answers(artifact: Artifact, path: Path, pack: EvalPack, threads: int) -> NDArray[np.int64]:
    record, predicted = judge(artifact, path, pack, BATCH, "cpu", threads)
    if predicted is None:
        raise UserError(f"{path}: {record.error}")
    return predicted


def score(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    return stats.f1(answers, labels)[0] if labels.ndim == 2 else float(np.mean(answers == labels))


def race_s(recipe: Recipe) -> float:
    """For one turn."""
    return min(RACE_S, recipe.bench.budget_s)


def _timed(walk: Walk, artifact: Artifact) -> dict[str, Any]:
    """Its speed-up over the first model, and what speaks against it; where it can't be told, why.

    Raises UserError for that where a latency is the target.
    """
    folder, recipe, backend = walk.ground.folder, walk.ground.recipe, walk.section.backend
    place = Place(backend, own_options(backend, recipe.bench.options), budget_s=race_s(recipe), seed=recipe.seed)
    subjects = [Subject(found, folder.onnx(found.rung)) for found in (walk.first.artifact, artifact)]
    try:
        time = raced(subjects, place, load_pack(folder.pack), walk.ground.progress)[artifact.rung]
    except UserError as error:
        time = Raced(None, None, (), str(error))
    if time.speedup is not None:
        return {"speedup": estimate(time.speedup), "doubts": time.doubts}
    why = f"{artifact.rung} on {walk.place.label}: {time.error or 'too few rounds were measured'}"
    if walk.section.latency is not None:
        raise UserError(why)
    return {"speedup": None, "doubts": (f"not timed: {why}",)}


def _share(walk: Walk, artifact: Artifact, speedup: Estimate | None) -> float:
    """What is left of the first model's target quantity; without a target, of its MACs."""
    what = walk.section.target[0] if walk.section.target else "macs"
    if what == "latency":
        assert speedup is not None
        return 1 / speedup.value
    field = {"size": "size_bytes"}.get(what, what)
    share: float = getattr(artifact, field) / getattr(walk.first.artifact, field)
    return share


def _not_fallen(was: tuple[int | None, int], left: tuple[int | None, int]) -> str:
    return f"pruning removed nothing: MACs {was[0]} → {left[0]}, parameters {was[1]} → {left[1]}"


def lasted(folder: RunFolder, rung: str, turn: TurnRecord, took_s: float) -> TurnRecord:
    """The turn with what it took: of one that was trained, with what it did before a stop."""
    known_s = folder.duration_s(rung) if turn.score is not None else None
    return turn.model_copy(update={"duration_s": round(max(took_s, known_s or 0.0), 3)})


def forget(folder: RunFolder, rung: str) -> None:
    """Removes the files of a turn that is no rung."""
    for curves in (folder.tensorboard(rung), *folder.tensorboard(rung).parent.glob(f"{rung}-*")):
        shutil.rmtree(curves, ignore_errors=True)
    for path in (*folder.path.glob(f"{rung}.*"), *folder.path.glob(f"{rung}-*")):
        if path.is_file():
            path.unlink()
