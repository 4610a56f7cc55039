"""`kdbench run`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Walk the whole ladder of a recipe.")
@click.argument("recipe")
@options.overrides
@options.run_folder
@click.option("--fresh", is_flag=True, help="Measure again, also where nothing has changed since the last run.")
@click.option("--publish", is_flag=True, help="Also copy the results to results/<machine>/<date>-<recipe>.json.")
def run(recipe: str, overrides: dict[str, str], out: Path | None, fresh: bool, publish: bool) -> None:
    """Walk the whole ladder of RECIPE: a name in the zoo, or a path to a .toml.

    Trains the teacher, distils the student, exports both, slims, quantizes, and measures every rung against the
    teacher. A run that was stopped goes on where it was; finished steps are kept while their inputs are the same.

    \b
    kdbench run digits
    kdbench run digits --set distill.temperature=2 --out runs/cooler
    kdbench run my/recipe.toml --publish
    """
    from kdbench import pipeline
    from kdbench.cli.show import remark, show_report
    from kdbench.store import load_recipe

    loaded = load_recipe(recipe, overrides)
    with bars() as progress:
        report = pipeline.run(loaded, out, fresh=fresh, publish=publish, progress=progress, say=remark)
    show_report(report)
