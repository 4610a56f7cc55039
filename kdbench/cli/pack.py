"""`kdbench pack`."""

from pathlib import Path
from typing import Any

import click

from kdbench.cli import options


@click.command(short_help="Put a run into one file, to be measured on another machine.")
@click.argument("run", type=options.FILE, metavar="RUN_DIR")
@click.option("--out", type=options.FILE, metavar="FILE", help="[default: NAME.kdbench.zip]")
@options.named("--set", "plan", "A field of the plan, such as batches=[1,32]. May be repeated.")
def pack(run: Path, out: Path | None, plan: dict[str, Any]) -> None:
    """Put a run's rungs, its evaluation and calibration samples and the plan of its benchmark into one file.

    `kdbench bench FILE` measures it on a machine with a plain install, which has neither torch nor the data. The plan
    is the recipe's section bench. Evaluation samples and labels go along: mind where you send them.

    \b
    kdbench pack runs/digits
    kdbench pack runs/digits --set threads=[1,4] --set budget_s=60 --out for-the-board.kdbench.zip
    """
    from kdbench import pack as pack_run
    from kdbench.cli.show import remark, show_packed

    show_packed(pack_run(run, out, plan=plan, say=remark))
