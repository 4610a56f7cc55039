"""Any ONNX file as a teacher: it answers through a backend's worker, and nothing else of it is seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.backends import pick_backend
from kdbench.backends.available import why_unavailable
from kdbench.backends.client import Worker, WorkerError
from kdbench.data.generated import batch_size
from kdbench.errors import UserError
from kdbench.functions import find, real
from kdbench.onnxfile import known_artifact, load_model
from kdbench.records import Artifact, Count, Record, Task, parse
from kdbench.teachers.graph import last_activation
from kdbench.teachers.source import Found, Wanted

Kind = Literal["logits", "softmax", "sigmoid"]
"""What the outputs are: logits, or probabilities by softmax or sigmoid."""

TINY = 1e-12
"""Added to probabilities before the logarithm."""

CERTAIN = 1 - 2**-24
"""The largest probability below 1 in single precision, which one of 1 is taken for: its logit is finite."""

SUM_TOLERANCE = 1e-3

SAMPLE_S = 2.0
"""How much longer than any request one with samples may take, for each of them."""


class Options(Record):
    outputs: Literal["logits", "probabilities"] | None = None
    """What the model answers; found out where nothing is said."""
    backend: str = "cpu"
    threads: Count = 1


@dataclass
class BlackBox:
    """From preprocessed samples [N, …] to logits [N, outputs]. The worker starts with the first call; close it."""

    file: Path
    artifact: Artifact
    kind: Kind
    options: Options
    worker: Worker | None = None

    @property
    def __name__(self) -> str:
        return self.file.name

    def __enter__(self) -> "BlackBox":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def __call__(self, x: Tensor) -> Tensor:
        values = torch.from_numpy(self.raw(x)).to(x.device)
        if self.kind == "softmax":
            return torch.log(values + TINY)
        if self.kind == "sigmoid":
            values = values.clamp(0, CERTAIN)
            return torch.log(values + TINY) - torch.log1p(TINY - values)
        return values

    def check(self, x: Tensor) -> None:
        """Raises UserError where samples such as `x` don't fit the model's input."""
        if len(self.artifact.inputs) != 1:
            names = ", ".join(spec.name for spec in self.artifact.inputs) or "none"
            raise UserError(
                f"{self.file}: has {len(self.artifact.inputs)} inputs ({names}): a teacher should have one, the samples"
            )
        spec, given = self.artifact.inputs[0], tuple(x.shape[1:])
        expected = spec.shape[1:]
        if len(expected) != len(given) or any(
            isinstance(size, int) and size != actual for size, actual in zip(expected, given, strict=True)
        ):
            shape = ", ".join("?" if size is None else str(size) for size in expected)
            raise UserError(
                f"{self.file}: its input '{spec.name}' takes samples of shape ({shape}), the data's are {given}: "
                "choose data of that shape"
            )
        dtype = x.numpy().dtype
        if spec.dtype == "object" or not np.can_cast(dtype, spec.dtype, "same_kind"):
            raise UserError(f"{self.file}: its input '{spec.name}' takes {spec.dtype}, the data is {dtype}")

    def raw(self, x: Tensor) -> NDArray[np.float32]:
        """The first output [N, outputs] as the model gives it. Where its batch is fixed, the last one is filled up."""
        spec = self.artifact.inputs[0]
        samples = x.detach().cpu().numpy().astype(spec.dtype)
        batch = batch_size(self.artifact.inputs) or len(samples)
        answers = []
        for start in range(0, len(samples), batch):
            index = np.minimum(np.arange(start, start + batch), len(samples) - 1)
            try:
                said = self._started().predict({spec.name: samples[index]}, extra_s=SAMPLE_S * batch)
            except WorkerError as error:
                raise UserError(f"{self.file}: {error}") from None
            output = next(iter(said.values()))
            if output.ndim < 2 or len(output) != batch or not np.issubdtype(output.dtype, np.floating):
                raise UserError(
                    f"{self.file}: its first output is {output.dtype} of shape {output.shape} for {batch} samples: a "
                    "teacher's should be floats [N, classes]"
                )
            answers.append(output.reshape(batch, -1)[: len(samples) - start])
        return np.concatenate(answers).astype(np.float32)

    def _started(self) -> Worker:
        if self.worker is None:
            worker = Worker(pick_backend(self.options.backend), self.options.threads)
            try:
                worker.load(self.file)
            except BaseException:
                worker.close()
                raise
            self.worker = worker
        return self.worker


def load(wanted: Wanted) -> Found:
    """The file as a teacher; raises UserError where it is not sound, or its backend can't be used here."""
    options = parse(Options, wanted.options, f"{wanted.field}.options")
    file = find(wanted.model, wanted.folder or Path())
    if file is None:
        raise UserError(f"{wanted.field}.model: no file '{wanted.model}' beside the recipe or in the working directory")
    file = real(file)  # beside which its record and its external data lie
    unusable = why_unavailable(options.backend)
    if unusable:
        raise UserError(f"{wanted.field}.options.backend: {options.backend}: {unusable}")
    artifact = known_artifact(file)
    box = BlackBox(file, artifact, said_kind(file, options, wanted.task), options)
    return Found(box, classes=artifact.classes, preprocessing=artifact.preprocessing)


def said_kind(file: Path, options: Options, task: Task) -> Kind:
    """What the recipe or the graph say of the outputs; logits where neither does."""
    if options.outputs == "probabilities":
        return "sigmoid" if task == "multi_label" else "softmax"
    return "logits" if options.outputs == "logits" else last_activation(load_model(file)) or "logits"


def seen_kind(box: BlackBox, x: Tensor, task: Task) -> Kind:
    """What the outputs are, where only the answers to samples tell: rows from 0 to 1 that sum up to 1 are a softmax's.

    With several labels a sample, numbers from 0 to 1 are a sigmoid's. Raises UserError where what is said of them can't
    be true.
    """
    if box.options.outputs == "logits":
        return "logits"
    answers = box.raw(x).astype(np.float64)
    shares = bool(np.isfinite(answers).all() and answers.min() >= 0 and answers.max() <= 1 + SUM_TOLERANCE)
    if box.kind != "logits":
        if not shares:
            raise UserError(
                f"{box.file}: its answers are said to be probabilities, but reach from {answers.min():.3g} to "
                f'{answers.max():.3g}: set options.outputs = "logits"'
            )
        return box.kind
    if not shares:
        return "logits"
    if task == "multi_label":
        return "sigmoid"
    return "softmax" if np.abs(answers.sum(axis=1) - 1).max() <= SUM_TOLERANCE else "logits"
