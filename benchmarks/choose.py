"""What changes of a recipe do, judged without a look at its test split.

    python benchmarks/choose.py digits benchmarks/tries/digits.toml
    python benchmarks/choose.py yeast benchmarks/tries/yeast.toml --set data.options.train=… --seeds 3

Prints a Markdown table with a row a try: the mean over seeds of accuracy in percent, or of micro and macro F1 where
samples have any number of labels, with the standard deviation. Every seed has a teacher of its own, which `kdbench
distill --seeds` has not: there one teaches all.
"""

import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import click
from pydantic import ConfigDict, TypeAdapter, ValidationError

import kdbench
from kdbench import stats
from kdbench.cli import options
from kdbench.errors import UserError, first_line
from kdbench.records import Comparison, Recipe
from kdbench.store import Arrays, load_comparison, load_recipe

Scores = tuple[float, ...]
"""Of one network, in percent: accuracy, or micro and macro F1."""

TRIES = TypeAdapter(list[dict[str, str]], config=ConfigDict(strict=True))


def read(path: Path) -> list[dict[str, str]]:
    """The tries of a file `tries = [{ "distill.temperature" = "2" }, …]`: each sets fields as `--set` does."""
    try:
        return TRIES.validate_python(tomllib.loads(path.read_text(encoding="utf-8"))["tries"])
    except (OSError, KeyError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise UserError(f"{path}: should hold tries = [{{ FIELD = 'VALUE' }}, …]: {first_line(error, 100)}") from None


def scores(comparison: Comparison, arrays: Arrays) -> dict[str, Scores]:
    """By method, of the epoch that the recipe keeps."""
    labels, recipe = arrays["labels"], comparison.recipe
    sections = dict(zip(recipe.teacher_names, recipe.teachers, strict=True))
    found: dict[str, Scores] = {}
    for trial in comparison.trials:
        training = sections[trial.method].training if trial.method in sections else recipe.student.training
        if trial.kept == (training.keep if training else "last"):
            answers = arrays[f"predictions.{trial.raw}"]
            shares = stats.f1(answers, labels) if labels.ndim == 2 else (stats.agreement(answers, labels),)
            found[trial.method] = tuple(100 * share for share in shares)
    return found


def tried(recipe: str, overrides: Mapping[str, str], seeds: int, folder: Path) -> dict[str, list[Scores]]:
    """Scores of each method by seed; what `folder` has of an earlier try is kept where nothing of it has changed."""
    found: dict[str, list[Scores]] = {}
    for seed in range(seeds):
        seeded = load_recipe(recipe, {**overrides, "seed": str(seed)})
        compared = kdbench.compare_methods(seeded, folder / str(seed), baseline=True)
        assert compared is not None
        for method, of_seed in scores(*load_comparison(compared.comparison)).items():
            found.setdefault(method, []).append(of_seed)
    return found


def cell(by_seed: Sequence[Scores]) -> str:
    """`98.78 ± 0.19`, or `64.64 ± 0.29, 40.50 ± 0.33`."""
    return ", ".join(
        f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
        for values in zip(*by_seed, strict=True)
    )


def columns(recipe: Recipe) -> list[str]:
    return [*recipe.teacher_names, "alone", "distilled", *recipe.methods]


@click.command()
@click.argument("recipe")
@click.argument("tries", type=options.FILE)
@options.overrides
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Counted from 0.")
@click.option("--out", type=options.FILE, help="Keep what is trained in this folder.  [default: none is kept]")
def main(recipe: str, tries: Path, overrides: dict[str, str], seeds: int, out: Path | None) -> None:
    """Train RECIPE with each of the changes that the file TRIES names, and judge it on validation samples.

    What --set says is for all tries. Neighbours that share a teacher or a student alone share its training too, so
    that seconds, the mean of a seed, are those of what was trained anew.
    """
    try:
        listed = read(tries)
        base = {"data.split": "validation", **overrides}
        names = columns(load_recipe(recipe, base))
        click.echo(f"| changed | {' | '.join(names)} | seconds |\n|:---|{'---:|' * (len(names) + 1)}")
        with nullcontext(out) if out else tempfile.TemporaryDirectory() as folder:
            for fields in listed:
                start = time.monotonic()
                found = tried(recipe, base | fields, seeds, Path(folder))
                changed = ", ".join(f"{field} {value}" for field, value in fields.items()) or "nothing"
                cells = [cell(found.get(name, [])) or "–" for name in names]
                click.echo(f"| {changed} | {' | '.join(cells)} | {(time.monotonic() - start) / seeds:.0f} |")
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
