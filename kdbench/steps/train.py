"""Training a student to weights: alone by cross-entropy, or by distillation."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from kdbench import __version__, functions
from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line
from kdbench.losses.weighted import Term, WeightedSum
from kdbench.losses.weighted import terms as terms_of
from kdbench.machine import versions
from kdbench.models import build
from kdbench.progress import Progress, silent
from kdbench.records import Loss, Network, Recipe
from kdbench.steps.teach import ALONE, at_work, digest, untrained
from kdbench.store import RunFolder, fingerprint, sha256
from kdbench.training import weights
from kdbench.training.features import sample_outputs
from kdbench.training.finished import weights_file
from kdbench.training.loop import deterministic, seeded
from kdbench.training.weights import Trained


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Builds everything that training needs, and trains nothing; raises UserError that names what doesn't fit."""
    dataset.train_labels("training a teacher")
    if dataset.task == "multi_label":
        raise UserError(
            "data.source: several labels a sample: no loss here learns from them; choose one label a sample"
        )
    mixing = recipe.data.augment.mixup_alpha > 0 or recipe.data.augment.cutmix_alpha > 0
    for name in {"dkd", "crd"} & recipe.distill.losses.keys() if mixing else ():
        raise UserError(
            f"distill.losses.{name}: needs one class a sample, which mixup and cutmix don't leave: drop either"
        )
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
    terms = _terms(recipe, recipe.student, recipe.distill.losses)
    with untrained(recipe.teachers[0], recipe, dataset) as teacher:
        theirs = teacher.sees(dataset.x_train[:2], x, dataset.preprocessing)
        outputs = sample_outputs(student, teacher, x, theirs, torch.from_numpy(dataset.y_train), terms)
        weights.start_from(student, teacher.model, recipe.distill.start_from)
    with seeded(recipe.seed, 0):
        WeightedSum(terms, *outputs)


def _check_vocabulary(name: str, network: Network, dataset: Dataset) -> None:
    """Raises UserError where the data has token ids that the network has no embedding for."""
    vocabulary = network.options.get("vocabulary")
    if vocabulary is not None:
        highest = max(dataset.x_train.max(), dataset.x_test.max())
        if highest >= int(vocabulary):
            raise UserError(f"{name}.options.vocabulary: {vocabulary}, but the data has token ids up to {highest}")


def train(
    run: RunFolder,
    rung: str,
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    progress: Progress = silent,
) -> Path:
    """Trains `network` on the labels alone; the weights file of `rung`. Kept where it is already there."""
    return _weights(run, rung, network, recipe, dataset, data_sha256, ALONE, None, progress)


def distill(
    run: RunFolder,
    rung: str,
    teacher: Path,
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    progress: Progress = silent,
) -> Path:
    """Trains the recipe's student by its distillation losses under the teacher of a file that `teach` has made."""
    return _weights(run, rung, recipe.student, recipe, dataset, data_sha256, recipe.distill.losses, teacher, progress)


def _weights(
    run: RunFolder,
    rung: str,
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    data_sha256: str,
    losses: Mapping[str, Loss],
    teacher: Path | None,
    progress: Progress,
) -> Path:
    terms = _terms(recipe, network, losses)
    start_from = recipe.distill.start_from if teacher else {}
    own = {n: functions.source(n, recipe.folder, "loss") for n in losses if functions.is_own(n)}
    if functions.is_own(network.model):
        own[network.model] = functions.source(network.model, recipe.folder, f"{rung}.model")
    facts = {
        "network": network.model_dump(),
        "losses": {name: loss.model_dump() for name, loss in losses.items()},
        "temperature": recipe.distill.temperature if teacher else None,
        "files": {name: sha256(path.read_bytes()) for name, path in own.items()},
        "start_from": start_from,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "augment": recipe.data.augment.model_dump(),
        "data": data_sha256,
        "kdbench": __version__,
        "versions": {name: versions().get(name) for name in ("torch", "numpy")},
        "teacher": digest(teacher) if teacher else None,
    }
    sample = apply(dataset.x_train[:1], dataset.preprocessing)
    started = Trained(
        model=network.model,
        options=network.options,
        input_shape=dataset.x_train.shape[1:],
        task=dataset.task,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint=fingerprint(**facts),
        epoch=0,
        input_dtype=weights.input_dtype(sample),
    )
    with at_work(teacher, recipe.folder) if teacher else nullcontext() as taught_by:

        def start() -> nn.Module:
            model = initial(network, dataset, recipe.seed, rung, recipe.folder)
            if taught_by:
                weights.start_from(model, taught_by.model, start_from)
            return model

        return weights_file(run, rung, start, started, network.training, terms, recipe, dataset, taught_by, progress)


def initial(network: Network, dataset: Dataset, seed: int, field: str, folder: Path) -> nn.Module:
    """The untrained network, the same for the same seed; `folder` is the recipe's."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(network.model, network.options, dataset.x_train.shape[1:], len(dataset.classes), field, folder)


def _terms(recipe: Recipe, network: Network, losses: Mapping[str, Loss]) -> list[Term]:
    return terms_of(losses, recipe.distill.temperature, recipe.folder, network.training.epochs)
