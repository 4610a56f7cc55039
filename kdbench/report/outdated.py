"""Whether a page that is generated from results is that of today."""

import re
from contextlib import suppress
from pathlib import Path

from kdbench.errors import UserError
from kdbench.report.markdown import to_markdown
from kdbench.report.methods_view import Compared
from kdbench.report.rendering import Asked, Found, rendered
from kdbench.report.table import Ladder

GENERATED = re.compile(r"\]\]\](.*?)\[\[\[end\]\]\]", re.DOTALL)
"""What cog has written."""


def outdated(readme: Path, ladders: list[Ladder], comparisons: list[Compared]) -> list[str]:
    """What is wrong with a page that cog writes: rows of today's tables that it lacks, and rows that none of them has.

    All ladders belong there; tables of backends or methods may be left out, but not in part.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if "[[[cog" not in text or not (ladders or comparisons):
        return []
    views = [to_markdown(ladders)]
    for view, of in (("backends", ladders), ("methods", comparisons)):
        with suppress(UserError):  # nothing to show in that view
            views += [rendered(Found(Asked(view), view, ladders, comparisons), "md")] if of else []
    lines, titles = set(text.splitlines()), _titles(text)
    missing = [row for at, view in enumerate(views) for row in _rows(view) if at == 0 or titles & _titles(view)]
    missing = [row for row in missing if row not in lines]
    known = {row for view in views for row in _rows(view)}
    unknown = [row for part in GENERATED.findall(text) for row in _rows(part) if row not in known]
    if not (missing or unknown):
        return []
    wrong = max(len(missing), len(unknown))
    return [f"{readme}: {wrong} lines of its tables are not those of today: write it again with cog -r {readme}"]


def _rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def _titles(page: str) -> set[str]:
    """Headings, of whatever depth."""
    return {line.lstrip("# ") for line in page.splitlines() if line.startswith("#")}
