"""`kdbench check`."""

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Run one batch of everything in a recipe.")
@click.argument("recipe")
@options.overrides
def check(recipe: str, overrides: dict[str, str]) -> None:
    """Run one batch of everything in RECIPE, and say how long all of it will take.

    Loads the data, then trains, exports, slims, quantizes and opens every backend on a few samples, in a scratch folder
    that is removed. What would stop `kdbench run` later stops here, in the same words. The duration is an estimate from
    measured steps.

    \b
    kdbench check digits
    kdbench check my/recipe.toml
    kdbench check digits --set student.model=mobilenet_v2 --set student.options={}
    """
    from kdbench.cli.show import remark, show_check
    from kdbench.pipeline import checking
    from kdbench.store import load_recipe

    loaded = load_recipe(recipe, overrides)
    with bars() as progress:
        found = checking.check(loaded, progress=progress, say=remark)
    show_check(found)
    click.echo(f"\nnext     kdbench run {recipe}")
