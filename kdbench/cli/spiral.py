"""`kdbench spiral`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Prune, distil and judge in turns, until a target or a floor.")
@click.argument("recipe")
@options.overrides
@options.run_folder
@click.option("--publish", is_flag=True, help="Also copy the results to results/<machine>/<date>-<recipe>.json.")
def spiral(recipe: str, overrides: dict[str, str], out: Path | None, publish: bool) -> None:
    """Make the model of RECIPE smaller in turns, as its `[spiral]` has it.

    Each turn prunes a share away, distils what is left from the model before, the teacher or both, exports it, and
    judges it on the held-out samples. It is taken, or refused and the step halved, until the target, the accuracy floor
    or the most turns. A spiral that was stopped goes on where it was.

    \b
    kdbench spiral digits --set spiral.macs=0.5 --set data.held_out_samples=300
    kdbench spiral cifar10-resnet56-spiral
    """
    from kdbench.cli.show import remark, show_spiral
    from kdbench.pipeline import spiral as pipeline
    from kdbench.store import load_recipe

    loaded = load_recipe(recipe, overrides)
    with bars() as progress:
        found = pipeline.spiral(loaded, out, publish=publish, progress=progress, say=remark)
    show_spiral(found)
