"""Whether what was measured before can be kept: only where nothing has changed that a latency depends on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.backends.available import survey
from kdbench.benchmark.cells import Cell
from kdbench.benchmark.loads import Load
from kdbench.errors import UserError
from kdbench.records import ResultFile
from kdbench.store import Arrays, load_result

FACTS = {"kdbench", "name", "machine", "recipe", "baseline", "settings", "inputs", "inputs_sha256"}
READING = ("price_per_h", "currency", "reference")
"""What a plan says of the tables alone: with another one they are made again, and nothing is measured."""


def same_results(
    path: Path, wanted: ResultFile, cells: Sequence[Cell], loads: Sequence[Load]
) -> tuple[ResultFile, Arrays] | None:
    """The results in the folder, if they are complete and of the same files, cells, settings and machine.

    They may still be read otherwise than `wanted`: see `READING`. A cell that failed in its worker has been tried, and
    stays; one that could not be planned is none of them any more where it can be now.
    """
    if not path.is_file():
        return None
    try:
        found, arrays = load_result(path)
    except UserError:
        return None
    before = found.scenarios or found.measurements
    same = found.complete and _facts(found) == _facts(wanted)
    measured = [
        (
            m.artifact_sha256,
            m.backend,
            m.provider_options,
            m.threads,
            m.batch,
            m.dims,
            m.versions if "@" in m.backend else {},
        )
        for m in before
    ]
    planned = [
        (
            c.subject.artifact.sha256,
            str(c.backend),
            c.backend.options(c.threads),
            c.threads,
            c.batch,
            c.dims,
            _elsewhere(c),
        )
        for c in [load.cell for load in loads] or cells
    ]
    under = [(m.scenario, m.sessions, m.bound_s) for m in found.scenarios]
    same = same and under == [(load.scenario, load.sessions, load.bound_s) for load in loads]
    if not same or measured != planned:
        return None
    errors = [load.error for load in loads] or [cell.error for cell in cells]
    tried = all(m.versions or error or not m.error for m, error in zip(before, errors, strict=True))
    return (found, arrays) if tried else None


def _facts(result: ResultFile) -> dict[str, Any]:
    """What two measurements have to share, without what only their tables depend on."""
    facts = result.model_dump(include=FACTS)
    for plan in (facts["settings"], (facts["recipe"] or {}).get("bench", {})):
        for name in READING:
            plan.pop(name, None)
    return facts


def _elsewhere(cell: Cell) -> dict[str, str]:
    """Versions in another environment under whose interpreter the cell runs: the machine's own are not these."""
    return survey(cell.backend.python).versions if cell.backend.python and not cell.error else {}
