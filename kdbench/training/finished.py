"""A training from its start to the weights files that it ends with, kept where they are already there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdbench.losses.outputs import below
from kdbench.progress import Progress, is_main, silent
from kdbench.store import RunFolder
from kdbench.training import metrics, processes, weights
from kdbench.training.loop import Course, Ends, fit
from kdbench.training.weights import Trained

LEARNED = ("epoch", "history", "kept", "precision", "bf16_speedup", "processes")
"""What a record says of the training itself."""


@dataclass(frozen=True)
class Part:
    """What of a trained model becomes the weights file of a rung."""

    rung: str
    started: Trained
    within: str = ""
    """The submodule that it is; the whole model without."""


def weights_files(
    run: RunFolder,
    parts: Sequence[Part],
    start: Callable[[], nn.Module],
    course: Course | None,
    progress: Progress = silent,
) -> list[Path]:
    """The weights files of `parts`: of the model that `start` gives, trained unless `course` is None.

    Files of the same `started.fingerprint` are kept, and a checkpoint of it continued. Of the last and the best epoch
    the one that the recipe does not ask for is written beside, as the course's early epoch is. The run folder keeps
    what the epochs took, those before a stop too. Only the main process writes; all wait for it.
    """
    checkpoint = run.checkpoint(parts[0].rung)
    epoch = course.early_epoch if course else None
    early = run.weights_of_epoch(parts[0].rung, f"epoch-{epoch}") if epoch is not None else None
    there = all(weights.load_matching(run.weights(part.rung), part.started.fingerprint) for part in parts)
    if early and not weights.load_matching(early, parts[0].started.fingerprint):
        there = False
        past = weights.load_matching(checkpoint, parts[0].started.fingerprint)
        if past and epoch and past[1].epoch >= epoch and is_main():  # it would not come by that epoch again
            checkpoint.unlink()
        processes.wait()
    if not processes.of_main(there):
        model, first = start(), parts[0]
        ends: Ends = {"last": (model.state_dict(), first.started)}
        if course is not None:
            lines, curves = run.metrics(first.rung), run.tensorboard(first.rung)
            ends = fit(
                model,
                course,
                first.started,
                checkpoint,
                lines=lines,
                curves=curves,
                early=early,
                label=first.rung,
                progress=progress,
            )
        for part in parts if is_main() else ():
            spent = metrics.duration_s(run.metrics(first.rung), len(ends["last"][1].history)) if course else None
            run.note_duration(part.rung, "training", spent)
            _save(run, part, ends, course.training.keep if course else "last")
    if is_main():
        checkpoint.unlink(missing_ok=True)
    processes.wait()
    return [run.weights(part.rung) for part in parts]


def _save(run: RunFolder, part: Part, ends: Ends, keep: str) -> None:
    """Writes the part of each end, that of `keep` as the rung's own."""
    for epoch in ("last", "best"):
        path = run.weights(part.rung) if epoch == keep else run.weights_of_epoch(part.rung, epoch)
        if epoch not in ends:
            path.unlink(missing_ok=True)  # of an earlier training
            continue
        tensors, trained = ends[epoch]
        learned = {name: getattr(trained, name) for name in LEARNED}
        weights.save(
            path, below(tensors, part.within) if part.within else tensors, part.started.model_copy(update=learned)
        )
