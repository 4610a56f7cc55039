"""The turns of a spiral, as a table and as sentences."""

from importlib.resources import files
from pathlib import Path

from kdbench.progress import duration
from kdbench.records.budget import Estimate
from kdbench.records.turns import SpiralRecord, TurnRecord
from kdbench.report.markdown import template_environment
from kdbench.report.text import TextTable, count, mark, percent, size, three_digits
from kdbench.store import write_atomic

WHAT = {"macs": "MACs", "parameters": "parameters", "size": "size", "latency": "latency"}


def turns_table(record: SpiralRecord) -> TextTable:
    """A row for each turn, refused ones too: what was kept and what it cost."""
    notes: dict[str, int] = {}
    timed = record.target == "latency"
    first = (record.first, "–", percent(record.score), "–", "–", count(record.macs), count(record.parameters))
    rows = [(*first, size(record.size_bytes), *(("1.00×",) if timed else ()), "–", "")]
    final = (record.final,) if record.final else ()
    for turn in (*record.turns, *final):
        note = mark(notes.setdefault(turn.said, len(notes) + 1)) if turn.refusal else ""
        cells = (
            rung(turn),
            f"spiral-{turn.parent}" if turn.parent else record.first,
            percent(turn.score),
            _points(turn.drop),
            "–" if turn.p is None else f"{turn.p:.2g}",
            count(turn.macs),
            count(turn.parameters),
            size(turn.size_bytes),
            *((_ratio(turn.speedup),) if timed else ()),
            f"{turn.duration_s / 60:.1f}",
            f"refused {note}" if turn.refusal else "",
        )
        rows.append(cells)
    judged = "F1" if record.metric == "micro F1" else "acc."
    header = ("rung", "parent", f"{judged} %", "drop", "p", "MACs", "param.", "size")
    header = (*header, *(("speed-up",) if timed else ()), "min", "")
    goal = f"to {record.goal:.3g} of the {WHAT[record.target]}" if record.target else "as far as the accuracy goes"
    legend = (
        f"Judged on {record.samples:,} held-out samples, not on the test split. drop: points below {record.first}, "
        f"paired by sample, at most {record.max_drop:g}; p: McNemar's exact test; min: minutes of this turn."
    )
    return TextTable(f"The spiral, {goal}", header, tuple(rows), tuple(notes), legend)


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
    if best is None or not best.macs or not record.macs or not best.parameters:
        return ", the first model"
    parts = f"{record.macs / best.macs:.2f} × fewer MACs, {record.parameters / best.parameters:.2f} × fewer parameters"
    if record.target == "latency" and best.speedup:
        parts += f", {three_digits(best.speedup.value)} × faster"
    return f": {parts}"


def _last_step(record: SpiralRecord) -> str:
    return percent(record.turns[-1].step) if record.turns else "any size"


def turn_line(turn: TurnRecord, record: SpiralRecord) -> str:
    """One line on a turn that has ended."""
    if turn.refusal and turn.drop is None:
        return f"{rung(turn)} refused: {turn.said}"
    end = f"refused: {turn.said}" if turn.refusal else "accepted"
    took = duration(turn.duration_s)
    return f"{rung(turn)} {end}: {percent(turn.score)}, drop {_points(turn.drop)}, {count(turn.macs)} MACs, {took}"


def save_turns(record: SpiralRecord, folder: Path) -> Path:
    """Writes the table as Markdown; its path."""
    template = template_environment().from_string(
        files(__package__).joinpath("spiral.md.j2").read_text(encoding="utf-8")
    )
    path = folder / "spiral.md"
    write_atomic(path, template.render(table_=turns_table(record), remarks=record.remarks).strip() + "\n")
    return path


def _points(drop: Estimate | None) -> str:
    if drop is None:
        return "–"
    return f"{_point(drop.value)} [{_point(drop.low)}, {_point(drop.high)}]"


def _point(share: float) -> str:
    text = f"{100 * share:.2f}".replace("-", "−")
    return "0.00" if text == "−0.00" else text


def _ratio(found: Estimate | None) -> str:
    return "–" if found is None else f"{three_digits(found.value)}×"
