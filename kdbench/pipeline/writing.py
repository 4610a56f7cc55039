"""A recipe as TOML with comments, from its template."""

import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2

from kdbench.records.writing import toml


def written(plain: Mapping[str, Any], words: Mapping[str, Any], student_said: str, expected: list[str]) -> str:
    """The text of the recipe `plain`; `words` and the rest are what its comments say."""
    environment = jinja2.Environment(  # noqa: S701 — TOML, not HTML: `toml` escapes what TOML reads
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"toml": toml, "comment": _comment}
    template = environment.from_string(files(__package__).joinpath("recipe.toml.j2").read_text(encoding="utf-8"))
    return template.render(recipe=plain, student_said=student_said, expected=expected, **words)


def _comment(text: str) -> str:
    """Text as lines of comment."""
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)
