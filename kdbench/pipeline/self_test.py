"""The benchmark put to the test: a file against itself, and against a copy made slower by a known share."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdbench import stats
from kdbench.benchmark.cells import Subject, plan
from kdbench.benchmark.cells import inputs as feed
from kdbench.benchmark.raw import Raw, common_rounds
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.data.generated import described, hint
from kdbench.data.sizes import Sweep
from kdbench.onnxfile import MAX_IR, known_artifact
from kdbench.progress import Progress, silent
from kdbench.records import Bench, parse
from kdbench.stats import Interval
from kdbench.store import Paths, paths_of

SLOWER = 0.05
LEVEL = 0.99
"""Of the intervals that are judged: each comparison fails by chance in one self-test of a hundred."""
WIDTH = 1024
"""Of the two layers of the generated model: 2.1 M parameters."""


@dataclass(frozen=True)
class SelfTest:
    """A comparison whose outcome is known."""

    cell: str
    """Model, backend, threads and batch."""
    share: float
    """By which the copy was made slower; 0 for the file itself."""
    ratio: Interval | None
    """How many times faster the copy came out, with its interval; None where nothing was measured."""
    rounds: int
    smallest_difference: float | None
    error: str | None = None

    @property
    def right(self) -> bool:
        """Whether the interval holds the true ratio, and shows a slower copy to be slower."""
        if self.ratio is None or not self.ratio.low <= 1 / (1 + self.share) <= self.ratio.high:
            return False
        return self.share == 0 or self.ratio.high < 1


def self_test(
    models: Paths = (),
    *,
    backends: Sequence[str] = ("cpu",),
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    budget_s: float = 30.0,
    precision: float = 0.02,
    affinity: Sequence[int] = (),
    dims: Sweep | None = None,
    inputs: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[SelfTest]:
    """Compares each ONNX file, or a generated one, with itself and with itself made slower by `SLOWER`.

    Each has the budget for its own. `inputs` say of them what the files don't: see `described`. Raises UserError where
    nothing can be measured.
    """
    wanted = {"backends": backends, "options": backend_options or {}, "batches": batches, "threads": threads}
    options = parse(Bench, wanted | {"budget_s": budget_s, "precision": precision, "affinity": affinity}, "bench")
    shares = (0.0, SLOWER)
    with _models(paths_of(models)) as paths:
        artifacts = described([known_artifact(path) for path in paths], inputs or {})
        return [
            check
            for artifact, path in zip(artifacts, paths, strict=True)
            for check in against_itself(Subject(artifact, path), shares, options, dims or {}, seed, LEVEL, progress)
        ]


def against_itself(
    model: Subject,
    shares: Sequence[float],
    options: Bench,
    dims: Sweep,
    seed: int = 0,
    level: float = stats.STOPPED_LEVEL,
    progress: Progress = silent,
) -> list[SelfTest]:
    """Measures an ONNX file beside copies of it, each made slower by one of the `shares`; intervals of `level`.

    It is the worker that makes a copy slower: it waits busily after each run for that share of the run's time.
    """

    def called(rung: str, share: float = 0.0) -> Subject:
        return Subject(model.artifact.model_copy(update={"rung": rung}), model.model, share)

    subjects = [called("itself"), *(called(f"copy-{number}", share) for number, share in enumerate(shares))]
    cells = plan(subjects, options, dims)
    feeds = {cell.slot: feed(cell, None) for cell in cells if cell.error is None}
    schedule = Schedule(cells, settings_of(options, seed), lambda cell: feeds[cell.slot], baseline="itself")
    for _ in schedule.rounds(progress):
        pass
    return [_judged(model.model.stem, base, copy, level) for base, copy in schedule.pairs()]


def _judged(name: str, base: Raw, copy: Raw, level: float) -> SelfTest:
    cell = copy.cell
    name = f"{name}, {cell.backend.label}, {cell.threads} thread{'s' if cell.threads > 1 else ''}, batch {cell.slot}"
    error = base.error or copy.error
    if error:
        return SelfTest(name, cell.subject.slower, None, 0, None, hint(error, cell.subject.artifact.inputs))
    medians = common_rounds(base, copy)
    smallest = stats.smallest_difference(*medians, stats.STOPPED_LEVEL)
    return SelfTest(name, cell.subject.slower, stats.speedup(*medians, level), len(medians[0]), smallest)


@contextmanager
def _models(models: list[Path]) -> Iterator[list[Path]]:
    """The given files, or a generated one that lies there for as long as it is needed."""
    if models:
        yield models
        return
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        path = Path(scratch, "generated.onnx")
        onnx.save(_generated(), path)
        yield [path]


def _generated() -> onnx.ModelProto:
    """Two dense layers of `WIDTH` units: 2.1 M multiply-adds a sample, a fraction of a millisecond."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((2, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["y"]),
        ],
        "generated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=min(10, MAX_IR))
