"""Rewritten models, run one after the other by a worker on the backend that they are made for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import Target, pick_backend
from kdbench.backends.client import PATIENCE_S, Worker, WorkerError
from kdbench.errors import UserError
from kdbench.onnxfile import portable
from kdbench.quantization.samples import Samples

if TYPE_CHECKING:
    import onnx

Outputs = list[NDArray[Any]]
"""Of a model in their order, each [N, …]."""


class Runner:
    """A process that runs one model after the other; a new one takes over where it dies of a model."""

    def __init__(self, backend: str | Target, threads: int, scratch: Path) -> None:
        self.backend = pick_backend(backend)
        self.threads = threads
        self.evaluations = 0
        """Models run so far."""
        self._file = scratch / "candidate.onnx"
        self._worker: Worker | None = None

    def batches(self, model: "onnx.ModelProto | Path", samples: Samples) -> Iterator[dict[str, NDArray[Any]]]:
        """What the model answers to each batch, by the names of its outputs. Raises WorkerError where it can't run."""
        path = model if isinstance(model, Path) else self._file
        if not isinstance(model, Path):
            self._file.write_bytes(_content(model))
        self.evaluations += 1
        try:
            if self._worker is None:
                self._worker = Worker(self.backend, self.threads, PATIENCE_S)
            first = next(samples.batches()) if self.backend.row.builds else None
            self._worker.load(path, first=first)
            for feed in samples.batches():
                yield self._worker.predict(feed)
        except WorkerError as error:
            if not error.alive:
                self.close()
            raise

    def outputs(self, model: "onnx.ModelProto | Path", samples: Samples) -> Outputs:
        """All answers of the model, one for each sample. Raises UserError for outputs without a batch axis."""
        parts: dict[str, list[NDArray[Any]]] = {}
        for size, answers in zip(samples.sizes, self.batches(model, samples), strict=True):
            for name, values in answers.items():
                if not values.ndim or len(values) != size:
                    raise UserError(f"output '{name}' of shape {values.shape} has no batch axis first")
                parts.setdefault(name, []).append(values)
        return [np.concatenate(values)[: len(samples)] for values in parts.values()]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _content(model: "onnx.ModelProto") -> bytes:
    """Of the model's file; the model itself keeps what it holds for the quantizer."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return portable(copy)


@contextmanager
def running(backend: str | Target, threads: int = 1) -> Iterator[Runner]:
    """A runner, whose process and files are gone in the end."""
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        runner = Runner(backend, threads, Path(scratch))
        try:
            yield runner
        finally:
            runner.close()
