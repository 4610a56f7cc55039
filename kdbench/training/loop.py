"""The training loop: deterministic, and resumed from its last finished epoch."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data import augment, preprocess
from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs, full_precision
from kdbench.losses.weighted import Term, WeightedSum, history_key
from kdbench.progress import Progress, is_main, silent
from kdbench.records import Augment, Training
from kdbench.training import metrics, optimizer, processes, weights
from kdbench.training import precision as precisions
from kdbench.training.features import Model, layers, observe, sample_outputs
from kdbench.training.precision import Precision
from kdbench.training.state import State, begin, copied
from kdbench.training.weights import Trained


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Bit-identical results for equal seeds and threads; leaves torch as it was."""
    memory: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # of no use where nothing reads it, and a twentieth of the time
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """torch's own generator starts from `seed`, and is left as it was: what is drawn depends on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        yield


def fit(
    model: nn.Module,
    dataset: Dataset,
    training: Training,
    terms: Sequence[Term],
    started: Trained,
    checkpoint: Path,
    *,
    teacher: Model | None = None,
    seed: int = 0,
    threads: int = 1,
    augmentation: Augment = Augment(),  # noqa: B008 — frozen
    aside: Path | None = None,
    lines: Path | None = None,
    curves: Path | None = None,
    label: str = "train",
    progress: Progress = silent,
) -> Trained:
    """Trains `model` in place by the weighted sum of the losses `terms`; a checkpoint is written after each epoch.

    `teacher` answers the very batch that the student sees, in evaluation mode and without gradients. A checkpoint of
    the same training (`started.fingerprint`) is continued: it holds all that changes, and all that is drawn depends on
    seed and epoch. Where the dataset has held-out samples, each epoch is judged on them, and the epoch that
    `training.keep` does not ask for, the last or the best, is written to `aside`. `lines` is the file of metrics as
    JSON lines, `curves` the folder of TensorBoard's. Raises UserError where the loss stops being finite; the last good
    checkpoint stays.
    """
    if isinstance(teacher, nn.Module):
        teacher.eval().requires_grad_(False)
    with deterministic(threads):
        first = torch.from_numpy(preprocess.apply(dataset.x_train[:2], dataset.preprocessing))
        student_outputs, teacher_outputs = sample_outputs(
            model, teacher, first, torch.from_numpy(dataset.y_train), terms
        )
        with seeded(seed, 0):
            loss = WeightedSum(terms, student_outputs, teacher_outputs)
        device = processes.device()
        model.to(device)
        loss.to(device)
        teacher = _placed(teacher, device)
        found = _checkpoint(checkpoint, started.fingerprint)
        if found:
            started = found[1]
        else:
            chosen, speedup = _precision(model, loss, dataset, training, teacher, seed, augmentation)
            started = started.model_copy(update={"precision": chosen, "bf16_speedup": speedup})
        if isinstance(teacher, nn.Module):
            precisions.arrange(teacher, started.precision)
        state = begin(model, loss, training, started.precision)
        if found:
            state.restore(found[0])
        history = list(started.history)
        journal = metrics.Journal(history, lines, curves) if is_main() else None
        for epoch in range(len(history), training.epochs):
            if metrics.stale(history, training.patience_epochs):
                break
            loss.begin(epoch + 1, history)
            begun = time.perf_counter()
            with seeded(seed, epoch + 1, *([processes.rank()] if processes.rank() else [])):
                means = _epoch(state, dataset, training, teacher, seed, epoch, augmentation, label, progress)
            samples_per_s = len(dataset.x_train) / (time.perf_counter() - begun)
            processes.share_buffers(model, loss, *([state.average] if state.average else []))
            history.append({**means, "learning_rate": state.optimizer.param_groups[0]["lr"]})
            if dataset.x_held_out is not None:
                history[-1]["held_out"] = processes.of_main(
                    _held_out(state, dataset, training, teacher) if is_main() else 0.0
                )
                if metrics.best_epoch(history) == len(history):
                    state.best = copied(state.result.state_dict())
            found_so_far = {"epoch": len(history), "history": tuple(history), "processes": processes.count()}
            started = started.model_copy(update=found_so_far)
            if journal:
                weights.save(checkpoint, state.tensors(), started)
                journal.add(history[-1], samples_per_s, state.precision)
        if journal:
            journal.close()
        progress(label, training.epochs, training.epochs)
    ends = {"last": (copied(state.result.state_dict()), len(history))}
    if state.best:
        ends["best"] = (state.best, metrics.best_epoch(history))
    results = {
        kept: (tensors, started.model_copy(update={"epoch": epoch, "kept": kept}))
        for kept, (tensors, epoch) in ends.items()
    }
    for kept, result in results.items():
        if kept != training.keep and aside and is_main():
            weights.save(aside, *result)
    tensors, trained = results[training.keep]
    precisions.arrange(model.to("cpu"), "fp32")
    model.load_state_dict(tensors)
    model.eval()
    return trained


def _epoch(
    state: State,
    dataset: Dataset,
    training: Training,
    teacher: Model | None,
    seed: int,
    epoch: int,
    augmentation: Augment,
    label: str = "",
    progress: Progress = silent,
) -> dict[str, float]:
    """One pass over the training set in an order that depends on seed and epoch alone; the means of the losses."""
    labels = dataset.train_labels("training")
    samples = len(labels)
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    seeds = (seed, epoch % augmentation.views if augmentation.views else epoch)
    mixing = augmentation.mixup_alpha > 0 or augmentation.cutmix_alpha > 0
    batches = math.ceil(samples / training.batch_size)
    our_layers, their_layers = layers(state.loss.terms)
    device, parameters = processes.device(), state.parameters
    totals = {"loss": 0.0}
    state.model.train()
    for batch in range(batches):
        whole = order[batch * training.batch_size : (batch + 1) * training.batch_size]
        if len(whole) < 2 and batches > 1:
            continue  # batch norm can't learn from a single sample
        progress(label, epoch + batch / batches, training.epochs)
        index, share = processes.part(whole)
        optimizer.set_step(state.optimizer, epoch * batches + batch, training.epochs * batches, training)
        shown = augment.view(dataset.x_train, index, augmentation, seeds)
        x = torch.from_numpy(preprocess.apply(shown.images, dataset.preprocessing)).to(device)
        target = augment.mixed_labels(shown, labels, index, len(dataset.classes)) if mixing else labels[index]
        x = precisions.arranged(x, state.precision)
        with precisions.autocast(state.precision, device):
            student = observe(state.model, x, our_layers, "student")
            student = _to_loss(student)._replace(places=torch.from_numpy(index).to(device))
            with torch.no_grad():
                theirs = _to_loss(observe(teacher, x, their_layers, "teacher")) if teacher else student
        value, values = state.loss(student, theirs, torch.from_numpy(target).to(device))
        means = processes.means({"loss": value, **{history_key(name): part for name, part in values.items()}}, share)
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} in epoch {epoch + 1}, batch {batch + 1}: lower training.learning_rate; "
                "the checkpoint of the last good epoch is kept"
            )
        state.optimizer.zero_grad()
        value.backward()
        processes.sum_gradients(parameters, share)
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(state.model)
        for key, mean in means.items():
            totals[key] = totals.get(key, 0.0) + mean * len(whole)
    return {key: total / samples for key, total in totals.items()}


def _held_out(state: State, dataset: Dataset, training: Training, teacher: Model | None) -> float:
    """How good the result is on the held-out samples, in the precision of the training.

    Without labels it is the agreement with the teacher.
    """
    assert dataset.x_held_out is not None
    samples, labels, device = dataset.x_held_out, dataset.y_held_out, processes.device()
    said: list[Tensor] = []
    target: list[Tensor] = [] if labels is None else [torch.from_numpy(labels)]
    state.result.eval()
    for start in range(0, len(samples), training.batch_size):
        chosen = preprocess.apply(samples[start : start + training.batch_size], dataset.preprocessing)
        x = precisions.arranged(torch.from_numpy(chosen).to(device), state.precision)
        with torch.no_grad(), precisions.autocast(state.precision, device):
            said.append(state.result(x).float().cpu())
            if labels is None and teacher:
                target.append(metrics.answers(teacher(x), dataset.task).cpu())
    return metrics.judge(torch.cat(said), torch.cat(target), dataset.task)


def _precision(
    model: nn.Module,
    loss: WeightedSum,
    dataset: Dataset,
    training: Training,
    teacher: Model | None,
    seed: int,
    augmentation: Augment,
) -> tuple[Precision, float | None]:
    """The precision that the recipe asks for, or the faster one on its first batch; and how many times faster bf16 is.

    Steps are tried on copies: model, losses and what is drawn later stay as they are.
    """
    if training.precision != "auto":
        return training.precision, None
    size = training.batch_size
    y_train = None if dataset.y_train is None else dataset.y_train[:size]
    batch = replace(dataset, x_train=dataset.x_train[:size], y_train=y_train)

    def step(precision: Precision) -> Callable[[], object]:
        taught_by = deepcopy(teacher) if isinstance(teacher, nn.Module) else teacher
        if isinstance(taught_by, nn.Module):
            precisions.arrange(taught_by, precision)
        state = begin(deepcopy(model), deepcopy(loss), training, precision)
        return lambda: _epoch(state, batch, training, taught_by, seed, 0, augmentation)

    with seeded(seed, 0):
        chosen, speedup = precisions.choose(step)
    speedup = processes.of_main(speedup)
    return ("bf16" if processes.of_main(chosen == "bf16") else "fp32"), speedup


def _to_loss(outputs: Outputs) -> Outputs:
    """With logits as losses take them, in float32 also under autocast."""
    return outputs._replace(logits=full_precision(outputs.logits))


def _placed(teacher: Model | None, device: torch.device) -> Model | None:
    """The teacher on the device; a black box stays where it is, and gets and gives what is in main memory."""
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher and teacher.to(device)
    return teacher if device.type == "cpu" else lambda x: teacher(x.cpu()).to(device)


def _checkpoint(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Trained] | None:
    """A checkpoint of the same training, in all processes or in none."""
    found = weights.load_matching(path, fingerprint)
    if not processes.of_main(found is not None):
        return None
    if found is None or found[1].epoch != processes.of_main(found[1].epoch):
        raise UserError(f"{path}: not what the main process sees: let all have the run folder in common")
    return found
