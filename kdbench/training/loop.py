"""The training loop: deterministic, and resumed from its last finished epoch."""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.data import augment, preprocess
from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs, full_precision
from kdbench.losses.weighted import Term, WeightedSum, history_key
from kdbench.progress import Progress, is_main, silent
from kdbench.pruning.masks import Masks
from kdbench.records import Augment, Training
from kdbench.training import metrics, mutual, optimizer, processes, weights
from kdbench.training import precision as precisions
from kdbench.training.features import layers, observe
from kdbench.training.precision import Precision
from kdbench.training.seeds import deterministic, seeded
from kdbench.training.state import State, begin, copied
from kdbench.training.teaching import Faculty, Said, sample_outputs
from kdbench.training.weights import Trained

Ends = dict[str, tuple[dict[str, Tensor], Trained]]
"""Weights and record of the `last` epoch and, where epochs are judged, of the `best`."""

Penalty = Callable[[nn.Module, int], Tensor]
"""A loss on a model's own weights in an epoch, counted from 0."""

GRADIENT_BATCHES = 16
"""Whose mean gradient tells which weights matter, where that is asked."""


@dataclass(frozen=True)
class Course:
    """What a training learns from; the same from its first step to its last."""

    dataset: Dataset
    training: Training
    terms: Sequence[Term]
    faculty: Faculty | None = None
    """None without a teacher."""
    augmentation: Augment = Augment()  # noqa: RUF009 — frozen
    seed: int = 0
    threads: int = 1
    penalty: Penalty | None = None
    masks: Masks | None = None
    """None where all weights are trained."""
    early_epoch: int | None = None
    """The epoch whose weights are kept beside those of its end."""


def fit(
    model: nn.Module,
    course: Course,
    started: Trained,
    checkpoint: Path,
    *,
    lines: Path | None = None,
    curves: Path | None = None,
    early: Path | None = None,
    label: str = "train",
    progress: Progress = silent,
) -> Ends:
    """Trains `model` in place by the weighted sum of the course's losses; a checkpoint is written after each epoch.

    Teachers answer the very view that the student sees, in evaluation mode and without gradients. The losses' target is
    None where the training set has no labels. A checkpoint of the same training (`started.fingerprint`) is continued:
    it holds all that changes, and all that is drawn depends on seed and epoch. Where the dataset has held-out samples,
    each epoch is judged on them, but for those before all zeros of the course's masks are chosen. `lines` is the file
    of metrics as JSON lines, `curves` the folder of TensorBoard's, `early` the file for the course's early epoch.
    Raises UserError where the loss stops being finite; the last good checkpoint stays.
    """
    training = course.training
    with deterministic(course.threads):
        state, started = _begun(model, course, started, checkpoint)
        history = list(started.history)
        journal = metrics.Journal(history, lines, curves) if is_main() else None
        while len(history) < training.epochs and not metrics.stale(history, training.patience_epochs):
            start = time.perf_counter()
            line, samples_per_s = _learnt(state, course, history, label, progress)
            history.append(line)
            _judge(state, course, history)
            found_so_far = {"epoch": len(history), "history": tuple(history), "processes": processes.count()}
            started = started.model_copy(update=found_so_far)
            if journal:
                if early and len(history) == course.early_epoch:
                    weights.save(early, state.result.state_dict(), started)
                weights.save(checkpoint, state.tensors(), started)
                journal.add(history[-1], samples_per_s, time.perf_counter() - start, state.precision)
        if journal:
            journal.close()
        progress(label, training.epochs, training.epochs)
    ends = _ends(state, started)
    precisions.arrange(model.to("cpu"), "fp32")
    model.load_state_dict(ends[training.keep][0])
    model.eval()
    return ends


def _begun(model: nn.Module, course: Course, started: Trained, checkpoint: Path) -> tuple[State, Trained]:
    """A training before its next epoch, and its record: at its start, or where the checkpoint has left it."""
    device, faculty = processes.device(), course.faculty
    model.to(device)
    processes.share_all(model)
    if faculty:
        faculty.prepare(device, "fp32")
    loss = _losses(model, course).to(device)
    found = _checkpoint(checkpoint, started.fingerprint)
    if found:
        started = found[1]
    else:
        chosen, speedup = _precision(model, loss, course)
        started = started.model_copy(update={"precision": chosen, "bf16_speedup": speedup})
    if faculty:
        faculty.prepare(device, started.precision)
    state = begin(model, loss, course.training, started.precision)
    state.masks = course.masks
    if found:
        state.restore(found[0])
    return state, started


def _learnt(
    state: State, course: Course, history: list[dict[str, float]], label: str, progress: Progress
) -> tuple[dict[str, float], float]:
    """The next epoch: its line of metrics, and how many samples a second went through it."""
    epoch, seed, faculty = len(history), course.seed, course.faculty
    if faculty and faculty.cached(course.terms, course.augmentation):
        faculty.begin(course.dataset, course.augmentation, seed, epoch)
    state.loss.begin(epoch + 1, history)
    if state.masks:
        with seeded(seed, epoch + 1):
            state.masks.begin_epoch(epoch + 1, partial(_gradients, state, course, epoch), *state.networks)
    begun = time.perf_counter()
    with seeded(seed, epoch + 1, *([processes.rank()] if processes.rank() else [])):
        means = _epoch(state, course, epoch, label, progress)
    samples_per_s = len(course.dataset.x_train) / (time.perf_counter() - begun)
    processes.share_buffers(state.model, state.loss, *([state.average] if state.average else []))
    line = {**means, "learning_rate": state.optimizer.param_groups[0]["lr"]}
    if state.masks:
        line["sparsity"] = state.masks.sparsity
    return line, samples_per_s


def _judge(state: State, course: Course, history: list[dict[str, float]]) -> None:
    """Adds to the last epoch's line how good the model is on held-out samples; keeps its weights if none were better.

    Where there are no such samples, or not all zeros of the course's masks are chosen yet, there is nothing to judge.
    """
    if course.dataset.x_held_out is None or not (state.masks is None or state.masks.settled(len(history))):
        return
    judged = processes.agreed(lambda: _held_out(state, course) if is_main() else 0.0)
    history[-1]["held_out"] = processes.of_main(judged)
    if metrics.best_epoch(history) == len(history):
        state.best = copied(state.result.state_dict())


def _ends(state: State, started: Trained) -> Ends:
    """Weights and record of the last epoch and, where epochs were judged, of the best."""
    ends = {"last": (copied(state.result.state_dict()), len(started.history))}
    if state.best:
        ends["best"] = (state.best, metrics.best_epoch(started.history))
    return {
        kept: (tensors, started.model_copy(update={"epoch": epoch, "kept": kept}))
        for kept, (tensors, epoch) in ends.items()
    }


def _losses(model: nn.Module, course: Course) -> WeightedSum | mutual.MutualSum:
    """The losses, built from the outputs of both on the first samples."""
    first = torch.from_numpy(preprocess.apply(course.dataset.x_train[:2], course.dataset.preprocessing))
    first = first.to(processes.device())
    if isinstance(model, mutual.Pair):
        model.eval()
        with torch.no_grad():
            seen = observe(model, first, [mutual.PEER])
        with seeded(course.seed, 0):
            return mutual.MutualSum(course.terms, seen)
    outputs = processes.agreed(lambda: sample_outputs(model, course.faculty, course.dataset, first, course.terms))
    with seeded(course.seed, 0):
        return WeightedSum(course.terms, *outputs, course.dataset.task)


def _epoch(state: State, course: Course, epoch: int, label: str = "", progress: Progress = silent) -> dict[str, float]:
    """One pass over the training set in an order that depends on seed and epoch alone; the means of the losses."""
    training, seen = course.training, 0
    order = _order(course, epoch)
    batches = math.ceil(len(order) / training.batch_size)
    parameters = state.parameters
    totals = {"loss": 0.0}
    state.model.train()
    for batch in range(batches):
        whole = order[batch * training.batch_size : (batch + 1) * training.batch_size]
        if len(whole) < 2 and batches > 1:
            continue  # batch norm can't learn from a single sample
        progress(label, epoch + batch / batches, training.epochs)
        index, share = processes.part(whole)
        optimizer.set_step(state.optimizer, epoch * batches + batch, training.epochs * batches, training)
        value, values = _value(state, course, epoch, index)
        if course.penalty:
            extra = course.penalty(state.model, epoch)
            value, values = value + extra, {**values, "penalty": extra.detach()}
        means = processes.means({"loss": value, **{history_key(name): part for name, part in values.items()}}, share)
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} in epoch {epoch + 1}, batch {batch + 1}: lower training.learning_rate; "
                "the checkpoint of the last good epoch is kept"
            )
        state.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        processes.sum_gradients(parameters, share)
        if state.masks:
            state.masks.before_step(state.model)
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(state.model)
        if state.masks:
            state.masks.after_step(*state.networks)
        for key, mean in means.items():
            totals[key] = totals.get(key, 0.0) + mean * len(whole)
        seen += len(whole)
    return {key: total / seen for key, total in totals.items()}


def _order(course: Course, epoch: int) -> NDArray[np.int64]:
    """In which the training set's samples come, by seed and epoch alone."""
    return np.random.default_rng([course.seed, epoch]).permutation(len(course.dataset.x_train))


def _value(state: State, course: Course, epoch: int, index: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss on a batch of the training set as the epoch shows it, and each loss in it, without its weight."""
    dataset, faculty, augmentation = course.dataset, course.faculty, course.augmentation
    labels, device = dataset.y_train, processes.device()
    seeds = (course.seed, epoch % augmentation.views if augmentation.views else epoch)
    mixing = augmentation.mixup_alpha > 0 or augmentation.cutmix_alpha > 0
    our_layers, their_layers = layers(course.terms)
    if isinstance(state.model, mutual.Pair):
        our_layers = [mutual.PEER]
    shown = augment.view(dataset.x_train, index, augmentation, seeds)
    x = torch.from_numpy(preprocess.apply(shown.images, dataset.preprocessing)).to(device)
    target = None
    if labels is not None:
        mixed = augment.mixed_labels(shown, labels, index, len(dataset.classes)) if mixing else labels[index]
        target = torch.from_numpy(mixed).to(device)
    with precisions.autocast(state.precision, device):
        student = observe(state.model, precisions.arranged(x, state.precision), our_layers, "student")
        student = _to_loss(student)._replace(places=torch.from_numpy(index).to(device))
        said: Said = student
        if faculty:
            with torch.no_grad():
                said = processes.agreed(partial(faculty.say, shown.images, x, index, their_layers))
    value, values = state.loss(student, said, target)
    return value, values


def _gradients(state: State, course: Course, epoch: int) -> dict[str, Tensor]:
    """The mean gradient of the loss by parameter, on the first batches of the epoch, in evaluation mode.

    Nothing is changed by it.
    """
    size = course.training.batch_size
    order = _order(course, epoch)[: GRADIENT_BATCHES * size]
    starts = [start for start in range(0, len(order), size) if len(order) - start > 1 or not start]
    asked = replace(state, loss=deepcopy(state.loss))
    state.model.eval()
    state.optimizer.zero_grad()
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent layers go back in training mode alone
        for start in starts:
            index, share = processes.part(order[start : start + size])
            value, _ = _value(asked, course, epoch, index)
            (value * (share / len(starts))).backward()  # type: ignore[no-untyped-call]
    processes.sum_gradients(state.parameters, 1.0)
    found = {
        name: parameter.grad.clone() for name, parameter in state.model.named_parameters() if parameter.grad is not None
    }
    state.optimizer.zero_grad()
    return found


def _held_out(state: State, course: Course) -> float:
    """How good the result is on the held-out samples, in the precision of the training.

    Without labels it is the agreement with the teachers.
    """
    dataset, device = course.dataset, processes.device()
    assert dataset.x_held_out is not None
    samples, labels = dataset.x_held_out, dataset.y_held_out
    said: list[Tensor] = []
    target: list[Tensor] = [] if labels is None else [torch.from_numpy(labels)]
    state.result.eval()
    for start in range(0, len(samples), course.training.batch_size):
        chosen = samples[start : start + course.training.batch_size]
        x = torch.from_numpy(preprocess.apply(chosen, dataset.preprocessing)).to(device)
        with torch.no_grad(), precisions.autocast(state.precision, device):
            said.append(state.result(precisions.arranged(x, state.precision)).float().cpu())
            if labels is None and course.faculty:
                theirs = course.faculty.answer(chosen, x)
                target.append(metrics.answers(theirs, dataset.task).cpu())
    return metrics.judge(torch.cat(said), torch.cat(target), dataset.task)


def _precision(
    model: nn.Module, loss: WeightedSum | mutual.MutualSum, course: Course
) -> tuple[Precision, float | None]:
    """The precision that the recipe asks for, or the faster one on its first batch; and how many times faster bf16 is.

    Steps are tried on copies: model, losses and what is drawn later stay as they are. Teachers whose answers are kept
    have no part in it.
    """
    if course.training.precision != "auto":
        return course.training.precision, None
    size, dataset, faculty = course.training.batch_size, course.dataset, course.faculty
    y_train = None if dataset.y_train is None else dataset.y_train[:size]
    kept = faculty is not None and faculty.cached(course.terms, course.augmentation)
    tried = replace(
        course,
        dataset=replace(dataset, x_train=dataset.x_train[:size], y_train=y_train),
        faculty=None if kept else faculty,
    )

    def step(precision: Precision) -> Callable[[], object]:
        state = begin(deepcopy(model), deepcopy(loss), course.training, precision)

        def run() -> None:
            if tried.faculty:
                tried.faculty.prepare(processes.device(), precision)
            _epoch(state, tried, 0)

        return run

    with seeded(course.seed, 0):
        chosen, speedup = precisions.choose(step)
    speedup = processes.of_main(speedup)
    return ("bf16" if processes.of_main(chosen == "bf16") else "fp32"), speedup


def _to_loss(outputs: Outputs) -> Outputs:
    """With logits as losses take them, in float32 also under autocast."""
    return outputs._replace(logits=full_precision(outputs.logits))


def _checkpoint(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Trained] | None:
    """A checkpoint of the same training, in all processes or in none."""
    found = weights.load_matching(path, fingerprint)
    if not processes.of_main(found is not None):
        return None
    if found is None or found[1].epoch != processes.of_main(found[1].epoch):
        raise UserError(f"{path}: not what the main process sees: let all have the run folder in common")
    return found
