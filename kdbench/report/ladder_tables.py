"""The ladder as tables: what each rung costs and gains, and where it comes from."""

from collections.abc import Iterable
from itertools import groupby

from kdbench.progress import duration
from kdbench.records import BenchSettings, ReferenceCell
from kdbench.report.claims import proofs_in
from kdbench.report.rows import Metric, Row, place
from kdbench.report.table import Ladder
from kdbench.report.text import (
    Cell,
    Column,
    Shown,
    TextTable,
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
    table_of,
)
from kdbench.stats import Interval

RUNG: Shown[Row] = Shown(Column("rung", "rung", left=True), lambda row: name_cell(row.rung))
PARENT: Shown[Row] = Shown(Column("parent", "parent", left=True), lambda row: name_cell(row.parent))


def ladder_tables(ladder: Ladder, brief: bool = False) -> list[TextTable]:
    """One table for each backend, thread count, batch and sizes; backends without any number are left to `unmeasured`.

    Differences are in points; they and speed-ups are against the baseline, with 95 % intervals. A brief table leaves
    out those of “no difference”, and what a price and a reference take the place of.
    """
    tables, more = [], _legends(ladder, brief)
    shown = _columns(ladder, brief)
    if brief:
        shown = [one for one in shown if one.column.name not in _left_out(ladder.result.settings)]
    for (backend, threads, batch, dims), group in groupby(ladder.rows, key=place):
        rows = list(group)
        if all(row.error for row in rows):
            continue
        where = f"{backend}, {threads} thread{'s' if threads > 1 else ''}, batch {batch}{f', {dims}' if dims else ''}"
        title = f"{where}, against {ladder.result.baseline}"
        legend = " ".join(filter(None, (LEGENDS[ladder.metric].format(baseline=ladder.result.baseline), *more)))
        tables.append(table_of(title, shown, rows, said_of, legend))
        more = []  # said once, below the first table
    return tables


def said_of(row: Row) -> tuple[str, ...]:
    """What has to be known of a row: a footnote each."""
    return (*row.flags, f"error: {row.error}") if row.error else row.flags


LEGENDS: dict[Metric, str] = {
    "accuracy": "",
    "f1": (
        "F1 µ: of all labels together; F1 macro: the mean over labels, 0 for one that never occurs and is never "
        "predicted. Δ µ: the difference in F1 µ, its interval by bootstrap over samples."
    ),
    "agreement": (
        "agree %: share of samples that are answered as {baseline} answers them, in all labels where there are "
        "several; the evaluation samples have no labels, so this is no accuracy."
    ),
}


def _left_out(settings: BenchSettings) -> list[str]:
    """Of a brief table: what a price and a reference take the place of."""
    return ["per s"] * (settings.price_per_h is not None) + ["p99"] * (settings.reference is not None)


def _legends(ladder: Ladder, brief: bool) -> list[str]:
    """What price and reference mean, where there are any."""
    settings, found = ladder.result.settings, []
    if settings.price_per_h is not None:
        price = money(settings.price_per_h, settings.currency)
        found.append(f"per 1M: what a million inferences cost at {price} an hour, one batch after the other.")
    if settings.reference:
        threads, no_difference = settings.reference.threads, ", ≈ 1× where the interval covers 1" if brief else ""
        found.append(
            f"{_reference_heading(settings.reference, brief)}: how many times faster than {settings.reference.label} "
            f"with {threads} thread{'s' if threads > 1 else ''} in the same batch, paired by round{no_difference}; "
            "cells of different backends or thread counts were measured one after the other, not in turns."
        )
    return found


def _reference_heading(reference: ReferenceCell, brief: bool) -> str:
    return "× ref." if brief else f"× {reference.label}"


def _columns(ladder: Ladder, brief: bool) -> list[Shown[Row]]:
    """Headings, and what stands below them."""
    metric: dict[Metric, list[Shown[Row]]] = {
        "accuracy": [
            Shown(Column("acc. %", "accuracy"), lambda row: number_cell(row.accuracy, hundredths)),
            Shown(Column("Δ points", "accuracy_diff"), lambda row: interval_cell(row.difference, points)),
        ],
        "f1": [
            Shown(Column("F1 µ %", "f1_micro"), lambda row: number_cell(row.f1_micro, hundredths)),
            Shown(Column("F1 macro %", "f1_macro"), lambda row: number_cell(row.f1_macro, hundredths)),
            Shown(Column("Δ µ points", "f1_micro_diff"), lambda row: interval_cell(row.difference, points)),
        ],
        "agreement": [Shown(Column("agree %", "agreement"), lambda row: number_cell(row.agreement, hundredths))],
    }
    settings, baseline = ladder.result.settings, ladder.result.baseline
    cost: list[Shown[Row]] = []
    if settings.price_per_h is not None:
        column, currency = Column("per 1M", "cost_per_million"), settings.currency
        cost = [Shown(column, lambda row: number_cell(row.cost_per_million, lambda value: money(value, currency)))]
    referred: list[Shown[Row]] = []
    if reference := settings.reference:
        column = Column(_reference_heading(reference, brief), "reference_speedup")
        referred = [Shown(column, lambda row: _referred(row, reference, brief))]
    return [
        RUNG,
        *metric[ladder.metric],
        Shown(Column("size", "size_bytes"), lambda row: number_cell(row.size_bytes, size)),
        Shown(Column("p50", "latency_p50_s"), lambda row: number_cell(row.latency_p50_s, seconds)),
        Shown(Column("p99", "latency_p99_s"), lambda row: number_cell(row.latency_p99_s, seconds)),
        Shown(Column("per s", "throughput_per_s"), lambda row: number_cell(row.throughput_per_s, count)),
        *cost,
        Shown(Column("speed-up", "speedup"), lambda row: _speedup(row, baseline, brief)),
        *referred,
    ]


def _speedup(row: Row, baseline: str, brief: bool) -> Cell:
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


def hundredths(share: float | None) -> str:
    """A share under a heading that says `%`."""
    return percent(share).removesuffix(" %")


_COSTS: tuple[tuple[Shown[Row], str | None], ...] = (
    (Shown(Column("cold start", "cold_start_s"), lambda row: number_cell(row.cold_start_s, seconds)), "start_s"),
    (Shown(Column("load", "load_s"), lambda row: number_cell(row.load_s, seconds)), None),
    (Shown(Column("optimize", "optimize_s"), lambda row: number_cell(row.optimize_s, seconds)), "optimize_s"),
    (Shown(Column("first run", "first_run_s"), lambda row: number_cell(row.first_run_s, seconds)), None),
    (Shown(Column("peak memory", "peak_memory_bytes"), lambda row: number_cell(row.peak_memory_bytes, size)), None),
    (
        Shown(Column("steady memory", "steady_memory_bytes"), lambda row: number_cell(row.steady_memory_bytes, size)),
        "steady_memory_bytes",
    ),
    (
        Shown(Column("device memory", "device_memory_bytes"), lambda row: number_cell(row.device_memory_bytes, size)),
        "device_memory_bytes",
    ),
    (Shown(Column("energy", "energy_j"), lambda row: number_cell(row.energy_j, joules)), "energy_j"),
)
"""What a process costs, and the field without which a column is left out."""

_PROCESSES: tuple[Shown[Row], ...] = (
    Shown(Column("processes", "rounds"), lambda row: number_cell(row.rounds, str)),
    Shown(Column("outliers", "outlier_share"), lambda row: number_cell(row.outlier_share, percent)),
    Shown(Column("could have found", "smallest_difference"), lambda row: number_cell(row.smallest_difference, percent)),
)

_PROOFS: tuple[Shown[Row], ...] = (
    Shown(Column("nodes on provider", "node_share"), lambda row: number_cell(row.node_share, percent)),
    Shown(Column("time on provider", "time_share"), lambda row: number_cell(row.time_share, percent)),
    Shown(Column("in int8", "int8_share"), lambda row: number_cell(row.int8_share, percent)),
    Shown(Column("nodes fused", "fused_share"), lambda row: number_cell(row.fused_share, percent)),
    Shown(Column("error to fp32", "rms_error"), lambda row: number_cell(row.rms_error, "{:.1e}".format)),
    Shown(Column("ran as", "ran_as"), lambda row: name_cell(row.ran_as)),
)


def details_table(ladder: Ladder) -> TextTable:
    """What doesn't change from batch to batch, and what a process costs before it is warm."""
    agreement = Column("all labels agree" if ladder.metric == "f1" else "agreement", "agreement")
    shown: list[Shown[Row]] = [
        RUNG,
        PARENT,
        Shown(Column("backend", "backend", left=True), lambda row: name_cell(row.backend)),
        Shown(Column("batch", "batch"), lambda row: number_cell(row.batch, str)),
        *([Shown(Column("sizes", "dims"), lambda row: name_cell(row.dims))] if _any(ladder, "dims") else []),
        Shown(Column("parameters", "parameters"), lambda row: number_cell(row.parameters, count)),
        Shown(Column("MACs", "macs"), lambda row: number_cell(row.macs, count)),
        Shown(agreement, lambda row: number_cell(row.agreement, percent)),
        *_tested(ladder, "McNemar p"),
        *_from_parent(ladder),
        *(one for one, told in _COSTS if told is None or any(getattr(row, told) is not None for row in ladder.rows)),
    ]
    if ladder.result.settings.precision is not None:
        shown += _PROCESSES
    if any(proofs_in(evaluation) for evaluation in ladder.result.evaluations):
        shown += _PROOFS
    if any(row.threads_used is not None for row in ladder.rows):
        used: Shown[Row] = Shown(
            Column("threads used", "threads_used"), lambda row: number_cell(row.threads_used, "{:.2f}".format)
        )
        shown.append(used)
    return table_of("Details", shown, [row for row in ladder.rows if not row.error])


def _any(ladder: Ladder, field: str) -> bool:
    return any(getattr(row, field) for row in ladder.rows)


def _tested(ladder: Ladder, name: str) -> list[Shown[Row]]:
    """McNemar's p-value against the baseline, where each sample has one label."""
    if ladder.metric != "accuracy":
        return []
    p_of = ladder.mcnemar
    return [
        Shown(
            Column(name, "mcnemar_p"),
            lambda row: number_cell(p_of.get((row.rung, row.backend, row.threads)), "{:.2g}".format),
        )
    ]


def _from_parent(ladder: Ladder) -> list[Shown[Row]]:
    """What each rung cost and gained beside the one that it was made of, where any of them tells."""
    shown: list[Shown[Row]] = []
    if any(row.parent_difference for row in ladder.rows):
        column = Column("Δ to parent", "parent_diff")
        shown.append(Shown(column, lambda row: interval_cell(row.parent_difference, points)))
    if any(row.made_in_s is not None for row in ladder.rows):
        shown.append(Shown(Column("took", "made_in_s"), lambda row: number_cell(row.made_in_s, duration)))
    return shown


def rungs_table(ladder: Ladder) -> TextTable | None:
    """Where each rung comes from, what it cost and how far its answers are from others', a line a rung: through the
    first backend that each was judged by. None where no rung is another's parent."""
    rows = list({row.rung: row for row in reversed(ladder.rows)}.values())[::-1]
    if not {row.parent for row in rows} & {row.rung for row in rows}:
        return None
    shown: list[Shown[Row]] = [
        RUNG,
        PARENT,
        Shown(Column("params", "parameters"), lambda row: number_cell(row.parameters, count)),
        Shown(Column("MACs", "macs"), lambda row: number_cell(row.macs, count)),
        Shown(Column("agree %", "agreement"), lambda row: number_cell(row.agreement, hundredths)),
        *_tested(ladder, "p"),
        *_from_parent(ladder),
    ]
    tested = ", p: McNemar's exact test against it" if ladder.metric == "accuracy" else ""
    legend = f"agree %: answers as {ladder.result.baseline} does{tested}"
    if shown[-1].column.name == "took":
        legend += "; took: training and all, without what the parent took"
    return table_of("How each rung was made", shown, rows, legend=f"{legend}.")


def unmeasured(rows: Iterable[Row]) -> list[str]:
    """One line for each backend of which no cell has a number."""
    reasons: dict[str, list[str | None]] = {}
    for row in rows:
        reasons.setdefault(row.backend, []).append(row.error)
    return [
        f"not measured: {'; '.join(dict.fromkeys(filter(None, errors)))}"
        for backend, errors in reasons.items()
        if all(errors)
    ]
