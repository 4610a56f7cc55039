"""Training a network to weights: a teacher or a student alone by cross-entropy, or a student by distillation."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdbench import __version__
from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line
from kdbench.losses import WeightedSum
from kdbench.losses.outputs import Outputs
from kdbench.machine import versions
from kdbench.models import build
from kdbench.progress import Progress, silent
from kdbench.records import Network, Recipe
from kdbench.store import RunFolder, fingerprint, sha256
from kdbench.training import weights
from kdbench.training.loop import Teacher, deterministic, fit
from kdbench.training.weights import Trained


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Builds everything that training needs, and trains nothing; raises UserError that names what doesn't fit."""
    networks = {"teacher": recipe.teacher, "student": recipe.student}
    outputs = {}
    for name, network in networks.items():
        model = initial(network, dataset, recipe.seed, name).eval()
        _check_vocabulary(name, network, dataset)
        try:
            with torch.no_grad():
                outputs[name] = Outputs(model(torch.from_numpy(apply(dataset.x_train[:2], dataset.preprocessing))))
        except RuntimeError as error:
            shape = dataset.x_train.shape[1:]
            raise UserError(
                f"{name}: {network.model} can't take samples of shape {shape}: {first_line(error)}"
            ) from None
    WeightedSum(recipe.distill.losses, _loss_options(recipe), outputs["student"], outputs["teacher"])


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
    return _weights(run, rung, network, recipe, dataset, data_sha256, {"cross_entropy": 1.0}, None, progress)


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
    losses: dict[str, float],
    teacher: Path | None,
    progress: Progress,
) -> Path:
    options = _loss_options(recipe) if teacher else {}
    facts = {
        "network": network.model_dump(),
        "losses": losses,
        "loss_options": options,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "shift_px": recipe.data.shift_px,
        "data": data_sha256,
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
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint=fingerprint(**facts),
        epoch=0,
        input_dtype="int64" if np.issubdtype(sample.dtype, np.integer) else "float32",
    )
    if weights.load_matching(path, started.fingerprint) is None:
        model = initial(network, dataset, recipe.seed, rung)
        trained = fit(
            model,
            dataset,
            network.training,
            losses,
            options,
            started,
            checkpoint,
            teacher=_answers(teacher) if teacher else None,
            seed=recipe.seed,
            threads=recipe.threads,
            shift_px=recipe.data.shift_px,
            label=rung,
            progress=progress,
        )
        weights.save(path, model.state_dict(), trained)
    checkpoint.unlink(missing_ok=True)
    return path


def initial(network: Network, dataset: Dataset, seed: int, field: str) -> nn.Module:
    """The untrained network, the same for the same seed."""
    with deterministic(1), torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(network.model, network.options, dataset.x_train.shape[1:], len(dataset.classes), field)


def _loss_options(recipe: Recipe) -> dict[str, dict[str, float]]:
    return {"kd": {"temperature": recipe.distill.temperature}}


def _answers(path: Path) -> Teacher:
    """The teacher of a weights file: in evaluation mode, without gradients, its parameters nobody's to train."""
    model, _ = weights.model_of(path)
    model.requires_grad_(False)

    @torch.no_grad()
    def answers(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        return logits

    return answers
