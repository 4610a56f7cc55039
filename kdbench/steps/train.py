"""Training a student to weights: alone by the labels, by distillation, or together with its teacher."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kdbench import __version__, functions
from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.losses.weighted import Term
from kdbench.losses.weighted import terms as terms_of
from kdbench.machine import versions
from kdbench.models import build
from kdbench.pruning.masks import Masks
from kdbench.records import Distill, Loss, Network, Recipe, Teacher, Training
from kdbench.steps.lesson import Lesson
from kdbench.steps.teach import ALONE, at_work, digest, prepared, untrained
from kdbench.store import RunFolder, fingerprint, sha256
from kdbench.training import mutual as pairs
from kdbench.training import processes, weights
from kdbench.training.finished import Part, weights_files
from kdbench.training.loop import Course, Penalty
from kdbench.training.seeds import deterministic
from kdbench.training.teaching import Faculty, Shelf, Teaching, keeps_answers
from kdbench.training.weights import Trained

Voice = tuple[str, Path, float]
"""A teacher by name: its file, and the weight of its answers."""


def train(run: RunFolder, rung: str, lesson: Lesson) -> Path:
    """Trains the recipe's student on the labels alone; the weights file of `rung`. Kept where it is already there.

    Raises UserError where the training set has no labels.
    """
    lesson.dataset.train_labels(f"training {rung}")
    losses = ALONE[lesson.dataset.task]
    started = _started(rung, lesson.recipe.student, lesson, losses=_plain(losses))
    course = _course(lesson, _terms(lesson.recipe, losses))
    return weights_files(run, [Part(rung, started)], lambda: _student(lesson), course, lesson.progress)[0]


def distill(
    run: RunFolder,
    rung: str,
    teachers: Sequence[Path],
    lesson: Lesson,
    method: Distill | None = None,
    answers: RunFolder | None = None,
) -> Path:
    """Trains the recipe's student under the teachers of files that `teach` has made; the weights file of `rung`.

    It learns by `method`, the recipe's `distill` if that is None. The teachers' answers are kept in the folder
    `answers`, which is `run` if that is None; the lesson's `say` is told where they are not sound.
    """
    recipe = lesson.recipe
    method = method or recipe.distill
    facts = {**_teaching_facts(teachers, method, recipe), "start_from": method.start_from}
    facts["voices"] = [section.weight for section in recipe.teachers]
    started = _started(rung, recipe.student, lesson, **facts)
    named = zip(recipe.teacher_names, teachers, recipe.teachers, strict=True)
    voices = [(name, path, section.weight) for name, path, section in named]

    def start(members: Sequence[Teaching]) -> nn.Module:
        model = _student(lesson)
        if method.start_from:
            weights.start_from(model, members[0].model, method.start_from)
        return model

    early = recipe.sparsify.rewind_epoch if recipe.sparsify and rung == "student" else None
    return _taught(run, Part(rung, started), start, voices, lesson, method, answers or run, early_epoch=early)


def refine(
    run: RunFolder,
    rung: str,
    source: Path,
    teachers: Mapping[str, Path],
    lesson: Lesson,
    *,
    method: Distill | None = None,
    training: Training | None = None,
    answers: RunFolder | None = None,
    penalty: Penalty | None = None,
    masks: Masks | None = None,
    facts: Mapping[str, object] | None = None,
    start: Callable[[], nn.Module] | None = None,
) -> Path:
    """Trains the model of the weights file `source` further, under teachers by name; the weights file of `rung`.

    The model goes on from its weights, and what was done to its structure is kept. It learns by `method` and by
    `training`, those of the recipe and its student where they are None. Teachers of the recipe have its weights, others
    1. A `penalty` is added to the loss, and `masks` keep weights at zero; `facts` tell them from others. Where `start`
    is given, what it gives is trained in the model's place. Otherwise as `distill`.
    """
    recipe = lesson.recipe
    method = method or recipe.distill
    training = training or recipe.student.training
    network = recipe.student.model_copy(update={"training": training})
    recipe = recipe.model_copy(update={"student": network})
    lesson = replace(lesson, recipe=recipe)
    weight = {name: of.weight for name, of in zip(recipe.teacher_names, recipe.teachers, strict=True)}
    voices = [(name, path, weight.get(name, 1.0)) for name, path in teachers.items()]
    known = _teaching_facts(list(teachers.values()), method, recipe)
    known |= {"source": sha256(source.read_bytes()), "voices": [voice[2] for voice in voices], **(facts or {})}
    trained = weights.record(source)
    started = _started(rung, network, lesson, **known)
    of_source = ("source", "model", "options", "architecture", "input_shape", "preprocessing", "input_dtype", "changes")
    started = started.model_copy(update={name: getattr(trained, name) for name in of_source})

    def begin(members: Sequence[Teaching]) -> nn.Module:
        return start() if start else weights.model_of(source, recipe.folder)[0]

    part = Part(rung, started)
    return _taught(run, part, begin, voices, lesson, method, answers or run, penalty=penalty, masks=masks)


def _taught(
    run: RunFolder,
    part: Part,
    start: Callable[[Sequence[Teaching]], nn.Module],
    voices: Sequence[Voice],
    lesson: Lesson,
    method: Distill,
    answers: RunFolder,
    penalty: Penalty | None = None,
    masks: Masks | None = None,
    early_epoch: int | None = None,
) -> Path:
    """The weights file of a model that learns under teachers at work, whose answers are kept in `answers`."""
    recipe, dataset = lesson.recipe, lesson.dataset
    shelf = Shelf(
        lambda name: answers.cache(name, recipe.seed),
        {"data": lesson.data_sha256, "augment": recipe.data.augment.model_dump()},
        lesson.say,
        lesson.progress,
    )
    terms = _terms(recipe, method.losses, "distill", method.temperature)
    with _at_work(voices, recipe) as members:
        faculty = Faculty(members, dataset.preprocessing, len(dataset.classes), shelf if method.cache else None)
        course = replace(_course(lesson, terms), faculty=faculty, penalty=penalty, masks=masks, early_epoch=early_epoch)
        return weights_files(run, [part], lambda: start(members), course, lesson.progress)[0]


def mutual(
    run: RunFolder,
    rungs: tuple[str, str],
    lesson: Lesson,
    method: Distill | None = None,
) -> list[Path]:
    """Trains the recipe's student and its teacher together, each by the other (1706.00384), as `student.training` has
    it; the weights files of both `rungs`, the student's first."""
    recipe = lesson.recipe
    method = method or recipe.distill
    section = recipe.teachers[0]
    teacher = Network(model=section.model, options=section.options, training=recipe.student.training)
    facts = {**_method_facts(method, recipe), "mutual": section.model_dump(exclude={"weight", "training"})}
    terms = _terms(recipe, method.losses, "distill", method.temperature)
    parts = [
        Part(rung, _started(rung, network, lesson, **facts), within)
        for rung, network, within in zip(rungs, (recipe.student, teacher), (pairs.STUDENT, pairs.PEER), strict=True)
    ]
    with untrained(prepared(learning(section, recipe), recipe, lesson.dataset), recipe, lesson.dataset) as peer:

        def start() -> nn.Module:
            assert isinstance(peer.model, nn.Module)
            return pairs.Pair(_student(lesson), peer.model)

        return weights_files(run, parts, start, _course(lesson, terms), lesson.progress)


def learning(section: Teacher, recipe: Recipe) -> Teacher:
    """A teacher as it is built: where all methods are mutual, its training is the student's, and need not be given."""
    together = all(method.mode == "mutual" for method in (recipe.distill, *recipe.methods.values()))
    return section.model_copy(update={"training": recipe.student.training}) if together else section


def loss_files(method: Distill, recipe: Recipe) -> dict[str, str]:
    """Hashes of the files of the user's own losses, by the loss."""
    own = {name: functions.source(name, recipe.folder, "loss") for name in method.losses if functions.is_own(name)}
    return {name: sha256(path.read_bytes()) for name, path in own.items()}


def _method_facts(method: Distill, recipe: Recipe) -> dict[str, object]:
    return {
        "losses": _plain(method.losses),
        "temperature": method.temperature,
        "loss_files": loss_files(method, recipe),
    }


def _plain(losses: Mapping[str, Loss]) -> dict[str, object]:
    return {name: loss.model_dump() for name, loss in losses.items()}


def _teaching_facts(teachers: Sequence[Path], method: Distill, recipe: Recipe) -> dict[str, object]:
    """What decides on what is learnt from teachers."""
    facts = {**_method_facts(method, recipe), "teachers": processes.agreed(lambda: [digest(path) for path in teachers])}
    terms = _terms(recipe, method.losses, "distill", method.temperature)
    if method.cache and keeps_answers(terms, recipe.data.augment):
        facts["answers"] = "half precision"
    return facts


@contextmanager
def _at_work(voices: Sequence[Voice], recipe: Recipe) -> Iterator[list[Teaching]]:
    """Teachers from their files."""
    with ExitStack() as stack:
        yield processes.agreed(
            lambda: [
                replace(
                    stack.enter_context(at_work(path, recipe.folder)),
                    name=name,
                    weight=weight,
                    digest=digest(path),
                )
                for name, path, weight in voices
            ]
        )


def _started(rung: str, network: Network, lesson: Lesson, **facts: object) -> Trained:
    """The record of a student before its training, with a hash of everything that it starts from."""
    recipe, dataset = lesson.recipe, lesson.dataset
    own = functions.source(network.model, recipe.folder, f"{rung}.model") if functions.is_own(network.model) else None
    everything = {
        **facts,
        "network": network.model_dump(),
        "network_file": own and sha256(own.read_bytes()),
        "seed": recipe.seed,
        "threads": recipe.threads,
        "augment": recipe.data.augment.model_dump(),
        "data": lesson.data_sha256,
        "kdbench": __version__,
        "versions": versions(("torch", "numpy")),
    }
    return Trained(
        model=network.model,
        options=network.options,
        input_shape=dataset.x_train.shape[1:],
        task=dataset.task,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint=fingerprint(**everything),
        epoch=0,
        input_dtype=weights.input_dtype(apply(dataset.x_train[:1], dataset.preprocessing)),
    )


def _course(lesson: Lesson, terms: Sequence[Term]) -> Course:
    recipe = lesson.recipe
    return Course(
        lesson.dataset,
        recipe.student.training,
        terms,
        augmentation=recipe.data.augment,
        seed=recipe.seed,
        threads=recipe.threads,
    )


def _student(lesson: Lesson) -> nn.Module:
    recipe = lesson.recipe
    return initial(recipe.student, lesson.dataset, recipe.seed, "student", recipe.folder)


def initial(network: Network, dataset: Dataset, seed: int, field: str, folder: Path) -> nn.Module:
    """The untrained network, the same for the same seed; `folder` is the recipe's."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(network.model, network.options, dataset.x_train.shape[1:], len(dataset.classes), field, folder)


def _terms(recipe: Recipe, losses: Mapping[str, Loss], where: str = "distill", temperature: float = 1.0) -> list[Term]:
    return terms_of(losses, temperature, recipe.folder, recipe.student.training.epochs, where)
