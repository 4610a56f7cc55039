"""The ladder as tables: what each rung costs and gains, and where it comes from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from kdbench.records import BenchSettings
from kdbench.report.claims import proofs_in
from kdbench.report.columns import fields_of
from kdbench.report.rows import Metric, Row, place
from kdbench.report.table import Ladder
from kdbench.report.text import Column, Shown, TextTable, money, number_cell, percent, table_of


def ladder_tables(ladder: Ladder, brief: bool = False, columns: Sequence[str] = ()) -> list[TextTable]:
    """One table for each backend, thread count, batch and sizes; backends without any number are left to `unmeasured`.

    Differences are in points; they and speed-ups are against the baseline, with 95 % intervals. A brief table leaves
    out those of “no difference”, and what a price and a reference take the place of. `columns` are fields of a row, in
    the place of the usual ones; those that a row doesn't have are left out, and so are tables with none of them.
    """
    tables, known = [], fields_of(ladder, brief)
    if columns and not known.keys() & set(columns):
        return []
    names = [name for name in columns if name in known and name != "flags"] or _columns(ladder, brief)
    shown, more = [known[name] for name in names], _legends(ladder, brief, names)
    for (backend, threads, batch, dims), group in groupby(ladder.rows, key=place):
        rows = list(group)
        if all(row.error for row in rows):
            continue
        where = f"{backend}, {threads} thread{'s' if threads > 1 else ''}, batch {batch}{f', {dims}' if dims else ''}"
        title = f"{where}, against {ladder.result.baseline}"
        legend = " ".join(filter(None, (LEGENDS[ladder.metric].format(baseline=ladder.result.baseline), *more)))
        common = shared(threads, batch, dims, backend)
        tables.append(replace(table_of(title, shown, rows, said_of, legend), common=common))
        more = []  # said once, below the first table
    return tables


def shared(threads: int, batch: int, dims: str, backend: str | None = None) -> tuple[tuple[str, str], ...]:
    """What a table of such cells says in its title, by the keys of the columns that would say it."""
    found = {"backend": backend, "threads": str(threads), "batch": str(batch), "dims": dims}
    return tuple((key, value) for key, value in found.items() if value)


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
    return ["throughput_per_s"] * (settings.price_per_h is not None) + ["latency_p99_s"] * (
        settings.reference is not None
    )


def _legends(ladder: Ladder, brief: bool, names: Sequence[str]) -> list[str]:
    """What price and reference mean, where there are any."""
    settings, found = ladder.result.settings, []
    if settings.price_per_h is not None and "cost_per_million" in names:
        price = money(settings.price_per_h, settings.currency)
        found.append(f"per 1M: what a million inferences cost at {price} an hour, one batch after the other.")
    if settings.reference and "reference_speedup" in names:
        threads, no_difference = settings.reference.threads, ", ≈ 1× where the interval covers 1" if brief else ""
        heading = "× ref." if brief else f"× {settings.reference.label}"
        found.append(
            f"{heading}: how many times faster than {settings.reference.label} "
            f"with {threads} thread{'s' if threads > 1 else ''} in the same batch, paired by round{no_difference}; "
            "cells of different backends or thread counts were measured one after the other, not in turns."
        )
    return found


JUDGED_BY: dict[Metric, tuple[str, ...]] = {
    "accuracy": ("accuracy", "accuracy_diff"),
    "f1": ("f1_micro", "f1_macro", "f1_micro_diff"),
    "agreement": ("agreement",),
}


def _columns(ladder: Ladder, brief: bool) -> list[str]:
    settings = ladder.result.settings
    names = ["rung", *JUDGED_BY[ladder.metric], "size_bytes", "latency_p50_s", "latency_p99_s", "throughput_per_s"]
    names += ["cost_per_million"] * (settings.price_per_h is not None)
    names += ["speedup", *(["reference_speedup"] if settings.reference else [])]
    return [name for name in names if not brief or name not in _left_out(settings)]


_COSTS = (
    ("cold_start_s", "start_s"),
    ("load_s", None),
    ("optimize_s", "optimize_s"),
    ("first_run_s", None),
    ("peak_memory_bytes", None),
    ("steady_memory_bytes", "steady_memory_bytes"),
    ("device_memory_bytes", "device_memory_bytes"),
    ("energy_j", "energy_j"),
)
"""What a process costs, and the field without which a column is left out."""

_PROCESSES = ("rounds", "outlier_share", "smallest_difference")
_PROOFS = ("node_share", "time_share", "int8_share", "fused_share", "rms_error", "ran_as")


def details_table(ladder: Ladder) -> TextTable:
    """What doesn't change from batch to batch, and what a process costs before it is warm."""
    known = fields_of(ladder)
    agreement = Column("all labels agree" if ladder.metric == "f1" else "agreement", "agreement")
    sizes = ("dims",) if any(row.dims for row in ladder.rows) else ()
    shown = [
        *(known[name] for name in ("rung", "parent", "backend", "batch", *sizes, "parameters", "macs")),
        Shown(agreement, lambda row: number_cell(row.agreement, percent)),
        *_where_told(ladder, "teacher_agreement"),
        *_tested(ladder, "McNemar p"),
        *_where_told(ladder, "parent_diff", "made_in_s"),
        *(known[name] for name, told in _COSTS if told is None or _told(ladder, told)),
    ]
    if ladder.result.settings.precision is not None:
        shown += [known[name] for name in _PROCESSES]
    if any(proofs_in(evaluation) for evaluation in ladder.result.evaluations):
        shown += [known[name] for name in _PROOFS]
    if _told(ladder, "threads_used"):
        shown.append(known["threads_used"])
    return table_of("Details", shown, [row for row in ladder.rows if not row.error])


def _told(ladder: Ladder, field: str) -> bool:
    return any(getattr(row, field) is not None for row in ladder.rows)


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


def _where_told(ladder: Ladder, *names: str) -> list[Shown[Row]]:
    """The columns of these fields of which any rung tells."""
    known = fields_of(ladder)
    return [known[name] for name in names if _told(ladder, name)]


def rungs_table(ladder: Ladder) -> TextTable | None:
    """Where each rung comes from, what it cost and how far its answers are from others', a line a rung: through the
    first backend that each was judged by. None where no rung is another's parent."""
    first: dict[str, Row] = {}
    for row in (*(row for row in ladder.rows if not row.error), *ladder.rows):
        first.setdefault(row.rung, row)
    rows = [first[rung] for rung in dict.fromkeys(row.rung for row in ladder.rows)]
    if not {row.parent for row in rows} & {row.rung for row in rows}:
        return None
    known = fields_of(ladder)
    shown = [
        *(known[name] for name in ("rung", "parent")),
        replace(known["parameters"], column=Column("params", "parameters")),
        *(known[name] for name in ("macs", "agreement")),
        *_where_told(ladder, "teacher_agreement"),
        *_tested(ladder, "p"),
        *_where_told(ladder, "parent_diff", "made_in_s"),
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
