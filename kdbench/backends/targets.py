"""A backend as it is asked for, `NAME[:PRECISION][@PYTHON]`, with its options: parsed here, passed on everywhere."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.backends.rows import BACKENDS, Backend, Options, unlisted
from kdbench.errors import UserError, nearest
from kdbench.records import slug

ALIASES = {"f32": "fp32", "f16": "fp16"}
"""Of precisions."""

FOLDERS_OF_PROGRAMS = ("bin", "Scripts")


@dataclass(frozen=True)
class Target:
    """A row of the table, at a precision, under an interpreter."""

    row: Backend
    precision: str
    """Empty where the provider has no row: it takes the one it likes."""
    python: str | None = None
    """The interpreter of another environment; kdbench's own without."""
    environment: str | None = None
    """That environment's name in labels."""
    given: tuple[tuple[str, str], ...] = ()
    """The user's provider options."""
    cpus: tuple[int, ...] = ()
    """That its workers are pinned to; empty for all that they may run on."""

    @property
    def label(self) -> str:
        """`openvino:bf16`, `cuda@gpu`: what tables and results call it. It holds no path, and no fp32."""
        precision = "" if self.precision in ("", "fp32") else f":{self.precision}"
        return f"{self.row.name}{precision}{f'@{self.environment}' if self.environment else ''}"

    def __str__(self) -> str:
        return self.label

    @property
    def asked(self) -> str:
        """As the user may have written it, with the interpreter's path."""
        return self.label.partition("@")[0] + (f"@{self.python}" if self.python else "")

    @property
    def provider(self) -> str:
        return self.row.provider

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU alone computes."""
        return self.row.device == "CPU" and self.options(1).get("device", "cpu") == "cpu"

    def options(self, threads: int) -> dict[str, str]:
        """Provider options as they are passed."""
        asked = self.row.precisions[self.precision].options if self.precision else {}
        laid: Options = self.row.options
        for name, text in self.given:
            laid = _laid(laid, {name: json.loads(text) if isinstance(self._value(name), Mapping) else text})
        return {
            name: json.dumps(_counted(value, threads), separators=(",", ":"))
            if isinstance(value, Mapping)
            else str(_counted(value, threads))
            for name, value in _laid(laid, asked).items()
        }

    def environment_variables(self) -> dict[str, str]:
        """Of the worker, beside those that it inherits."""
        asked = self.row.precisions[self.precision].environment if self.precision else {}
        return {**self.row.environment, **asked}

    def request(self, threads: int) -> dict[str, Any]:
        """The provider as a worker wants it."""
        row, options = self.row, self.options(threads)
        return {
            "name": row.provider,
            "plugin": row.plugin,
            "device": row.device,
            "options": options,
            "builtin": dict(row.builtin),
            "session": dict(row.session),
            "binds": row.binds,
            "graph": row.graph is not None and options.get(row.graph) == "1",
            "preloads": row.preloads,
        }

    def file(self, model: Path) -> Path:
        """What it runs of an artifact whose ONNX file is `model`: that file, or the weights beside it."""
        return model.with_suffix(".safetensors") if self.row.runs == "weights" else model

    def _value(self, name: str) -> object:
        """What the row says of an option, at any precision."""
        ways = [way.options for way in self.row.precisions.values()]
        return next((options[name] for options in (self.row.options, *ways) if name in options), None)


def pick_backend(wanted: str | Target, options: Mapping[str, Any] | None = None) -> Target:
    """`NAME[:PRECISION][@PYTHON]` with options (`precision` is one of them) as a target; a target as it is.

    A precision in the name goes before one among the options. Raises UserError that names the nearest known backend,
    precision or option.
    """
    if isinstance(wanted, Target):
        return wanted
    front, at, python = wanted.partition("@")
    name, colon, precision = front.partition(":")
    row = _row(name)
    if at and not python:
        raise UserError(f"backend '{wanted}': name the interpreter behind the @, such as {front}@PATH/python")
    if at and row.runs == "weights":
        raise UserError(f"backend '{wanted}': {name} runs under kdbench's own interpreter, whose models it builds")
    texts = {key: _text(value) for key, value in (options or {}).items()}
    asked = texts.pop("precision", None)
    target = Target(
        row,
        _precision(row, precision if colon else asked),
        python or None,
        _environment(python) if python else None,
    )
    return replace(target, given=tuple(_option(target, key, text) for key, text in texts.items()))


def own_options(wanted: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Those of the options, by the names of backends, that are for one of them as it is asked for."""
    name = wanted.partition("@")[0].partition(":")[0]
    return {name: options[name]} if name in options else {}


def pick_backends(wanted: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Target]:
    """Several, with the options of each by its name; environments of equal names are numbered in the labels."""
    options = options or {}
    found = [pick_backend(text, next(iter(own_options(text, options).values()), None)) for text in wanted]
    names = {target.row.name for target in found}
    for name in options:
        if name not in names:
            raise UserError(f"options of '{name}', none of the backends asked for: {', '.join(sorted(names))}")
    environments: dict[str, str] = {}
    for target in found:
        if target.python and target.environment and target.python not in environments:
            taken = set(environments.values())
            numbered = (f"{target.environment}-{number}" for number in range(2, len(found) + 2))
            free = (name for name in (target.environment, *numbered) if name not in taken)
            environments[target.python] = next(free)
    return [replace(target, environment=environments.get(target.python or "")) for target in found]


def _row(name: str) -> Backend:
    known = [row.name for row in BACKENDS.values() if not row.hidden]
    if name in BACKENDS:
        return BACKENDS[name]
    listed = [row.name for row in BACKENDS.values() if row.provider == name]
    if listed:
        raise UserError(f"unknown backend '{name}': its name here is {' or '.join(listed)}")
    if name.endswith("ExecutionProvider"):
        return unlisted(name)
    raise UserError(f"unknown backend '{name}': {nearest(name, known)}")


def _precision(row: Backend, asked: str | None) -> str:
    if asked is None:
        return next(iter(row.precisions), "")
    if not row.precisions:
        raise UserError(f"backend {row.name}: has no row that says how to ask it for {asked}: leave the precision out")
    precision = ALIASES.get(asked.lower(), asked.lower())
    if precision not in row.precisions:
        raise UserError(f"backend {row.name}: unknown precision '{asked}': known: {', '.join(row.precisions)}")
    return precision


def _option(target: Target, name: str, text: str) -> tuple[str, str]:
    """The provider's own name of an option, and its value."""
    row = target.row
    if name in row.aliases:
        return row.aliases[name], {"true": "1", "false": "0"}.get(text, text)
    owned = [path for way in row.precisions.values() for path in _leaves(way.options)]
    ours = (name,) in owned
    nested = isinstance(target._value(name), Mapping)
    if nested:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"backend {row.name}: option '{name}' should be a JSON object, not '{text}'")
        ours = any((name, *path) in owned for path in _leaves(value))
    if ours:
        raise UserError(
            f"backend {row.name}: option '{name}' is set by the precision: ask for one of {', '.join(row.precisions)}"
        )
    known = {"precision", *(row.known or ()), *row.aliases}
    if row.known is not None and name not in known:
        raise UserError(f"backend {row.name}: unknown option '{name}': {nearest(name, known)}")
    return name, text


def _environment(python: str) -> str:
    """The name of the environment's folder, or of an interpreter without one."""
    path = Path(python)
    folder = path.parent.parent if path.parent.name in FOLDERS_OF_PROGRAMS else path.parent
    return slug(folder.name or path.name)


def _text(value: Any) -> str:
    """A value of a recipe as providers take it."""
    return value if isinstance(value, str) else json.dumps(value)


def _laid(below: Options, above: Options) -> dict[str, Any]:
    """Both, with nested mappings joined; `above` wins."""
    return {
        name: _laid(below.get(name, {}), above[name])
        if isinstance(above.get(name), Mapping) and isinstance(below.get(name, {}), Mapping)
        else above.get(name, below.get(name))
        for name in {**below, **above}
    }


def _counted(value: Any, threads: int) -> Any:
    """With the thread count where it belongs."""
    if isinstance(value, Mapping):
        return {name: _counted(inner, threads) for name, inner in value.items()}
    return threads if value == "{threads}" else value


def _leaves(options: Options, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value that is no mapping."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name)
