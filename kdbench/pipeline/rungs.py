"""The rungs of a recipe, each made once, and kept while what it was made from is the same."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.backends import own_options
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import load_pack
from kdbench.errors import UserError
from kdbench.machine import saturates_in_int8, versions
from kdbench.onnxfile import inspect, known_artifact
from kdbench.pipeline.searches import failed, forget_search
from kdbench.progress import Progress
from kdbench.records import IMPORTED, Artifact, Quantize, QuantizeSection, ResultFile, from_json, read_text
from kdbench.store import (
    PARTIAL_FILE,
    RESULTS_FILE,
    SIDECAR,
    RunFolder,
    fingerprint,
    save_artifact,
    sha256,
    sidecar,
)

PRUNED = "student-pruned"
SPARSE = "student-sparse"
LOW_RANK = "student-low-rank"

LADDER = ("teacher", "teacher-int8", "student-alone", "student", "student-slim", "student-int8")
"""The rungs of every recipe, in the order of the table."""

AWARE = "student-qat-int8"
"""The student's int8 rung whose training knew of the rounding."""

ENDS = ("slim", "int8")
"""Of the rungs that are made of an exported model."""

SPIRAL = "spiral"
"""Its last model in int8 is `spiral-int8`, whichever turn it is from."""

ORDER = (
    *LADDER[:4],
    *(rung for parent in (SPARSE, LOW_RANK) for rung in (parent, *(f"{parent}-{end}" for end in ENDS))),
    PRUNED,
    *LADDER[4:],
    AWARE,
)
"""The same with those that a recipe may ask for."""

KINDS = {rung: place for place, rung in enumerate((*ORDER, SPIRAL, *(f"{SPIRAL}-{end}" for end in ("final", *ENDS))))}
"""Where rungs stand in the ladder of a run folder; those of one kind by their number, of unknown ones by name."""

RACE_S = 20.0
"""To find the fastest of the int8 files of a rung, where a backend or a budget of accuracy asks for it."""


def of_spiral(rung: str) -> bool:
    """Whether it is one of those that `kdbench spiral` makes."""
    return bool(re.fullmatch(rf"{SPIRAL}-(\d+|final|{'|'.join(ENDS)})", rung))


def timed(folder: RunFolder) -> dict[str, Artifact]:
    """The records of a run folder by name, with what making each of them took."""
    return {
        rung: artifact.model_copy(update={"made_in_s": folder.duration_s(rung) or artifact.made_in_s})
        for rung, artifact in folder.artifacts().items()
    }


def rungs_of(folder: RunFolder) -> dict[str, Artifact]:
    """Those of them that are rungs: the accuracy of a teacher of a part of the classes means nothing."""
    return {rung: artifact for rung, artifact in timed(folder).items() if "known" not in artifact.options}


def run_subjects(folder: RunFolder, wanted: Callable[[Artifact], bool] = lambda _: True) -> list[Subject]:
    """The `wanted` rungs of a run folder in the order of the ladder, then others by name.

    Raises UserError where one of them is not as its record says, or was made from another parent than lies beside it.
    """
    artifacts = rungs_of(folder)
    rungs = sorted((rung for rung, artifact in artifacts.items() if wanted(artifact)), key=_place)
    subjects = [Subject(artifacts[rung], folder.path / artifacts[rung].file) for rung in rungs]
    for subject in subjects:
        parent = artifacts.get(subject.artifact.parent or "")
        if inspect(subject.model).sha256 != subject.artifact.sha256:
            raise UserError(f"{subject.model}: not the file that its record describes (sha256 differs): make it again")
        if parent and parent.sha256 != subject.artifact.parent_sha256:
            command = "spiral" if of_spiral(subject.artifact.rung) else "run"
            raise UserError(
                f"{subject.model}: made from another {parent.rung} than the one beside it: "
                f"'kdbench {command}' with the same recipe makes it again, or remove it"
            )
    return subjects


def _place(rung: str) -> tuple[int, list[str | int]]:
    """Where a rung stands: by its kind, then by its number, then by its name."""
    kind = re.sub(rf"^(teacher|{SPIRAL})-\d+", r"\1", rung)
    parts = re.split(r"(\d+)", rung)  # names and numbers in turns
    return KINDS.get(kind, len(KINDS)), [int(part) if part.isdecimal() else part for part in parts]


def ladder_of(folder: RunFolder, say: Callable[[str], None]) -> list[Subject]:
    """All rungs of a run folder; of one whose rungs don't fit together those of its results, which is said.

    A run and a spiral that share a folder may each train the student anew, and leave the rungs that the other has made.
    Raises UserError as `run_subjects` does.
    """
    try:
        return run_subjects(folder)
    except UserError:
        measured = last_measured(folder)
        if measured is None:
            raise
        return measured_subjects(folder, measured, say)


def results_in(folder: RunFolder) -> Path | None:
    """Of its last measurement, or of what there is of one that was interrupted."""
    return next((p for p in (folder.path / RESULTS_FILE, folder.path / PARTIAL_FILE) if p.is_file()), None)


def last_measured(folder: RunFolder) -> ResultFile | None:
    """The record of a run folder's own measurement; None where there is none, or a rung of it has changed since."""
    path = results_in(folder)
    if path is None:
        return None
    result = from_json(ResultFile, read_text(path), str(path))
    rungs = {(rung, artifact.sha256) for rung, artifact in rungs_of(folder).items()}
    return result if {(a.rung, a.sha256) for a in result.artifacts} <= rungs else None


def measured_subjects(folder: RunFolder, measured: ResultFile, say: Callable[[str], None]) -> list[Subject]:
    """Those rungs of a run folder that its measurement is of; which are left out is said."""
    own = {(a.rung, a.sha256) for a in measured.artifacts}
    others = [rung for rung, artifact in rungs_of(folder).items() if (rung, artifact.sha256) not in own]
    if others:
        say(f"left out, as {results_in(folder)} is not of them: {', '.join(others)}")
    return run_subjects(folder, lambda artifact: (artifact.rung, artifact.sha256) in own)


def forget(folder: RunFolder, rungs: Collection[str], alone: bool) -> None:
    """Removes the ONNX files of teachers that are none of `rungs` any more, and with `alone` those of a student alone.

    An earlier recipe in the same folder may have had more teachers, or labels, or have pruned its student.
    """
    for record in folder.path.glob(f"*{SIDECAR}"):
        rung = record.name.removesuffix(SIDECAR)
        trained = rung.removesuffix("-int8")
        ours = re.fullmatch(r"teacher(-\d+)?", trained) or (alone and trained == "student-alone") or trained == PRUNED
        if ours and trained not in rungs:
            _forgotten(folder, rung)


def compressed(
    folder: RunFolder,
    options: QuantizeSection | Quantize,
    teacher: str | None,
    progress: Progress,
    say: Callable[[str], None],
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The slimmed and the int8 rungs of the student, or of the pruned one, and the int8 one of `teacher`, if there is
    such a rung; those of the students beside them, where the options ask for all rungs. Else they are removed.

    A teacher that came as an ONNX file goes without where it can't be quantized, and so does each of them where it
    can't be within a bound of the accuracy.
    """
    parents = {"student": PRUNED if folder.onnx(PRUNED).is_file() else "student"}
    for beside in (SPARSE, LOW_RANK):
        if every_rung(options) and folder.onnx(beside).is_file():
            parents[beside] = beside
        else:
            without(folder, beside)
    in_int8(folder, options, parents, teacher, progress, say, backend_options)


def every_rung(options: Quantize) -> bool:
    return isinstance(options, QuantizeSection) and options.all_rungs


def without(folder: RunFolder, stem: str) -> None:
    """Removes the slimmed and the int8 rung of a model, which an earlier recipe may have asked for."""
    for end in ENDS:
        _forgotten(folder, f"{stem}-{end}")


def _forgotten(folder: RunFolder, rung: str) -> None:
    """Removes a rung, and what a search for it has left that found none."""
    _removed(folder, rung)
    forget_search(failed(folder.onnx(rung)))


def _removed(folder: RunFolder, rung: str) -> None:
    for left in (folder.onnx(rung), sidecar(folder.onnx(rung))):
        left.unlink(missing_ok=True)
    forget_search(folder.onnx(rung))


def in_int8(
    folder: RunFolder,
    section: QuantizeSection | Quantize,
    parents: Mapping[str, str],
    teacher: str | None,
    progress: Progress,
    say: Callable[[str], None],
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The rungs `NAME-slim` and `NAME-int8` of each rung that `parents` names, and the int8 one of `teacher`.

    Where one is chosen on a backend, those of the `backend_options` that are its own hold.
    """
    from kdbench.pipeline.proving import with_layers
    from kdbench.pipeline.quantizing import fastest_int8
    from kdbench.steps.quantize import quantize
    from kdbench.steps.slim import slim

    options = section.static if isinstance(section, QuantizeSection) else section
    pack = load_pack(folder.pack)
    facts: dict[str, Any] = {
        "pack": sha256(folder.pack.read_bytes()),
        "options": options.model_dump(exclude_unset=options.filled_in),
        "saturates": saturates_in_int8(),
    }
    given = own_options(options.backend or "cpu", backend_options or {})
    if given:
        facts["backend_options"] = given

    def quantized(parent: str, rung: str) -> Callable[[Path], Artifact]:
        search = options.max_drop is not None or options.backend is not None
        return lambda out: fastest(parent, rung, out) if search else plain(parent, rung, out)

    def plain(parent: str, rung: str, out: Path) -> Artifact:
        source = folder.onnx(parent)
        made = with_layers(quantize(source, out, pack, options, rung), source, out, pack)
        for searched in (out, failed(out)):  # by an earlier recipe
            forget_search(searched)
        return made

    def fastest(parent: str, rung: str, out: Path) -> Artifact:
        found = fastest_int8(
            folder.onnx(parent),
            out,
            pack,
            options,
            backend_options=given,
            budget_s=RACE_S,
            rung=rung,
            progress=progress,
            say=say,
        )
        chosen = next(one for one in found.budget.candidates if one.name == found.budget.chosen)
        for doubt in chosen.doubts:
            say(f"{rung}: the race of its candidates: {doubt}")
        return found.artifact

    def slimmed(parent: str, rung: str) -> Callable[[Path], Artifact]:
        return lambda out: slim(folder.onnx(parent), out, pack, rung)

    steps: list[tuple[str, str, str, Callable[[Path], Artifact]]] = []
    if teacher:
        steps.append((teacher, f"{teacher}-int8", "quantize", quantized(teacher, f"{teacher}-int8")))
    for name, model in parents.items():
        light, int8 = (f"{name}-{end}" for end in ENDS)
        steps.append((model, light, "slim", slimmed(model, light)))
        steps.append((light, int8, "quantize", quantized(light, int8)))
    for number, (parent, rung, step, make) in enumerate(steps):
        progress("slim, quantize", number, len(steps))
        if not folder.onnx(parent).is_file():  # as has been said
            _removed(folder, rung)
            continue
        try:
            kept(folder, rung, make, step, parent=sha256(folder.onnx(parent).read_bytes()), **facts)
        except UserError as error:
            if known_artifact(folder.onnx(parent)).step != IMPORTED and options.max_drop is None:
                raise
            say(f"no rung {rung}: {error}")
            _removed(folder, rung)
    progress("slim, quantize", len(steps), len(steps))


def kept(folder: RunFolder, rung: str, make: Callable[[Path], Artifact], step: str, **facts: Any) -> Artifact:
    """The rung's artifact: the one in the folder if it was made from the same `facts`, else made now.

    The folder keeps what that took.
    """
    mark = fingerprint(step=step, versions=versions() | {"kdbench": __version__}, **facts)
    path = folder.onnx(rung)
    if path.is_file():
        with suppress(UserError):  # a damaged file or record is made again
            artifact = known_artifact(path)
            if artifact.fingerprint == mark:
                return artifact
    with folder.timed(rung, step):
        artifact = make(path)
    return save_artifact(folder.path, artifact.model_copy(update={"fingerprint": mark}))
