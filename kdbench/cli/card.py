"""`kdbench card`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Write a model card, and into the ONNX file what it says.")
@click.argument("source", metavar="MODEL.onnx | RUN_DIR[:RUNG]")
@click.option(
    "--results",
    type=options.FILE,
    multiple=True,
    metavar="FILE",
    help="Result files, or folders of them, with measurements of this file, of other machines too. May be repeated.  "
    "[default: the run's]",
)
@click.option("--license", metavar="NAME", help="Such as apache-2.0.")
@click.option("--out", type=options.FILE, metavar="DIR", help="Make this folder of card, model and record instead.")
@click.option(
    "--embed/--no-embed", default=True, help="Write what is known of the model into it, in DIR.  [default: do]"
)
@options.dims
@click.option("--url", metavar="URL", help="Where the figures are published, for Hugging Face's model index.")
def card(
    source: str,
    results: tuple[Path, ...],
    license: str | None,
    out: Path | None,
    embed: bool,
    dims: dict[str, int],
    url: str | None,
) -> None:
    """Write a model card: Markdown with the front matter of Hugging Face, about intended use, metrics, measurements on
    each machine, data, lineage and license. Of a file from elsewhere it says what the file tells.

    With --out the folder gets README.md, model.onnx and its record. Task, classes, preprocessing, lineage, recipe and
    metrics stand in the model's metadata too, as kdbench.NAME; its outputs are proven to be what they were.

    \b
    kdbench card runs/digits:student-int8
    kdbench card runs/digits --license apache-2.0 --out digits
    kdbench card digits/model.onnx --results results --out digits-with-all-machines
    """
    from kdbench import card as make_card
    from kdbench.cli.show import remark, show_card

    show_card(
        make_card(source, results=results, license=license, out=out, embed_facts=embed, dims=dims, url=url, say=remark)
    )
