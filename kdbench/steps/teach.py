"""The teacher of a recipe: its weights file or ONNX file in the run folder, and at work."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from kdbench import __version__, functions
from kdbench.data.dataset import Dataset
from kdbench.losses.weighted import terms as terms_of
from kdbench.machine import versions
from kdbench.onnxfile import inspect, known_artifact, load_model, portable
from kdbench.records import IMPORTED, Loss, Recipe, Task, Teacher
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, fingerprint, save_artifact, sha256, sidecar, write_atomic
from kdbench.teachers import Candidate, prepare, weights_file
from kdbench.teachers.black_box import BlackBox, Options
from kdbench.teachers.classes import ClassMap
from kdbench.teachers.graph import mapped
from kdbench.training import processes, weights
from kdbench.training.finished import Part, weights_files
from kdbench.training.loop import Course
from kdbench.training.seeds import deterministic
from kdbench.training.teaching import Teaching
from kdbench.training.weights import Trained

ALONE: dict[Task, dict[str, Loss]] = {
    "classification": {"cross_entropy": Loss()},
    "multi_label": {"binary_cross_entropy": Loss()},
}
"""The losses of a network that is trained without a teacher."""

LIBRARIES = {"torchvision": ("torchvision",), "timm": ("timm", "torchvision"), "huggingface": ("transformers",)}
"""By source: whose versions decide what a model computes."""


def teach(
    run: RunFolder,
    rung: str,
    section: Teacher,
    lesson: Lesson,
    field: str = "teacher",
    candidate: Candidate | None = None,
) -> Path:
    """The teacher's file in the run folder, kept where it is already there.

    It is made of `candidate`, which is trained in place; without one of what `prepared` gives.
    A black box is its ONNX file, with its class map if it has one; any other ends as a weights file, trained or not.
    Only the main process writes; all wait for it.
    """
    recipe, dataset = lesson.recipe, lesson.dataset
    if section.training is not None:
        dataset.train_labels(f"training {rung}")
    candidate = candidate or processes.agreed(lambda: prepared(section, recipe, dataset, field))
    if isinstance(candidate.model, BlackBox):
        for stale in (run.weights(rung), run.checkpoint(rung)):
            stale.unlink(missing_ok=True)
        return _black_box(run.onnx(rung), rung, candidate, dataset)
    model = candidate.model
    seen = replace(dataset, preprocessing=candidate.preprocessing)
    trained = section.training is not None
    facts = {
        "teacher": section.model_dump(exclude={"weight", "weights"}),
        "files": _files(section, recipe.folder, field),
        "seed": recipe.seed,
        "threads": recipe.threads,
        "augment": recipe.data.augment.model_dump() if trained else None,
        "data": lesson.data_sha256,
        "preprocessing": candidate.preprocessing and candidate.preprocessing.to_json(),
        "kdbench": __version__,
        "versions": versions(("torch", "numpy", *LIBRARIES.get(section.source, ()))),
    }
    started = Trained(
        source=section.source,
        model=section.model,
        options=section.options,
        architecture=dict(candidate.architecture),
        changes=candidate.changes,
        input_shape=candidate.input_shape,
        task=dataset.task,
        classes=dataset.classes,
        class_map=None if candidate.class_map.whole(len(dataset.classes)) else candidate.class_map,
        preprocessing=candidate.preprocessing,
        fingerprint=fingerprint(**facts),
        epoch=0,
        input_dtype="float32" if candidate.preprocessing else weights.input_dtype(dataset.x_train),
    )
    course = None
    if section.training:
        terms = terms_of(ALONE[dataset.task], 1.0, recipe.folder, section.training.epochs)
        augmentation, seed, threads = recipe.data.augment, recipe.seed, recipe.threads
        course = Course(seen, section.training, terms, augmentation=augmentation, seed=seed, threads=threads)
    return weights_files(run, [Part(rung, started)], lambda: model, course, lesson.progress)[0]


def digest(path: Path) -> str:
    """sha256 of a file that `teach` has made, with the record that says how an ONNX file is fed and read."""
    record = sidecar(path).read_bytes() if path.suffix == ".onnx" else b""
    return sha256(path.read_bytes() + record)


@contextmanager
def at_work(path: Path, folder: Path) -> Iterator[Teaching]:
    """The teacher of a file that `teach` has made; `folder` is the recipe's."""
    if path.suffix == ".onnx":
        artifact = known_artifact(path)
        said = artifact.options
        options = Options(backend=said["backend"], threads=said["threads"])
        known = said.get("known")
        classes = (
            ClassMap(own=len(known), known=known, groups=tuple((i,) for i in range(len(known)))) if known else None
        )
        with BlackBox(path, artifact, said["outputs"], options) as model:
            yield Teaching(model, artifact.preprocessing, classes)
    else:
        module, trained = weights.model_of(path, folder)
        yield Teaching(module, trained.preprocessing, trained.class_map)


@contextmanager
def untrained(candidate: Candidate, recipe: Recipe, dataset: Dataset) -> Iterator[Teaching]:
    """The teacher before any training, to see whether everything fits."""
    if isinstance(candidate.model, BlackBox):
        with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
            path = _black_box(Path(scratch, "teacher.onnx"), "teacher", candidate, dataset)
            with at_work(path, recipe.folder) as teaching:
                yield teaching
    else:
        yield Teaching(candidate.model, candidate.preprocessing, candidate.class_map)


def prepared(section: Teacher, recipe: Recipe, dataset: Dataset, field: str = "teacher") -> Candidate:
    """The teacher with its first weights, which are the same for the same seed."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return prepare(section, dataset, recipe.folder, field)


def _files(section: Teacher, folder: Path, field: str) -> dict[str, str]:
    """sha256 of what lies on this machine and decides on the teacher, by name."""
    paths = [weights_file(section, folder, field)]
    if functions.is_own(section.model):
        paths.append(functions.source(section.model, folder, f"{field}.model"))
    hub = functions.find(section.model, folder) if section.source in LIBRARIES else None
    if hub is not None and hub.is_dir():
        paths += sorted(path for path in hub.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    return {path.name: sha256(path.read_bytes()) for path in paths if path is not None}


def _black_box(out: Path, rung: str, candidate: Candidate, dataset: Dataset) -> Path:
    """Copies the ONNX file, whole and with its class map, and writes its record."""
    box = candidate.model
    assert isinstance(box, BlackBox)
    content = box.file.read_bytes()
    model = load_model(box.file)
    if not candidate.class_map.identity:
        content = portable(mapped(model, candidate.class_map, box.kind, str(box.file)))
    elif sha256(content) != box.artifact.sha256:  # of several files
        content = portable(model)
    write_atomic(out, content)
    known = candidate.class_map.known
    partial = {"known": known} if len(known) < len(dataset.classes) else {}
    lineage = {
        "step": IMPORTED,
        "options": {
            "file": box.file.name,
            "outputs": box.kind,
            **box.options.model_dump(include={"backend", "threads"}),
            **partial,
        },
        "task": dataset.task,
        "classes": tuple(dataset.classes[place] for place in known),
        "preprocessing": candidate.preprocessing,
        "warnings": box.artifact.warnings,
    }
    save_artifact(out.parent, inspect(out, rung, **lineage))
    return out
