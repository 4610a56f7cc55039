"""The story of a search for an int8 file under a budget of accuracy, as a table of at most 100 columns."""

import math
from collections.abc import Mapping

from kdbench.records.budget import Budget, CandidateRecord, Estimate
from kdbench.report.rewritten import sqnr
from kdbench.report.text import (
    Cell,
    Column,
    Shown,
    TextTable,
    name_cell,
    number_cell,
    numbers,
    percent,
    points,
    table_of,
)

CHOSEN = "→"
SHOWN = 5
"""Names of layers; the budget's file has them all."""


def candidates_table(budget: Budget) -> TextTable:
    """A row for each candidate: what it loses, how fast it is, how much of it is int8; the chosen one is marked."""
    bound = "no bound" if budget.max_drop is None else f"at most {100 * budget.max_drop:g} points"
    what = {"agreement": "answers that differ from fp32's", "micro F1": "drop of micro F1", "accuracy": "drop"}
    title = (
        f"int8 on {budget.backend}, {budget.threads} thread{'s' if budget.threads > 1 else ''}, batch {budget.batch}; "
        f"{what[budget.metric]} {bound}"
    )
    legend = (
        f"drop: points against fp32 ({_fp32(budget)}) on {budget.judged_samples:,} held-out calibration samples; "
        "float: layers left in it; int8: convolutions and matrix products that run in it, and the share of "
        "multiply-accumulates meant to."
    )
    shown: list[Shown[CandidateRecord]] = [
        Shown(Column("target", "target", left=True), lambda one: name_cell(one.name.rpartition(", ")[0])),
        Shown(Column("ranges", "ranges"), lambda one: name_cell(one.name.rpartition(", ")[2])),
        Shown(Column("float", "left_in_float"), lambda one: number_cell(len(one.left_in_float), _several)),
        Shown(Column("drop [95 %]", "drop"), lambda one: _estimated(one.drop, _drop(one.drop))),
        Shown(Column("speed-up [95 %]", "speedup"), lambda one: _estimated(one.speedup, _ratio(one))),
        Shown(Column("int8", "int8_share"), lambda one: Cell(_coverage(one), one.int8_kernels)),
        Shown(
            Column("", "chosen"),
            lambda one: Cell(CHOSEN if one.name == budget.chosen else "", one.name == budget.chosen),
        ),
    ]
    return table_of(title, shown, budget.candidates, _said, legend)


def _several(number: int) -> str:
    return str(number or "")


def _estimated(found: Estimate | None, text: str) -> Cell:
    return Cell(text, found.value, found.low, found.high) if found else Cell(text)


def _fp32(budget: Budget) -> str:
    return "no labels" if budget.metric == "agreement" else f"{budget.metric} {percent(budget.fp32)}"


def _drop(drop: Estimate | None) -> str:
    return points(drop, plus=False)


def _ratio(candidate: CandidateRecord) -> str:
    found = candidate.speedup
    if found is None:
        return "not timed"
    value, low, high = numbers(found)
    return f"{value}× [{low}, {high}]"


def _coverage(candidate: CandidateRecord) -> str:
    """`100 % · 98 %`: of the kernels, and of the multiply-accumulates."""
    kernels = "–" if candidate.int8_kernels is None else f"{100 * candidate.int8_kernels:.0f} %"
    macs = "" if candidate.int8_macs is None else f" · {100 * candidate.int8_macs:.0f} %"
    return f"{kernels}{macs}"


def _said(candidate: CandidateRecord) -> list[str]:
    return [*candidate.broken_claims, *candidate.doubts, *([f"error: {candidate.error}"] if candidate.error else [])]


def verdict(budget: Budget, layers_db: Mapping[str, float]) -> list[str]:
    """What was chosen, which layers stay in float, how far the output and layers are from fp32, in dB, and what the
    test split says of it."""
    chosen = next(one for one in budget.candidates if one.name == budget.chosen)
    lines = [f"chosen     {chosen.name}, after {budget.evaluations} evaluations"]
    if chosen.left_in_float:
        names, more = chosen.left_in_float[:SHOWN], len(chosen.left_in_float) - SHOWN
        lines.append(f"in float   {', '.join(names)}{f' and {more} more' if more > 0 else ''}")
    done = [
        word
        for word, used in (("equalised", chosen.equalization), ("biases corrected", chosen.bias_correction))
        if used
    ]
    if done:
        lines.append(f"also       {' and '.join(done)}")
    lines.append(f"SQNR       {sqnr(math.inf if chosen.sqnr_db is None else chosen.sqnr_db, layers_db)}")
    if budget.test_drop is not None:
        lines.append(f"test       drop {_drop(budget.test_drop)} points on {budget.test_samples:,} samples")
    return lines
