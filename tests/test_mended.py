"""What mends an int8 file of the search, asked for or not, and how far each of its layers is from fp32."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kdbench.data.pack import EvalPack
from kdbench.pipeline import quantizing
from kdbench.pipeline.quantizing import fastest_int8
from kdbench.pipeline.racing import Raced
from kdbench.proofs.rewritten import of_metrics
from kdbench.records import Quantize
from kdbench.stats import Interval
from kdbench.store import load_artifact, sidecar, write_npz
from tests.test_sensitivity import features, mlp, shifted

TINY = 1e-4


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """No race: each candidate is twice as fast as fp32."""

    def made_up(subjects, *_):
        return {one.artifact.rung: Raced(Interval(2.0, 2.0, 2.0), 1.0, (), None) for one in subjects[1:]}

    monkeypatch.setattr(quantizing, "raced", made_up)


def changed(path, change):
    """The model with other weights, which `change` makes of its own."""
    model = onnx.load(path)
    weights = change({tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer})
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    onnx.save(model, path)
    return path


def uneven(times):
    """Between the first two layers half of the channels are so many times as large; outputs stay the same."""

    def change(weights):
        weights["w0"][:, :8] *= times
        weights["w1"][:8] /= times
        return weights

    return change


def chosen(path, pack, **options):
    found = fastest_int8(path, path.with_name("int8.onnx"), pack, Quantize(calibration="minmax", **options))
    return found.artifact


@pytest.mark.parametrize(
    ("budget", "asked", "done"),
    [(50.0, None, False), (50.0, True, True), (1.5, None, True)],
    ids=["needless", "asked for", "needed"],
)
def test_biases_are_corrected_where_it_is_asked_for_or_needed(budget, asked, done, tmp_path):
    """Labels above a threshold: what int8 adds on average changes some of them."""
    x = np.random.default_rng(0).uniform(0, 1, (400, 16)).astype(np.float32)

    def about_zero(weights):
        weights["w1"] = weights["w1"] / 2  # other ones than the first layer's, which would be shared
        weights["b1"] = -np.median(np.maximum(x @ weights["w0"], 0) @ weights["w1"], axis=0)
        return weights

    path = changed(shifted(tmp_path / "m.onnx"), about_zero)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    labels = (np.maximum(x @ weights["w0"], 0) @ weights["w1"] + weights["b1"] > 0).astype(np.int64)
    pack = EvalPack("made", None, None, x, (), None, task="multi_label", y_calibration=labels)
    made = chosen(path, pack, max_drop=budget, bias_correction=asked, equalization=False)
    assert (made.options["bias_correction"], made.options["left_in_float"]) == (done, [])
    assert made.metrics["judged_drop"] <= budget / 100


@pytest.mark.parametrize("asked", [None, True])
def test_layers_are_equalised_where_it_is_asked_for(asked, tmp_path):
    path = changed(mlp(tmp_path / "m.onnx"), uneven(16))
    pack = EvalPack("made", None, None, features(200), (), None)
    made = chosen(path, pack, max_drop=50, equalization=asked, bias_correction=False)
    assert made.options["equalization"] is bool(asked)
    assert made.options["bias_correction"] is False


def test_layers_of_an_equalised_file_are_set_beside_equalised_ones(tmp_path):
    path = changed(mlp(tmp_path / "m.onnx"), uneven(1e4))
    pack = EvalPack("made", None, None, features(200), (), None)
    found = of_metrics(chosen(path, pack, max_drop=20, equalization=True).metrics)
    assert found.keys() == {"w0", "w1", "w2"} and min(found.values()) > 20


def test_the_worst_layers_are_printed_and_all_are_in_the_record(tmp_path, typed):
    path = mlp(tmp_path / "m.onnx", (TINY, 1.0, 1.0))
    write_npz(tmp_path / "pack.npz", {"x_calibration": features(200, TINY)})
    said = typed("quantize", path, "--data", tmp_path / "pack.npz", "--max-drop", "99", "--no-equalization")
    found = of_metrics(load_artifact(sidecar(tmp_path / "m-int8.onnx")).metrics)
    assert found.keys() == {"w0", "w1", "w2"}
    assert max(found.values()) < 10  # half of the first layer's features are lost, and the others read it
    (line,) = [line for line in said.out.splitlines() if line.startswith("SQNR ")]
    worst = min(found, key=found.get)
    assert f"; worst layers: {worst} {found[worst]:.1f} dB, ".replace("-", "−") in line


def test_the_test_split_has_no_part_in_the_choice(tmp_path):
    path, x, test = shifted(tmp_path / "m.onnx"), features(200), features(100, seed=2)
    labels = np.random.default_rng(3).integers(0, 2, (200, 16))
    found = []
    for seed in (4, 5):
        y_test = np.random.default_rng(seed).integers(0, 2, (100, 16))
        pack = EvalPack("made", test, y_test, x, (), None, task="multi_label", y_calibration=labels)
        made = fastest_int8(path, tmp_path / f"{seed}.onnx", pack, Quantize(max_drop=50.0))
        found.append((made.budget, made.file.read_bytes()))
    (one, bytes_), (other, again) = found
    assert bytes_ == again
    assert one.candidates == other.candidates and one.chosen == other.chosen
    assert one.test_samples == 100 and one.test_drop != other.test_drop
