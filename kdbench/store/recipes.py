"""Recipes: those that come along, and those in files."""

from collections.abc import Mapping
from pathlib import Path

from kdbench.errors import UserError, nearest
from kdbench.records import Recipe, recipe_from_toml
from kdbench.records.base import read_text


def zoo_folder() -> Path:
    """The recipes that come along: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "zoo"
    return inside if inside.is_dir() else package.parent / "zoo"


def zoo_recipes() -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(zoo_folder().glob("*/recipe.toml"))}


def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A recipe of the zoo by name, or the one in a TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        zoo = zoo_recipes()
        if name_or_path not in zoo:
            raise UserError(f"unknown recipe '{name_or_path}': {nearest(name_or_path, zoo)}; or give a path to a .toml")
        path = zoo[name_or_path]
    return recipe_from_toml(read_text(path), str(path), overrides).placed(path.parent)


def open_recipe(recipe: Recipe | str | Path) -> Recipe:
    """The recipe of a name or path; a recipe as it is."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
