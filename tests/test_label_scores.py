"""Scores of any number of labels: whether they are logits or probabilities, and so from where on a label is given."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdbench import UserError, evaluate
from kdbench.evaluation import threshold


@pytest.mark.parametrize(
    ("scores", "bound"),
    [
        ([[0.2, 0.9]], 0.5),
        ([[0.0, 1.0000001]], 0.5),
        ([[0.2, 1.1]], 0.0),
        ([[-0.1, 0.9]], 0.0),
        ([[0, 1]], 0.5),
        ([[float("nan"), 0.4]], 0.0),
        (np.zeros((0, 2)), 0.0),
    ],
)
def test_scores_from_0_to_1_are_probabilities(scores, bound):
    assert threshold(np.array(scores)) == bound


def save_scorer(path, kind):
    """x [batch, 3] as logits, or through a sigmoid, or its sum."""
    node = {
        "logits": helper.make_node("Identity", ["x"], ["y"]),
        "sigmoid": helper.make_node("Sigmoid", ["x"], ["y"]),
        "sum": helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0),
        "cut": helper.make_node("Slice", ["x", "axes", "two", "axes"], ["y"]),
    }[kind]
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("axes", 1), ("two", 3))]
    shape = ["batch"] if kind == "sum" else ["batch", 2 if kind == "cut" else 3]
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [constant for constant in constants if constant.name in node.input],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_logits_and_probabilities_are_judged_alike(tmp_path):
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((40, 3)).astype(np.float32), generator.integers(0, 2, (40, 3))
    np.savez(tmp_path / "pack.npz", x_test=x, y_test=y)
    models = {kind: save_scorer(tmp_path / f"{kind}.onnx", kind) for kind in ("logits", "sigmoid", "sum", "cut")}
    found = evaluate(models["logits"], tmp_path / "pack.npz")
    assert found == evaluate(models["sigmoid"], tmp_path / "pack.npz")
    assert found.micro == pytest.approx(2 * ((x > 0) & (y > 0)).sum() / ((x > 0).sum() + y.sum()))
    with pytest.raises(UserError, match=r"output 'y' of shape \(40,\) is not one score a label"):
        evaluate(models["sum"], tmp_path / "pack.npz")
    with pytest.raises(UserError, match="3 labels a sample, but 2 classes"):
        evaluate(models["cut"], tmp_path / "pack.npz")
