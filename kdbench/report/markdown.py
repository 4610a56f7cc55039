"""The report as Markdown."""

import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest

import jinja2

from kdbench.errors import printable
from kdbench.records import Comparison
from kdbench.records.turns import SpiralRecord
from kdbench.report.again import again
from kdbench.report.circumstances import circumstances, circumstances_of, how_compared, how_measured
from kdbench.report.comparison import comparison_table
from kdbench.report.ladder_tables import details_table, ladder_tables, unmeasured
from kdbench.report.operators import slimming_lines
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.spiral import turns_table
from kdbench.report.table import Ladder, titles
from kdbench.report.text import Cell, TextTable, count, mark, size
from kdbench.store import Arrays


def to_markdown(
    ladders: Sequence[Ladder],
    plots: Sequence[Sequence[tuple[str, str]]] = (),
    heading: str = "#",
    columns: Sequence[str] = (),
) -> str:
    """A section for each result file, its title led by `heading`; `plots` are the images of each, address and text.

    `columns` are fields of a row, in the place of the ladder's usual ones and its details.
    """
    template = template_environment().from_string(
        files(__package__).joinpath("report.md.j2").read_text(encoding="utf-8")
    )
    sections = [
        {
            "title": title,
            "result": ladder.result,
            "tables": [*ladder_tables(ladder, columns=columns), *scenario_tables(ladder, columns)],
            "details": None if columns or all(row.error for row in ladder.rows) else details_table(ladder),
            "slimmed": slimming_lines(ladder.result.artifacts),
            "unmeasured": [*unmeasured(ladder.rows), *unmeasured_loads(ladder)],
            "plots": images or (),
            "turns": turns_table(ladder.result.spiral) if ladder.result.spiral and not columns else None,
            "measured": how_measured(ladder),
            "circumstances": circumstances(ladder),
            "again": again(ladder.result),
        }
        for ladder, title, images in zip_longest(ladders, titles(ladders), plots)
    ]
    return template.render(sections=sections, heading=heading).strip() + "\n"


def tables_to_markdown(ladder: Ladder) -> str:
    """Only the ladder's tables with their notes, as the README shows them."""
    template = template_environment().from_string(
        "{% from 'macros' import table %}"
        "{% for t in tables %}**{{ t.title }}**\n\n{{ table(t) }}\n{% endfor %}"
        "{% for line in unmeasured %}{{ line | cell }}\n{% endfor %}"
    )
    return template.render(tables=ladder_tables(ladder), unmeasured=unmeasured(ladder.rows)).strip()


def views_to_markdown(tables: Sequence[TextTable]) -> str:
    """Tables under headings of their own."""
    template = template_environment().from_string(
        "{% from 'macros' import table %}{% for t in tables %}# {{ t.title | cell }}\n\n{{ table(t) }}\n{% endfor %}"
    )
    return template.render(tables=tables).strip() + "\n"


def turns_to_markdown(record: SpiralRecord) -> str:
    """The turns of a spiral with what ended it, on a page of their own."""
    template = template_environment().get_template("spiral")
    return template.render(heading="#", table_=turns_table(record), remarks=record.remarks).strip() + "\n"


def comparison_to_markdown(comparison: Comparison, arrays: Arrays, images: Sequence[tuple[str, str]] = ()) -> str:
    """The comparison of methods, and how it was made; `images` have an address and a text each."""
    template = template_environment().from_string(
        files(__package__).joinpath("comparison.md.j2").read_text(encoding="utf-8")
    )
    table = comparison_table(comparison, arrays)
    return (
        template.render(
            c=comparison,
            table_=table,
            images=images,
            recipe=comparison.recipe,
            compared=how_compared(comparison, _cell),
            circumstances=circumstances_of(comparison),
        ).strip()
        + "\n"
    )


def template_environment() -> jinja2.Environment:
    """For templates of Markdown, with its filters, the macro `table`, and the part `spiral` of a page."""
    parts = {
        name: files(__package__).joinpath(f"{name}.md.j2").read_text(encoding="utf-8") for name in ("macros", "spiral")
    }
    environment = jinja2.Environment(  # noqa: S701 — Markdown, not HTML: `cell` escapes what Markdown reads
        loader=jinja2.DictLoader(parts),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "marked": _marked, "size": size, "count": count, "mark": mark, "rule": _rule}
    return environment


def _cell(text: object) -> str:
    """Text that Markdown shows as it is, on one line; no mention of anybody where it becomes a comment."""
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"[\\`*_|<>\[\]~&$#]", r"\\\g<0>", line)
    return re.sub(r"(?<![^\W_])@(?=\w)", "&#64;", line)


def _marked(cell: Cell) -> str:
    """A cell's text, in bold where it is the best, and the marks of its footnotes."""
    text = _cell(cell.text)
    return " ".join(filter(None, (f"**{text}**" if cell.best else text, *map(mark, cell.notes))))


def _rule(table: TextTable) -> str:
    """The line under a table's header: text to the left, numbers to the right."""
    return "|" + "|".join(":---" if column.left else "---:" for column in table.columns) + "|"
