"""What `kdbench convert` and `kdbench quantize` say of the file that they have written."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.show import remark, show_facts, warn
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.proofs.rewritten import Proof


def show_proof_of(
    parent: Path,
    child: Path,
    pack: Path | None,
    *,
    backend: str = "cpu",
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    batch: int = 1,
    threads: int = 1,
    budget_s: float | None = None,
    dims: dict[str, int] | None = None,
    inputs: dict[str, str] | None = None,
) -> "Proof | None":
    """Compares, judges and times the written file beside its parent, and prints what was found.

    The file is sound whatever comes of it: what can't be proven is said.
    """
    from kdbench.pipeline.proving import BUDGET_S, prove
    from kdbench.progress import bars
    from kdbench.report.rewritten import proof_lines

    try:
        with bars() as progress:
            proof = prove(
                parent,
                child,
                pack,
                backend=backend,
                backend_options=backend_options,
                batch=batch,
                threads=threads,
                budget_s=BUDGET_S if budget_s is None else budget_s,
                dims=dims,
                inputs=inputs,
                progress=progress,
            )
    except UserError as error:
        warn(f"not proven: {error}")
        return None
    click.echo()
    show_facts((f"{name:<9}", words) for name, words in proof_lines(proof))
    if proof.slower:
        warn(f"slower than {proof.parent.rung} on {proof.backend}: {'; '.join(proof.causes) or 'no known cause shows'}")
    else:
        for cause in proof.causes:
            remark(cause)
    return proof
