"""Scenarios as tables of text, shared by every writer."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from kdbench.progress import duration
from kdbench.records import ScenarioMeasurement
from kdbench.report.columns import scenario_fields
from kdbench.report.ladder_tables import shared
from kdbench.report.rows import Metric
from kdbench.report.scenarios import ScenarioRow, load_of
from kdbench.report.table import Ladder
from kdbench.report.text import Column, TextTable, seconds, table_of

SCORES: dict[Metric, str] = {"accuracy": "acc. %", "f1": "F1 µ %", "agreement": "agree %"}

COLUMNS: dict[str, tuple[Column, ...]] = {
    "single_stream": (Column("p90", "latency_s"),),
    "multi_stream": (Column("p99", "latency_s"),),
    "server": (Column("per s", "rate_per_s"), Column("p99", "latency_s")),
    "offline": (Column("per s", "rate_per_s"),),
}

LEGENDS = {
    "single_stream": "One sample a query, the next one on an answer. p90: ",
    "multi_stream": "Eight samples a query, the next one on an answer. p99, of whole queries: ",
    "server": (
        "Per s: the highest rate of Poisson arrivals whose p99 stays under {bound}, found by search in each process "
        "to within 5 %, 15 % where the budget is short, and confirmed by another run; the processes' median. p99, at "
        "that rate: "
    ),
    "offline": "Per s: samples of one query of {queries}; the processes' median.",
}
ESTIMATE = "by MLPerf's early stopping, at 99 % confidence, of {queries} queries or more; the processes' median."
MORE = 1.2
"""Times its part of the budget from which on a table says so."""
SHORT = " By MLPerf's loadgen, in shorter runs than MLPerf's rules ask for: no MLPerf submission."


def scenario_tables(ladder: Ladder, columns: Sequence[str] = ()) -> list[TextTable]:
    """A table for each scenario, backend, thread count, batch, sizes and number of sessions.

    Those of which no cell has a number, all for the same reason, are left to `unmeasured_loads`. `columns` are fields
    of a row, in the place of the usual ones; those that a row doesn't have are left out, and so are tables with none
    of them.
    """
    tables, groups, known = [], _groups(ladder), scenario_fields(ladder.result.baseline)
    if columns and not known.keys() & set(columns):
        return []
    runs = ladder.result.scenarios  # all of them, whichever are shown
    part_s = ladder.result.settings.budget_s / max(1, len({load_of(run) for run in runs}))
    for rows in groups:
        if _reason(rows):
            continue
        first = rows[0]
        usual = [
            known["rung"].column,
            Column(SCORES[ladder.metric], "score"),
            *COLUMNS[first.scenario],
            known["speedup"].column,
        ]
        wanted = [known[name].column for name in columns if name in known and name != "flags"] or usual
        shown = [replace(known[column.key], column=column) for column in wanted]
        legend = _legend(rows, part_s, _spent_s(runs, first))
        table = table_of(_title(first, ladder.result.baseline), shown, rows, _said, legend)
        common = shared(first.threads, first.batch, first.dims, first.backend)
        tables.append(replace(table, common=(*common, ("scenario", first.scenario.replace("_", " ")))))
    return tables


def unmeasured_loads(ladder: Ladder) -> list[str]:
    """One line for each reason why nothing of a table has a number."""
    return [f"not measured: {reason}" for reason in dict.fromkeys(map(_reason, _groups(ladder))) if reason]


def _groups(ladder: Ladder) -> list[list[ScenarioRow]]:
    return [list(group) for _, group in groupby(ladder.scenarios, key=load_of)]


def _reason(rows: list[ScenarioRow]) -> str | None:
    """Why none of the rows has a number, if that is one reason."""
    return rows[0].error if len({row.error for row in rows}) == 1 and len(rows) > 1 else None


def _title(row: ScenarioRow, baseline: str) -> str:
    bound = f", p99 ≤ {seconds(row.bound_s)}" if row.scenario == "server" else ""
    batch = {"single_stream": "", "server": f", batch up to {row.batch}"}.get(row.scenario, f", batch {row.batch}")
    sessions = f", {row.sessions} sessions" if row.sessions > 1 else ""
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    name, sizes = row.scenario.replace("_", " "), f", {row.dims}" if row.dims else ""
    return f"{name}{bound}: {row.backend}, {threads}{sessions}{batch}{sizes}, against {baseline}"


def _spent_s(runs: Sequence[ScenarioMeasurement], shown: ScenarioRow) -> float:
    """By all runs under the same load as those that are shown."""
    return sum(run.spent_s or 0.0 for run in runs if load_of(run) == load_of(shown))


def _legend(rows: list[ScenarioRow], part_s: float, spent_s: float) -> str:
    """`part_s` is the table's part of the budget, of which its runs took `spent_s`."""
    queries = min((row.queries for row in rows if row.queries is not None), default=0)
    text = LEGENDS[rows[0].scenario] + ("" if rows[0].scenario == "offline" else ESTIMATE) + SHORT
    if spent_s > MORE * part_s:
        part, spent = duration(part_s), duration(spent_s)
        text += f" The runs took {spent}, their part of the budget was {part}: fewer queries would tell nothing."
    return text.format(queries=queries, bound=seconds(rows[0].bound_s))


def _said(row: ScenarioRow) -> tuple[str, ...]:
    """What has to be known of a row: a footnote each."""
    return (*row.flags, f"error: {row.error}") if row.error else row.flags
