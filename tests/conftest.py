"""What the tests share: real runs of the ladder, made once, and the data that may lie beside the checkout."""

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from kdbench import card
from kdbench.backends import client
from kdbench.cli import main
from tests.hatched import MESSAGE, REPOSITORY, Nursery, locked
from tests.hatched import environment as environment

if TYPE_CHECKING:
    from kdbench.data.dataset import Dataset
    from kdbench.pipeline.carding import Card

# As `needs_torch` has it: threads of torch that wait busily slow down tests that share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in every run: a new one that fails is found by `pytest --hypothesis-profile=search`, not by chance.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("repeatable")

PUBLISHED = REPOSITORY / "results" / "amd-epyc-2-core" / "2026-11-21-digits.json"
"""The digits' ladder that the README shows, of the first schema."""
SHARED = Path(os.environ.get("KDBENCH_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

TINY = {
    "data.options.test_samples": "450",
    "teacher.options": "{ widths = [6, 12], blocks = [1, 1] }",
    "teacher.training.epochs": "3",
    "student.options": "{ widths = [4, 8], blocks = [1, 1] }",
    "student.training.epochs": "3",
    "data.calibration_samples": "64",
    "bench.backends": '["cpu"]',
    "bench.batches": "[1]",
    "bench.budget_s": "0.1",
}
"""The digits recipe, small enough to be walked in a few seconds."""

FLAT = TINY | {
    "teacher.model": "mlp",
    "teacher.options": "{ widths = [24] }",
    "student.model": "mlp",
    "student.options": "{ widths = [8] }",
}
"""The same with networks that are trained and exported faster still."""


def read_operators_once() -> None:
    """Lets torch's exporter read its tables of operators once a process, where it does so anew for each model.

    Nothing else of an export is left out; where a torch keeps the tables elsewhere, exports are as slow as they are.
    """
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = ONNXRegistry.from_torchlib.__func__
        ONNXRegistry.from_torchlib = classmethod(functools.cache(read))  # type: ignore[assignment]
    with suppress(ImportError, AttributeError):
        from torch._export import utils

        utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)


def keep_imported() -> None:
    """Spares the garbage collector the objects of imported modules, which stay: an export makes it look hundreds of
    times."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end."""
    if "torch" in sys.modules:
        read_operators_once()
    keep_imported()
    longest = [
        "readme",
        "run",
        "models",
        "faculty",
        "cli",
        "backends",
        "convert",
        "tasks",
        "processes",
        "quantizing",
        "init",
    ]
    order = {f"test_{name}": index for index, name in enumerate(longest)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session of pytest, the same for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """The one that all workers of pytest share. It forks also the workers of what is tested in pytest's own process."""
    global _nursery
    _nursery = Nursery(shared_folder(tmp_path_factory) / "nursery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "subprocess", SimpleNamespace(Popen=_nursery.worker, PIPE=subprocess.PIPE))
        yield _nursery


_nursery: Nursery

STARTED = {"test_affinity", "test_backends", "test_bad_packs", "test_cost", "test_scenarios", "test_worker"}
"""Files whose tests are of how a worker is started, and of its memory."""


@pytest.fixture(scope="module", autouse=True)
def workers_as_users_have_them(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in STARTED:
            patch.setattr(client, "subprocess", subprocess)
        yield


@dataclass(frozen=True)
class Call:
    """A call of the command line that is under way, and what it prints."""

    process: int
    ended: Future[int]
    """Its exit status, or the number of the signal that ended it, below zero."""
    stdout: Path
    stderr: Path


@contextmanager
def called(*arguments: str | Path, cwd: Path) -> Iterator[Call]:
    """The command line as a user calls it: in a process of its own, forked from one that has imported the libraries;
    so are its workers, where they run onnxruntime.

    What is still running in the end is killed.
    """
    line = _nursery.line()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as waiting:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        request = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "stdout": str(out), "stderr": str(err)}
        line.send(json.dumps(request).encode())
        child = json.loads(line.recv(MESSAGE))["child"]
        ended = waiting.submit(lambda: json.loads(line.recv(MESSAGE))["status"])
        try:
            yield Call(child, ended, out, err)
        finally:
            with suppress(ProcessLookupError):
                if not ended.done():
                    os.kill(child, signal.SIGKILL)


def kdbench(
    *arguments: str | Path, cwd: Path, check: bool = True, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """A call of the command line, waited for."""
    with called(*arguments, cwd=cwd) as call:
        status = call.ended.result(timeout)
        done = subprocess.CompletedProcess(
            ["kdbench", *arguments], status, call.stdout.read_text(), call.stderr.read_text()
        )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Said:
    """What a call of the command line within the test's own process ended with, and printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line as its arguments have it, within this process: quick, and with what the test has changed."""

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["kdbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capfd.readouterr()
        return Said(int(end.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def mistake(typed: Callable[..., Said]) -> Callable[[str], str]:
    """What the command line says of a mistake: one line, exit status 2 and nothing else."""

    def call(command: str) -> str:
        said = typed(*command.split())
        assert said.status == 2, said
        assert said.out == ""
        assert said.err.startswith("kdbench: "), said.err
        assert said.err.count("\n") == 1, said.err
        return said.err

    return call


def overrides(fields: Mapping[str, str] = TINY) -> list[str]:
    return [argument for field, value in fields.items() for argument in ("--set", f"{field}={value}")]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the reduced digits recipe, walked once without interruption. Not to be written to."""
    folder = shared_folder(tmp_path_factory)
    with locked(folder / "tiny.lock"):
        if not (folder / "tiny" / "finished").is_file():
            kdbench("run", "digits", *overrides(), "--out", "tiny", cwd=folder)
            (folder / "tiny" / "finished").touch()
    return folder / "tiny"


@pytest.fixture(scope="session")
def carded(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> "Card":
    """The card and the file of its int8 student. Not to be written to."""
    out = tmp_path_factory.mktemp("carded") / "digits"
    return card(f"{tiny_run}:student-int8", license="apache-2.0", out=out, url="https://example.org/results")


@pytest.fixture(scope="session")
def packed(tiny_run, tmp_path_factory):
    from kdbench import pack

    return pack(tiny_run, tmp_path_factory.mktemp("packed") / "digits.kdbench.zip").path


@pytest.fixture
def mlp_run(tmp_path):
    """A run folder of one rung without samples, small enough to be spoilt in every way."""
    from kdbench.onnxfile import inspect
    from kdbench.store import save_artifact

    folder = tmp_path / "mlp"
    folder.mkdir()
    save_artifact(folder, inspect(save_mlp(folder / "teacher.onnx")))
    return folder


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder of real models and data, shared/data, is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def dataset() -> "Dataset":
    """All of the digits."""
    from kdbench import data
    from kdbench.records import Data

    return data.load(Data(source="digits"))


@pytest.fixture(scope="session")
def digits(dataset: "Dataset") -> "Dataset":
    """A part of them, so that an epoch takes no time."""
    return replace(dataset, x_train=dataset.x_train[:256], y_train=dataset.y_train[:256])


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A hand-made classifier of [batch, 4] to three logits: x · W + b, twice as wide inside."""
    return save_mlp(tmp_path / "small.onnx", batch="batch")


def save_mlp(path: Path, batch: str | int = "batch", scale: float = 1.0) -> Path:
    """4 → 8 → 3 with weights that anyone can recompute: 4·8 + 8 + 8·3 + 3 = 67 parameters, 56 MACs."""
    import numpy as np

    generator = np.random.default_rng(1)
    arrays = {
        "w1": generator.standard_normal((4, 8)),
        "b1": np.zeros(8),
        "w2": scale * generator.standard_normal((8, 3)),
        "b2": np.zeros(3),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    return path
