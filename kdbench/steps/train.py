"""Training a network to weights: a teacher or a student alone by cross-entropy, or a student by distillation."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdbench import __version__
from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line
from kdbench.losses import custom
from kdbench.losses.weighted import Term, WeightedSum
from kdbench.losses.weighted import terms as terms_of
from kdbench.machine import versions
from kdbench.models import build
from kdbench.progress import Progress, is_main, silent
from kdbench.records import Loss, Network, Recipe, Teacher
from kdbench.store import RunFolder, fingerprint, sha256
from kdbench.training import processes, weights
from kdbench.training.features import sample_outputs
from kdbench.training.loop import deterministic, fit, seeded
from kdbench.training.weights import Trained

ALONE = {"cross_entropy": Loss()}
"""The losses of a network that is trained without a teacher."""


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Builds everything that training needs, and trains nothing; raises UserError that names what doesn't fit."""
    _check_judged(recipe)
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
    models = {}
    for name, network in (("teacher", network_of(recipe.teachers[0])), ("student", recipe.student)):
        models[name] = initial(network, dataset, recipe.seed, name).eval()
        _check_vocabulary(name, network, dataset)
        try:
            with torch.no_grad():
                models[name](x)
        except RuntimeError as error:
            shape = dataset.x_train.shape[1:]
            raise UserError(
                f"{name}: {network.model} can't take samples of shape {shape}: {first_line(error)}"
            ) from None
    terms = _terms(recipe, recipe.student, recipe.distill.losses)
    outputs = sample_outputs(models["student"], models["teacher"], x, torch.from_numpy(dataset.y_train), terms)
    with seeded(recipe.seed, 0):
        WeightedSum(terms, *outputs)
    weights.start_from(models["student"], models["teacher"], recipe.distill.start_from)


def _check_judged(recipe: Recipe) -> None:
    """Raises UserError where a training needs held-out samples, and there are none."""
    trainings = {"teacher": recipe.teachers[0].training, "student": recipe.student.training}
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


def network_of(teacher: Teacher) -> Network:
    """A teacher of the zoo that is trained here, as a network."""
    if teacher.training is None:
        raise UserError("teacher.training: is missing: add it")
    return Network(model=teacher.model, options=teacher.options, training=teacher.training)


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
    """Trains the recipe's student by its distillation losses under the teacher of a weights file."""
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
    facts = {
        "network": network.model_dump(),
        "losses": {name: loss.model_dump() for name, loss in losses.items()},
        "temperature": recipe.distill.temperature if teacher else None,
        "loss_files": {n: sha256(custom.source(n, recipe.folder).read_bytes()) for n in losses if ":" in n},
        "start_from": start_from,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "augment": recipe.data.augment.model_dump(),
        "data": data_sha256,
        "held_out": _held_out(dataset),
        "kdbench": __version__,
        "versions": {name: versions().get(name) for name in ("torch", "numpy")},
        "teacher": sha256(teacher.read_bytes()) if teacher else None,
    }
    path, checkpoint = run.weights(rung), run.checkpoint(rung)
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
        input_dtype="int64" if np.issubdtype(sample.dtype, np.integer) else "float32",
    )
    if not processes.of_main(weights.load_matching(path, started.fingerprint) is not None):
        model = initial(network, dataset, recipe.seed, rung)
        taught_by = weights.model_of(teacher)[0] if teacher else None
        if taught_by:
            weights.start_from(model, taught_by, start_from)
        trained = fit(
            model,
            dataset,
            network.training,
            terms,
            started,
            checkpoint,
            teacher=taught_by,
            seed=recipe.seed,
            threads=recipe.threads,
            augmentation=recipe.data.augment,
            aside=run.weights_of_epoch(rung, "best" if network.training.keep == "last" else "last"),
            lines=run.metrics(rung),
            curves=run.tensorboard(rung),
            label=rung,
            progress=progress,
        )
        if is_main():
            weights.save(path, model.state_dict(), trained)
    if is_main():
        checkpoint.unlink(missing_ok=True)
    processes.wait()
    return path


def _held_out(dataset: Dataset) -> str | None:
    """A hash of the held-out samples."""
    if dataset.x_held_out is None:
        return None
    labels = b"" if dataset.y_held_out is None else dataset.y_held_out.tobytes()
    return sha256(dataset.x_held_out.tobytes() + labels)


def initial(network: Network, dataset: Dataset, seed: int, field: str) -> nn.Module:
    """The untrained network, the same for the same seed."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(network.model, network.options, dataset.x_train.shape[1:], len(dataset.classes), field)


def _terms(recipe: Recipe, network: Network, losses: Mapping[str, Loss]) -> list[Term]:
    return terms_of(losses, recipe.distill.temperature, recipe.folder, network.training.epochs)
