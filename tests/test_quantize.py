"""Static int8: what `kdbench quantize` writes, by its options and targets, and what it refuses."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdbench import UserError, quantize
from kdbench.onnxfile import load_model
from kdbench.quantization.calibration import observe
from kdbench.quantization.static import prepare, quantizable, quantized_nodes, static_int8, tensors_to_calibrate
from kdbench.quantization.targets import CPU, PROVIDERS, TARGETS, candidates, targeted
from kdbench.records import Artifact, Machine, Quantize, parse, placeless
from tests import models

SAMPLES = 48

WITHOUT_TORCH = """
import importlib.util, sys
from kdbench import quantize
quantize(*sys.argv[1:])
print("torch" in sys.modules, importlib.util.find_spec("torch") is not None)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("quantize")
    models.cnn(place / "cnn.onnx")
    np.savez(place / "pack.npz", x_calibration=models.images(SAMPLES))
    return place


@pytest.fixture(scope="module")
def prepared(folder):
    return prepare(load_model(folder / "cnn.onnx"), folder / "cnn.onnx")[0]


@pytest.fixture(scope="module")
def ranges(folder):
    found = observe(folder / "cnn.onnx", lambda: iter([{"x": models.images(8)}]), counted=False)
    return found.ranges(Quantize(calibration="minmax"))


def run(model, x):
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(content).run(None, {"x": x})[0]


def distance(model, reference, x=None):
    """The root mean square of the differences of the outputs, by that of the reference's."""
    x = models.images(64, seed=9) if x is None else x
    expected = run(reference, x)
    return float(np.sqrt(np.mean((run(model, x) - expected) ** 2) / np.mean(expected**2)))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_torch_is_not_loaded_even_where_it_is_installed(folder, tmp_path):
    pytest.importorskip("torch")
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, folder / "cnn.onnx", tmp_path / "out.onnx", folder / "pack.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["False", "True"]  # and afterwards it can still be found


def test_given_ranges_make_the_file_that_onnxruntime_makes(folder, prepared, ranges, tmp_path):
    theirs = onnx.load(models.int8(folder / "cnn.onnx", tmp_path / "theirs.onnx"))
    before = prepared.SerializeToString(deterministic=True)
    ours = static_int8(prepared, ranges, Quantize(reduce_range=False))
    for part in ("node", "initializer", "input", "output"):
        assert [item.SerializeToString(deterministic=True) for item in getattr(ours.graph, part)] == [
            item.SerializeToString(deterministic=True) for item in getattr(theirs.graph, part)
        ]
    assert prepared.SerializeToString(deterministic=True) == before


def test_nodes_are_quantized_but_those_that_stay_in_float(prepared, ranges):
    everything = quantizable(prepared)
    assert {"conv0", "conv1", "conv2", "product"} <= set(everything)
    assert not {"relu0", "relu1"} & set(everything)  # they go into the convolution before them
    assert quantizable(prepared, ["MatMul"]) == ["product"]
    partly = static_int8(prepared, ranges, Quantize(exclude=("conv1",)), ["product"])
    assert {"conv0", "conv2"} <= set(quantized_nodes(partly))
    assert not {"conv1", "product"} & set(quantized_nodes(partly))
    kept = {tensor.name for tensor in partly.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert {"c1", "fc"} <= kept
    only = static_int8(prepared, ranges, Quantize(nodes=("conv1",)))
    assert "conv1" in quantized_nodes(only)
    assert not {"conv0", "conv2", "product"} & set(quantized_nodes(only))
    fewer = [distance(model, prepared) for model in (static_int8(prepared, ranges, Quantize()), partly, only)]
    assert all(0 < error < 0.1 for error in fewer)


def test_integer_nodes_in_the_operator_format(folder, tmp_path):
    made = quantize(folder / "cnn.onnx", tmp_path / "qoperator.onnx", folder / "pack.npz", Quantize(format="qoperator"))
    assert made.operators["QLinearConv"] == 3
    assert made.operators.get("DequantizeLinear", 0) == 1
    assert made.options["format"] == "qoperator"
    assert distance(tmp_path / "qoperator.onnx", folder / "cnn.onnx") < 0.1


def zero_points(model):
    """Of the quantizers of activations: the tensors that are no weights."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [tensors[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_symmetric_activations_have_zero_in_the_middle(prepared, ranges):
    symmetric = static_int8(prepared, ranges, Quantize(activations="int8", symmetric=True))
    assert {int(zero) for zero in zero_points(symmetric)} == {0}
    assert len({int(zero) for zero in zero_points(static_int8(prepared, ranges, Quantize()))}) > 1
    assert distance(symmetric, prepared) < 0.1


def test_tensorrt_reads_float_weights_behind_a_pair_for_each_use(tmp_path):
    # A bias, and a tensor that two nodes use.
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32), "b": np.ones(4, np.float32),
        "v": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["i"], name="second"),
        helper.make_node("Add", ["h", "i"], ["y"], name="sum"),
    ]
    path = models.save(tmp_path / "two.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 4]})
    np.savez(tmp_path / "pack.npz", x_calibration=np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32))
    options = parse(Quantize, {"target": "tensorrt"}, "options")
    made = quantize(path, tmp_path / "int8.onnx", tmp_path / "pack.npz", options)
    model = onnx.load(tmp_path / "int8.onnx")
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["w"] == stored["v"] == stored["b"] == TensorProto.FLOAT
    assert TensorProto.INT32 not in stored.values()
    assert {int(zero) for zero in np.concatenate([np.ravel(zero) for zero in zero_points(model)])} == {0}
    readers = [name for node in model.graph.node for name in node.input]
    restored = [node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert all(readers.count(name) <= 1 for name in restored)
    assert (made.options["symmetric"], made.options["float_weights"]) == (True, True)


def test_every_method_and_what_it_was_told_are_recorded(folder, tmp_path):
    errors = {}
    for method in ("minmax", "entropy", "percentile", "mse"):
        options = Quantize(calibration=method, percentile=99.9)
        made = quantize(folder / "cnn.onnx", tmp_path / f"{method}.onnx", folder / "pack.npz", options)
        assert (made.options["calibration"], made.options["percentile"]) == (method, 99.9)
        assert isinstance(made.options["reduce_range"], bool)
        errors[method] = distance(tmp_path / f"{method}.onnx", folder / "cnn.onnx")
    assert len(set(errors.values())) == 4
    assert max(errors.values()) < 0.3


def test_calibration_samples_that_make_no_whole_batch_count_too(folder, tmp_path):
    x, scales = np.concatenate([models.images(32), 10 * models.images(1)]), []
    for count in (32, 33):
        np.savez(tmp_path / "pack.npz", x_calibration=x[:count])
        quantize(folder / "cnn.onnx", tmp_path / "int8.onnx", tmp_path / "pack.npz", Quantize(calibration="minmax"))
        graph = onnx.load(tmp_path / "int8.onnx").graph
        (scale,) = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"}
        scales.append(next(numpy_helper.to_array(t).item() for t in graph.initializer if t.name == scale))
    assert scales[1] > 3 * scales[0]


def test_a_model_of_a_fixed_batch_is_filled_up(tmp_path, folder):
    model = onnx.load(folder / "cnn.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(model, tmp_path / "fixed.onnx")
    np.savez(tmp_path / "few.npz", x_calibration=models.images(3))
    assert quantize(tmp_path / "fixed.onnx", tmp_path / "int8.onnx", tmp_path / "few.npz").precision == "int8"


def test_nodes_without_names_get_some(tmp_path, folder):
    model = onnx.load(folder / "cnn.onnx")
    for node in model.graph.node:
        node.name = "" if node.op_type == "Conv" else "same"
    found, _ = prepare(model, folder / "cnn.onnx")
    names = [node.name for node in found.graph.node]
    assert len(set(names)) == len(names)
    assert names[0] == "Conv_0"


def test_what_goes_into_an_activation_alone_needs_no_range_of_its_own(folder, prepared, ranges):
    wanted = tensors_to_calibrate(prepared, Quantize())
    assert {"x", "r0", "r1", "r2", "p"} <= set(wanted)
    assert not {"h0", "h1", "h2"} & set(wanted)
    assert {"h0", "h1", "h2"} <= set(tensors_to_calibrate(prepared, Quantize(operators=("Conv",))))
    assert "h1" in tensors_to_calibrate(prepared, Quantize(exclude=("relu1",)))
    fewer = {name: ranges[name] for name in wanted}
    for options in (Quantize(), Quantize(activations="int8", symmetric=True), Quantize(format="qoperator")):
        one, other = (static_int8(prepared, given, options) for given in (ranges, fewer))
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_makes_a_file_that_runs(name, prepared, ranges):
    row = TARGETS[name]
    chosen = targeted(parse(Quantize, {"target": name}, "options"))
    assert chosen.target == name
    assert {field: getattr(chosen, field) for field in row.options} == dict(row.options)
    parse(Quantize, dict(row.options), name)
    assert row.why.endswith(".")
    assert distance(static_int8(prepared, ranges, chosen), prepared) < 0.1


def test_every_target_is_somebodys():
    assert {name for names in (*CPU.values(), *PROVIDERS.values()) for name in names} == set(TARGETS)


def machine(architecture, *features):
    return Machine.model_construct(os=f"Linux 6.1 {architecture}", features=features)


def test_the_first_guess_is_by_backend_and_cpu():
    vnni, plain, arm = machine("x86_64", "avx2", "avx512_vnni"), machine("x86_64", "avx2"), machine("aarch64", "asimd")
    for backend, where, target in (
        ("cpu", vnni, "x86-vnni"),
        ("cpu", plain, "x86"),
        ("cpu", arm, "arm"),
        ("cpu", machine("riscv64"), "portable"),
        ("xnnpack", arm, "arm"),
        ("tensorrt", vnni, "tensorrt"),
        ("openvino:bf16", vnni, "openvino"),
        ("webgpu", vnni, "portable"),
        ("VitisAIExecutionProvider", plain, "portable"),
    ):
        assert candidates(backend, where)[0].target == target
    assert candidates("cpu", plain)[0].over(Quantize()).reduce_range is True
    assert candidates("cpu")[0] in TARGETS.values()


def test_what_is_said_goes_before_the_target():
    said = parse(Quantize, {"per_channel": True, "calibration": "mse"}, "options")
    chosen = TARGETS["qnn"].over(said)
    assert (chosen.per_channel, chosen.weights, chosen.calibration) == (True, "uint8", "mse")
    assert dataclasses.replace(TARGETS["qnn"]).options == {
        "weights": "uint8",
        "per_channel": False,
        "reduce_range": False,
    }


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ["conv7"]}, "has no node 'conv7' once it is slimmed: did you mean 'conv"),
        ({"nodes": ["produkt"]}, "has no node 'produkt' once it is slimmed: did you mean 'product'"),
        ({"nodes": ["qqqq"]}, "has no node 'qqqq' once it is slimmed: known: "),
        ({"operators": ["Conf"]}, "has no operator 'Conf': did you mean 'Conv'"),
        ({"target": "tensort"}, "unknown target 'tensort': did you mean 'tensorrt'"),
        ({"activations": "int8", "weights": "uint8"}, "uint8 weights go with uint8 activations only"),
        ({"exclude": ["conv0", "conv1", "conv2", "product", "pool", "flat"]}, "nothing in it can be quantized"),
        ({"max_drop": 0, "equalization": False}, "options: max_drop: judged on samples: use fastest_int8"),
        ({"for": "cpu", "bias_correction": True}, "options: for, bias_correction: judged on samples"),
    ],
)
def test_options_that_fit_no_model_are_refused_by_name(folder, tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        quantize(folder / "cnn.onnx", tmp_path / "x.onnx", folder / "pack.npz", parse(Quantize, options, "options"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.ones((6, 3, 16, 16), np.float32), "all 6 calibration samples are the same"),
        (np.full((2, 3, 16, 16), np.nan, np.float32), "holds NaN or infinite values"),
        (np.empty((0, 3, 16, 16), np.float32), "N of 1 or more"),
        (models.images(2)[:, :2], r"has samples of shape \(2, 16, 16\)"),
    ],
)
def test_samples_that_can_not_calibrate_are_refused(folder, tmp_path, samples, reason):
    np.savez(tmp_path / "pack.npz", x_calibration=samples)
    with pytest.raises(UserError, match=reason):
        quantize(folder / "cnn.onnx", tmp_path / "x.onnx", tmp_path / "pack.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["pack.npz"]


def test_a_quantized_model_is_not_quantized_again(folder, tmp_path):
    models.int8(folder / "cnn.onnx", tmp_path / "int8.onnx")
    with pytest.raises(UserError, match="is quantized already: give its fp32 parent"):
        quantize(tmp_path / "int8.onnx", tmp_path / "x.onnx")


def test_an_operator_that_can_not_be_quantized_is_named_and_stays_in_float(tmp_path):
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.random.default_rng(0).random((4, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["h"], equation="ij,jk->ik", name="/up/sum"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="product"),
    ]
    path = models.save(tmp_path / "einsum.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})
    made = quantize(path, tmp_path / "int8.onnx")
    assert "its Einsum nodes stay in float, as onnxruntime can't quantize them: “/up/sum”" in made.warnings
    assert placeless(Artifact, made).warnings == made.warnings  # as it is packed, published and on a card
    both = quantize(path, tmp_path / "both.onnx", options=Quantize(operators=("Einsum", "MatMul")))
    assert any("Einsum" in warning for warning in both.warnings)
    weights = [tensor for tensor in onnx.load(tmp_path / "both.onnx").graph.initializer if tensor.name == "w"]
    assert weights[0].data_type == TensorProto.FLOAT
    with pytest.raises(UserError, match="onnxruntime can't quantize Einsum in it, but MatMul: name these"):
        quantize(path, tmp_path / "x.onnx", options=Quantize(operators=("Einsum",)))


def test_a_model_that_answers_always_the_same_is_remarked(tmp_path):
    weights = {"w": np.zeros((4, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product")]
    path = models.save(tmp_path / "dead.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})
    made = quantize(path, tmp_path / "int8.onnx")
    assert any("outputs are the same for all 128 calibration samples" in warning for warning in made.warnings)
