"""What a ladder comes to: the fastest rung without a proven loss, in each place where it was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from kdbench.report.rows import Metric, Row, place
from kdbench.report.scenarios import ScenarioRow, load_of
from kdbench.report.table import Ladder
from kdbench.report.text import (
    DASH,
    Cell,
    Column,
    Shown,
    TextTable,
    interval_cell,
    name_cell,
    number_cell,
    points,
    ratio,
    table_of,
)
from kdbench.stats import Interval

WORDS: dict[Metric, str] = {"accuracy": "accuracy", "f1": "micro F1", "agreement": "agreement"}


@dataclass(frozen=True)
class Finding:
    """Of the cells that share a backend, thread count, batch, sizes and load."""

    row: Row | ScenarioRow
    """The fastest one; where there is none any other, which tells the place."""
    found: bool
    equals: tuple[str, ...] = ()
    """Other rungs whose intervals reach into that of the fastest."""
    reason: str = ""
    """Why there is none."""


def findings(ladder: Ladder) -> list[Finding]:
    """One for each place with a rung beside the baseline that was timed.

    A rung counts as faster where the interval of its speed-up lies above 1, and as having lost where that of its
    difference to the baseline lies below 0; where answers are not judged, only speed counts.
    """
    judged = any(row.difference for row in ladder.rows)
    groups: list[list[Row | ScenarioRow]] = [list(group) for _, group in groupby(ladder.rows, key=place)]
    groups += [list(group) for _, group in groupby(ladder.scenarios, key=load_of)]
    timed = ([row for row in group if row.ratio and not row.error] for group in groups)
    return [_finding(rows, judged, ladder.result.baseline) for rows in timed if rows]


def _finding(rows: Sequence[Row | ScenarioRow], judged: bool, baseline: str) -> Finding:
    faster = sorted((row for row in rows if _ratio(row).low > 1), key=lambda row: -_ratio(row).value)
    if not faster:
        return Finding(rows[0], False, reason=f"no rung is proven to be faster than {baseline}")
    kept = [row for row in faster if not judged or ((d := _difference(row)) is not None and d.high >= 0)]
    if not kept:
        return Finding(rows[0], False, reason="each rung that is faster has a proven loss, or was not judged")
    first, *others = kept
    return Finding(first, True, tuple(row.rung for row in others if _ratio(row).high >= _ratio(first).low))


def _ratio(row: Row | ScenarioRow) -> Interval:
    assert row.ratio is not None
    return row.ratio


def _difference(row: Row | ScenarioRow) -> Interval | None:
    return row.difference if isinstance(row, Row) else None


def sentences(ladder: Ladder) -> list[str]:
    """The conclusion in plain words, with its intervals; empty where no two rungs were timed."""
    found = findings(ladder)
    won = [finding for finding in found if finding.found]
    if not found:
        return []
    lossless = f" without a proven loss of {WORDS[ladder.metric]}" if _judged(ladder) else ""
    if not won:
        reasons = dict.fromkeys(finding.reason for finding in found)
        return [f"None is the fastest rung{lossless}: {'; '.join(reasons)}."]
    names = list(dict.fromkeys(finding.row.rung for finding in won))
    if len(names) == 1 and len(won) == len(found):
        told = [_first(won, lossless, ladder.result.baseline)]
    else:
        shares = ", ".join(f"{name} in {sum(f.row.rung == name for f in won)}" for name in names)
        none = len(found) - len(won)
        rest = f", none in {none}" if none else ""
        told = [f"Of {len(found)} settings, the fastest rung{lossless} is {shares}{rest}."]
    return [*told, *_doubts(won, ladder)]


def _first(won: Sequence[Finding], lossless: str, baseline: str) -> str:
    """Of one rung that is the fastest everywhere."""
    ordered = sorted(won, key=lambda finding: _ratio(finding.row).value)
    slow, fast = ordered[0].row, ordered[-1].row
    said = f"{slow.rung} is the fastest rung{lossless}: "
    if len(won) == 1:
        beside = f", {equals} as fast within the intervals" if (equals := ", ".join(won[0].equals)) else ""
        lost = _difference(slow)
        gain = f", at {points(lost)} points" if lost else ""
        return f"{said}{ratio(slow.ratio)} as fast as {baseline}{gain} ({place_of(slow)}){beside}."
    if ratio(slow.ratio) == ratio(fast.ratio):
        return f"{said}{ratio(slow.ratio)} as fast as {baseline} in each of {len(won)} settings."
    return (
        f"{said}from {ratio(slow.ratio)} as fast as {baseline} ({place_of(slow)}) to {ratio(fast.ratio)} "
        f"({place_of(fast)})."
    )


def _doubts(won: Sequence[Finding], ladder: Ladder) -> list[str]:
    """What the conclusion leaves open."""
    said = []
    room = max((-d.low for finding in won if (d := _difference(finding.row))), default=0.0)
    if room > 0:
        said.append(
            f"No proven loss is not the same as none: the intervals leave room for a loss of {100 * room:.1f} points."
        )
    if not _judged(ladder):
        no_labels = ladder.metric == "agreement"
        why = "the samples have no labels" if no_labels else "the answers were not compared here"
        said.append(f"Whether it answers as well is not known: {why}.")
    broken = {c: finding.row.rung for finding in won if isinstance(finding.row, Row) for c in finding.row.broken_claims}
    return said + [f"Mind of {rung}: {claim}." for claim, rung in broken.items()]


def _judged(ladder: Ladder) -> bool:
    return any(row.difference for row in ladder.rows)


def place_of(row: Row | ScenarioRow) -> str:
    """`cpu, 1 thread, batch 32`."""
    load = f"{row.scenario.replace('_', ' ')}, " if isinstance(row, ScenarioRow) else ""
    sizes = f", {row.dims}" if row.dims else ""
    return f"{load}{row.backend}, {row.threads} thread{'s' if row.threads > 1 else ''}, batch {row.batch}{sizes}"


def conclusion_table(ladder: Ladder) -> TextTable | None:
    """A row for each place; None for fewer than two."""
    found = findings(ladder)
    if len(found) < 2:
        return None
    judged = _judged(ladder)
    shown: list[Shown[Finding]] = [
        Shown(Column("backend", "backend", left=True), lambda f: name_cell(f.row.backend)),
        Shown(Column("threads", "threads"), lambda f: number_cell(f.row.threads, str)),
        Shown(Column("batch", "batch"), lambda f: number_cell(f.row.batch, str)),
        *_where(found),
        Shown(Column("fastest rung", "rung", left=True), lambda f: name_cell(f.row.rung if f.found else None)),
        Shown(Column("speed-up", "speedup"), lambda f: interval_cell(f.row.ratio if f.found else None, ratio)),
    ]
    if judged:
        shown.append(Shown(Column("Δ points", "accuracy_diff"), lambda f: _lost(f)))
    if any(finding.equals for finding in found):
        heading = Column("as fast, within the intervals", "equals", left=True)
        shown.append(Shown(heading, lambda f: name_cell(", ".join(f.equals))))
    title = f"Fastest rung{' without a proven loss' if judged else ''}, against {ladder.result.baseline}"
    lossless = f", and of the difference in {WORDS[ladder.metric]} one that does not lie below 0" if judged else ""
    legend = (
        "Of the rungs with an interval of the speed-up above 1"
        f"{lossless}, the one with the largest speed-up. Each interval holds by itself in 95 of 100 cases, all of them "
        "together in fewer."
    )
    return table_of(title, shown, found, _said, legend)


def _where(found: Sequence[Finding]) -> list[Shown[Finding]]:
    """What tells the places apart besides backend, threads and batch, where anything does."""
    columns: list[Shown[Finding]] = []
    if any(finding.row.dims for finding in found):
        columns.append(Shown(Column("sizes", "dims", left=True), lambda f: name_cell(f.row.dims)))
    if any(isinstance(finding.row, ScenarioRow) for finding in found):
        columns.append(Shown(Column("scenario", "scenario", left=True), lambda f: _scenario(f.row)))
    return columns


def _scenario(row: Row | ScenarioRow) -> Cell:
    return name_cell(row.scenario.replace("_", " ") if isinstance(row, ScenarioRow) else None)


def _lost(finding: Finding) -> Cell:
    return interval_cell(_difference(finding.row), points) if finding.found else Cell(DASH)


def _said(finding: Finding) -> Sequence[str]:
    return finding.row.flags if finding.found else (finding.reason,)
