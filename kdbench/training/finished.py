"""A training from its start to the weights file that it ends with, kept where it is already there."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from kdbench.data.dataset import Dataset
from kdbench.losses.weighted import Term
from kdbench.progress import Progress, silent
from kdbench.records import Recipe, Training
from kdbench.store import RunFolder
from kdbench.training import weights
from kdbench.training.features import Teaching
from kdbench.training.loop import fit
from kdbench.training.weights import Trained


def weights_file(
    run: RunFolder,
    rung: str,
    start: Callable[[], nn.Module],
    started: Trained,
    training: Training | None,
    terms: Sequence[Term],
    recipe: Recipe,
    dataset: Dataset,
    teacher: Teaching | None = None,
    progress: Progress = silent,
) -> Path:
    """The weights file of `rung`: of the model that `start` gives, trained unless `training` is None.

    A file of the same `started.fingerprint` is kept, and a checkpoint of it continued.
    """
    path, checkpoint = run.weights(rung), run.checkpoint(rung)
    if weights.load_matching(path, started.fingerprint) is None:
        model, trained = start(), started
        if training is not None:
            trained = fit(
                model,
                dataset,
                training,
                terms,
                started,
                checkpoint,
                teacher=teacher,
                seed=recipe.seed,
                threads=recipe.threads,
                augmentation=recipe.data.augment,
                label=rung,
                progress=progress,
            )
        weights.save(path, model.state_dict(), trained)
    checkpoint.unlink(missing_ok=True)
    return path
