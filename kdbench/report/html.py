"""Tables as a fragment of HTML, for a page of one's own."""

from collections.abc import Sequence
from importlib.resources import files

import jinja2

from kdbench.errors import printable
from kdbench.report.text import TextTable


def to_html(tables: Sequence[TextTable]) -> str:
    """A `section` for each table, without styles and scripts; numbers that cells are sorted by are in `data-value`."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["line"] = lambda text: printable(" ".join(text.split()))
    template = environment.from_string(files(__package__).joinpath("tables.html.j2").read_text(encoding="utf-8"))
    return template.render(tables=tables).strip() + "\n"
