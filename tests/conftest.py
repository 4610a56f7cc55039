"""What the tests share: real runs of the ladder, made once, and the data that may lie beside the checkout."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

# As `needs_torch` has it: threads of torch that wait busily slow down tests that share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in every run: a new one that fails is found by `pytest --hypothesis-profile=search`, not by chance.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", max_examples=2000)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end."""
    longest = ["test_readme", "test_run", "test_cli", "test_models"]
    order = {name: index for index, name in enumerate(longest)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def kdbench(
    *arguments: str | Path, cwd: Path, check: bool = True, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """The command line as a user calls it."""
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def overrides(fields: Mapping[str, str] = TINY) -> list[str]:
    return [argument for field, value in fields.items() for argument in ("--set", f"{field}={value}")]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the reduced digits recipe, walked once without interruption. Not to be written to."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tiny" / "finished").is_file():
            kdbench("run", "digits", *overrides(), "--out", "tiny", cwd=folder)
            (folder / "tiny" / "finished").touch()
    return folder / "tiny"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder of real models and data, shared/data, is not beside this checkout")
    return SHARED


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


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}
