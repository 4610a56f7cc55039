"""The folder of published measurements: append-only, one folder a machine."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from kdbench.errors import UserError
from kdbench.records import Comparison, Machine, ResultFile, sealed, slug
from kdbench.records.base import placeless
from kdbench.store.results import (
    COMPARISON_FILE,
    PARTIAL_FILE,
    RESULTS_FILE,
    find_all,
    kind_of,
    load,
    load_record,
    raw_content,
    write_both,
)
from kdbench.store.writing import Paths, paths_of, prepare_folder

RESULTS = Path("results")
"""Published measurements: `results/<machine>/<date>-<recipe>.json`, seen from the working directory."""

COMPARED = "-comparison"
"""How the name of a published comparison ends."""

OF_RUNS = (RESULTS_FILE, PARTIAL_FILE, COMPARISON_FILE)
"""Files of run folders, wherever these lie: they are not published."""

SHORT = 6
"""Digits of a fingerprint that a folder's name has where the machine's name is taken."""


def _silent(_: str) -> None:
    pass


def results_add(
    *paths: Paths,
    machine: str | None = None,
    into: str | Path = RESULTS,
    say: Callable[[str], None] = _silent,
) -> list[Path]:
    """Publishes measurements and comparisons: run folders, their files, or what was brought back from a machine.

    Each is copied to `<into>/<machine>/<date>-<recipe>.json` with its raw values, under the name of the `machine` where
    one is given; the new paths. See `publish`.
    """
    files = find_all(paths_of(*paths))
    for file in files:  # nothing is published where one of them is refused
        _whole(file)
    return [publish(file, Path(into), machine=machine, say=say) for file in files]


def _whole(path: Path) -> ResultFile | Comparison:
    """The record of a file that can be published; raises UserError for a measurement that was interrupted."""
    record, _ = load(path)
    if isinstance(record, ResultFile) and not record.complete:
        raise UserError(f"{path}: its measurement was interrupted: only whole ones are published: bench again")
    return record


def publish(
    path: Path, into: Path | None = None, *, machine: str | None = None, say: Callable[[str], None] = _silent
) -> Path:
    """Copies a result file or a comparison to `<into>/<machine>/<date>-<name>.json`, without absolute paths; its path.

    Never overwrites an earlier one, and what is published already stays where it is. A folder holds what machines of
    one fingerprint measured: where the name is another's, the new one's has the begin of its fingerprint behind it.
    Raises UserError for a measurement that was interrupted.
    """
    record = _whole(path)
    if machine is not None and slug(machine) != machine:
        raise UserError(f"--machine '{machine}': should be small letters, digits and dashes: try '{slug(machine)}'")
    day = _day(path, record.date)
    into = prepare_folder(into or RESULTS)
    with _locked(into):
        there = [file for file in sorted(into.glob("*/*.json")) if file.name not in OF_RUNS and kind_of(file)]
        published = [(file, load_record(file)) for file in there]
        for file, earlier in published:
            if earlier.raw.sha256 == record.raw.sha256:
                say(f"{path}: is published already as {file}")
                return file
        measured_on = record.machine.model_copy(update={"fingerprint": record.machine.hardware})
        wanted = machine or measured_on.name
        name = _free_name(wanted, measured_on, published)
        if name != wanted:
            say(f"{into / wanted} holds what another machine measured: this one's fingerprint is in its name, {name}")
        folder = prepare_folder(into / name)
        stem = _free_stem(folder, f"{day}-{record.name}{COMPARED if isinstance(record, Comparison) else ''}")
        raw = record.raw.model_copy(update={"file": f"{stem}.npz"})
        placed = placeless(
            type(record),
            record.model_copy(update={"raw": raw, "machine": measured_on.model_copy(update={"name": name})}),
        )
        write_both(folder / f"{stem}.json", sealed(placed), raw_content(path, record.raw))
    return folder / f"{stem}.json"


def _day(path: Path, date: str) -> str:
    """Of a date and time: it becomes part of a file's name."""
    try:
        return datetime.fromisoformat(date).date().isoformat()
    except ValueError:
        raise UserError(f"{path}: 'date' should be a date and time, not '{date[:40]}': measure again") from None


def _free_name(wanted: str, machine: Machine, published: list[tuple[Path, ResultFile | Comparison]]) -> str:
    """The folder's name: as `wanted`, unless it holds what another machine measured."""
    for length in (0, SHORT, len(machine.hardware)):
        name = f"{wanted}-{machine.hardware[:length]}" if length else wanted
        if all(earlier.machine.hardware == machine.hardware for file, earlier in published if file.parent.name == name):
            return name
    raise UserError(f"{wanted}: folders of that name hold what other machines measured: choose another --machine")


def _free_stem(folder: Path, stem: str) -> str:
    taken, number = stem, 1
    while any((folder / f"{taken}{suffix}").exists() for suffix in (".json", ".npz")):
        number += 1
        taken = f"{stem}-{number}"
    return taken


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time: two that publish at once would choose the same name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
