"""`kdbench distill`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Train a teacher and distil its student to ONNX.")
@click.argument("recipe")
@options.overrides
@options.run_folder
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Train N students of each method, and compare them.")
@click.option("--baseline", is_flag=True, help="Also train students without a teacher, and compare.")
def distill(recipe: str, overrides: dict[str, str], out: Path | None, seeds: int | None, baseline: bool) -> None:
    """Train the teacher of RECIPE and distil its student, both exported to ONNX.

    For each, the run folder gets the weights (.safetensors), the ONNX file, and its record (.artifact.json).
    `kdbench run` with the same folder goes on from there.

    With --seeds or --baseline the students of `[distill]` and of each `[methods.NAME]` are compared: accuracy as mean
    and standard deviation over seeds, gain over the student alone paired by seed, share of the gap to the teacher.

    \b
    kdbench distill digits
    kdbench distill digits --seeds 3 --baseline
    kdbench distill digits --set student.training.epochs=60 --out runs/longer
    """
    from kdbench import pipeline
    from kdbench.cli.show import remark, show_artifact, show_comparison
    from kdbench.store import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or pipeline.RUNS / loaded.name
    if seeds or baseline:
        with bars() as progress:
            found = pipeline.compare_methods(
                loaded, folder, seeds=seeds or 1, baseline=baseline, progress=progress, say=remark
            )
        if found:
            show_comparison(found)
        return
    with bars() as progress:
        artifacts = pipeline.distill(loaded, folder, progress=progress, say=remark)
    for artifact in artifacts.values():
        show_artifact(artifact, folder / artifact.file)
