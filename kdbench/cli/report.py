"""`kdbench report`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.errors import UserError


@click.command(short_help="Render results as tables: Markdown, CSV, JSON, LaTeX, HTML.")
@click.argument("paths", type=options.FILE, nargs=-1, required=True, metavar="RUN_DIR | RESULTS...")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "csv", "json", "latex", "html", "page", "terminal"]),
    default="md",
    show_default=True,
)
@click.option(
    "--view",
    type=click.Choice(["ladder", "backends", "methods", "scaling"]),
    help="Rungs with all that they cost; rungs by backends; methods by pairs; batch and threads.  "
    "[default: ladder; methods for comparisons]",
)
@click.option(
    "--measure",
    type=click.Choice(["latency", "throughput", "speed-up", "accuracy"]),
    help="What --view backends shows.  [default: latency]",
)
@click.option("--columns", metavar="A,B,...", help="These columns alone, by their names in the CSV.")
@click.option("--sort", metavar="COLUMN", help="Rows by a column; -COLUMN for the largest first.")
@click.option("--baseline", metavar="RUNG", help="Differences and ratios against another rung of the same file.")
@click.option("--rung", "rungs", multiple=True, metavar="RUNG", help="This rung alone; may be given again.")
@click.option("--backend", "backends", multiple=True, metavar="BACKEND", help="This backend alone; likewise.")
@click.option("--batch", "batches", multiple=True, type=int, metavar="N", help="This batch alone; likewise.")
@click.option("--threads", multiple=True, type=int, metavar="N", help="This thread count alone; likewise.")
@click.option(
    "--out", type=options.FILE, metavar="DIR", help="Write report.md, report.html, report.csv and plots there instead."
)
def report(
    paths: tuple[Path, ...],
    kind: str,
    view: str | None,
    measure: str | None,
    columns: str | None,
    sort: str | None,
    baseline: str | None,
    rungs: tuple[str, ...],
    backends: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    out: Path | None,
) -> None:
    """Render result files, or all below the given folders, as tables.

    A result file is a results.json with its .npz, or the one file that was brought back from another machine.
    Statistics are computed from the raw values each time; ratios are formed within a file only.

    The CSV has one row a cell; with several files a rung's name is led by machine and file. Scenarios have other
    columns: a CSV of their own in DIR, the only one where all is scenarios. LaTeX needs the packages booktabs and
    threeparttable. Numbers that are not what they should be keep their footnotes in every format.

    \b
    kdbench report runs/digits
    kdbench report runs/digits --columns rung,size_bytes,latency_p50_s --sort -size_bytes
    kdbench report runs/digits --baseline student --batch 1 --format latex > ladder.tex
    kdbench report runs/digits --view backends --measure speed-up
    kdbench report threads --view scaling --format terminal
    kdbench report runs/cifar10-resnet8 runs/cifar10-resnet20 --view methods
    kdbench report results --format csv > all.csv
    kdbench report runs/digits --out report
    kdbench report results --format page > report.html     all of it in one file that needs no network
    """
    from kdbench.report.rendering import Asked, find, page_below, rendered
    from kdbench.report.selection import Selection
    from kdbench.report.table import rows_of
    from kdbench.store import RunFolder, find_comparisons, load_comparison

    names = tuple(dict.fromkeys(name.strip() for name in (columns or "").split(",") if name.strip()))
    if columns is not None and not names:
        raise UserError("--columns: names none: give some, as in --columns rung,size_bytes")
    if measure and view != "backends":
        raise UserError(f"--measure {measure}: is for --view backends, the only one of a single measure")
    asked = Asked(view, names, sort, baseline, measure or "latency", Selection(rungs, backends, batches, threads))
    if kind == "page" and out is None:
        click.echo(page_below(paths, asked), nl=False)
        return
    found = find(paths, asked)
    if out is not None:
        from kdbench.report.files import save_report

        if found.view != "ladder" or kind != "md" or names:
            raise UserError("--out: writes the ladder's whole report: leave out --view, --format and --columns")
        compared = [load_comparison(file) for path in paths for file in find_comparisons(path)]
        run = RunFolder(paths[0]) if len(paths) == 1 and paths[0].is_dir() else None
        for path in save_report(found.ladders, rows_of(found.ladders), out, run, compared):
            click.echo(path)
    elif kind == "terminal":
        from kdbench.report.terminal import print_found

        print_found(found)
    else:
        click.echo(rendered(found, kind), nl=False)
