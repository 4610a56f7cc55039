"""`kdbench distill`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Train a teacher and distil its student to ONNX.")
@click.argument("recipe")
@options.overrides
@options.run_folder
def distill(recipe: str, overrides: dict[str, str], out: Path | None) -> None:
    """Train the teacher of RECIPE and distil its student, both exported to ONNX.

    For each, the run folder gets the weights (.safetensors), the ONNX file, and its record (.artifact.json).
    `kdbench run` with the same folder goes on from there.

    \b
    kdbench distill digits
    kdbench distill digits --set student.training.epochs=60 --out runs/longer
    """
    from kdbench import pipeline
    from kdbench.cli.show import remark, show_artifact
    from kdbench.store import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or pipeline.RUNS / loaded.name
    with bars() as progress:
        artifacts = pipeline.distill(loaded, folder, progress=progress, say=remark)
    for artifact in artifacts.values():
        show_artifact(artifact, folder / artifact.file)
