"""`kdbench init`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.progress import bars


@click.command(short_help="Write a recipe for a teacher and data, after a look at both.")
@click.option("--teacher", required=True, help="An ONNX file, weights, a folder, SOURCE:NAME, or a model of the zoo.")
@click.option("--data", required=True, metavar="PATH", help="Arrays, images, sounds, text or a table; or digits.")
@click.option("--model", help="Which model the weights are of, such as resnet or nets.py:teacher.")
@options.named("--option", "options", "An option of the teacher, such as depth=56. May be repeated.")
@options.named("--data-option", "data_options", "An option of the data, such as size_px=64. May be repeated.")
@options.pairs("--class-map", "class_map", "OWN=CLASS", "Which of the data's classes one of the teacher's is.")
@click.option("--student", help="A model of the zoo, or module.py:function.  [default: one for the data]")
@options.named("--student-option", "student_options", "An option of the student. May be repeated.")
@click.option("--out", type=options.FILE, metavar="FILE", help="The recipe to write.  [default: NAME.toml]")
@click.option("--name", help="Of the recipe and of its runs.  [default: after teacher and data]")
def init(
    teacher: str,
    data: str,
    model: str | None,
    options: dict[str, object],
    data_options: dict[str, object],
    class_map: dict[str, str],
    student: str | None,
    student_options: dict[str, object],
    out: Path | None,
    name: str | None,
) -> None:
    """Write a commented recipe for a teacher of yours and your data, after a look at both.

    Opens the teacher, shows it training samples, and finds out which normalisation and order of classes it was trained
    with, how often it is right, which student suits, and how long it will take. Nothing is overwritten.

    \b
    kdbench init --teacher classifier.onnx --data photos/
    kdbench init --teacher resnet56.th --model resnet --option depth=56 --data cifar10.npz
    kdbench init --teacher timm:resnet18.a1_in1k --option image_size_px=64 --data photos.zip
    kdbench init --teacher bert-sst2/ --data sentences/ --student embedding_bag
    kdbench init --teacher nets.py:teacher --data table.csv --out mine.toml
    kdbench init --teacher resnet --data digits            a model of the zoo, trained here
    """
    from kdbench.cli.show import show_facts, warn
    from kdbench.pipeline import starting

    with bars() as progress:
        start = starting.init(
            teacher,
            data,
            model=model,
            options=options,
            data_options=data_options,
            class_map=class_map,
            student=student,
            student_options=student_options,
            out=out,
            name=name,
            progress=progress,
        )
    show_facts(start.facts)
    for warning in start.warnings:
        warn(warning)
    click.echo(f"recipe   {start.file}\n\nnext     kdbench check {start.file}\n         kdbench run {start.file}")
