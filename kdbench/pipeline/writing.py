"""A recipe as TOML with comments, from its template."""

import json
import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2


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


def toml(value: Any) -> str:
    """Plain data as TOML in one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml(part)}" for key, part in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)
