"""What commands print when they are done."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdbench.pipeline.comparing import Compared
    from kdbench.pipeline.measuring import Report
    from kdbench.records import Artifact


def show_artifact(artifact: "Artifact", path: Path) -> None:
    """One line on the file that was written, its record's path, and every warning."""
    from kdbench.report.text import count, size
    from kdbench.store import sidecar

    parity = artifact.metrics.get("parity_largest_difference")
    facts = [f"{count(artifact.parameters)} parameters", size(artifact.size_bytes), artifact.precision]
    if artifact.macs is not None:
        facts.insert(1, f"{count(artifact.macs)} MACs")
    if parity is not None:
        other = artifact.parent if artifact.step in ("slim", "quantize") else "PyTorch"
        facts.append(f"outputs within {parity:.2g} of {other}'s")
    click.echo(f"{path}: {', '.join(facts)}\n{sidecar(path)}")
    for warning in artifact.warnings:
        click.secho(f"WARNING: {warning}", fg="yellow", bold=True, err=True)


def remark(sentence: str) -> None:
    """One line on what a reader of the numbers should know."""
    click.secho(f"NOTE: {sentence}", fg="yellow", err=True)


def show_report(report: "Report") -> None:
    """The ladder, and where its files lie."""
    from kdbench.report.terminal import print_ladder

    print_ladder(report.ladder)
    click.echo(f"\nreport   {report.report}")
    for path in report.plots:
        click.echo(f"plot     {path}")
    click.echo(f"table    {report.csv}")
    click.echo(f"results  {report.results}")
    if report.published:
        click.echo(f"published {report.published}")


def show_comparison(compared: "Compared") -> None:
    """The table of methods, and where its files lie."""
    from kdbench.report.terminal import print_table

    print_table(compared.table)
    click.echo(f"\nreport      {compared.report}\ncomparison  {compared.comparison}")
