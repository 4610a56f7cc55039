"""Models and data that nobody here made: read where shared/data lies beside the checkout."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kdbench import evaluate, parity, quantize, slim
from kdbench.evaluation import answer
from kdbench.onnxfile import inspect
from kdbench.records import Quantize
from tests.conftest import kdbench
from tests.rows import load_rows


@pytest.fixture
def mnist(shared_data):
    return shared_data / "onnx" / "mnist_8" / "model.onnx"


@pytest.fixture
def magika(shared_data):
    return next((shared_data / "onnx" / "magika").rglob("*.onnx"))


def recorded(folder):
    """The inputs and outputs that came with the model."""
    pairs = []
    for case in sorted(folder.glob("test_data_set_*")):
        read = [
            onnx.TensorProto.FromString(next(case.glob(f"{kind}_0.pb")).read_bytes()) for kind in ("input", "output")
        ]
        pairs.append(tuple(numpy_helper.to_array(tensor) for tensor in read))
    return pairs


def test_mnist_of_opset_8_is_slimmed_quantized_and_still_right(mnist, tmp_path):
    slimmed, int8 = tmp_path / "slim.onnx", tmp_path / "int8.onnx"
    pairs = recorded(mnist.parent)
    assert len(pairs) == 3
    np.savez(tmp_path / "pack.npz", x_calibration=np.concatenate([x for x, _ in pairs]))
    artifact = slim(mnist, slimmed)
    assert sum(artifact.operators.values()) < sum(inspect(mnist).operators.values())
    assert quantize(slimmed, int8, tmp_path / "pack.npz").precision == "int8"
    for x, expected in pairs:
        for model, tolerance in ((mnist, 1e-5), (slimmed, 1e-5), (int8, 0.2)):
            (found,) = answer(model, {"Input3": x}, 1).outputs.values()
            assert found.argmax() == expected.argmax()
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_mnist_has_a_fixed_batch(mnist, tmp_path):
    done = kdbench("bench", mnist, "--batch", "32", "--out", tmp_path / "bench", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "fixed batch of 1: use --batch 1" in done.stderr
    kdbench("bench", mnist, "--batch", "1", "--batch", "32", "--budget", "0.5", "--out", "bench", cwd=tmp_path)
    errors = {row.batch: row.error for row in load_rows(tmp_path / "bench")}
    assert errors[1] is None
    assert "fixed batch of 1" in errors[32]


def test_magika_keeps_its_answers_through_slimming_and_int8(magika, shared_data, tmp_path):
    reference = np.load(shared_data / "onnx" / "magika" / "standard_v3_3-reference.npz")
    inputs, expected = reference["bytes"].astype(np.int32), reference["target"]
    half = len(inputs) // 2
    np.savez(tmp_path / "pack.npz", x_test=inputs[half:], y_test=expected[half:], x_calibration=inputs[:half])
    slim(magika, tmp_path / "slim.onnx", pack=tmp_path / "pack.npz")
    all_operators = quantize(tmp_path / "slim.onnx", tmp_path / "int8.onnx", tmp_path / "pack.npz")
    assert any("answers otherwise than slim" in warning for warning in all_operators.warnings)
    few = Quantize(operators=("MatMul",))
    assert quantize(tmp_path / "slim.onnx", tmp_path / "few.onnx", tmp_path / "pack.npz", few).warnings == ()
    before = evaluate(magika, tmp_path / "pack.npz", batch=1)
    broken = evaluate(tmp_path / "int8.onnx", tmp_path / "pack.npz", batch=1)
    after = evaluate(tmp_path / "few.onnx", tmp_path / "pack.npz", batch=1)
    assert before.accuracy > 0.95
    assert broken.accuracy < 0.5
    assert after.accuracy > before.accuracy - 0.1
    assert parity(tmp_path / "slim.onnx", magika, pack=tmp_path / "pack.npz", batch=1).agreement == 1.0


def test_magika_is_measured_on_generated_inputs(magika, tmp_path):
    kdbench("bench", magika, "--budget", "0.5", "--out", "bench", cwd=tmp_path)
    (row,) = load_rows(tmp_path / "bench")
    assert row.latency_p50_s > 0
    assert row.accuracy is None
