"""`kdbench zoo`."""

import click


@click.command(short_help="List the recipes that come along.")
def zoo() -> None:
    """List the recipes that come along, for `kdbench run NAME`.

    \b
    kdbench zoo
    """
    from kdbench.store import load_recipe, zoo_recipes

    for name, path in zoo_recipes().items():
        recipe = load_recipe(name)
        click.echo(f"{name}\n  {recipe.description}\n  {path}")
