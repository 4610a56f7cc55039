"""Where a recipe measures, tried before anything is trained."""

from kdbench.backends import own_options, pick_backend
from kdbench.benchmark.cells import check_backends
from kdbench.records import Recipe


def check_places(recipe: Recipe, turns: bool = False) -> None:
    """Raises UserError for a backend that the recipe names and nobody knows; and where none is here of those that the
    ladder is measured on, that int8 is chosen on, or that the spiral's `turns` are timed on."""
    given = recipe.bench.options
    check_backends(recipe.bench.backends, given)
    chosen_on, spiral = recipe.quantize.backend, recipe.spiral
    if chosen_on is not None:
        check_backends([chosen_on], own_options(chosen_on, given))
    for section in (recipe.prune, spiral):
        if section:
            pick_backend(section.backend)
    if turns and spiral:
        check_backends([spiral.backend], own_options(spiral.backend, given))
