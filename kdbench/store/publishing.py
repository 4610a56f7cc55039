"""The folder of published measurements: append-only, one folder a machine."""

import re
from pathlib import Path

from kdbench.errors import UserError
from kdbench.records import ResultFile
from kdbench.records.base import placeless
from kdbench.store.results import load_result, raw_content
from kdbench.store.writing import prepare_folder, write_atomic

RESULTS = Path("results")
"""Published measurements: `results/<machine>/<date>-<recipe>.json`, seen from the working directory."""


def publish(path: Path, results_folder: Path | None = None) -> Path:
    """Copies a run's result pair to `results/<machine>/<date>-<name>.json`, without absolute paths; its path.

    Never overwrites an earlier one; results that are published already stay where they are.
    """
    result, _ = load_result(path)
    if not result.complete:
        raise UserError(f"{path}: its measurement was interrupted: only whole ones are published")
    folder = prepare_folder((results_folder or RESULTS) / result.machine.name)
    for published in sorted(folder.glob("*.json")):
        if load_result(published)[0].raw.sha256 == result.raw.sha256:
            return published
    day = re.sub(r"T.*", "", result.date)
    stem, number = f"{day}-{result.name}", 1
    while (folder / f"{stem}.json").exists():
        number += 1
        stem = f"{day}-{result.name}-{number}"
    raw = result.raw.model_copy(update={"file": f"{stem}.npz"})
    write_atomic(folder / raw.file, raw_content(path, result.raw))
    placed = placeless(ResultFile, result.model_copy(update={"raw": raw}))
    write_atomic(folder / f"{stem}.json", placed.to_json())
    return folder / f"{stem}.json"
