"""Scenarios as tables of text, shared by every writer."""

from collections.abc import Callable
from itertools import groupby

from kdbench.progress import duration
from kdbench.report.rows import Metric
from kdbench.report.scenarios import ScenarioRow, load_of
from kdbench.report.table import Ladder
from kdbench.report.text import TextTable, count, mark, percent, seconds, speedup

SCORES: dict[Metric, str] = {"accuracy": "acc. %", "f1": "F1 µ %", "agreement": "agree %"}

COLUMNS: dict[str, list[tuple[str, Callable[[ScenarioRow], str]]]] = {
    "single_stream": [("p90", lambda row: seconds(row.latency_s))],
    "multi_stream": [("p99", lambda row: seconds(row.latency_s))],
    "server": [("per s", lambda row: count(row.rate_per_s)), ("p99", lambda row: seconds(row.latency_s))],
    "offline": [("per s", lambda row: count(row.rate_per_s))],
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


def scenario_tables(ladder: Ladder) -> list[TextTable]:
    """A table for each scenario, backend, thread count, batch, sizes and number of sessions.

    Those of which no cell has a number, all for the same reason, are left to `unmeasured_loads`.
    """
    tables, groups = [], _groups(ladder)
    part_s = ladder.result.settings.budget_s / max(1, len(groups))
    for rows in groups:
        if _reason(rows):
            continue
        first = rows[0]
        columns: list[tuple[str, Callable[[ScenarioRow], str]]] = [
            ("rung", lambda row: row.rung),
            (SCORES[ladder.metric], lambda row: percent(row.score).removesuffix(" %")),
            *COLUMNS[first.scenario],
            ("speed-up", lambda row: "1" if row.rung == ladder.result.baseline else speedup(row)),
        ]
        notes: dict[str, int] = {}
        cells = tuple((*(cell(row) for _, cell in columns), _marks(row, notes)) for row in rows)
        header = (*(name for name, _ in columns), "")
        tables.append(
            TextTable(_title(first, ladder.result.baseline), header, cells, tuple(notes), _legend(rows, part_s))
        )
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


def _legend(rows: list[ScenarioRow], part_s: float) -> str:
    """`part_s` is the table's part of the budget."""
    queries = min((row.queries for row in rows if row.queries is not None), default=0)
    text = LEGENDS[rows[0].scenario] + ("" if rows[0].scenario == "offline" else ESTIMATE) + SHORT
    spent_s = sum(row.spent_s or 0.0 for row in rows)
    if spent_s > MORE * part_s:
        part, spent = duration(part_s), duration(spent_s)
        text += f" The runs took {spent}, their part of the budget was {part}: fewer queries would tell nothing."
    return text.format(queries=queries, bound=seconds(rows[0].bound_s))


def _marks(row: ScenarioRow, notes: dict[str, int]) -> str:
    """The numbers of the row's footnotes, which are added to `notes` where they are new."""
    said = (*row.flags, f"error: {row.error}") if row.error else row.flags
    return " ".join(mark(notes.setdefault(text, len(notes) + 1)) for text in said)
