"""`kdbench report`."""

from pathlib import Path

import click

from kdbench.cli import options


@click.command(short_help="Render results as Markdown or CSV.")
@click.argument("paths", type=options.FILE, nargs=-1, required=True, metavar="RUN_DIR | RESULTS...")
@click.option("--format", "kind", type=click.Choice(["md", "csv"]), default="md", show_default=True)
@click.option("--out", type=options.FILE, metavar="DIR", help="Write report.md, report.csv and the plot there instead.")
def report(paths: tuple[Path, ...], kind: str, out: Path | None) -> None:
    """Render result files, or all below the given folders, as Markdown or CSV.

    Statistics are computed from the raw values each time. The CSV has one row a cell; with several files a rung's
    name is led by machine and file. Scenarios have other columns: a CSV of their own in DIR, the only one where all is
    scenarios.

    \b
    kdbench report runs/digits
    kdbench report results --format csv > all.csv
    kdbench report runs/digits --out report
    """
    from kdbench.report.comma import to_csv
    from kdbench.report.markdown import to_markdown
    from kdbench.report.table import load_ladders, load_results

    if out is not None:
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
