"""A gate as people read it: its verdict, a table, and what stands below; and as Markdown for a pull request."""

from collections.abc import Callable, Sequence
from importlib.resources import files

from kdbench.records.gate import Check, Gate
from kdbench.report.markdown import template_environment
from kdbench.report.terminal import LONGEST_NAME, WIDEST_MARKS
from kdbench.report.text import (
    DASH,
    Cell,
    Column,
    Shown,
    TextTable,
    interval_cell,
    name_cell,
    number_cell,
    percent,
    points,
    seconds,
    size,
    table_of,
)
from kdbench.stats import Interval


def verdict(gate: Gate) -> str:
    """`FAILS: 1 of 6 comparisons beyond its bound, 2 can't be told`."""
    total, beyond, left = len(gate.checks), len(gate.beyond), len(gate.open)
    compared = f"{total} comparison{'' if total == 1 else 's'}"
    parts = [] if total else ["nothing to compare"]
    if beyond:
        parts.append(f"{beyond} of {compared} beyond {'its bound' if beyond == 1 else 'their bounds'}")
    elif left < total:
        parts.append(f"{total - left} of {compared} within bounds" if left else f"{compared} within bounds")
    if left:
        parts.append(f"{left} can't be told" if parts else f"{left} of {compared} can't be told")
    if gate.failures:
        parts.append(f"{len(gate.failures)} failure{'' if len(gate.failures) == 1 else 's'}")
    if gate.missing:
        parts.append(f"{len(gate.missing)} cell{'' if len(gate.missing) == 1 else 's'} missing in NEW")
    strictly = " (--strict)" if gate.strict and not gate.passed and not (gate.beyond or gate.failures) else ""
    return f"{'PASSES' if gate.passed else 'FAILS'}{strictly}: {', '.join(parts)}"


def gate_table(gate: Gate) -> TextTable:
    """A line a comparison; what all of them share stands in the title."""
    return _table(gate.checks, f"{gate.new} against {gate.old}", LEGEND)


def narrow_tables(gate: Gate, width: int) -> list[TextTable]:
    """The same in tables that keep to so many letters: apart by backend, rung and sizes, which their titles have."""
    tables: list[TextTable] = []
    for depth in range(len(_APART) + 1):
        groups: dict[tuple[str, ...], list[Check]] = {}
        for check in gate.checks:
            groups.setdefault(tuple(getattr(check, name) for name in _APART[:depth]), []).append(check)
        tables = [
            _table(group, f"{gate.new} against {gate.old}", LEGEND if number == 0 else "")
            for number, group in enumerate(groups.values())
        ]
        if all(_width(table) <= width for table in tables):
            break
    return tables


_APART = ("backend", "rung", "dims")
LEGEND = "Change: of latency and size in percent, of accuracy in points, each with its 95 % interval."


def _width(table: TextTable) -> int:
    """Letters of a line on a terminal, which shortens names and breaks footnotes."""
    widths = []
    for number, (column, cells) in enumerate(zip(table.columns, zip(*table.rows, strict=True), strict=True)):
        longest = LONGEST_NAME if column.left and isinstance(cells[0].value, str) else 1000
        shown = max(len(column.name), *(min(len(cell.text), longest) for cell in cells))
        widths.append(WIDEST_MARKS if number == len(table.columns) - 1 else shown)
    return sum(width + 1 for width in widths)


def _table(checks: Sequence[Check], title: str, legend: str) -> TextTable:
    places = [column for column in _PLACES if len({column.cell(check).text for check in checks} - {DASH}) > 1]
    shown = [_WHAT, *places, *_NUMBERS]
    return table_of(
        ", ".join([title, *_common(checks, places)]),
        shown,
        checks,
        lambda check: [*filter(None, (check.settle,)), *check.notes],
        legend,
    )


def _common(checks: Sequence[Check], places: Sequence[Shown[Check]]) -> list[str]:
    """What is the same in all lines, in words."""
    said = []
    for column, word in zip(_PLACES, ("{}", "{}", "{} thread", "batch {}", "{}"), strict=True):
        found = {column.cell(check).text for check in checks} - {DASH}
        if column not in places and found:
            (text,) = found
            said.append(word.format(text) + ("s" if word.endswith("thread") and text != "1" else ""))
    return said


def _text(value: str | int | None) -> Cell:
    return Cell(DASH) if value in (None, "") else Cell(str(value), value)


_WHAT = Shown[Check](Column("", "quantity", left=True), lambda check: Cell(check.quantity, check.quantity))
_PLACES = (
    Shown[Check](Column("rung", "rung", left=True), lambda check: _text(check.rung)),
    Shown[Check](Column("backend", "backend", left=True), lambda check: _text(check.backend)),
    Shown[Check](Column("threads", "threads"), lambda check: _text(check.threads)),
    Shown[Check](Column("batch", "batch"), lambda check: _text(check.batch)),
    Shown[Check](
        Column("sizes", "dims", left=True), lambda check: Cell(check.dims or DASH)
    ),  # whole, on a terminal too
)


def _amount(check: Check, value: float | None) -> Cell:
    if value is None:
        return Cell(DASH)
    show: Callable[[float], str] = {"speed": seconds, "size": size}.get(check.quantity, percent)
    return number_cell(value, show)


def _change(check: Check) -> Cell:
    """`+10.2 % [8.1, 12.4]`, or in points."""
    if check.change is None:
        return Cell(DASH)
    if check.low is None or check.high is None:
        return Cell(_percent(check.change), check.change)
    found = Interval(check.change, check.low, check.high)
    if check.quantity != "speed":
        return interval_cell(found, points)
    limits = ", ".join(_percent(value).removesuffix(" %").removeprefix("+") for value in (found.low, found.high))
    return interval_cell(found, lambda found: f"{_percent(found.value)} [{limits}]")


def _percent(share: float) -> str:
    text = f"{100 * share:+.1f}".replace("-", "−")
    return f"{'0.0' if text in ('+0.0', '−0.0') else text} %"


def _bound(check: Check) -> Cell:
    if check.quantity in ("speed", "size"):
        return Cell(f"≤ {100 * check.bound:+.3g} %", check.bound)
    return Cell(f"≥ {100 * check.bound:+.3g}".replace("-", "−").replace("+0", "0"), check.bound)


_NUMBERS = (
    Shown[Check](Column("old", "old"), lambda check: _amount(check, check.old)),
    Shown[Check](Column("new", "new"), lambda check: _amount(check, check.new)),
    Shown[Check](Column("change", "change"), _change),
    Shown[Check](Column("bound", "bound"), _bound),
    Shown[Check](Column("outcome", "outcome", left=True), lambda check: name_cell(check.outcome)),
)


def gate_lines(gate: Gate) -> list[str]:
    """What stands below the table: what no longer holds, what is missing, what should be known."""
    return [
        *(f"no longer so: {failure}" for failure in gate.failures),
        *(f"missing in NEW: {place}" for place in gate.missing),
        *gate.notes,
    ]


def gate_to_markdown(gate: Gate) -> str:
    """The summary of a pull request."""
    template = template_environment().from_string(
        files(__package__).joinpath("summary.md.j2").read_text(encoding="utf-8")
    )
    return template.render(gate=gate, verdict=verdict(gate), t=gate_table(gate)).strip() + "\n"
