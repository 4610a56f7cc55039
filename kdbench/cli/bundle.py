"""`kdbench bundle`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Make a folder to ship: model, script and card.")
@click.argument("source", type=options.FILE, metavar="MODEL.onnx | RUN_DIR")
@click.option("--rung", metavar="NAME", help="Of the run.  [default: the last of its ladder]")
@click.option(
    "--out", type=options.FILE, required=True, metavar="DIR", help="The folder to make; it must not exist yet."
)
@click.option("--pack", type=options.FILE, help="An .npz of samples as the model will meet them.  [default: the run's]")
@click.option("--license", metavar="NAME", help="For the card, such as apache-2.0.")
def bundle(source: Path, rung: str | None, out: Path, pack: Path | None, license: str | None) -> None:
    """Make a folder of what somebody needs to use a model: the ONNX file with preprocessing and class names inside, a
    predict.py that needs onnxruntime and numpy alone, and a model card.

    The file takes samples as the data has them: uint8 images [N, channels, height, width], token ids, rows of numbers.
    To its scores it adds an output 'probabilities'. Both files are compared on samples of the run before anything is
    written; an int8 model stays one.

    \b
    kdbench bundle runs/digits --out digits --license apache-2.0
    kdbench bundle runs/digits --rung student-slim --out digits-fp32
    python digits/predict.py samples.npy
    """
    from kdbench import bundle as bundle_model
    from kdbench.cli.show import remark, show_bundle

    show_bundle(bundle_model(source, out, rung=rung, pack=pack, license=license, say=remark))
