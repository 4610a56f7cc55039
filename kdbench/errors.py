"""The one error that users see, and the way unknown names are answered."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")

MOST_KNOWN = 40
"""Names that are all listed: a graph has thousands of nodes, while no table of ours is as long."""
MOST_NAMES = 12
"""Of more names those that are listed."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the field or file and the next step."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """The text without signs that a terminal would obey: what it says may be a stranger's, such as a file's names."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest known one, or all of them, or of very many the first."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_KNOWN else ""
    return f"known: {', '.join(known[:MOST_NAMES] if more else known)}{more}"


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a UserError that names the known ones."""
    if name not in table:
        raise UserError(f"unknown {kind} '{name}': {nearest(name, table)}")
    return table[name]


def check_counts(**counts: int) -> None:
    """Raises UserError that names the first of these arguments that is no number of 1 or more."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name}: should be 1 or more, not {count}")


def first_line(error: BaseException, limit: int = 300) -> str:
    """The gist of a foreign exception in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
