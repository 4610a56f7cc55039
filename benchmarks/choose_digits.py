"""The tries behind zoo/digits/recipe.toml: each is trained without a look at the test split.

    python benchmarks/choose_digits.py

Prints a Markdown table: accuracy on 300 validation samples cut from the training set, mean of three seeds. About twenty
minutes on two cores.
"""

import sys
import tempfile
import time
from pathlib import Path

from kdbench import data
from kdbench.data import preprocess
from kdbench.data.dataset import Dataset
from kdbench.records import Recipe
from kdbench.steps import train
from kdbench.store import RunFolder, load_recipe
from kdbench.training import weights

TRIES: list[dict[str, str]] = [
    {},
    {"teacher.training.epochs": "15"},
    {"teacher.training.epochs": "20"},
    {"teacher.training.learning_rate": "0.05"},
    {"student.training.epochs": "20"},
    {"student.training.epochs": "40"},
    {"student.training.learning_rate": "0.02"},
    {"student.training.learning_rate": "0.1"},
    {"distill.temperature": "2"},
    {"distill.temperature": "8"},
    {"distill.losses": "{ cross_entropy = 0.5, kd = 0.5 }"},
]
SEEDS = (0, 1, 2)


def accuracy(path: Path, dataset: Dataset) -> float:
    import torch

    model, _ = weights.model_of(path)
    with torch.no_grad():
        logits = model(torch.from_numpy(preprocess.apply(dataset.x_test, dataset.preprocessing)))
    return float((logits.argmax(1).numpy() == dataset.y_test).mean())


def tried(overrides: dict[str, str], cache: Path) -> tuple[list[list[float]], float]:
    """Accuracies of teacher, student alone and student by seed, and the seconds that training took."""
    found, start = [], time.monotonic()
    for seed in SEEDS:
        recipe: Recipe = load_recipe("digits", {"data.split": "validation", "seed": str(seed)} | overrides)
        dataset = data.load(recipe.data)
        folder = RunFolder(cache / f"{abs(hash((seed, *sorted(overrides.items()))))}")
        folder.path.mkdir(parents=True)
        teacher = train.train(folder, "teacher", train.network_of(recipe.teachers[0]), recipe, dataset, "")
        alone = train.train(folder, "student-alone", recipe, dataset, "")
        student = train.distill(folder, "student", [teacher], recipe, dataset, "")
        found.append([accuracy(path, dataset) for path in (teacher, alone, student)])
    return found, (time.monotonic() - start) / len(SEEDS)


def main() -> None:
    print("| changed | teacher | student alone | student | seconds |\n|:---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as cache:
        for overrides in TRIES:
            found, seconds = tried(overrides, Path(cache))
            means = [100 * sum(column) / len(column) for column in zip(*found, strict=True)]
            changed = ", ".join(f"{field} {value}" for field, value in overrides.items()) or "nothing"
            print(f"| {changed} | {' | '.join(f'{mean:.2f}' for mean in means)} | {seconds:.0f} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
