"""The tries behind zoo/yeast/recipe.toml: each is trained without a look at the test split.

    python benchmarks/choose_yeast.py FOLDER [test]

FOLDER holds yeast-train.arff, yeast-test.arff and yeast.xml. Prints a Markdown table: micro and macro F1 in percent on
300 validation samples cut from the training set, mean of three seeds. With `test` only the recipe as it stands, on the
test split, with ten seeds and the paired difference between the students. About ten minutes on two cores.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from kdbench import data, stats
from kdbench.data import preprocess
from kdbench.data.dataset import Dataset
from kdbench.records import Recipe
from kdbench.steps import train
from kdbench.store import RunFolder, fingerprint, load_recipe
from kdbench.training import weights

TRIES: list[dict[str, str]] = [
    {},
    {"teacher.options": "{ widths = [512, 512], dropout = 0.5 }"},
    {"student.options": "{ widths = [32] }"},
    {"student.options": "{ widths = [128] }"},
    {"student.options": "{ widths = [64], dropout = 0.2 }"},
    {"student.training.learning_rate": "0.2"},
    {"student.training.epochs": "20"},
    {"student.training.weight_decay": "0.002"},
    {"distill.temperature": "1"},
    {"distill.temperature": "4"},
    {"distill.losses": "{ binary_cross_entropy = 0.5, multi_label = 0.5 }"},
    {"distill.losses": "{ multi_label = 1.0 }"},
]
SEEDS = (0, 1, 2)
TEST_SEEDS = range(10)


def f1(path: Path, dataset: Dataset) -> tuple[float, float]:
    model, _ = weights.model_of(path)
    with torch.no_grad():
        logits = model(torch.from_numpy(preprocess.apply(dataset.x_test, dataset.preprocessing)))
    assert dataset.y_test is not None
    return stats.f1(logits.numpy() > 0, dataset.y_test)


def tried(overrides: dict[str, str], source: Path, cache: Path) -> list[tuple[float, float]]:
    """Micro and macro F1 of teacher, student alone and student, trained where they are not in the cache."""
    files = {"train": "yeast-train.arff", "test": "yeast-test.arff", "labels_file": "yeast.xml"}
    places = {f"data.options.{option}": str(source / name) for option, name in files.items()}
    recipe: Recipe = load_recipe("yeast", places | overrides)
    dataset = data.load(recipe.data)

    def folder(*facts: object) -> RunFolder:
        found = RunFolder(cache / fingerprint(seed=recipe.seed, split=recipe.data.split, facts=[str(f) for f in facts]))
        found.path.mkdir(exist_ok=True)
        return found

    its, students = folder(recipe.teachers), folder(recipe.teachers, recipe.student, recipe.distill)
    teacher = train.train(its, "teacher", train.network_of(recipe.teachers[0]), recipe, dataset, "")
    alone = train.train(folder(recipe.student), "student-alone", recipe.student, recipe, dataset, "")
    student = train.distill(students, "student", teacher, recipe, dataset, "")
    return [f1(path, dataset) for path in (teacher, alone, student)]


def main() -> None:
    source, test = Path(sys.argv[1]), sys.argv[2:] == ["test"]
    split, seeds = ("test", TEST_SEEDS) if test else ("validation", SEEDS)
    print("| changed | teacher | student alone | student |\n|:---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as cache:
        for overrides in [{}] if test else TRIES:
            seeded = [{"data.split": split, "seed": str(seed)} | overrides for seed in seeds]
            found = 100 * np.array([tried(fields, source, Path(cache)) for fields in seeded])
            changed = ", ".join(f"{field} {value}" for field, value in overrides.items()) or "nothing"
            cells = [f"{micro:.2f}, {macro:.2f}" for micro, macro in found.mean(axis=0)]
            print(f"| {changed} | {' | '.join(cells)} |")
            sys.stdout.flush()
    if test:
        for number, name in enumerate(("micro", "macro")):
            gain = stats.paired_difference(found[:, 2, number], found[:, 1, number])
            deviations = ", ".join(f"{deviation:.2f}" for deviation in found[:, :, number].std(axis=0, ddof=1))
            print(f"{name} F1: deviations {deviations}; student minus student alone {gain}")


if __name__ == "__main__":
    main()
