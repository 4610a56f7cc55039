"""Plain data and recipes as TOML."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.records.recipe import Recipe


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


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as `recipe_from_toml` reads it; what stands at its default is left out, unless that says something."""
    plain = recipe.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    if recipe.quantize.filled_in:
        said = recipe.quantize.model_dump(mode="json", by_alias=True, exclude_none=True)
        plain["quantize"] = said | plain["quantize"]
    values = [(name, value) for name, value in plain.items() if not isinstance(value, Mapping)]
    sections = [(name, value) for name, value in plain.items() if isinstance(value, Mapping)]
    lines = [f"{_key(name)} = {toml(value)}" for name, value in values]
    for name, section in sections:
        lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"
