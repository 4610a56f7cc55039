"""What a rewritten model is compared on, and how far its outputs may move."""

import tracemalloc

import numpy as np
import pytest
from onnx import helper, numpy_helper

from kdbench import UserError, convert, slim
from kdbench.backends.client import Worker
from kdbench.data.pack import EvalPack
from kdbench.onnxfile import inspect
from kdbench.proofs.rewritten import layer_errors
from kdbench.records import Preprocessing
from kdbench.steps import slim as step
from tests.models import cnn, save


def two_outputs(path):
    """[n, 8] to boxes of up to some thousands, and to scores of about 0.001."""
    generator = np.random.default_rng(0)
    weights = {
        "wide": (1000 * generator.standard_normal((8, 4))).astype(np.float32),
        "fine": (0.001 * generator.standard_normal((8, 5))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="same"),
        helper.make_node("MatMul", ["same", "wide"], ["boxes"], name="boxes"),
        helper.make_node("MatMul", ["same", "fine"], ["scores"], name="scores"),
    ]
    return save(path, nodes, weights, {"x": ["n", 8]}, {"boxes": ["n", 4], "scores": ["n", 5]})


@pytest.mark.parametrize(("name", "factor"), [("fine", 1.01), ("wide", 1.01), ("fine", 1.00001)])
def test_each_output_is_judged_by_its_own_largest_number(name, factor, tmp_path, monkeypatch):
    """Also a small one beside large ones, such as a detector's scores beside its boxes."""

    def moving(model, path):
        changed = step.by_onnxslim(model, path)
        tensor = next(each for each in changed.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
        return changed

    path = two_outputs(tmp_path / "model.onnx")
    monkeypatch.setattr(step, "PASSES", {"moving": moving})
    if factor < 1.0001:
        assert slim(path, tmp_path / "slim.onnx").operators == {"MatMul": 2}
        return
    with pytest.raises(UserError, match=r"moving left out: moved an output by .*, more than 0\.0001 of its largest"):
        slim(path, tmp_path / "slim.onnx")


def test_few_samples_of_many_are_compared_and_of_all_classes(tmp_path):
    """Preprocessed all would take four times the memory in which they are stored."""
    x = np.repeat(np.arange(10, dtype=np.uint8), 2000 * 64).reshape(20000, 1, 8, 8)
    pack = EvalPack("p", None, None, x, (), Preprocessing(scale=0.1))
    shape = ["n", 1, 8, 8]
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": shape}, {"y": shape})
    artifact = inspect(path)
    tracemalloc.start()
    try:
        compared, _ = step.comparison_inputs(artifact, pack, {})
        assert tracemalloc.get_traced_memory()[1] < x.nbytes
    finally:
        tracemalloc.stop()
    assert len(compared["x"]) == step.SAMPLES
    assert len(np.unique(compared["x"])) == 10


def test_a_large_model_is_compared_on_few_samples_and_may_take_its_time(tmp_path, monkeypatch):
    """32 samples of 100 GMACs take a thread some minutes."""
    artifact = inspect(cnn(tmp_path / "m.onnx", layers=1))
    for macs, samples in ((artifact.macs, 32), (10**11, 4)):
        compared, batch = step.comparison_inputs(artifact.model_copy(update={"macs": macs}), None, {})
        assert (len(compared["x"]), batch) == (samples, samples)
    patience_s, load = [], Worker.load

    def watched(worker, *asked, **options):
        patience_s.append(worker.patience_s)
        return load(worker, *asked, **options)

    monkeypatch.setattr(Worker, "load", watched)
    convert(tmp_path / "m.onnx", tmp_path / "fp16.onnx", "fp16")
    layer_errors(tmp_path / "m.onnx", tmp_path / "fp16.onnx", compared)
    assert len(patience_s) == 5  # overflow, both models, both models by layer
    assert min(patience_s) >= 600
