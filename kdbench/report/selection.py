"""Which cells of results are shown, against which rung, and in which order."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kdbench.errors import UserError, nearest
from kdbench.report.rows import Row
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.table import AnyRow, Ladder, ladder


@dataclass(frozen=True)
class Selection:
    """Cells by name and number; what is empty chooses all."""

    rungs: Sequence[str] = ()
    backends: Sequence[str] = ()
    batches: Sequence[int] = ()
    threads: Sequence[int] = ()

    def __bool__(self) -> bool:
        return any((self.rungs, self.backends, self.batches, self.threads))

    def holds(self, row: Row | ScenarioRow) -> bool:
        return (
            (not self.rungs or row.rung in self.rungs)
            and (not self.backends or row.backend in self.backends)
            and (not self.batches or row.batch in self.batches)
            and (not self.threads or row.threads in self.threads)
        )


def selected(ladders: Sequence[Ladder], wanted: Selection) -> list[Ladder]:
    """The ladders with those rows alone that are wanted, without those of which none is.

    Raises UserError where nothing at all is left, and for each name or number that no file has.
    """
    if not wanted:
        return list(ladders)
    rows = [row for one in ladders for row in _all(one)]
    for option, asked, known in (
        ("--rung", wanted.rungs, [row.rung for row in rows]),
        ("--backend", wanted.backends, [row.backend for row in rows]),
        ("--batch", wanted.batches, [row.batch for row in rows]),
        ("--threads", wanted.threads, [row.threads for row in rows]),
    ):
        for name in asked:
            if name not in known:
                hint = nearest(name, map(str, set(known))) if isinstance(name, str) else f"known: {_listed(known)}"
                raise UserError(f"{option} {name}: no cell of that: {hint}")
    left = [
        replace(one, rows=_kept(one.rows, wanted), scenarios=_kept(one.scenarios, wanted))
        for one in ladders
        if any(map(wanted.holds, _all(one)))
    ]
    if not left:
        places = dict.fromkeys((row.rung, row.backend, row.batch, row.threads) for row in rows)
        first = [f"{rung} on {backend}, batch {batch}, threads {n}" for rung, backend, batch, n in list(places)[:4]]
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        raise UserError(f"nothing is all that at once: there is {'; '.join(first)}{more}")
    return left


def _all(one: Ladder) -> tuple[Row | ScenarioRow, ...]:
    return (*one.rows, *one.scenarios)


def _kept(rows: Iterable[AnyRow], wanted: Selection) -> tuple[AnyRow, ...]:
    return tuple(row for row in rows if wanted.holds(row))


def _listed(known: Iterable[object]) -> str:
    return ", ".join(sorted(set(map(str, known)), key=lambda text: (len(text), text)))


def rebased(found: Ladder, baseline: str | None) -> Ladder:
    """The ladder with differences and ratios against another of its rungs; raises UserError for one that it lacks."""
    if baseline is None or baseline == found.result.baseline:
        return found
    rungs = [artifact.rung for artifact in found.result.artifacts]
    if baseline not in rungs:
        rung, at, backend = baseline.rpartition("@")
        if at and rung in rungs:
            raise UserError(
                f"--baseline {baseline}: is a rung, which is compared in each table with the others there: "
                f"'{rung}'; what compares all with {backend} is `kdbench bench --reference {baseline}`"
            )
        raise UserError(f"--baseline: {found.result.name} has no rung '{baseline}': {nearest(baseline, rungs)}")
    return ladder(found.result.model_copy(update={"baseline": baseline}), found.arrays, found.source)


Line = TypeVar("Line")


def in_order(lines: Iterable[Line], sort: str | None, value: Callable[[Line, str], object]) -> list[Line]:
    """The lines by the value of the column `sort`, or `-sort` for the largest first; those without one at the end."""
    found = list(lines)
    if sort is None:
        return found
    name = sort.removeprefix("-")
    told = [line for line in found if _told(value(line, name))]
    texts = any(isinstance(value(line, name), str) for line in told)

    def key(line: Line) -> tuple[float, str]:
        number = value(line, name)
        return (0.0, str(number)) if texts or not isinstance(number, int | float) else (float(number), "")

    told.sort(key=key, reverse=sort.startswith("-"))
    return [*told, *(line for line in found if not _told(value(line, name)))]


def _told(value: object) -> bool:
    return value is not None and value not in ("", ()) and not (isinstance(value, float) and math.isnan(value))


def known_column(name: str, known: Iterable[str], option: str) -> str:
    """The name, if it is one of the known; raises UserError with the nearest one."""
    names = list(known)
    if name not in names:
        raise UserError(f"{option}: no column '{name}': {nearest(name, names)}")
    return name
