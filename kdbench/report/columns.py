"""Every field of a row as a column: its heading, and its numbers as people read them."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from kdbench.progress import duration
from kdbench.records import ReferenceCell
from kdbench.report.rows import COLUMNS, Row
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.table import Ladder
from kdbench.report.text import (
    FLAGS,
    Cell,
    Column,
    Shown,
    count,
    interval_cell,
    joules,
    money,
    name_cell,
    number_cell,
    percent,
    points,
    ratio,
    seconds,
    size,
)
from kdbench.stats import Interval

HEADINGS = {
    "accuracy": "acc. %",
    "accuracy_diff": "Δ points",
    "agreement": "agree %",
    "size_bytes": "size",
    "macs": "MACs",
    "latency_p50_s": "p50",
    "latency_p99_s": "p99",
    "throughput_per_s": "per s",
    "speedup": "speed-up",
    "load_s": "load",
    "first_run_s": "first run",
    "peak_memory_bytes": "peak memory",
    "f1_micro": "F1 µ %",
    "f1_macro": "F1 macro %",
    "f1_micro_diff": "Δ µ points",
    "rounds": "processes",
    "smallest_difference": "could have found",
    "outlier_share": "outliers",
    "node_share": "nodes on provider",
    "time_share": "time on provider",
    "int8_share": "in int8",
    "fused_share": "nodes fused",
    "rms_error": "error to fp32",
    "dims": "sizes",
    "cost_per_million": "per 1M",
    "start_s": "start",
    "cold_start_s": "cold start",
    "steady_memory_bytes": "steady memory",
    "device_memory_bytes": "device memory",
    "energy_j": "energy",
    "optimize_s": "optimize",
    "parent_diff": "Δ to parent",
    "made_in_s": "took",
    "teacher_agreement": "as teacher %",
    "latency_s": "latency",
    "rate_per_s": "per s",
    "bound_s": "bound",
    "spent_s": "spent",
}
"""Where they are not the field's own name."""

LEFT = ("rung", "parent", "backend", "machine", "result", "error", "broken_claims")
"""Names, which are aligned to the left."""

_POINTS = ("accuracy_diff", "f1_micro_diff", "parent_diff")
_SHARES = ("accuracy", "f1_micro", "f1_macro", "agreement", "teacher_agreement", "score")

SHOW: dict[str, Callable[[Any], str]] = {
    **{name: lambda value: percent(value).removesuffix(" %") for name in _SHARES},
    "parameters": count,
    "macs": count,
    "smallest_difference": percent,
    "rms_error": "{:.1e}".format,
    "threads_used": "{:.2f}".format,
    "energy_j": joules,
    "made_in_s": duration,
    "spent_s": duration,
}
"""Numbers of fields whose names' ends don't tell their unit."""

ENDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("_per_s", count),
    ("_s", seconds),
    ("_bytes", size),
    ("_share", percent),
)


def fields_of(ladder: Ladder, brief: bool = False) -> dict[str, Shown[Row]]:
    """Every field of a row as a column, and `cold_start_s`; brief ones leave out intervals of “no difference”."""
    settings, baseline = ladder.result.settings, ladder.result.baseline
    known: dict[str, Shown[Row]] = {name: _plain(name) for name in (*COLUMNS, "cold_start_s")}
    known["accuracy_diff"] = _paired("accuracy_diff", lambda row: row.difference, points)
    known["f1_micro_diff"] = _paired("f1_micro_diff", lambda row: row.difference, points)
    known["parent_diff"] = _paired("parent_diff", lambda row: row.parent_difference, points)
    known["speedup"] = Shown(column("speedup"), lambda row: speedup_cell(row, baseline, brief))
    known["cost_per_million"] = Shown(
        column("cost_per_million"),
        lambda row: number_cell(row.cost_per_million, lambda value: money(value, settings.currency)),
    )
    if reference := settings.reference:
        known["reference_speedup"] = Shown(
            Column("× ref." if brief else f"× {reference.label}", "reference_speedup"),
            lambda row: _referred(row, reference, brief),
        )
    return known


def scenario_fields(baseline: str) -> dict[str, Shown[ScenarioRow]]:
    """Every field of a row under load as a column."""
    known: dict[str, Shown[ScenarioRow]] = {field.name: _plain(field.name) for field in fields(ScenarioRow)}
    known["speedup"] = Shown(column("speedup"), lambda row: speedup_cell(row, baseline))
    return known


def column(name: str) -> Column:
    return FLAGS if name == "flags" else Column(HEADINGS.get(name, name.replace("_", " ")), name, left=name in LEFT)


def _plain(name: str) -> Shown[Any]:
    show = _show(name)
    return Shown(column(name), lambda row: plain_cell(getattr(row, name), show))


def _show(name: str) -> Callable[[Any], str]:
    base = name.removesuffix("_low").removesuffix("_high")
    if base != name:
        if base in _POINTS:
            return lambda value: f"{100 * value:.2f}".replace("-", "−")
        return "{:.4g}".format
    return SHOW.get(name) or next((show for end, show in ENDS if name.endswith(end)), str)


def plain_cell(value: float | str | tuple[str, ...] | None, show: Callable[[Any], str]) -> Cell:
    """A number as `show` has it, or a name; a dash for neither."""
    if isinstance(value, tuple):
        value = "; ".join(value)
    return name_cell(value) if value is None or isinstance(value, str) else number_cell(value, show)


def _paired(name: str, of: Callable[[Row], Interval | None], show: Callable[[Interval], str]) -> Shown[Row]:
    return Shown(column(name), lambda row: interval_cell(of(row), show))


def speedup_cell(row: Row | ScenarioRow, baseline: str, brief: bool = False) -> Cell:
    if row.rung == baseline:
        return Cell("1", 1.0)
    return interval_cell(row.ratio, lambda found: ratio(found, brief))


def _referred(row: Row, reference: ReferenceCell, brief: bool) -> Cell:
    """A brief one without its interval, as `≈ 1×` where that covers 1."""
    if (row.rung, row.backend, row.threads) == (reference.rung, reference.backend, reference.threads):
        return Cell("1", 1.0)

    def show(found: Interval) -> str:
        text = ratio(found, brief)
        return "≈ 1×" if brief and text == "no difference" else text.partition(" [")[0] if brief else text

    return interval_cell(row.reference_ratio, show)
