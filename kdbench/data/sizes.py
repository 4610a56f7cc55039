"""Sizes of symbolic dimensions: which ones are measured, and whether a model can take them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from kdbench.data.generated import why_not_a_size
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError, nearest
from kdbench.records import Artifact

Sizes = Mapping[str, int]
Sweep = Mapping[str, int | Sequence[int]]
"""One or several sizes of each dimension; names that are joined by a comma, as in `height,width`, change together."""


def combinations(sweep: Sweep) -> list[dict[str, int]]:
    """Every combination of the sizes, the last dimension changing fastest; one without any where none is given.

    Raises UserError for a dimension that stands there twice, and for sizes that do or that are below 1.
    """
    names = [name.strip() for group in sweep for name in group.split(",")]
    for name in names:
        if names.count(name) > 1 or not name:
            raise UserError(f"--dim {name or ','.join(sweep)}: name each dimension once, please")
    groups = []
    for group, given in sweep.items():
        sizes = [given] if isinstance(given, int) else list(given)
        if not sizes or min(sizes) < 1:
            raise UserError(f"--dim {group}: should have sizes of 1 or more")
        if len(set(sizes)) != len(sizes):
            raise UserError(f"--dim {group}: {', '.join(map(str, sizes))}: each one once, please")
        groups.append([{name.strip(): size for name in group.split(",")} for size in sizes])
    return [{name: size for part in parts for name, size in part.items()} for parts in product(*groups)]


def sweep_of(combined: Iterable[Sizes]) -> dict[str, list[int]] | None:
    """A sweep that has these combinations, as `combinations` makes them; None where there is none."""
    found = list({written(sizes): sizes for sizes in combined}.values())
    if any(sizes.keys() != found[0].keys() for sizes in found):
        return None
    columns: dict[tuple[int, ...], list[str]] = {}
    for name in found[0] if found else ():
        columns.setdefault(tuple(sizes[name] for sizes in found), []).append(name)
    sweep = {",".join(names): list(dict.fromkeys(sizes)) for sizes, names in columns.items()}
    return sweep if len(combinations(sweep)) == len(found) else None


def written(sizes: Sizes) -> str:
    """`height=32 width=32`, in whichever order they were given; empty for none."""
    return " ".join(f"{name}={sizes[name]}" for name in sorted(sizes))


def why_not_sized(artifact: Artifact, sizes: Sizes, pack: EvalPack | None) -> str | None:
    """Why a model can't be fed with these sizes, or None where it can.

    Raises UserError where the pack doesn't fit the model.
    """
    symbols = {size for spec in artifact.inputs for size in spec.shape if isinstance(size, str)}
    for name in sizes:
        if why := why_not_a_size(artifact.inputs, name):
            return why if name in symbols else f"{why}: {_known(artifact, name, symbols)}"
    if pack is None or not sizes or pack.x_test is None:
        return None
    one = replace(pack, x_test=pack.x_test[:1], y_test=None).test_inputs(artifact.inputs, artifact.preprocessing)
    for spec in artifact.inputs:
        for dimension, has in zip(spec.shape[1:], one[spec.name].shape[1:], strict=True):
            if isinstance(dimension, str) and sizes.get(dimension, has) != has:
                instead = "give a pack of that size, or measure without one"
                return f"--dim {dimension}={sizes[dimension]}: it is {has} in {Path(pack.name).name}: {instead}"
    return None


def _known(artifact: Artifact, name: str, symbols: set[str]) -> str:
    """What the model's dimensions are called, and which have no name."""
    fixed = [
        f"{spec.name} is fixed to {' × '.join('?' if size is None else str(size) for size in spec.shape)}"
        for spec in artifact.inputs
        if any(isinstance(size, int) for size in spec.shape[1:])
    ]
    hint = nearest(name, symbols) if symbols else "all are fixed"
    free = "; to vary a size, export with that dimension free (torch.onnx.export: dynamic_shapes)"
    return f"{hint}; {', '.join(fixed)}{free}" if fixed and not hint.startswith("did you mean") else hint
