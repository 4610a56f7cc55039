"""Structured pruning of a weights file: a smaller network with the weights that it keeps, and the history of it."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kdbench import __version__
from kdbench.backends import own_options
from kdbench.data.dataset import Dataset, Labels
from kdbench.data.pack import EvalPack, open_pack
from kdbench.data.preprocess import apply
from kdbench.losses.weighted import terms
from kdbench.machine import versions
from kdbench.progress import Progress, silent
from kdbench.pruning import structured
from kdbench.pruning.importance import Gradients
from kdbench.pruning.sparse import check_drawn, penalty
from kdbench.pruning.targets import Cost
from kdbench.records import Prune, Recipe, Task, TensorSpec, Training, as_record
from kdbench.steps.export import samples_of
from kdbench.steps.latency import beside_the_first
from kdbench.steps.train import initial
from kdbench.store import fingerprint, output_file, sha256
from kdbench.training import weights
from kdbench.training.loop import Penalty
from kdbench.training.seeds import deterministic
from kdbench.training.weights import Trained

BATCH = 64
"""Samples of which each gradient of the importance `taylor` is."""

SHOWN = 4
"""Names in a sentence, at most."""


@dataclass(frozen=True)
class Samples:
    """What importance is judged on: preprocessed samples [N, …] and, where they are known, their labels."""

    x: NDArray[Any]
    y: Labels | None = None


@dataclass(frozen=True)
class Narrowed:
    """A weights file that was pruned."""

    path: Path
    before: Cost
    after: Cost
    target: str
    """What was to fall: macs, parameters or latency, or channels, by ratios."""
    share: float
    """Of it, so much is left."""
    left: Mapping[str, str]
    """Why the channels of these layers were left alone."""

    @property
    def remarks(self) -> list[str]:
        """A sentence for each such reason, with the layers."""
        said = []
        for why in dict.fromkeys(self.left.values()):
            names = [f"'{name}'" for name, reason in self.left.items() if reason == why]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"left as it is: {', '.join(names[:SHOWN])}{more}: {why}")
        return said


def prune(
    source: str | Path,
    out: str | Path,
    options: Prune | Mapping[str, Any],
    data: Samples | EvalPack | str | Path | None = None,
    code: str | Path | None = None,
    *,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Narrowed:
    """Prunes the network of a weights file into another one, which holds how: it is not trained.

    Importance is judged on `data`: samples, or a pack's calibration samples, by their labels, or against what the
    network itself says of them where there are none, or they are of other classes. Without any, samples are generated,
    on which `taylor` is refused. A latency is measured under those of the `backend_options`, by the names of backends,
    that are for `options.backend`. Where the model is a user's own, `code` is the folder in which its file lies, which
    is then run. Raises UserError where the target can't be reached, with the closest that can; nothing is written then.
    """
    options = as_record(Prune, options, "options")
    source, out = Path(source), output_file(out, Path(source))
    model, trained = weights.model_of(source, None if code is None else Path(code))
    samples = _samples(trained, data)
    x = torch.from_numpy(samples.x[: options.samples])
    labels = None if samples.y is None or trained.class_map else samples.y[: len(x)]
    judged = None if data is None else _gradients(x, labels, trained.task)
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, deterministic(torch.get_num_threads()):
        measure = _measure(options, Path(scratch), x, backend_options or {}, seed)
        found = structured.prune(model, options, x, gradients=judged, measure=measure, seed=seed, progress=progress)
    kept = {
        "changes": (*trained.changes, *found.changes),
        "fingerprint": mark(source, options, seed, samples, backend_options),
    }
    weights.save(out, found.model.state_dict(), trained.model_copy(update=kept))
    what = options.target[0] if options.target else "channels"
    return Narrowed(out, found.before, found.after, what, found.share, found.left)


def mark(
    source: Path,
    options: Prune,
    seed: int,
    samples: Samples,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The fingerprint of what `prune` makes of a weights file, judged on samples."""
    facts = {"step": "prune", "source": sha256(source.read_bytes()), "seed": seed, "kdbench": __version__}
    facts |= {"x": sha256(samples.x.tobytes()), "y": None if samples.y is None else sha256(samples.y.tobytes())}
    asked = options.model_dump(include=set(Prune.model_fields))
    measured_under = {} if options.latency is None else own_options(options.backend, backend_options or {})
    facts |= {"backend_options": measured_under} if measured_under else {}
    return fingerprint(**facts, options=asked, versions=versions(("torch", "torch-pruning")))


def check(recipe: Recipe, dataset: Dataset, look: bool = True) -> None:
    """Raises UserError where a recipe's `prune` can't be done to its student, as far as that can be told before it is
    trained: whether it reaches a latency, by a `look` at the narrowest network."""
    if recipe.prune is None:
        return
    student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder)
    x = torch.from_numpy(apply(dataset.x_train[: structured.PROOF], dataset.preprocessing))
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        measure = _measure(recipe.prune, Path(scratch), x, recipe.bench.options, recipe.seed)
        structured.check(student, recipe.prune, x, measure if look else None)
    if recipe.prune.sparse:
        check_drawn(student, recipe.prune.sparse, x, "prune.sparse")
    for training in (fine_tuning(recipe), sparse_training(recipe)):
        if training:
            terms(recipe.distill.losses, recipe.distill.temperature, recipe.folder, training.epochs)


def fine_tuning(recipe: Recipe) -> Training:
    """How a pruned student learns: as `prune.training` has it, or half as long as it has learnt before at a fifth of
    the learning rate, so that what it knows is not lost again."""
    own = recipe.student.training
    if recipe.prune and recipe.prune.training:
        return recipe.prune.training
    return shorter(own, ceil(own.epochs / 2))


def sparse_training(recipe: Recipe) -> Training | None:
    """How the student learns before it is pruned, at the learning rate of what follows; None where it doesn't."""
    sparse = recipe.prune and recipe.prune.sparse
    return shorter(recipe.student.training, sparse.epochs) if sparse else None


def sparse_penalty(recipe: Recipe, dataset: Dataset, source: Path) -> Penalty:
    """The loss of `prune.sparse` on the weights of a file's network."""
    assert recipe.prune is not None
    assert recipe.prune.sparse is not None
    model = weights.model_of(source, recipe.folder)[0]
    x = torch.from_numpy(apply(dataset.x_train[: structured.PROOF], dataset.preprocessing))
    return penalty(model, recipe.prune.sparse, x)


def training_samples(recipe: Recipe, dataset: Dataset) -> Samples:
    """As many training samples as `prune` wants, drawn by the recipe's seed."""
    assert recipe.prune is not None
    count = min(recipe.prune.samples, len(dataset.x_train))
    chosen = np.sort(np.random.default_rng(recipe.seed).choice(len(dataset.x_train), count, replace=False))
    labels = dataset.y_train
    return Samples(apply(dataset.x_train[chosen], dataset.preprocessing), None if labels is None else labels[chosen])


def shorter(training: Training, epochs: int, slower: float = 5) -> Training:
    """So many epochs at a fifth of the learning rate, or another part; steps of a schedule keep their share of the
    time."""
    steps = {epoch * epochs // training.epochs for epoch in training.step_epochs}
    steps = {epoch for epoch in steps if 0 < epoch < epochs}
    schedule = "constant" if training.step_epochs and not steps else training.schedule
    changed = {"epochs": epochs, "step_epochs": tuple(sorted(steps)), "schedule": schedule}
    return training.model_copy(update={**changed, "learning_rate": training.learning_rate / slower})


def _measure(
    options: Prune, scratch: Path, x: Tensor, backend_options: Mapping[str, Mapping[str, Any]], seed: int
) -> structured.Measure | None:
    if options.latency is None:
        return None
    return beside_the_first(scratch, x, options.backend, backend_options, seed)


def _samples(trained: Trained, data: Samples | EvalPack | str | Path | None) -> Samples:
    if isinstance(data, Samples):
        return data
    spec = TensorSpec(name="input", dtype=trained.input_dtype, shape=("batch", *trained.input_shape))
    pack = open_pack(data)
    of_ours = pack and (pack.task, pack.classes) == (trained.task, trained.classes)
    return Samples(samples_of(trained, spec, pack), pack.y_calibration if pack and of_ours else None)


def _gradients(x: Tensor, labels: Labels | None, task: Task) -> Gradients:
    """The gradients of the loss by the labels, or by what the network itself says where there are none."""

    def run(model: nn.Module) -> Iterable[None]:
        model.eval()  # the statistics of batch norm stay those that it was trained with
        for start in range(0, len(x), BATCH):
            model.zero_grad()
            logits = model(x[start : start + BATCH])
            said = logits.detach()
            known = None if labels is None else torch.from_numpy(labels[start : start + BATCH])
            if task == "multi_label":
                target = (said > 0).float() if known is None else known.float()
                loss = functional.binary_cross_entropy_with_logits(logits, target)
            else:
                loss = functional.cross_entropy(logits, said.argmax(1) if known is None else known)
            loss.backward()  # type: ignore[no-untyped-call]
            yield

    return run
