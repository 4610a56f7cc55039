"""`kdbench report`."""

from pathlib import Path

import click

from kdbench.cli import options
from kdbench.errors import UserError


@click.command(short_help="Render results as Markdown or CSV.")
@click.argument("paths", type=options.FILE, nargs=-1, required=True, metavar="RUN_DIR | RESULTS...")
@click.option("--format", "kind", type=click.Choice(["md", "csv"]), default="md", show_default=True)
@click.option("--out", type=options.FILE, metavar="DIR", help="Write report.md, report.csv and the plot there instead.")
def report(paths: tuple[Path, ...], kind: str, out: Path | None) -> None:
    """Render result files, or all below the given folders, as Markdown or CSV.

    A result file is a results.json with its .npz, or the one file that was brought back from another machine.

    Statistics are computed from the raw values each time. The CSV has one row a cell; with several files a rung's
    name is led by machine and file. Scenarios have other columns: a CSV of their own in DIR, the only one where all is
    scenarios. A comparison.json, as `kdbench distill --seeds` writes it, is rendered by itself.

    \b
    kdbench report runs/digits
    kdbench report results --format csv > all.csv
    kdbench report runs/digits --out report
    """
    from kdbench import store
    from kdbench.report.comma import to_csv
    from kdbench.report.markdown import comparison_to_markdown, to_markdown
    from kdbench.report.table import load_ladders, load_results

    if any(path.name == store.COMPARISON_FILE for path in paths):
        if len(paths) > 1 or kind != "md" or out is not None:
            raise UserError(f"{store.COMPARISON_FILE}: is rendered by itself, as Markdown: leave everything else out")
        click.echo(comparison_to_markdown(*store.load_comparison(paths[0])), nl=False)
    elif out is not None:
        from kdbench.report.files import save_report

        for path in save_report(load_ladders(paths), load_results(*paths), out):
            click.echo(path)
    elif kind == "csv":
        from kdbench.report.files import load_rows
        from kdbench.report.scenarios import COLUMNS

        rows, loads = load_results(*paths), load_rows(load_ladders(paths))
        click.echo(to_csv(rows) if rows or not loads else to_csv(loads, COLUMNS), nl=False)
    else:
        click.echo(to_markdown(load_ladders(paths)), nl=False)
