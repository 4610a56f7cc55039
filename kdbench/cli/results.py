"""`kdbench results`: add, list, show, verify."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli import options
from kdbench.errors import UserError, nearest, printable

if TYPE_CHECKING:
    from kdbench.pipeline.rerunning import Rerun
    from kdbench.report.listing import Listed

DEFAULT = "results"
WIDTH = 100

paths = click.argument("paths", type=options.FILE, nargs=-1, metavar="[PATHS]...")


class Parts(click.Group):
    """Answers an unknown part with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UserError(f"unknown command 'results {args[0]}': {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Parts, short_help="Publish measurements, list, show and verify them.")
def results() -> None:
    """Publish measurements in a folder that machines share, list, show and verify them.

    The folder `results` holds a folder for each machine, and in it for each measurement a JSON file and an .npz of its
    raw values, which are never changed afterwards.

    \b
    kdbench results add runs/digits           into results/MACHINE/DATE-digits.json
    kdbench results list
    kdbench results show results/MACHINE/DATE-digits.json
    kdbench results verify                    are they what they were?
    """


@results.command(short_help="Publish measurements and comparisons.")
@click.argument("files", type=options.FILE, nargs=-1, required=True, metavar="FILES...")
@click.option("--machine", metavar="NAME", help="A readable name for the machine.  [default: by CPU and cores]")
@click.option("--into", type=options.FILE, default=DEFAULT, show_default=True, metavar="DIR", help="The folder of all.")
def add(files: tuple[Path, ...], machine: str | None, into: Path) -> None:
    """Publish FILES: run folders, a results.json, what came back from another machine, a comparison.json.

    Each goes to DIR/MACHINE/DATE-RECIPE.json with its raw values beside it, without absolute paths. Nothing is
    overwritten; what is there already is said. A folder never holds what machines of other hardware measured: the
    second one of a name has the begin of its fingerprint behind it.

    \b
    kdbench results add runs/digits
    kdbench results add digits-another-machine.results.zip --machine raspberry-pi-5
    kdbench results add runs/digits/comparison.json
    """
    from kdbench.cli.show import remark
    from kdbench.store import results_add

    for path in results_add(*files, machine=machine, into=into, say=remark):
        click.echo(path)


@results.command("list", short_help="What lies in a folder of results.")
@paths
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the names of rungs, and paths.")
@click.pass_context
def list_(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """A line for each result file and comparison below the PATHS (default: results).

    A file that can't be read is named, and the exit status is 1 then.

    \b
    kdbench results list
    kdbench results list results/amd-epyc-2-core --json
    """
    from kdbench.report.listing import listed
    from kdbench.store import find_all

    found: list[Listed] = []
    damaged = False
    for file in find_all(paths or [Path(DEFAULT)]):
        try:
            found.append(listed(file))
        except UserError as error:
            click.echo(f"kdbench: {error}", err=True)
            damaged = True
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1, default=str))
    elif found:
        header = ("machine", "fingerprint", "date", "recipe", "cells", "backends", "")
        _print(header, [_line(one) for one in found])
    ctx.exit(int(damaged))


def _line(one: "Listed") -> tuple[str, ...]:
    known = {"methods": one.kind == "comparison", "interrupted": not one.complete, "no seal": not one.sealed}
    remarks = ", ".join(name for name, true in known.items() if true)
    cells, backends = str(one.cells), ", ".join(one.backends)
    return one.machine, one.fingerprint, one.date[:10], one.recipe, cells, backends, remarks


@results.command(short_help="What is in a result file.")
@click.argument("file", type=options.FILE)
def show(file: Path) -> None:
    """What is in a result FILE or a comparison: machine, versions, settings, artifacts, cells, how to measure again.

    Numbers are what `kdbench report` shows; flags are counted here.

    \b
    kdbench results show results/amd-epyc-2-core/2026-11-21-digits.json
    """
    from kdbench.report.listing import contents
    from kdbench.store import find_all

    files = find_all([file])
    if len(files) > 1:
        raise UserError(f"{file}: holds {len(files)} files: name one of them, such as {files[0]}")
    found = contents(files[0])
    _print(("", ""), found.facts)
    for header, rows in (found.artifacts, found.cells):
        if rows:
            click.echo()
            _print(header, rows)


@results.command(short_help="Compute again what result files say, or measure again.")
@paths
@click.option(
    "--rerun",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[RUN_DIR]",
    help="Also measure one file's artifacts again, those of its run folder.  [default: runs/NAME]",
)
@click.pass_context
def verify(ctx: click.Context, paths: tuple[Path, ...], rerun: str | None) -> None:
    """Compute again what the result files below the PATHS (default: results) say, down to each cell of their tables.

    Hashes, seals, schemas; raw values and artifacts; statistics and tables; two files of one run; and the tables of a
    README.md that cog writes. Each problem is one line; the exit status is 1 where there is one.

    --rerun measures again, on the same hardware, and says of each cell whether its speed-up agrees with the old one,
    and whether its answers are the same; 1 where they don't.

    \b
    kdbench results verify
    kdbench results verify results/amd-epyc-2-core/2026-11-21-digits.json --rerun runs/digits
    """
    from kdbench.cli.show import remark
    from kdbench.report.verifying import results_verify

    found = results_verify(*(paths or [Path(DEFAULT)]))
    for line in found.problems:
        click.echo(line)
    for line in found.remarks:
        remark(line)
    files, problems = len(found.files), len(found.problems)
    click.echo(f"{files} file{'s' * (files != 1)}, {problems or 'no'} problem{'s' * (problems != 1)}")
    if found.problems or rerun is None:
        ctx.exit(int(bool(found.problems)))
    if len(found.files) > 1:
        raise UserError(f"--rerun: measures one file again, and {len(found.files)} are there: name one")
    from kdbench.pipeline.rerunning import results_rerun
    from kdbench.progress import bars

    with bars() as progress:
        again = results_rerun(found.files[0], rerun or None, progress=progress, say=remark)
    _show_rerun(again)
    ctx.exit(int(not again.agrees))


def _show_rerun(again: "Rerun") -> None:
    _print(
        ("cell", "before", "again", "p (Holm)", "speed-up", "answers"),
        [(c.label, c.before, c.again, c.p_shown, c.verdict, c.answers) for c in again.cells],
    )
    for line in again.remarks:
        click.echo(line)


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of at most 100 columns; what is longer goes on in the next line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_header=any(header))
    for name in header:
        whole = name in ("machine", "fingerprint", "date")
        table.add_column(name, overflow="fold", no_wrap=whole, min_width=20 if name == "recipe" else None)
    for row in rows:
        table.add_row(*map(printable, row))
    Console(width=WIDTH, highlight=False, markup=False).print(table)
