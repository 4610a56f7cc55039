"""Losses by pairs: what each method of several comparisons has reached, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdbench import stats
from kdbench.records import Comparison
from kdbench.report.comparison import (
    TEACHER,
    gain_cell,
    losses_of,
    method_rows,
    score_name,
    scores_of,
    spread_cell,
)
from kdbench.report.text import DASH, Cell, Column, TextTable, flagged, name_cell
from kdbench.store import Arrays

Compared = tuple[Comparison, Arrays]

LEGEND = (
    "Scores are means ± standard deviations over seeds; gains, in points, are those to the student that learns from "
    "the labels alone, paired by seed, with 95 % t-intervals. Bold: the best student of a pair, where the interval of "
    "its difference to each of the others, paired by seed, separates them. Teachers don't take part."
)


def methods_table(comparisons: Sequence[Compared]) -> TextTable:
    """Rows are methods, columns pairs of teacher and student: the score of each, and what it gained."""
    notes: dict[str, int] = {}
    names = _names([comparison for comparison, _ in comparisons])
    columns, parts = [Column("method", "method", left=True)], list[Mapping[str, tuple[Cell, Cell]]]()
    for name, (comparison, arrays) in zip(names, comparisons, strict=True):
        score = score_name(arrays)
        columns += [Column(f"{name}: {score}", f"{name}.score"), Column(f"{name}: gain", f"{name}.gain")]
        parts.append(_part(comparison, arrays, notes))
    rows = []
    for method in dict.fromkeys(method for part in parts for method in part):
        cells = [name_cell(method)]
        for name, part in zip(names, parts, strict=True):
            missing = Cell(DASH, notes=flagged([f"no method of {name}"], notes).notes) if method not in part else None
            cells += [missing, Cell(DASH)] if missing else part[method]
        rows.append(tuple(cells))
    return TextTable("Students by method", tuple(columns), tuple(rows), tuple(notes), LEGEND)


def _names(comparisons: Sequence[Comparison]) -> list[str]:
    """What tells the pairs apart: the recipe's name, with the machine's, then the date, where others share it."""
    names = [comparison.name for comparison in comparisons]
    for more in ("machine", "date"):
        added = [c.machine.name if more == "machine" else c.date for c in comparisons]
        names = [
            f"{name} ({extra})" if names.count(name) > 1 else name for name, extra in zip(names, added, strict=True)
        ]
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _part(comparison: Comparison, arrays: Arrays, notes: dict[str, int]) -> dict[str, tuple[Cell, Cell]]:
    """The score and the gain of each method; losses, and what there is to say of seeds, are footnotes of the score."""
    best, found = _best(scores_of(comparison, arrays)), {}
    for row in method_rows(comparison, arrays):
        losses = losses_of(comparison, row.method)
        said = [losses] if losses else []
        if row.last.n == 1 and not row.method.startswith(TEACHER):
            said.append("one seed: no deviation, and no interval")
        score = replace(spread_cell(row.last), best=row.method == best, notes=flagged(said, notes).notes)
        gain = gain_cell(row)
        found[row.method] = (score, gain)
    return found


def _best(scores: Mapping[str, Mapping[int, float]]) -> str | None:
    """The method that a seed-paired interval separates from every other one; None where there is none."""
    students = {method: of for method, of in scores.items() if not method.startswith(TEACHER)}
    for method, ours in students.items():
        others = [theirs for other, theirs in students.items() if other != method]
        if others and all(_above(ours, theirs) for theirs in others):
            return method
    return None


def _above(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    seeds = sorted(ours.keys() & theirs.keys())
    found = stats.paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return found is not None and found.low > 0
