"""Unstructured pruning of a weights file, and what the zeros are worth: bytes of a compressed file, no time."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from kdbench import __version__
from kdbench.errors import UserError
from kdbench.onnxfile import load_model
from kdbench.pruning import masks
from kdbench.records import Artifact, Sparsify, as_record
from kdbench.store import fingerprint, output_file, sha256
from kdbench.training import weights
from kdbench.training.seeds import deterministic

WORTH = (
    "zeros make its compressed file smaller and dense kernels no faster: for speed prune channels ([prune], "
    "`kdbench prune`)"
)


@dataclass(frozen=True)
class Sparsified:
    """A weights file with zeros."""

    sparsity: float
    """Share of zeros among the weights that could be masked."""
    weights: int
    """Those that could be masked."""
    compressed_size_bytes: int
    compressed_size_before_bytes: int


def sparsify(
    source: str | Path,
    out: str | Path,
    options: Sparsify | Mapping[str, Any],
    seed: int = 0,
    code: str | Path | None = None,
) -> Sparsified:
    """Writes the weights file `source` to `out` with zeros where the options want them, at once and without training.

    `seed` is that of the method `random`; `code` the folder of a user's own model, which is then run. Raises UserError
    for an unknown layer, where nothing would be left of one, and for `gradient`, which takes a training.
    """
    source, out, options = Path(source), Path(out), as_record(Sparsify, options, "options")
    if options.method == "gradient":
        raise UserError("method: 'gradient' takes data and a loss: give it in the section [sparsify] of a recipe")
    model, trained = weights.model_of(source, None if code is None else Path(code))
    output_file(out, source)
    with deterministic(1):
        zeros = masks.choose(model, options, seed, field="sparsify")
    masks.apply(model, zeros)
    before = source.read_bytes()
    mark = fingerprint(weights=sha256(before), options=options.model_dump(), seed=seed, kdbench=__version__)
    weights.save(out, model.state_dict(), trained.model_copy(update={"fingerprint": mark}))
    return Sparsified(
        masks.share_of(zeros),
        sum(zero.numel() for zero in zeros.values()),
        compressed_size_bytes(out.read_bytes()),
        compressed_size_bytes(before),
    )


def worth(artifact: Artifact, model: Path, parent: Path) -> Artifact:
    """The record of an ONNX file with what its zeros are worth beside its parent's file, and what they are not."""
    sparsity = sparsity_of(load_model(model))
    now, before = (compressed_size_bytes(path.read_bytes()) for path in (model, parent))
    measured = {"sparsity": sparsity, "compressed_size_bytes": now, "parent_compressed_size_bytes": before}
    said = f"{100 * sparsity:.1f} % of its weights are zero, compressed {now:,} bytes instead of {before:,}: {WORTH}"
    return artifact.model_copy(
        update={"metrics": {**artifact.metrics, **measured}, "warnings": (*artifact.warnings, said)}
    )


def sparsity_of(model: onnx.ModelProto) -> float:
    """Share of exact zeros in the file's floating-point weights of two or more axes; 0 where it has none."""
    floats = [
        values
        for tensor in model.graph.initializer
        if len(tensor.dims) > 1 and (values := numpy_helper.to_array(tensor)).dtype.kind == "f"
    ]
    total = sum(values.size for values in floats)
    return sum(values.size - int(np.count_nonzero(values)) for values in floats) / total if total else 0.0


def compressed_size_bytes(content: bytes) -> int:
    """By zlib at its highest level, as gzip and zip have it."""
    return len(zlib.compress(content, 9))
