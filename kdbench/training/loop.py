"""The training loop: deterministic, and resumed from its last finished epoch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdbench.data import augment, preprocess
from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses.outputs import below
from kdbench.losses.weighted import Term, WeightedSum, history_key
from kdbench.progress import Progress, silent
from kdbench.records import Augment, Training
from kdbench.training import weights
from kdbench.training.features import Teaching, layers, observe, sample_outputs
from kdbench.training.weights import Trained


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Bit-identical results for equal seeds and threads; leaves torch as it was."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """torch's own generator starts from `seed`, and is left as it was: what is drawn depends on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        yield


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up over `warmup_share` of the steps, then a cosine towards zero."""
    warmup = max(1.0, training.warmup_share * steps) if training.warmup_share else 0.0
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def fit(
    model: nn.Module,
    dataset: Dataset,
    training: Training,
    terms: Sequence[Term],
    started: Trained,
    checkpoint: Path,
    *,
    teacher: Teaching | None = None,
    seed: int = 0,
    threads: int = 1,
    augmentation: Augment = Augment(),  # noqa: B008 — frozen
    label: str = "train",
    progress: Progress = silent,
) -> Trained:
    """Trains `model` in place by the weighted sum of the losses `terms`; a checkpoint is written after each epoch.

    `teacher` answers the very batch that the student sees, under its own preprocessing, in evaluation mode and without
    gradients. A checkpoint of the same training (`started.fingerprint`) is continued: it holds model, losses and
    momentum, and all that is drawn depends on seed and epoch. Raises UserError where the loss stops being finite; the
    last good checkpoint stays.
    """
    if teacher:
        teacher.freeze()
    with deterministic(threads):
        first = torch.from_numpy(preprocess.apply(dataset.x_train[:2], dataset.preprocessing))
        theirs = teacher.sees(dataset.x_train[:2], first, dataset.preprocessing) if teacher else first
        student_outputs, teacher_outputs = sample_outputs(
            model, teacher, first, theirs, torch.from_numpy(dataset.y_train), terms
        )
        with seeded(seed, 0):
            loss = WeightedSum(terms, student_outputs, teacher_outputs)
        parameters = [*model.parameters(), *loss.parameters()]
        optimizer = torch.optim.SGD(
            parameters,
            lr=training.learning_rate,
            momentum=training.momentum,
            nesterov=training.momentum > 0,
            weight_decay=training.weight_decay,
        )
        done, history = _resume(checkpoint, started.fingerprint, model, loss, optimizer)
        for epoch in range(done, training.epochs):
            progress(label, epoch, training.epochs)
            loss.begin(epoch + 1, history)
            with seeded(seed, epoch + 1):
                means = _epoch(model, loss, optimizer, dataset, training, teacher, seed, epoch, augmentation)
            history.append({**means, "learning_rate": optimizer.param_groups[0]["lr"]})
            tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
            tensors |= {f"loss.{name}": tensor for name, tensor in loss.state_dict().items()}
            tensors |= {f"momentum.{name}": tensor for name, tensor in weights.momentum_buffers(optimizer).items()}
            so_far = started.model_copy(update={"epoch": epoch + 1, "history": tuple(history)})
            weights.save(checkpoint, tensors, so_far)
        progress(label, training.epochs, training.epochs)
    model.eval()
    return started.model_copy(update={"epoch": training.epochs, "history": tuple(history)})


def _epoch(
    model: nn.Module,
    loss: WeightedSum,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    training: Training,
    teacher: Teaching | None,
    seed: int,
    epoch: int,
    augmentation: Augment,
) -> dict[str, float]:
    """One pass over the training set in an order that depends on seed and epoch alone; the means of the losses."""
    labels = dataset.train_labels("training")
    samples = len(labels)
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    seeds = (seed, epoch % augmentation.views if augmentation.views else epoch)
    mixing = augmentation.mixup_alpha > 0 or augmentation.cutmix_alpha > 0
    batches = math.ceil(samples / training.batch_size)
    our_layers, their_layers = layers(loss.terms)
    totals = {"loss": 0.0}
    model.train()
    for batch in range(batches):
        index = order[batch * training.batch_size : (batch + 1) * training.batch_size]
        if len(index) < 2 and batches > 1:
            continue  # batch norm can't learn from a single sample
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * batches + batch, training.epochs * batches, training)
        shown = augment.view(dataset.x_train, index, augmentation, seeds)
        x = torch.from_numpy(preprocess.apply(shown.images, dataset.preprocessing))
        target = augment.mixed_labels(shown, labels, index, len(dataset.classes)) if mixing else labels[index]
        student = observe(model, x, our_layers, "student")._replace(places=torch.from_numpy(index))
        with torch.no_grad():
            shown_theirs = teacher.sees(shown.images, x, dataset.preprocessing) if teacher else x
            theirs = teacher.observe(shown_theirs, their_layers) if teacher else student
        value, values = loss(student, theirs, torch.from_numpy(target))
        if not math.isfinite(value.item()):
            raise UserError(
                f"the loss is {value.item()} in epoch {epoch + 1}, batch {batch + 1}: lower training.learning_rate; "
                "the checkpoint of the last good epoch is kept"
            )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        for key, part in {"loss": value, **{history_key(name): part for name, part in values.items()}}.items():
            totals[key] = totals.get(key, 0.0) + part.item() * len(index)
    return {key: total / samples for key, total in totals.items()}


def _resume(
    checkpoint: Path, fingerprint: str, model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Loads a checkpoint of the same training into model, loss and optimizer; epochs done, and their history."""
    found = weights.load_matching(checkpoint, fingerprint)
    if found is None:
        return 0, []
    tensors, trained = found
    model.load_state_dict(below(tensors, "model"))
    loss.load_state_dict(below(tensors, "loss"))
    state = optimizer.state_dict()
    state["state"] = {int(name): {"momentum_buffer": tensor} for name, tensor in below(tensors, "momentum").items()}
    optimizer.load_state_dict(state)
    return trained.epoch, list(trained.history)
