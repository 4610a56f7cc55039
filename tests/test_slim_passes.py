"""Slimming's passes together: how long they take turns, and on what they are judged."""

import numpy as np
from onnx import helper, numpy_helper

from kdbench import slim
from kdbench.data.pack import EvalPack
from kdbench.steps import slim as step
from tests.models import save
from tests.test_slim import outputs


def fewer_by_one(model, operator, fits):
    """The model without the first node of this operator whose input's maker `fits`."""
    changed = step.copy_of(model)
    makers = {output: node for node in changed.graph.node for output in node.output}
    for node in changed.graph.node:
        maker = makers.get(node.input[0])
        if node.op_type == operator and maker and fits(maker):
            for reader in changed.graph.node:
                reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
            changed.graph.node.remove(node)
            return changed
    return model


def test_passes_take_turns_until_none_of_them_finds_anything(tmp_path, monkeypatch):
    """One joins two activations, once nothing lies between, and the other takes away what does, one node at a time."""
    passes = {
        "join": lambda model, path: fewer_by_one(model, "Relu", lambda maker: maker.op_type == "Relu"),
        "clear": lambda model, path: fewer_by_one(model, "Identity", lambda maker: True),
    }
    monkeypatch.setattr(step, "PASSES", passes)
    kinds = ["Relu", *["Identity", "Relu"] * 3]
    nodes = [helper.make_node(kind, [f"h{i}"], [f"h{i + 1}"], name=f"n{i}") for i, kind in enumerate(kinds)]
    nodes.append(helper.make_node("MatMul", [f"h{len(kinds)}", "w"], ["y"], name="product"))
    path = save(tmp_path / "model.onnx", nodes, {"w": np.eye(4, dtype=np.float32)}, {"h0": ["n", 4]}, {"y": ["n", 4]})
    made = slim(path, tmp_path / "slim.onnx")
    assert made.operators == {"Relu": 1, "MatMul": 1}
    assert set(made.options["passes"]) == {"join", "clear"}


def test_outputs_are_compared_on_the_packs_own_samples(tmp_path, monkeypatch):
    """A bound that made-up inputs never reach, and these samples do."""
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"], name="clip"),
        helper.make_node("MatMul", ["c", "w"], ["same"], name="product"),
        helper.make_node("Identity", ["same"], ["y"], name="identity"),
    ]
    weights = {"low": np.array(0, np.float32), "high": np.array(90, np.float32), "w": np.eye(4, dtype=np.float32)}
    path = save(tmp_path / "model.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 4]})

    def lower(model, path):
        changed = step.copy_of(model)
        bound = next(tensor for tensor in changed.graph.initializer if tensor.name == "high")
        bound.CopyFrom(numpy_helper.from_array(np.array(50, np.float32), "high"))
        return changed

    monkeypatch.setattr(step, "PASSES", {"lower": lower, "onnxslim": step.by_onnxslim})
    pack = EvalPack("made", None, None, np.full((8, 4), 80, np.float32), (), None)
    assert "lower" in slim(path, tmp_path / "made-up.onnx").options["passes"]
    made = slim(path, tmp_path / "slim.onnx", pack=pack)
    assert list(made.options["passes"]) == ["onnxslim"]
    assert made.options["remarks"][0].startswith("lower left out: moved an output by 30, more than")
    np.testing.assert_array_equal(outputs(tmp_path / "slim.onnx", {"x": pack.x_calibration})[0], pack.x_calibration)
