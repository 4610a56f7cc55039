"""Numbers as people read them, and the ladder as cells of text: shared by every writer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from kdbench.progress import duration
from kdbench.records import BenchSettings, ReferenceCell
from kdbench.report.claims import proofs_in
from kdbench.report.rows import Metric, Row, place
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.table import Ladder
from kdbench.stats import Interval


@dataclass(frozen=True)
class TextTable:
    """A titled table whose cells are text, with numbered footnotes."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    legend: str = ""
    """What a heading means that doesn't say it all."""


def seconds(value: float | None) -> str:
    """`135 µs`, `3.36 ms`, `1.20 s`; a dash where there is no number."""
    return _small(value, "s")


def joules(value: float | None) -> str:
    """`135 µJ`, `3.36 mJ`."""
    return _small(value, "J")


def _small(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    for prefix, size in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if value >= size:
            return f"{three_digits(value / size)} {prefix}{unit}"
    return f"{value * 1e9:.0f} n{unit}"


def size(value: float | None, units: tuple[str, ...] = ("B", "kB", "MB", "GB")) -> str:
    """Decimal units: `197 kB`, `2.83 MB`."""
    if value is None:
        return "–"
    amount = float(value)
    for unit in units[:-1]:
        if amount < 999.5:
            return f"{three_digits(amount)} {unit}".rstrip()
        amount /= 1000
    return f"{three_digits(amount)} {units[-1]}"


def count(value: float | None) -> str:
    """`174 k`, `1.71 M`."""
    return size(value, ("", "k", "M", "G"))


def money(value: float | None, currency: str = "") -> str:
    """Three digits that count, however small: `$0.00222`, `EUR 12.4`."""
    if value is None:
        return "–"
    return f"{currency}{' ' * currency.isalpha()}{Decimal(f'{value:.3g}'):f}"


def three_digits(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def points(difference: Interval | None) -> str:
    """A difference of accuracies or of F1 in points: `−0.7 [−1.6, 0.2]`."""
    if difference is None:
        return "–"
    low, high = (_point(value).lstrip("+") for value in (difference.low, difference.high))
    return f"{_point(difference.value)} [{low}, {high}]"


def _point(share: float) -> str:
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def speedup(row: Row | ScenarioRow, brief: bool = False) -> str:
    """`3.86× [3.74, 3.98]`; where the interval covers 1 `no difference [0.98, 1.02]`, without the interval if brief."""
    return _ratio(row.speedup, row.speedup_low, row.speedup_high, brief)


def _ratio(value: float | None, low: float | None, high: float | None, brief: bool) -> str:
    if value is None or low is None or high is None:
        return "–"
    interval = f"[{three_digits(low)}, {three_digits(high)}]"
    if low <= 1 <= high:
        return "no difference" if brief else f"no difference {interval}"
    return f"{three_digits(value)}× {interval}"


def mark(number: int) -> str:
    """A footnote's number: `¹²`."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def ladder_tables(ladder: Ladder, brief: bool = False) -> list[TextTable]:
    """One table for each backend, thread count, batch and sizes; backends without any number are left to `unmeasured`.

    Differences are in points; they and speed-ups are against the baseline, with 95 % intervals. A brief table leaves
    out those of “no difference”, and what a price and a reference take the place of.
    """
    tables, more = [], _legends(ladder, brief)
    columns = _columns(ladder, brief)
    if brief:
        columns = [column for column in columns if column[0] not in _left_out(ladder.result.settings)]
    for (backend, threads, batch, dims), group in groupby(ladder.rows, key=place):
        rows = list(group)
        if all(row.error for row in rows):
            continue
        notes: dict[str, int] = {}
        cells = tuple((*(cell(row) for _, cell in columns), _marks(row, notes)) for row in rows)
        where = f"{backend}, {threads} thread{'s' if threads > 1 else ''}, batch {batch}{f', {dims}' if dims else ''}"
        title = f"{where}, against {ladder.result.baseline}"
        header = (*(name for name, _ in columns), "")
        legend = " ".join(filter(None, (LEGENDS[ladder.metric].format(baseline=ladder.result.baseline), *more)))
        tables.append(TextTable(title, header, cells, tuple(notes), legend))
        more = []  # said once, below the first table
    return tables


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


def _columns(ladder: Ladder, brief: bool) -> list[tuple[str, Callable[[Row], str]]]:
    """Headings, and what stands below them."""
    metric: dict[Metric, list[tuple[str, Callable[[Row], str]]]] = {
        "accuracy": [
            ("acc. %", lambda row: _hundredths(row.accuracy)),
            ("Δ points", lambda row: points(row.difference)),
        ],
        "f1": [
            ("F1 µ %", lambda row: _hundredths(row.f1_micro)),
            ("F1 macro %", lambda row: _hundredths(row.f1_macro)),
            ("Δ µ points", lambda row: points(row.difference)),
        ],
        "agreement": [("agree %", lambda row: _hundredths(row.agreement))],
    }
    settings = ladder.result.settings
    cost: list[tuple[str, Callable[[Row], str]]] = []
    if settings.price_per_h is not None:
        cost = [("per 1M", lambda row: money(row.cost_per_million, settings.currency))]
    referred: list[tuple[str, Callable[[Row], str]]] = []
    if reference := settings.reference:
        referred = [(_reference_heading(reference, brief), lambda row: _referred(row, reference, brief))]
    return [
        ("rung", lambda row: row.rung),
        *metric[ladder.metric],
        ("size", lambda row: size(row.size_bytes)),
        ("p50", lambda row: seconds(row.latency_p50_s)),
        ("p99", lambda row: seconds(row.latency_p99_s)),
        ("per s", lambda row: count(row.throughput_per_s)),
        *cost,
        ("speed-up", lambda row: "1" if row.rung == ladder.result.baseline else speedup(row, brief)),
        *referred,
    ]


def _referred(row: Row, reference: ReferenceCell, brief: bool) -> str:
    """A brief one without its interval, as `≈ 1×` where that covers 1."""
    if (row.rung, row.backend, row.threads) == (reference.rung, reference.backend, reference.threads):
        return "1"
    shown = _ratio(row.reference_speedup, row.reference_speedup_low, row.reference_speedup_high, brief)
    return "≈ 1×" if brief and shown == "no difference" else shown.partition(" [")[0] if brief else shown


def _hundredths(share: float | None) -> str:
    return percent(share).removesuffix(" %")


def _marks(row: Row, notes: dict[str, int]) -> str:
    """The numbers of the row's footnotes, which are added to `notes` where they are new."""
    said = (*row.flags, f"error: {row.error}") if row.error else row.flags
    return " ".join(mark(notes.setdefault(text, len(notes) + 1)) for text in said)


_COSTS: tuple[tuple[str, Callable[[Row], str], str | None], ...] = (
    ("cold start", lambda row: seconds(row.cold_start_s), "start_s"),
    ("load", lambda row: seconds(row.load_s), None),
    ("optimize", lambda row: seconds(row.optimize_s), "optimize_s"),
    ("first run", lambda row: seconds(row.first_run_s), None),
    ("peak memory", lambda row: size(row.peak_memory_bytes), None),
    ("steady memory", lambda row: size(row.steady_memory_bytes), "steady_memory_bytes"),
    ("device memory", lambda row: size(row.device_memory_bytes), "device_memory_bytes"),
    ("energy", lambda row: joules(row.energy_j), "energy_j"),
)
"""What a process costs: headings, what stands below them, and the field without which a column is left out."""


def details_table(ladder: Ladder) -> TextTable:
    """What doesn't change from batch to batch, and what a process costs before it is warm."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("rung", lambda row: row.rung),
        ("parent", lambda row: row.parent or "–"),
        ("backend", lambda row: row.backend),
        ("batch", lambda row: str(row.batch)),
        *([("sizes", lambda row: row.dims or "–")] if any(row.dims for row in ladder.rows) else []),
        ("parameters", lambda row: count(row.parameters)),
        ("MACs", lambda row: count(row.macs)),
        ("all labels agree" if ladder.metric == "f1" else "agreement", lambda row: percent(row.agreement)),
        ("McNemar p", lambda row: _p(ladder.mcnemar.get((row.rung, row.backend, row.threads)))),
        *_from_parent(ladder),
        *(
            (name, show)
            for name, show, told in _COSTS
            if told is None or any(getattr(row, told) is not None for row in ladder.rows)
        ),
    ]
    if ladder.result.settings.precision is not None:
        columns += [
            ("processes", lambda row: "–" if row.rounds is None else str(row.rounds)),
            ("outliers", lambda row: percent(row.outlier_share)),
            ("could have found", lambda row: percent(row.smallest_difference)),
        ]
    if any(proofs_in(evaluation) for evaluation in ladder.result.evaluations):
        columns += [
            ("nodes on provider", lambda row: percent(row.node_share)),
            ("time on provider", lambda row: percent(row.time_share)),
            ("in int8", lambda row: percent(row.int8_share)),
            ("nodes fused", lambda row: percent(row.fused_share)),
            ("error to fp32", lambda row: "–" if row.rms_error is None else f"{row.rms_error:.1e}"),
            ("ran as", lambda row: row.ran_as or "–"),
        ]
    if any(row.threads_used is not None for row in ladder.rows):
        columns.append(("threads used", lambda row: "–" if row.threads_used is None else f"{row.threads_used:.2f}"))
    if ladder.metric != "accuracy":
        columns = [column for column in columns if column[0] != "McNemar p"]
    rows = tuple(tuple(cell(row) for _, cell in columns) for row in ladder.rows if not row.error)
    return TextTable("Details", tuple(name for name, _ in columns), rows)


def _from_parent(ladder: Ladder) -> list[tuple[str, Callable[[Row], str]]]:
    """What each rung cost and gained beside the one that it was made of, where any of them tells."""
    columns: list[tuple[str, Callable[[Row], str]]] = []
    if any(row.parent_difference for row in ladder.rows):
        columns.append(("Δ to parent", lambda row: points(row.parent_difference)))
    if any(row.made_in_s is not None for row in ladder.rows):
        columns.append(("took", lambda row: "–" if row.made_in_s is None else duration(row.made_in_s)))
    return columns


def rungs_table(ladder: Ladder) -> TextTable | None:
    """Where each rung comes from, what it cost and how far its answers are from others', a line a rung: through the
    first backend that each was judged by. None where no rung is another's parent."""
    rows = list({row.rung: row for row in reversed(ladder.rows)}.values())[::-1]
    if not {row.parent for row in rows} & {row.rung for row in rows}:
        return None
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("rung", lambda row: row.rung),
        ("parent", lambda row: row.parent or "–"),
        ("params", lambda row: count(row.parameters)),
        ("MACs", lambda row: count(row.macs)),
        ("agree %", lambda row: _hundredths(row.agreement)),
        ("p", lambda row: _p(ladder.mcnemar.get((row.rung, row.backend, row.threads)))),
        *_from_parent(ladder),
    ]
    columns = [column for column in columns if column[0] != "p" or ladder.metric == "accuracy"]
    tested = ", p: McNemar's exact test against it" if ladder.metric == "accuracy" else ""
    legend = f"agree %: answers as {ladder.result.baseline} does{tested}"
    if columns[-1][0] == "took":
        legend += "; took: training and all, without what the parent took"
    cells = tuple(tuple(cell(row) for _, cell in columns) for row in rows)
    return TextTable("How each rung was made", tuple(name for name, _ in columns), cells, legend=f"{legend}.")


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


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
