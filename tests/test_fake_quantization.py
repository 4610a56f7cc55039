"""What a network in int8 computes while it is trained: ONNX's operators, rounding, its gradients, its ranges."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kdbench import quantize
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.evaluation import answer
from kdbench.onnxfile import load_model
from kdbench.records import Quantize
from kdbench.training.fake_quantization import simulated, step_for
from kdbench.training.int8_graph import Grid
from kdbench.training.operators import OPERATORS
from tests import models


@pytest.mark.parametrize(
    "options",
    [
        Quantize(),
        Quantize(activations="int8", per_channel=False),
        Quantize(operators=("Conv",)),
    ],
)
def test_an_untrained_graph_says_what_its_static_file_says(options, tmp_path):
    path = models.cnn(tmp_path / "m.onnx")
    pack = EvalPack("made", None, None, models.images(64), (), None)
    quantize(path, tmp_path / "int8.onnx", pack, options)
    graph = simulated(load_model(tmp_path / "int8.onnx"), load_model(path), "int8")
    samples = models.images(32, seed=5)
    with torch.no_grad():
        ours = graph(torch.from_numpy(samples)).numpy()
    theirs = answer(tmp_path / "int8.onnx", {"x": samples}, 32).outputs["y"]
    assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max()
    again = graph.written(load_model(tmp_path / "int8.onnx"))
    onnx.save(again, tmp_path / "again.onnx")
    same = answer(tmp_path / "again.onnx", {"x": samples}, 32).outputs["y"]
    assert np.abs(same - theirs).max() <= 0.01 * np.abs(theirs).max()


def operator_cases():
    """Operators with inputs and attributes, each as an exporter writes it."""
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    small = x[:, :, 0, 0]
    weight = np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)
    ids = np.array([[0, 3, 1], [2, -1, 0]])

    def ints(*values):
        return np.array(values, np.int64)

    return {
        "Conv uneven": (
            "Conv",
            [x, weight],
            {"group": 2, "pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 1]},
        ),
        "Conv even": ("Conv", [x, weight, x[0, :, 0, 0]], {"group": 2, "pads": [1, 1, 1, 1]}),
        "Gemm": ("Gemm", [small, weight[:, 0, :, 0], small[0, :3]], {"alpha": 0.5, "beta": 2.0}),
        "Gemm transposed": ("Gemm", [small, weight[:, 0, :, 0].T.copy(), small[0, :3]], {"transB": 1}),
        "MatMul": ("MatMul", [x, x.swapaxes(2, 3).copy()], {}),
        "MaxPool": ("MaxPool", [x], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
        "MaxPool uneven": ("MaxPool", [x], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        "AveragePool": ("AveragePool", [x], {"kernel_shape": [2, 2], "strides": [2, 2], "count_include_pad": 1}),
        "BatchNormalization": ("BatchNormalization", [x, *(np.abs(x[0, :, i, 0]) for i in range(4))], {}),
        "LayerNormalization": ("LayerNormalization", [x, x[0, 0, 0], x[1, 0, 0]], {"axis": -1}),
        "Reshape": ("Reshape", [x, ints(0, -1, 6)], {}),
        "Flatten": ("Flatten", [x], {"axis": 2}),
        "Transpose": ("Transpose", [x], {"perm": [0, 2, 3, 1]}),
        "Squeeze": ("Squeeze", [x[:, :1], ints(1)], {}),
        "Unsqueeze": ("Unsqueeze", [x, ints(0, -1)], {}),
        "Slice": ("Slice", [x, ints(0, 1), ints(2**63 - 1, -1), ints(2, 3), ints(2, 1)], {}),
        "Pad": ("Pad", [x, ints(0, 1, 0, 0, 0, 2, 0, 0)], {}),
        "Split": ("Split", [x, ints(1, 3)], {"axis": 1}),
        "Gather": ("Gather", [small, ids], {"axis": 1}),
        "Gather one": ("Gather", [x, np.array(0)], {"axis": 1}),
        "Concat": ("Concat", [x, x], {"axis": 1}),
        "ReduceMean": ("ReduceMean", [x, ints(-1, -2)], {"keepdims": 1}),
        "ReduceMax": ("ReduceMax", [x, ints(2)], {"keepdims": 0}),
        "ReduceSum all": ("ReduceSum", [x], {"keepdims": 0}),
        "Clip": ("Clip", [x, np.float32(0), np.float32(0.5)], {}),
        "Gelu": ("Gelu", [x], {}),
        "Softmax": ("Softmax", [x], {"axis": 1}),
        "Cast": ("Cast", [ids], {"to": TensorProto.FLOAT}),
        "Shape": ("Shape", [x], {"start": 1}),
        "Expand": ("Expand", [x[:1], ints(2, 1, 1, 6)], {}),
        "Div": ("Div", [ids, ints(2)], {}),
        "Where": ("Where", [x > 0, x, -x], {}),
        "Max": ("Max", [x, -x, x * 2], {}),
        "HardSigmoid": ("HardSigmoid", [x], {}),
        "GlobalAveragePool": ("GlobalAveragePool", [x], {}),
    }


@pytest.mark.parametrize("name", operator_cases())
def test_operators_compute_what_onnx_says(name):
    kind, inputs, attributes = operator_cases()[name]
    names = [f"i{number}" for number in range(len(inputs))]
    outputs = ["o0", "o1"] if kind == "Split" else ["o0"]
    node = helper.make_node(kind, names, outputs, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), None)
        for name, v in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph([node], "one", values, [onnx.ValueInfoProto(name=name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    expected = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    found = OPERATORS[kind](*(torch.from_numpy(np.asarray(value)) for value in inputs), **given)
    for ours, theirs in zip([found] if isinstance(found, torch.Tensor) else found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_gradients_pass_straight_through_and_end_where_a_value_is_clipped(tmp_path):
    graph = small(tmp_path)
    x = torch.tensor(models.images(4), requires_grad=True)
    x.data[0, 0, 0, 0] = 100.0
    before = graph.tensors(x)
    assert not torch.equal(before["x_QuantizeLinear_Output"], x)
    before["x_QuantizeLinear_Output"].sum().backward()
    assert x.grad[0, 0, 0, 0] == 0
    assert (x.grad == 1).sum() == x.numel() - 1


def test_ranges_follow_the_batches_in_training_alone(tmp_path):
    graph = small(tmp_path).eval()
    x = 3 * torch.from_numpy(models.images(16))
    start = graph.steps.clone()
    graph(x)
    assert torch.equal(graph.steps, start)
    graph.train()
    for _ in range(60):
        graph(x)
    place = graph.numbers["x_scale"]
    grid = graph.plan.grids["x_scale"]
    ends = x.max() / (grid.highest - grid.zero), x.min() / (grid.lowest - grid.zero)
    assert start[place] < graph.steps[place]
    assert graph.steps[place].item() == pytest.approx(max(ends).item(), rel=0.01)


def test_ranges_that_stand_for_a_clip_stay_within_it():
    grid = Grid("s", step=0.01, zero=0, lowest=0, highest=255, most=6 / 255)
    assert step_for(torch.tensor([-9.0, 3.0]), grid) == pytest.approx(3 / 255)
    assert step_for(torch.tensor([-9.0, 30.0]), grid) == pytest.approx(6 / 255)


def small(folder):
    """A small network in int8."""
    path = models.cnn(folder / "m.onnx")
    quantize(path, folder / "int8.onnx", EvalPack("made", None, None, models.images(64), (), None))
    return simulated(load_model(folder / "int8.onnx"), load_model(path), "int8")


def test_weights_that_pruning_has_left_at_zero_stay_there(tmp_path):
    path = models.cnn(tmp_path / "m.onnx")
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "c1")
    sparse = onnx.numpy_helper.to_array(weight) * (np.random.default_rng(0).random(tuple(weight.dims)) < 0.3)
    weight.CopyFrom(onnx.numpy_helper.from_array(sparse, "c1"))
    onnx.save(model, path)
    quantize(path, tmp_path / "int8.onnx", EvalPack("made", None, None, models.images(64), (), None))
    graph = simulated(load_model(tmp_path / "int8.onnx"), load_model(path), "int8")
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(graph(torch.from_numpy(models.images(16))), torch.arange(16) % 10).backward()
    optimizer.step()
    made = graph.written(load_model(tmp_path / "int8.onnx"))
    found = next(onnx.numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "c1_quantized")
    assert (found[sparse == 0] == 0).all()
    assert (found[sparse != 0] != 0).mean() > 0.9


def test_files_that_cannot_be_trained_are_named(tmp_path):
    path = models.cnn(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m.onnx: has no layer of signed int8 weights in QDQ form"):
        simulated(load_model(path), load_model(path), path)
    pack = EvalPack("made", None, None, models.images(8), (), None)
    quantize(path, tmp_path / "int8.onnx", pack)
    strange = load_model(tmp_path / "int8.onnx")
    next(node for node in strange.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalLpPool"
    with pytest.raises(UserError, match=r"int8.onnx: GlobalLpPool can't be trained in int8: leave quantize.aware out"):
        simulated(strange, load_model(path), tmp_path / "int8.onnx")
