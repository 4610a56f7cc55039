"""The formats of results and of recipes, field by field, as Markdown: from the records and their docstrings."""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdbench.records import RESULTS_SCHEMA, Comparison, Recipe, ResultFile, sealed
from kdbench.records.writing import toml

OBVIOUS = {
    "kdbench": "Version that wrote it.",
    "rung": "Name of the artifact on its ladder.",
    "artifact_sha256": "Of the ONNX file.",
    "sha256": "Of the file.",
    "size_bytes": "Of the file.",
    "backend": "As `kdbench backends` names it, with its precision where that is not fp32.",
    "precision": "Of the artifact.",
    "batch": "Samples a call.",
    "threads": "Of the backend.",
    "error": "Why there are no values; null where there are.",
    "seed": "Of everything random.",
    "parameters": "How many.",
    "recipe": "As it was run; null for a measurement without one. Its fields are those of a recipe's TOML.",
    "machine": "Where it was measured.",
}
"""Fields whose name says it all in every record that has them; this is what it says."""

MAY_MISS = ", may be missing"

WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any value", NoneType: "null"}


def schema_to_markdown() -> str:
    """A section for each record that result files and comparisons hold; a recipe's fields are left to recipes."""
    parts = [f"The schema is {RESULTS_SCHEMA}. {_said(sealed.__module__, 'RESULTS_SCHEMA')}"]
    for kind in records():
        text = inspect.cleandoc(kind.__doc__ or "")
        rows = [f"| `{name}` | {shown} | {words} |" for name, shown, words in fields_of(kind)]
        parts.append("\n".join([f"### {kind.__name__}", "", *([text, ""] if text else []), *HEAD, *rows]))
    return "\n\n".join(parts)


HEAD = ("| field | type | |", "|:---|:---|:---|")


def records() -> list[type[BaseModel]]:
    """Every kind of record within a result file or a comparison, each once, but for the parts of a recipe."""
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [ResultFile, Comparison]
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found.append(kind)
            inner = [part for field in kind.model_fields.values() for part in _kinds(field.annotation)]
            waiting += [part for part in inner if part is not Recipe]
    return found


def recipe_to_markdown() -> str:
    """A section for each kind of table of a recipe, with where it stands and what its fields are by default."""
    parts = []
    for kind, places in tables().items():
        where = ", ".join(f"`[{place}]`" for place in places) if places != [""] else "Above all tables"
        text = f"{where}. {inspect.cleandoc(kind.__doc__ or '')}".rstrip()
        rows = [
            f"| `{name}` | {shown.removesuffix(MAY_MISS)} | {default} | {words} |"
            for (name, shown, words), default in zip(fields_of(kind), _defaults(kind), strict=True)
        ]
        parts.append("\n".join([f"### {_titled(kind)}", "", text, "", *RECIPE_HEAD, *rows]))
    return "\n\n".join(parts)


RECIPE_HEAD = ("| field | type | default | |", "|:---|:---|:---|:---|")


def tables() -> dict[type[BaseModel], list[str]]:
    """Every kind of table of a recipe, with the names under which it stands there; NAME is one of the user's."""
    found: dict[type[BaseModel], list[str]] = {}
    waiting: list[tuple[type[BaseModel], str]] = [(Recipe, "")]
    while waiting:
        kind, place = waiting.pop(0)
        found.setdefault(kind, []).append(place)
        for name, field in kind.model_fields.items():
            inner = f"{place}.{name}".lstrip(".") + (".NAME" if get_origin(field.annotation) is dict else "")
            waiting += [(part, inner) for part in dict.fromkeys(_kinds(field.annotation))]
    return found


def _defaults(kind: type[BaseModel]) -> Iterator[str]:
    """As TOML, where there is any."""
    for field in kind.model_fields.values():
        if field.is_required():
            yield "needed"
        else:
            yield "" if isinstance(field.default, BaseModel | None) else f"`{toml(field.default)}`"


def fields_of(kind: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Name, type and words of each field; no words where neither a docstring nor an obvious name gives them."""
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            told |= _docstrings(base)
    for name, field in kind.model_fields.items():
        words = " ".join(told.get(name, OBVIOUS.get(name, "")).split()).replace("|", "\\|")
        words = re.sub(r"\bNone\b", "null", words)  # as JSON has it
        yield field.alias or name, _type(field), words


def _type(field: FieldInfo) -> str:
    return f"{_words(field.annotation)}{'' if field.is_required() else MAY_MISS}"


def _titled(kind: type[BaseModel]) -> str:
    return kind.__name__.removesuffix("Section")


def _words(annotation: Any) -> str:
    """A type as people say it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{_titled(annotation)}](#{_titled(annotation).lower()})" if annotation is not Recipe else "recipe"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_words(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_words, inner))}]"
    if origin is dict:
        return f"object of {_words(inner[1])} by {_words(inner[0])}"
    return _words(inner[0])  # Annotated


def _kinds(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """Of the fields that the class itself has, by name."""
    body = next(
        node.body
        for node in _tree(kind.__module__).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    return dict(_behind(body))


def _said(module: str, name: str) -> str:
    """The docstring behind a constant of a module."""
    return inspect.cleandoc(dict(_behind(_tree(module).body))[name])


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def _behind(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Names that are assigned, each with the string that follows it."""
    for statement, following in pairwise(body):
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        match targets, following:
            case [ast.Name(id=name)], ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text
