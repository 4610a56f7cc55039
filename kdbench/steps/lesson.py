"""What the trainings of one recipe share."""

from collections.abc import Callable
from dataclasses import dataclass

from kdbench.data.dataset import Dataset
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Recipe


@dataclass(frozen=True)
class Lesson:
    """What is learnt, beside what learns it and from whom."""

    recipe: Recipe
    dataset: Dataset
    data_sha256: str
    """Of the samples to train on, their labels, and the held-out ones."""
    progress: Progress = silent
    say: Callable[[str], None] = unsaid
    """Told what a reader of the numbers should know."""
