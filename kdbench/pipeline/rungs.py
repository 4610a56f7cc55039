"""The rungs of a recipe, each made once, and kept while what it was made from is the same."""

import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import load_pack, save_pack
from kdbench.data.remarks import remarks
from kdbench.errors import UserError
from kdbench.machine import saturates_in_int8, versions
from kdbench.onnxfile import inspect, known_artifact
from kdbench.progress import Progress
from kdbench.records import IMPORTED, Artifact, Quantize, Recipe
from kdbench.store import RunFolder, fingerprint, save_artifact, sha256, sidecar

LADDER = ("teacher", "teacher-int8", "student-alone", "student", "student-slim", "student-int8")
"""The rungs of a recipe, in the order of the table."""

TRAINING = "torch onnxscript"
"""Packages that training and export need, as pip wants them."""


def run_subjects(folder: RunFolder) -> list[Subject]:
    """The rungs of a run folder in the order of the ladder, then others by name."""
    artifacts = folder.artifacts()
    order = {rung: index for index, rung in enumerate(LADDER)}
    rungs = sorted(artifacts, key=lambda rung: (order.get(rung, len(order)), rung))
    subjects = [Subject(artifacts[rung], folder.path / artifacts[rung].file) for rung in rungs]
    for subject in subjects:
        parent = artifacts.get(subject.artifact.parent or "")
        if inspect(subject.model).sha256 != subject.artifact.sha256:
            raise UserError(f"{subject.model}: not the file that its record describes (sha256 differs): make it again")
        if parent and parent.sha256 != subject.artifact.parent_sha256:
            raise UserError(
                f"{subject.model}: made from another {parent.rung} than the one beside it: "
                "'kdbench run' with the same recipe makes it again"
            )
    return subjects


def distilled(
    folder: RunFolder, recipe: Recipe, progress: Progress, say: Callable[[str], None], alone: bool
) -> dict[str, Artifact]:
    """Weights and ONNX files of teacher and student, and of the student alone if asked."""
    needs_torch()
    from kdbench import data
    from kdbench.steps import teach, train
    from kdbench.steps.export import export

    dataset = data.load(recipe.data)
    for remark in remarks(dataset):
        say(remark)
    train.check(recipe, dataset)
    save_pack(folder.pack, dataset, recipe.data.calibration_samples, recipe.seed)
    data_sha256 = fingerprint(
        x=sha256(dataset.x_train.tobytes()),
        y=sha256(b"" if dataset.y_train is None else dataset.y_train.tobytes()),
        preprocessing=dataset.preprocessing and dataset.preprocessing.to_json(),
        classes=dataset.classes,
    )
    teacher = teach.teach(folder, "teacher", recipe.teachers[0], recipe, dataset, data_sha256, progress)
    weights = {"teacher": teacher}
    if alone:
        weights["student-alone"] = train.train(
            folder, "student-alone", recipe.student, recipe, dataset, data_sha256, progress
        )
    weights["student"] = train.distill(folder, "student", teacher, recipe, dataset, data_sha256, progress)
    artifacts: dict[str, Artifact] = {}
    for number, (rung, path) in enumerate(weights.items()):
        progress("export", number, len(weights))
        if path == folder.onnx(rung):  # a black box is its own
            artifacts[rung] = known_artifact(path)
            continue
        parent = artifacts["teacher"] if rung == "student" else None

        def make(out: Path, path: Path = path, rung: str = rung, parent: Artifact | None = parent) -> Artifact:
            made = export(path, out, folder.pack, rung, recipe.folder)
            lineage = (
                {"parent": parent.rung, "parent_sha256": parent.sha256, "step": "distill"}
                if parent
                else {"step": "train"}
            )
            return made.model_copy(update=lineage)

        artifacts[rung] = _kept(
            folder, rung, make, "export", weights=sha256(path.read_bytes()), parent=parent and parent.sha256
        )
    progress("export", len(weights), len(weights))
    return artifacts


def compressed(folder: RunFolder, options: Quantize, progress: Progress, say: Callable[[str], None]) -> None:
    """The slimmed and the int8 rungs; a teacher that came as an ONNX file goes without where it can't be quantized."""
    from kdbench.steps.quantize import quantize
    from kdbench.steps.slim import slim

    pack = load_pack(folder.pack)
    facts: dict[str, Any] = {
        "pack": sha256(folder.pack.read_bytes()),
        "options": options.model_dump(),
        "saturates": saturates_in_int8(),
    }

    def quantized(parent: str, rung: str) -> Callable[[Path], Artifact]:
        return lambda out: quantize(folder.onnx(parent), out, pack, options, rung)

    steps: list[tuple[str, str, str, Callable[[Path], Artifact]]] = [
        ("teacher", "teacher-int8", "quantize", quantized("teacher", "teacher-int8")),
        ("student", "student-slim", "slim", lambda out: slim(folder.onnx("student"), out, "student-slim", pack)),
        ("student-slim", "student-int8", "quantize", quantized("student-slim", "student-int8")),
    ]
    for number, (parent, rung, step, make) in enumerate(steps):
        progress("slim, quantize", number, len(steps))
        try:
            _kept(folder, rung, make, step, parent=sha256(folder.onnx(parent).read_bytes()), **facts)
        except UserError as error:
            if known_artifact(folder.onnx(parent)).step != IMPORTED:
                raise
            say(f"no rung {rung}: {error}")
            for left in (folder.onnx(rung), sidecar(folder.onnx(rung))):
                left.unlink(missing_ok=True)
    progress("slim, quantize", len(steps), len(steps))


def _kept(folder: RunFolder, rung: str, make: Callable[[Path], Artifact], step: str, **facts: Any) -> Artifact:
    """The rung's artifact: the one in the folder if it was made from the same `facts`, else made now."""
    mark = fingerprint(step=step, versions=versions() | {"kdbench": __version__}, **facts)
    path = folder.onnx(rung)
    if path.is_file():
        with suppress(UserError):  # a damaged file or record is made again
            artifact = known_artifact(path)
            if artifact.fingerprint == mark:
                return artifact
    return save_artifact(folder.path, make(path).model_copy(update={"fingerprint": mark}))


def needs_torch() -> None:
    """Imports torch as training wants it; raises UserError where the training extra is not installed."""
    # Spinning OpenMP threads that share a core can slow small steps down fifty times. Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in TRAINING.split():
        try:
            import_module(package)
        except ImportError:
            raise UserError(f"training needs {package}, which is not installed: pip install {TRAINING}") from None
