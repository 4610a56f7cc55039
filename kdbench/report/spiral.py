"""The turns of a spiral, as a table and as sentences."""

from collections.abc import Callable
from dataclasses import replace

from kdbench.progress import duration
from kdbench.records.budget import Estimate
from kdbench.records.turns import SpiralRecord, TurnRecord
from kdbench.report.text import (
    DASH,
    FLAGS,
    Cell,
    Column,
    TextTable,
    count,
    flagged,
    name_cell,
    number_cell,
    percent,
    points,
    size,
    three_digits,
)

WHAT = {"macs": "MACs", "parameters": "parameters", "size": "size", "latency": "latency"}


def turns_table(record: SpiralRecord) -> TextTable:
    """A row for each turn, refused ones too: what was kept and what it cost."""
    notes: dict[str, int] = {}
    turns = (*record.turns, *((record.final,) if record.final else ()))
    timed = any(turn.speedup for turn in turns)
    judged = "F1" if record.metric == "micro F1" else "acc."
    none = Cell(DASH)
    first = (name_cell(record.first), none, none, number_cell(record.score, percent), none, none, *_figures(record))
    rows = [(*first, *((Cell("1.00×", 1.0),) if timed else ()), none, Cell(""))]
    for turn in turns:
        remarks = flagged([*([turn.said] if turn.refusal else []), *turn.doubts], notes)
        cells = (
            name_cell(rung(turn)),
            name_cell(f"spiral-{turn.parent}" if turn.parent else record.first),
            number_cell(turn.keep if turn.number else None, percent),
            number_cell(turn.score, percent),
            _estimated(turn.drop, _points),
            number_cell(turn.p, "{:.2g}".format),
            *_figures(turn),
            *((_estimated(turn.speedup, _ratio),) if timed else ()),
            Cell(f"{turn.duration_s / 60:.1f}", turn.duration_s),
            replace(remarks, text="refused") if turn.refusal else remarks,
        )
        rows.append(cells)
    goal = f"to {record.goal:.3g} of the {WHAT[record.target]}" if record.target else "as far as the accuracy goes"
    taken = "parameters" if record.target in ("parameters", "size") else "MACs"
    legend = (
        f"Judged on {record.samples:,} held-out samples, not on the test split. asked: share of the parent's {taken} "
        f"to be left; drop: points below {record.first}, paired by sample, at most {record.max_drop:g}; p: McNemar's "
        "exact test; min: minutes of this turn."
    )
    columns = [column for column in COLUMNS if timed or column.key != "speedup"]
    columns = [replace(column, name=f"{judged} %") if column.key == "score" else column for column in columns]
    return TextTable(f"The spiral, {goal}", tuple(columns), tuple(rows), tuple(notes), legend)


COLUMNS = (
    Column("rung", "rung", left=True),
    Column("parent", "parent", left=True),
    Column("asked", "keep"),
    Column("acc. %", "score"),
    Column("drop", "drop"),
    Column("p", "p"),
    Column("MACs", "macs"),
    Column("param.", "parameters"),
    Column("size", "size_bytes"),
    Column("speed-up", "speedup"),
    Column("min", "duration_s"),
    FLAGS,
)


def _figures(of: SpiralRecord | TurnRecord) -> tuple[Cell, ...]:
    return number_cell(of.macs, count), number_cell(of.parameters, count), number_cell(of.size_bytes, size)


def rung(turn: TurnRecord) -> str:
    return f"spiral-{turn.number}" if turn.number else "spiral-final"


def ended(record: SpiralRecord) -> str:
    """What stopped the spiral, and what it ended with."""
    left = _left(record)
    refused = [turn for turn in record.turns if turn.refusal]
    why = {
        "target": "the target is reached",
        "accuracy": f"the accuracy floor stopped it: no step of {_last_step(record)} or more stays within "
        f"{record.max_drop:g} points",
        "step": f"the step became too small: {refused[-1].said if refused else ''}",
        "nothing": f"stopped: {refused[-1].said if refused else ''}",
        "turns": f"the most turns, {len(record.turns)}, are over",
        None: "under way",
    }[record.limit]
    return f"{why}; ended with {record.best}{left}"


def _left(record: SpiralRecord) -> str:
    best = next((turn for turn in (record.final, *record.turns) if turn and rung(turn) == record.best), None)
    if best is None or not best.parameters:
        return ", the first model"
    parts = f"{record.parameters / best.parameters:.2f} × fewer parameters"
    if record.macs and best.macs:
        parts = f"{record.macs / best.macs:.2f} × fewer MACs, {parts}"
    if best.speedup:
        parts += f", {three_digits(best.speedup.value)} × as fast"
    return f": {parts}"


def _last_step(record: SpiralRecord) -> str:
    return percent(record.turns[-1].step) if record.turns else "any size"


def turn_line(turn: TurnRecord, record: SpiralRecord) -> str:
    """One line on a turn that has ended."""
    if turn.refusal and turn.drop is None:
        return f"{rung(turn)} refused: {turn.said}"
    end = f"refused: {turn.said}" if turn.refusal else "accepted"
    told = [percent(turn.score), f"drop {_points(turn.drop)}", f"{count(turn.macs)} MACs"]
    told += [f"speed-up {_ratio(turn.speedup)}"] if turn.speedup else []
    return f"{rung(turn)} {end}: {', '.join(told)}, {duration(turn.duration_s)}"


def _points(drop: Estimate | None) -> str:
    return points(drop, plus=False)


def _ratio(found: Estimate) -> str:
    return f"{three_digits(found.value)}×"


def _estimated(found: Estimate | None, show: Callable[[Estimate], str]) -> Cell:
    return Cell(DASH) if found is None else Cell(show(found), found.value, found.low, found.high)
