"""The spiral: pruned a little, distilled, exported, judged on held-out samples, measured, and again."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter as now

from kdbench import __version__
from kdbench.errors import UserError
from kdbench.machine import versions
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.learning import Ground, prepared
from kdbench.pipeline.measuring import Report, measured_run
from kdbench.pipeline.places import check_places
from kdbench.pipeline.rungs import ENDS, SPIRAL, every_rung, in_int8, run_subjects, without
from kdbench.pipeline.turns import FINAL, POINT, Walk, begun, final_turn, forget, lasted, one_turn, score
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Artifact, Recipe, SpiralSection, from_json, read_text
from kdbench.records.turns import SpiralRecord, TurnRecord
from kdbench.report.files import save_turns
from kdbench.report.spiral import ended, turn_line
from kdbench.search import spiral as search
from kdbench.search.spiral import Bounds, Outcome, Plan
from kdbench.store import SIDECAR, RunFolder, fingerprint, open_recipe, sha256, sha256_of_file, sidecar, write_atomic
from kdbench.store import publish as publish_results

JOURNAL = "spiral.json"


@dataclass(frozen=True)
class Spiralled:
    """A spiral that has ended."""

    record: SpiralRecord
    best: Artifact
    file: Path
    """Of the best model."""
    journal: Path
    turns: Path
    """Its table as Markdown."""
    report: Report


def spiral(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    publish: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Spiralled:
    """Makes the first model of a recipe (or of its name or path) smaller, turn by turn, as its `spiral` has it.

    In each turn a share of what is left is pruned away, the rest is distilled, exported, and judged on the held-out
    samples; it is taken if it is above the floor, or else the step is halved. Ends with the last model that was taken,
    whose whole ladder is measured on the evaluation samples. `out` is by default `runs/<name>`, where a spiral that was
    stopped goes on. Raises UserError for what can't be walked.
    """
    recipe = open_recipe(recipe)
    folder = RunFolder(Path(out or Path("runs") / recipe.name))
    if recipe.spiral is None:
        raise UserError(f"{recipe.name}: no [spiral] in the recipe: add one, or --set spiral.macs=0.5")
    check_places(recipe, turns=True)
    with folder.lock():
        walk = begun(prepared(folder, recipe, progress, say))
        record = _walked(walk)
        rungs = _rungs(walk, record)
        rungs += _in_int8(walk, record)
        report = _measured(walk, record, rungs)
        if publish:
            report = replace(report, published=publish_results(report.results, say=say))
        turns = save_turns(record, folder.path)
    file = folder.onnx(record.best)
    return Spiralled(record, known_artifact(file), file, folder.path / JOURNAL, turns, report)


def _walked(walk: Walk) -> SpiralRecord:
    """The spiral from where its journal has left it to its end."""
    section, folder, ground = walk.section, walk.ground.folder, walk.ground
    record = _journal(walk)
    past = [(_plan(turn), _outcome(turn)) for turn in record.turns]
    turns = list(record.turns)

    def make(plan: Plan) -> Outcome:
        nonlocal record
        del turns[plan.number - 1 :]
        begun_s = now()
        turn = one_turn(walk, plan, turns)
        turn = lasted(folder, walk.rung(plan.number), turn, now() - begun_s)
        turns.append(turn)
        record = _kept(folder, record.model_copy(update={"turns": tuple(turns), "limit": None}))
        if turn.refusal:
            forget(folder, walk.rung(plan.number))
        ground.say(turn_line(turn, record))
        return _outcome(turn)

    target = section.target
    bounds = Bounds(
        goal=target[1] if target else 0.0,
        max_drop=section.max_drop * POINT,
        step=section.step,
        smallest_step=section.smallest_step,
        turns=section.turns,
    )
    found = search.spiral(make, bounds, past)
    best = walk.rung(found.best)
    known = record.final
    walked = {"turns": record.turns[: found.turns], "limit": found.limit, "best": best}
    record = record.model_copy(update={**walked, "final": None})
    if section.final and found.best:
        final = final_turn(walk, next(turn for turn in record.turns if turn.number == found.best), known)
        record = record.model_copy(update={"final": final, "best": best if final.refusal else FINAL})
        ground.say(turn_line(final, record))
    return _kept(folder, record.model_copy(update={"remarks": tuple(_remarks(walk, record))}))


def _plan(turn: TurnRecord) -> Plan:
    return Plan(turn.number, turn.parent, turn.step, turn.keep)


def _outcome(turn: TurnRecord) -> Outcome:
    refused = None if turn.refusal == "accuracy" else turn.refusal
    return Outcome(turn.drop.value if turn.drop else None, turn.share, refused)


# --- the journal ------------------------------------------------------------------------------------------------------


def _journal(walk: Walk) -> SpiralRecord:
    """What the folder knows of this spiral, as far as the files of the accepted turns are there; a new one without."""
    section, first, folder = walk.section, walk.first.artifact, walk.ground.folder
    labels = walk.held_out.y_test
    assert labels is not None
    target = section.target
    new = SpiralRecord(
        fingerprint=_fingerprint(walk),
        first=first.rung,
        metric="micro F1" if labels.ndim == 2 else "accuracy",
        score=score(walk.first.right, labels),
        samples=len(labels),
        target=target[0] if target else None,
        goal=target[1] if target else 0.0,
        max_drop=section.max_drop,
        **{name: getattr(first, name) for name in ("macs", "parameters", "size_bytes")},
    )
    path = folder.path / JOURNAL
    if not path.is_file():
        return new
    with suppress(UserError):  # a damaged one is begun anew: what is trained is kept all the same
        found = from_json(SpiralRecord, read_text(path), str(path))
        if found.fingerprint == new.fingerprint:
            for turn in found.turns:
                if turn.refusal:
                    forget(folder, walk.rung(turn.number))
            whole = [turn.number for turn in found.turns if turn.refusal is None and not _there(walk, turn)]
            return found.model_copy(update={"turns": found.turns[: min(whole, default=len(found.turns) + 1) - 1]})
    return new


def _fingerprint(walk: Walk) -> str:
    """Of everything that decides on what a turn gives."""
    from kdbench.steps.teach import digest
    from kdbench.steps.train import loss_files

    ground, recipe = walk.ground, walk.ground.recipe
    held_out = walk.held_out
    assert held_out.x_test is not None
    return fingerprint(
        spiral=walk.section.model_dump(exclude={"turns", "final", "smallest_step"}),
        distill=recipe.distill.model_dump(),
        loss_files=loss_files(recipe.distill, recipe),
        training=recipe.student.training.model_dump(),
        augment=recipe.data.augment.model_dump(),
        bench=recipe.bench.options,
        seed=recipe.seed,
        threads=recipe.threads,
        data=ground.data_sha256,
        held_out=sha256(held_out.x_test.tobytes()),
        first=sha256_of_file(walk.first.weights),
        teachers=[digest(path) for path in walk.teachers.values()],
        voices=[teacher.weight for teacher in recipe.teachers],
        kdbench=__version__,
        versions=versions(("torch", "numpy", "onnxruntime", "torch-pruning")),
    )


def _kept(folder: RunFolder, record: SpiralRecord) -> SpiralRecord:
    write_atomic(folder.path / JOURNAL, record.to_json())
    return record


def _there(walk: Walk, turn: TurnRecord) -> bool:
    file = walk.ground.folder.onnx(walk.rung(turn.number))
    whole = file.is_file() and sidecar(file).is_file() and sha256_of_file(file) == turn.onnx_sha256
    return whole and walk.weights(turn.number).is_file()


# --- the end ----------------------------------------------------------------------------------------------------------


def _rungs(walk: Walk, record: SpiralRecord) -> list[str]:
    """Those of the ladder, the first model's first; what an earlier spiral has left beside them is removed."""
    folder = walk.ground.folder
    rungs = [record.first, *(walk.rung(turn.number) for turn in record.turns if turn.refusal is None)]
    rungs += [FINAL] * (record.best == FINAL)
    for path in folder.path.glob(f"spiral-*{SIDECAR}"):
        rung = path.name.removesuffix(SIDECAR)
        if re.fullmatch(r"spiral-(\d+|final)", rung) and rung not in rungs:
            forget(folder, rung)
    return rungs


def _in_int8(walk: Walk, record: SpiralRecord) -> list[str]:
    """The last model's rungs, slimmed and in int8, where the recipe asks for all; else they are removed."""
    ground, folder = walk.ground, walk.ground.folder
    options = ground.recipe.quantize
    if not every_rung(options) or record.best == record.first:
        without(folder, SPIRAL)
        return []
    given = ground.recipe.bench.options
    in_int8(folder, options, {SPIRAL: record.best}, None, ground.progress, ground.say, given)
    return [f"{SPIRAL}-{end}" for end in ENDS]


def _measured(walk: Walk, record: SpiralRecord, rungs: list[str]) -> Report:
    """The ladder on the evaluation samples, against the first model."""
    ground = walk.ground
    wanted = [*(name for name in walk.teachers if name != record.first), *rungs]
    subjects = run_subjects(ground.folder, lambda artifact: artifact.rung in wanted)
    found = {subject.artifact.rung: subject for subject in subjects}
    subjects = [found[rung] for rung in wanted if rung in found]
    return measured_run(ground, subjects, record.first, spiral=record, keep=True)


def _remarks(walk: Walk, record: SpiralRecord) -> list[str]:
    """How it ended, and what the held-out samples can't tell."""
    said = [ended(record)]
    teacher = walk.ground.recipe.teachers[0]
    if walk.section.start == "teacher" and teacher.training is None:
        said.append(
            "the first model was trained elsewhere: where it has learnt from the held-out samples too, no other model "
            "comes near it on them, and the drop on the evaluation samples is the one to believe"
        )
    last = next((turn for turn in (record.final, *reversed(record.turns)) if turn and not turn.refusal), None)
    if last and (ratio := last.speedup) and ratio.low <= 1:
        place = walk.place.label
        if ratio.high <= 1:
            is_it = f"{record.best} is not faster than {record.first} on {place}, for all that it has lost"
        else:
            range_ = f"{ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]"
            is_it = f"whether {record.best} is faster than {record.first} on {place} can't be told: {range_}"
        said.append(f"{is_it}: 'kdbench profile' tells what takes its time there")
    if last and last.drop and last.drop.value <= record.max_drop * POINT < last.drop.high:
        said.append(
            f"{record.samples:,} held-out samples can't rule out a drop of {100 * last.drop.high:.2g} points: the "
            "floor is kept by the point estimate; more of data.held_out_samples narrow the interval"
        )
    return said


def tried(ground: Ground) -> None:
    """The first turn, refused by nothing but what can't be done; raises UserError then."""
    section = ground.recipe.spiral
    assert section is not None
    turn = one_turn(begun(ground), Plan(1, 0, section.step, 1 - section.step), [])
    if turn.refusal == "nothing":
        raise UserError(f"spiral.step: {turn.said}: ask for a larger one")


def turns_expected(section: SpiralSection) -> int:
    """Turns to the target, if none is refused; the most that there may be where that can't be told."""
    target = section.target
    if target is None or target[0] == "latency":
        return section.turns
    return min(section.turns, math.ceil(math.log(target[1]) / math.log(1 - section.step) - 1e-9))
