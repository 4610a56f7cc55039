"""What is said of each epoch: how good the model is on held-out samples, JSON lines and TensorBoard's curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kdbench.records import Task
from kdbench.store import write_atomic


def answers(logits: Tensor, task: Task) -> Tensor:
    """What logits [N, C] say: classes [N], or 0 and 1 for each class [N, C] where several hold at once."""
    return (logits > 0).long() if task == "multi_label" else logits.argmax(dim=1)


def judge(logits: Tensor, target: Tensor, task: Task) -> float:
    """How good logits [N, C] are, from 0 to 1: accuracy, or the micro-averaged F1 of several labels a sample.

    `target` holds labels, or a teacher's `answers`: then it is the agreement with it.
    """
    said = answers(logits, task)
    if task == "multi_label":
        right = int((said * target).sum())
        named = int(said.sum() + target.sum())
        return 2 * right / named if named else 1.0
    return float((said == target).double().mean())


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The number, from 1, of the first epoch that none is better than on the held-out samples, of those judged."""
    return 1 + max(range(len(history)), key=lambda epoch: (history[epoch].get("held_out", -1.0), -epoch))


def stale(history: Sequence[Mapping[str, float]], patience_epochs: int | None) -> bool:
    """Whether so many epochs passed without a better one on the held-out samples; not before one was judged."""
    if patience_epochs is None or not history or "held_out" not in history[-1]:
        return False
    return len(history) - best_epoch(history) >= patience_epochs


class Journal:
    """JSON lines, one an epoch, and TensorBoard's curves where it is installed.

    The file of lines is written whole after each epoch, so that those of a training that was stopped stand once.
    """

    def __init__(self, history: Sequence[Mapping[str, float]], lines: Path | None, curves: Path | None) -> None:
        """Goes on after the epochs of `history`; their lines stay, with the timings, where they are there."""
        self.lines = lines
        self.entries: list[dict[str, Any]] = []
        known = _read(lines) if lines else []
        for number, entry in enumerate(history):
            line = known[number] if number < len(known) else {}
            self.entries.append(line if entry.items() <= line.items() else {"epoch": number + 1, **entry})
        self.writer: Any = _writer(curves, len(history)) if curves else None

    def add(self, entry: Mapping[str, float], samples_per_s: float, duration_s: float, precision: str) -> None:
        """The next epoch's, which took so long with all that belongs to it."""
        epoch = len(self.entries) + 1
        timed = {**entry, "samples_per_s": round(samples_per_s, 1), "duration_s": round(duration_s, 3)}
        self.entries.append({"epoch": epoch, **timed, "precision": precision})
        if self.lines:
            write_atomic(self.lines, "".join(json.dumps(entry) + "\n" for entry in self.entries))
        for name, value in timed.items() if self.writer else ():
            self.writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def duration_s(lines: Path, epochs: int) -> float | None:
    """What so many epochs took together, by their lines; None where one doesn't say, as those of older trainings."""
    told = [line.get("duration_s") for line in _read(lines)]
    known = [float(value) for value in told if isinstance(value, int | float)]
    return sum(known) if len(known) == len(told) == epochs else None


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none where it is missing or damaged."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return found if all(isinstance(line, dict) for line in found) else []


def _writer(folder: Path, done: int) -> Any:
    """TensorBoard's writer, or None; a training that starts anew removes an earlier one's event files."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    for old in folder.glob("events.out.tfevents.*") if not done else ():
        old.unlink()
    return SummaryWriter(str(folder), purge_step=done + 1)
