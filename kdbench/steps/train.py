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
from kdbench.errors import UserError, first_line
from kdbench.losses.weighted import Term, WeightedSum, check_data
from kdbench.losses.weighted import terms as terms_of
from kdbench.machine import versions
from kdbench.models import build
from kdbench.progress import Progress, silent, unsaid
from kdbench.pruning.masks import Masks
from kdbench.records import Distill, Loss, Network, Recipe, Teacher, Training
from kdbench.steps.teach import ALONE, at_work, digest, prepared, untrained
from kdbench.store import RunFolder, fingerprint, sha256
from kdbench.teachers import Candidate
from kdbench.training import mutual as pairs
from kdbench.training import processes, weights
from kdbench.training.finished import Part, weights_files
from kdbench.training.loop import Course, Penalty
from kdbench.training.seeds import deterministic, seeded
from kdbench.training.teaching import Faculty, Shelf, Teaching, keeps_answers, sample_outputs
from kdbench.training.weights import Trained

Voice = tuple[str, Path, float]
"""A teacher by name: its file, and the weight of its answers."""


def check(recipe: Recipe, dataset: Dataset) -> list[Candidate]:
    """Builds everything that training needs, and trains nothing; raises UserError that names what doesn't fit.

    The teachers that it built, as they were loaded, for `teach`.
    """
    _check_judged(recipe)
    if any(teacher.training is not None for teacher in recipe.teachers):
        dataset.train_labels("training a teacher")
    x = torch.from_numpy(apply(dataset.x_train[:2], dataset.preprocessing))
    student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder).eval()
    _check_vocabulary("student", recipe.student, dataset)
    try:
        with torch.no_grad():
            student(x)
    except RuntimeError as error:
        shape = dataset.x_train.shape[1:]
        raise UserError(
            f"student: {recipe.student.model} can't take samples of shape {shape}: {first_line(error)}"
        ) from None
    sections = [_learning(section, recipe) for section in recipe.teachers]
    fields = recipe.teacher_fields
    candidates = [prepared(section, recipe, dataset, field) for section, field in zip(sections, fields, strict=True)]
    with ExitStack() as stack:
        members = [
            replace(stack.enter_context(untrained(candidate, recipe, dataset)), name=name)
            for candidate, name in zip(candidates, recipe.teacher_names, strict=True)
        ]
        _check_known(members, dataset)
        faculty = Faculty(members, dataset.preprocessing, len(dataset.classes))
        for where, distill in {"distill": recipe.distill, **_methods(recipe)}.items():
            _check_method(where, distill, recipe, dataset, student, faculty, x)
    return candidates


def _methods(recipe: Recipe) -> dict[str, Distill]:
    return {f"methods.{name}": method for name, method in recipe.methods.items()}


def _check_method(
    where: str,
    distill: Distill,
    recipe: Recipe,
    dataset: Dataset,
    student: nn.Module,
    faculty: Faculty,
    x: torch.Tensor,
) -> None:
    """Raises UserError where a way to distil doesn't fit the data or the networks."""
    terms = _terms(recipe, recipe.student, distill.losses, where, distill.temperature)
    check_data(terms, dataset.task, dataset.y_train is not None, where)
    augmentation = recipe.data.augment
    mixing = augmentation.mixup_alpha > 0 or augmentation.cutmix_alpha > 0
    for name in {"dkd", "crd"} & distill.losses.keys() if mixing else ():
        raise UserError(
            f"{where}.losses.{name}: needs one class a sample, which mixup and cutmix don't leave: drop either"
        )
    if distill.mode == "mutual":
        _check_mutual(where, terms, distill, faculty)
        if dataset.x_held_out is not None and dataset.y_held_out is None:
            raise UserError(f"{where}.mode: in mutual learning labels judge an epoch: leave data.held_out_samples out")
    elif distill.start_from and len(faculty.members) > 1:
        raise UserError(f"{where}.start_from: there are several teachers: leave it out")
    elif distill.start_from:
        weights.start_from(student, faculty.members[0].model, distill.start_from)
    outputs = sample_outputs(student, faculty, dataset, x, terms)
    with seeded(recipe.seed, 0):
        WeightedSum(terms, *outputs)


def _check_mutual(where: str, terms: Sequence[Term], distill: Distill, faculty: Faculty) -> None:
    """Raises UserError where student and teacher can't learn from each other."""
    if len(faculty.members) > 1 or not isinstance(faculty.members[0].model, nn.Module):
        raise UserError(f"{where}.mode: mutual learning is of a student and one teacher that is a network: name one")
    if not faculty.members[0].same_inputs(faculty.preprocessing):
        raise UserError(f"{where}.mode: in mutual learning both see the same inputs: leave teacher.preprocessing out")
    if distill.start_from:
        raise UserError(f"{where}.start_from: in mutual learning the teacher has nothing to give yet: leave it out")
    for term in terms:
        if term.pairs or term.name == "parameters":
            raise UserError(f"{where}.losses.{term.name}: mutual learning is by losses on logits, such as kd")


def _check_known(members: Sequence[Teaching], dataset: Dataset) -> None:
    """Raises UserError where nobody teaches some of the classes: not a teacher, and not the labels."""
    known = {place for member in members for place in member.known(len(dataset.classes))}
    unknown = [name for place, name in enumerate(dataset.classes) if place not in known]
    if len(known) > min(len(member.known(len(dataset.classes))) for member in members) and (
        dataset.y_train is None and dataset.x_held_out is not None
    ):
        raise UserError(
            "data.held_out_samples: without labels only teachers that know the same classes can judge: leave it out"
        )
    if unknown and dataset.y_train is None:
        raise UserError(
            f"teacher.class_map: no teacher knows {len(unknown)} of the data's classes, such as '{unknown[0]}', and "
            "the training set has no labels: map one to each"
        )


def _check_judged(recipe: Recipe) -> None:
    """Raises UserError where a training needs held-out samples, and there are none."""
    trainings: dict[str, Training | None] = {
        field: section.training for field, section in zip(recipe.teacher_fields, recipe.teachers, strict=True)
    }
    trainings["student"] = recipe.student.training
    sections = {
        "prune": recipe.prune,
        "sparsify": recipe.sparsify,
        "factorise": recipe.factorise,
        "quantize": recipe.quantize,
    }
    trainings |= {name: section.training for name, section in sections.items() if section}
    for name, training in trainings.items() if not recipe.data.held_out_samples else ():
        asked = training and ("patience_epochs" if training.patience_epochs else training.keep == "best" and "keep")
        if asked:
            raise UserError(
                f"{name}.training.{asked}: epochs are judged on held-out samples, and there are none: "
                "set data.held_out_samples"
            )


def _check_vocabulary(name: str, network: Network, dataset: Dataset) -> None:
    """Raises UserError where the data has token ids that the network has no embedding for."""
    vocabulary = network.options.get("vocabulary")
    if vocabulary is not None:
        highest = max(dataset.x_train.max(), dataset.x_test.max())
        if highest >= int(vocabulary):
            raise UserError(f"{name}.options.vocabulary: {vocabulary}, but the data has token ids up to {highest}")


def train(
    run: RunFolder, rung: str, recipe: Recipe, dataset: Dataset, data_sha256: str, progress: Progress = silent
) -> Path:
    """Trains the recipe's student on the labels alone; the weights file of `rung`. Kept where it is already there.

    Raises UserError where the training set has no labels.
    """
    dataset.train_labels(f"training {rung}")
    losses = ALONE[dataset.task]
    started = _started(rung, recipe.student, recipe, dataset, data_sha256, losses=_plain(losses))
    terms = _terms(recipe, recipe.student, losses)
    course = _course(recipe, dataset, terms)
    part = Part(rung, started)
    return weights_files(run, [part], lambda: _student(recipe, dataset), course, progress)[0]


def distill(
    run: RunFolder,
    rung: str,
    teachers: Sequence[Path],
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
    method: Distill | None = None,
    answers: RunFolder | None = None,
) -> Path:
    """Trains the recipe's student under the teachers of files that `teach` has made; the weights file of `rung`.

    It learns by `method`, the recipe's `distill` if that is None. The teachers' answers are kept in the folder
    `answers`, which is `run` if that is None; `say` is told where they are not sound.
    """
    method = method or recipe.distill
    facts = {**_teaching_facts(teachers, method, recipe), "start_from": method.start_from}
    facts["voices"] = [section.weight for section in recipe.teachers]
    started = _started(rung, recipe.student, recipe, dataset, data_sha256, **facts)
    named = zip(recipe.teacher_names, teachers, recipe.teachers, strict=True)
    voices = [(name, path, section.weight) for name, path, section in named]

    def start(members: Sequence[Teaching]) -> nn.Module:
        model = _student(recipe, dataset)
        if method.start_from:
            weights.start_from(model, members[0].model, method.start_from)
        return model

    part = Part(rung, started)
    lessons = (voices, recipe, dataset, data_sha256, method, answers or run, progress, say)
    early = recipe.sparsify.rewind_epoch if recipe.sparsify and rung == "student" else None
    return _taught(run, part, start, *lessons, early_epoch=early)


def refine(
    run: RunFolder,
    rung: str,
    source: Path,
    teachers: Mapping[str, Path],
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
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
    method = method or recipe.distill
    training = training or recipe.student.training
    network = recipe.student.model_copy(update={"training": training})
    recipe = recipe.model_copy(update={"student": network})
    weight = {name: of.weight for name, of in zip(recipe.teacher_names, recipe.teachers, strict=True)}
    voices = [(name, path, weight.get(name, 1.0)) for name, path in teachers.items()]
    known = _teaching_facts(list(teachers.values()), method, recipe)
    known |= {"source": sha256(source.read_bytes()), "voices": [voice[2] for voice in voices], **(facts or {})}
    trained = weights.record(source)
    started = _started(rung, network, recipe, dataset, data_sha256, **known)
    of_source = ("source", "model", "options", "architecture", "input_shape", "preprocessing", "input_dtype", "changes")
    started = started.model_copy(update={name: getattr(trained, name) for name in of_source})

    def begin(members: Sequence[Teaching]) -> nn.Module:
        return start() if start else weights.model_of(source, recipe.folder)[0]

    lessons = (voices, recipe, dataset, data_sha256, method, answers or run, progress, say)
    return _taught(run, Part(rung, started), begin, *lessons, penalty=penalty, masks=masks)


def _taught(
    run: RunFolder,
    part: Part,
    start: Callable[[Sequence[Teaching]], nn.Module],
    voices: Sequence[Voice],
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    method: Distill,
    answers: RunFolder,
    progress: Progress,
    say: Callable[[str], None],
    penalty: Penalty | None = None,
    masks: Masks | None = None,
    early_epoch: int | None = None,
) -> Path:
    """The weights file of a model that learns under teachers at work, whose answers are kept in `answers`."""
    shelf = Shelf(
        lambda name: answers.cache(name, recipe.seed),
        {"data": data_sha256, "augment": recipe.data.augment.model_dump()},
        say,
        progress,
    )
    terms = _terms(recipe, recipe.student, method.losses, "distill", method.temperature)
    with _at_work(voices, recipe) as members:
        faculty = Faculty(members, dataset.preprocessing, len(dataset.classes), shelf if method.cache else None)
        course = _course(recipe, dataset, terms)
        course = replace(course, faculty=faculty, penalty=penalty, masks=masks, early_epoch=early_epoch)
        return weights_files(run, [part], lambda: start(members), course, progress)[0]


def mutual(
    run: RunFolder,
    rungs: tuple[str, str],
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    progress: Progress = silent,
    method: Distill | None = None,
) -> list[Path]:
    """Trains the recipe's student and its teacher together, each by the other (1706.00384), as `student.training` has
    it; the weights files of both `rungs`, the student's first."""
    method = method or recipe.distill
    section = recipe.teachers[0]
    teacher = Network(model=section.model, options=section.options, training=recipe.student.training)
    facts = {**_method_facts(method, recipe), "mutual": section.model_dump(exclude={"weight", "training"})}
    terms = _terms(recipe, recipe.student, method.losses, "distill", method.temperature)
    parts = [
        Part(rung, _started(rung, network, recipe, dataset, data_sha256, **facts), within)
        for rung, network, within in zip(rungs, (recipe.student, teacher), (pairs.STUDENT, pairs.PEER), strict=True)
    ]
    with untrained(prepared(_learning(section, recipe), recipe, dataset), recipe, dataset) as peer:

        def start() -> nn.Module:
            assert isinstance(peer.model, nn.Module)
            return pairs.Pair(_student(recipe, dataset), peer.model)

        return weights_files(run, parts, start, _course(recipe, dataset, terms), progress)


def _learning(section: Teacher, recipe: Recipe) -> Teacher:
    """A teacher as it is built: where all methods are mutual, its training is the student's, and need not be given."""
    together = all(method.mode == "mutual" for method in (recipe.distill, *recipe.methods.values()))
    return section.model_copy(update={"training": recipe.student.training}) if together else section


def _method_facts(method: Distill, recipe: Recipe) -> dict[str, object]:
    own = {name: functions.source(name, recipe.folder, "loss") for name in method.losses if functions.is_own(name)}
    return {
        "losses": _plain(method.losses),
        "temperature": method.temperature,
        "loss_files": {name: sha256(path.read_bytes()) for name, path in own.items()},
    }


def _plain(losses: Mapping[str, Loss]) -> dict[str, object]:
    return {name: loss.model_dump() for name, loss in losses.items()}


def _teaching_facts(teachers: Sequence[Path], method: Distill, recipe: Recipe) -> dict[str, object]:
    """What decides on what is learnt from teachers."""
    facts = {**_method_facts(method, recipe), "teachers": processes.agreed(lambda: [digest(path) for path in teachers])}
    terms = _terms(recipe, recipe.student, method.losses, "distill", method.temperature)
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


def _started(
    rung: str, network: Network, recipe: Recipe, dataset: Dataset, data_sha256: str, **facts: object
) -> Trained:
    """The record of a student before its training, with a hash of everything that it starts from."""
    own = functions.source(network.model, recipe.folder, f"{rung}.model") if functions.is_own(network.model) else None
    everything = {
        **facts,
        "network": network.model_dump(),
        "network_file": own and sha256(own.read_bytes()),
        "seed": recipe.seed,
        "threads": recipe.threads,
        "augment": recipe.data.augment.model_dump(),
        "data": data_sha256,
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


def _course(recipe: Recipe, dataset: Dataset, terms: Sequence[Term]) -> Course:
    return Course(
        dataset,
        recipe.student.training,
        terms,
        augmentation=recipe.data.augment,
        seed=recipe.seed,
        threads=recipe.threads,
    )


def _student(recipe: Recipe, dataset: Dataset) -> nn.Module:
    return initial(recipe.student, dataset, recipe.seed, "student", recipe.folder)


def initial(network: Network, dataset: Dataset, seed: int, field: str, folder: Path) -> nn.Module:
    """The untrained network, the same for the same seed; `folder` is the recipe's."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(network.model, network.options, dataset.x_train.shape[1:], len(dataset.classes), field, folder)


def _terms(
    recipe: Recipe,
    network: Network,
    losses: Mapping[str, Loss],
    where: str = "distill",
    temperature: float = 1.0,
) -> list[Term]:
    return terms_of(losses, temperature, recipe.folder, network.training.epochs, where)
