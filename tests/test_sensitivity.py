"""Sensitivity by layer, cross-layer equalisation and bias correction, on onnxruntime."""

from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.pipeline.judged_data import parted
from kdbench.quantization.bias import bias_corrected, bias_shifts
from kdbench.quantization.calibration import observe
from kdbench.quantization.equalization import equalized
from kdbench.quantization.running import running
from kdbench.quantization.samples import halved, samples_of
from kdbench.quantization.sensitivity import int8_share, layers_of, noise_share, sensitivities, sqnr_db
from kdbench.quantization.static import prepare, quantizable, static_int8
from kdbench.quantization.weights import weighted
from kdbench.records import Quantize
from tests import models

U8S8 = Quantize(reduce_range=False)


def pack(x, labels=None) -> EvalPack:
    return EvalPack("made.npz", None, None, x, (), None, y_calibration=labels)


def samples(path, x):
    return samples_of(pack(x), inspect(path).inputs, None)


@contextmanager
def int8(path, x, options=U8S8):
    """The prepared model, its ranges, a runner, and samples."""
    graph, _ = prepare(onnx.load(path), path)
    shown = samples(path, x)
    with running("cpu") as runner:
        yield graph, observe(graph, shown.batches).ranges(options), runner, shown


def mlp(path, scales=(1.0, 1.0, 1.0), seed=0):
    """[n, 16] to 5 logits in three products; features below 8 of a layer's input are `scale` times as large, and their
    weights as much smaller, so that int8 for that layer loses them where the scale is far from 1."""
    generator = np.random.default_rng(seed)
    nodes, weights, x, width = [], {}, "x", 16
    for number, (scale, out) in enumerate(zip(scales, (16, 16, 5), strict=True)):
        weight = (generator.standard_normal((width, out)) / np.sqrt(width)).astype(np.float32)
        weight[:8] /= np.float32(scale)
        weights |= {f"w{number}": weight, f"b{number}": np.zeros(out, np.float32)}
        nodes.append(helper.make_node("Gemm", [x, f"w{number}", f"b{number}"], [f"h{number}"], name=f"fc{number}"))
        x, width = f"h{number}", out
        if number < 2:
            nodes.append(helper.make_node("Relu", [x], [f"r{number}"], name=f"relu{number}"))
            x = f"r{number}"
    return models.save(path, nodes, weights, {"x": ["n", 16]}, {x: ["n", 5]})


def features(count, scale=1.0, seed=1):
    x = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    x[:, :8] *= scale
    return x


def test_the_layer_with_a_huge_dynamic_range_is_the_most_sensitive(tmp_path):
    path = mlp(tmp_path / "m.onnx", (1e-4, 1.0, 1.0))
    with int8(path, features(64, 1e-4)) as (graph, ranges, runner, shown):
        layers = layers_of(graph, quantizable(graph))
        expected = runner.outputs(graph, shown)[0]
        found = sensitivities(
            layers,
            lambda left: static_int8(graph, ranges, U8S8, left),
            lambda model: runner.outputs(model, shown)[0],
            expected,
        )
        whole = noise_share(runner.outputs(static_int8(graph, ranges, U8S8), shown)[0], expected)
        evaluations = runner.evaluations
    assert found[0].layer.name == "fc0"
    assert found[0].noise > 0.1 > 1e-2 > max(one.noise for one in found[1:])
    assert sqnr_db(found[0].noise) < 10 < 20 < min(sqnr_db(one.noise) for one in found[1:])
    assert evaluations == len(layers) + 2
    assert whole == pytest.approx(sum(one.noise for one in found), rel=0.5)  # the powers add up


def test_layers_have_their_followers_and_their_work(tmp_path):
    path = models.cnn(tmp_path / "m.onnx", width=8, layers=2)
    graph, _ = prepare(onnx.load(path), path)
    layers = layers_of(graph, [node.name for node in graph.graph.node])
    assert [layer.nodes for layer in layers] == [
        ("conv0", "relu0"),
        ("conv1", "relu1"),
        ("pool",),
        ("flat",),
        ("product",),
    ] or [layer.nodes for layer in layers] == [("conv0", "relu0"), ("conv1", "relu1"), ("pool", "flat"), ("product",)]
    assert [layer.macs for layer in layers if layer.macs] == [16 * 16 * 8 * 27, 16 * 16 * 8 * 72, 80]
    assert sum(layer.macs for layer in layers) == inspect(path).macs
    share = int8_share(layers, ["conv0"])
    assert share == pytest.approx(1 - 16 * 16 * 8 * 27 / inspect(path).macs)
    assert int8_share(layers, [layer.name for layer in layers]) == 0


def test_layers_that_share_a_weight_go_together(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, {"w": np.eye(4, dtype=np.float32)}, {"x": ["n", 4]}, {"y": ["n", 4]})
    (layer,) = layers_of(onnx.load(path), ["first", "relu", "second"])
    assert layer.nodes == ("first", "relu", "second")


def test_noise_that_is_not_finite_is_infinite_and_silence_is_none():
    ones = np.ones((2, 2), np.float32)
    assert noise_share(ones, ones) == 0
    assert noise_share(ones * np.nan, ones) == np.inf
    assert noise_share(ones, ones * 0) == np.inf
    assert noise_share(ones * 0, ones * 0) == 0
    assert noise_share(ones * 1.1, ones) == pytest.approx(0.01, rel=1e-3)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_parted_by_class_and_none_is_on_both_sides(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    x = features(100)
    labels = np.arange(100) % 4
    every = samples_of(pack(x, labels), inspect(path).inputs, None)
    rest, judged = halved(every, 40)
    assert (len(rest), len(judged)) == (60, 40)
    np.testing.assert_array_equal(np.bincount(judged.labels), [10, 10, 10, 10])
    together = np.concatenate([rest.pack.x_calibration, judged.pack.x_calibration])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in x}
    with pytest.raises(UserError, match="give more of them"):
        halved(every.first(1), 1)


@pytest.mark.parametrize("wanted", [None, 200])
def test_data_in_the_order_of_its_classes_shows_all_of_them(tmp_path, wanted):
    """In each part, and among the first of it, on which layers are looked at and biases corrected."""
    artifact, labels = inspect(mlp(tmp_path / "m.onnx")), np.repeat(np.arange(10), 100)
    parts = parted(pack(features(1000), labels), artifact, wanted)
    assert [len(part) for part in parts] == [(wanted or 1000) // 2] * 2
    for part in parts:
        every, few = (np.bincount(shown.labels, minlength=10) for shown in (part, part.first(64)))
        assert np.ptp(every) <= 5 and few.min() > 0


def test_which_samples_are_judged_stays_the_same(tmp_path):
    """Figures that were published can be had again."""
    path, x = mlp(tmp_path / "m.onnx"), features(20)
    _, judged = halved(samples_of(pack(x, np.arange(20) % 4), inspect(path).inputs, None), 8)
    assert {row.tobytes() for row in judged.pack.x_calibration} == {
        row.tobytes() for row in x[[4, 6, 8, 10, 11, 13, 17, 19]]
    }


@pytest.mark.parametrize("batch", ["n", 8])
def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path, batch):
    path = mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        if batch == "n":
            value.type.tensor_type.shape.dim[0].dim_param = batch
        else:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, path)
    x = features(45)
    shown = samples(path, x)
    assert {len(feed["x"]) for feed in shown.batches()} == ({32, 13} if batch == "n" else {8})
    with running("cpu") as runner:
        (found,) = runner.outputs(path, shown)
    h = x
    for number in range(3):
        w = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == f"w{number}"))
        h = h @ w if number == 2 else np.maximum(h @ w, 0)
    np.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)


def test_an_output_of_several_rows_a_sample_is_no_answer(tmp_path):
    """Such as one a token: the first rows would be answers to the first samples."""
    rows = {"shape": np.array([-1, 4]), "w": np.eye(4, dtype=np.float32)}
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])]
    path = models.save(tmp_path / "m.onnx", nodes, rows, {"x": ["n", 16]}, {"y": ["rows", 4]})
    with running("cpu") as runner, pytest.raises(UserError, match=r"'y' of shape \(128, 4\) has no batch axis first"):
        runner.outputs(path, samples(path, features(40)))


# --- cross-layer equalisation -----------------------------------------------------------------------------------------


def chain(path, generator=None):
    """Convolutions, one of them in groups and one by channel, a product and what lies between; uneven channels."""
    generator = generator or np.random.default_rng(0)

    def uneven(*shape):
        spread = np.exp(generator.uniform(-6, 6, shape[0])).reshape(-1, *(1,) * (len(shape) - 1))
        return (generator.standard_normal(shape) * spread).astype(np.float32)

    weights = {
        "c0": uneven(8, 3, 3, 3), "b0": uneven(8), "c1": uneven(8, 1, 3, 3), "c2": uneven(12, 4, 1, 1),
        "b2": uneven(12), "fc": uneven(5, 12 * 16), "b3": uneven(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "c0", "b0"], ["h0"], name="conv0", pads=[1] * 4),
        helper.make_node("Relu", ["h0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "c1"], ["h1"], name="depthwise", pads=[1] * 4, group=8),
        helper.make_node("LeakyRelu", ["h1"], ["r1"], name="leaky", alpha=0.1),
        helper.make_node("MaxPool", ["r1"], ["m1"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["m1", "c2", "b2"], ["h2"], name="grouped", group=2),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc", "b3"], ["y"], name="product", transB=1),
    ]
    return models.save(path, nodes, weights, {"x": ["n", 3, 16, 16]}, {"y": ["n", 5]})


def test_an_equalised_model_answers_the_same_to_the_last_bit(tmp_path):
    path = chain(tmp_path / "m.onnx")
    model = onnx.load(path)
    changed, pairs = equalized(model)
    assert pairs == [("conv0", "depthwise"), ("depthwise", "grouped"), ("grouped", "product")]
    shown = samples(path, models.images(40))
    with running("cpu") as runner:
        before, after = (runner.outputs(one, shown)[0] for one in (model, changed))
    np.testing.assert_array_equal(after, before)
    layers = {layer.node.name: layer for layer in weighted(changed)}
    ours, theirs = layers["grouped"].largest("output"), layers["product"].largest("input").reshape(12, 16).max(axis=1)
    assert (np.abs(np.log2(ours / theirs)) <= 1 + 1e-6).all()
    uneven = {layer.node.name: layer for layer in weighted(model)}["conv0"].largest("output")
    even = layers["conv0"].largest("output")
    assert even.max() / even.min() < 0.1 * uneven.max() / uneven.min()
    assert model == onnx.load(path)  # which is left as it was


def test_layers_may_share_a_bias(tmp_path):
    """onnxslim joins equal tensors: zeros of two layers become one."""
    uneven = np.exp(np.random.default_rng(0).uniform(-6, 6, (4, 4))).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"], name="between"),
        helper.make_node("Gemm", ["r", "w1", "b"], ["y"], name="b"),
    ]
    weights = {"w0": uneven, "w1": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    path = models.save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 4]})
    changed, pairs = equalized(onnx.load(path))
    assert pairs == [("a", "b")]
    shown = samples(path, features(20)[:, :4])
    with running("cpu") as runner:
        before, after = (runner.outputs(one, shown)[0] for one in (path, changed))
    np.testing.assert_array_equal(after, before)


def test_equalisation_raises_the_sqnr_of_scales_by_tensor(tmp_path):
    per_tensor = U8S8.model_copy(update={"per_channel": False})
    path = chain(tmp_path / "m.onnx")
    noise = []
    for model in (onnx.load(path), equalized(onnx.load(path))[0]):
        onnx.save(model, tmp_path / "one.onnx")
        with int8(tmp_path / "one.onnx", models.images(40), per_tensor) as (graph, ranges, runner, shown):
            expected = runner.outputs(graph, shown)[0]
            noise.append(noise_share(runner.outputs(static_int8(graph, ranges, per_tensor), shown)[0], expected))
    assert noise[1] < 0.5 * noise[0]


@pytest.mark.parametrize("spoiler", ["clip", "shared", "shown", "branch"])
def test_layers_that_cannot_be_equalised_are_left_alone(tmp_path, spoiler):
    """A bound that would have to move, a weight that another node reads, a tensor that is an output or read twice."""
    weight = np.exp(np.random.default_rng(0).uniform(-6, 6, (4, 4))).astype(np.float32)
    weights = {"w0": weight, "w1": weight.T.copy(), "six": np.float32(6).reshape(()), "zero": np.float32(0).reshape(())}
    between = helper.make_node("Relu", ["h"], ["r"], name="between")
    if spoiler == "clip":
        between = helper.make_node("Clip", ["h", "zero", "six"], ["r"], name="between")
    nodes = [helper.make_node("Gemm", ["x", "w0"], ["h"], name="a"), between]
    nodes.append(helper.make_node("Gemm", ["r", "w0" if spoiler == "shared" else "w1"], ["y"], name="b"))
    outputs = {"y": ["n", 4]}
    if spoiler == "shown":
        outputs["r"] = ["n", 4]
    if spoiler == "branch":
        nodes.append(helper.make_node("Add", ["y", "r"], ["z"], name="add"))
        outputs = {"z": ["n", 4]}
    model = onnx.load(models.save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 4]}, outputs))
    changed, pairs = equalized(model)
    assert pairs == [] and changed is model


# --- bias correction --------------------------------------------------------------------------------------------------


def shifted(path):
    """Two products of positive inputs whose small weights are all rounded down, beside one large one a channel."""
    weights = {}
    for number in range(2):
        weight = np.full((16, 16), 0.4 / 127, np.float32)
        np.fill_diagonal(weight, 1.0)
        weights |= {f"w{number}": weight, "b1": np.ones(16, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"], name="second"),
    ]
    return models.save(path, nodes, weights, {"x": ["n", 16]}, {"y": ["n", 16]})


def test_bias_correction_takes_off_what_int8_adds_on_average(tmp_path):
    path = shifted(tmp_path / "m.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (256, 16)).astype(np.float32)
    with int8(path, x) as (graph, ranges, runner, shown):
        quantized = partial(static_int8, ranges=ranges, options=U8S8)
        expected = runner.outputs(graph, shown)[0]
        before = runner.outputs(quantized(graph), shown)[0]
        shifts = bias_shifts(graph, quantized, partial(runner.batches, samples=shown), quantizable(graph))
        after = runner.outputs(quantized(bias_corrected(graph, shifts)), shown)[0]
        kept = runner.outputs(bias_corrected(graph, shifts, quantizable(graph)), shown)[0]
    assert list(shifts) == ["first", "second"]
    np.testing.assert_array_equal(kept, expected)  # layers in float need no correction
    shift = np.abs((before - expected).mean(axis=0))
    assert (shift > 0.02).all()
    assert np.abs((after - expected).mean(axis=0)).max() < 0.2 * shift.min()
    assert noise_share(after, expected) < 0.5 * noise_share(before, expected)


def test_bias_correction_knows_convolutions_and_opsets(tmp_path):
    """Means over places, by axes that are an attribute before opset 18 and an input from then on."""
    for opset in (17, 18):
        path = models.cnn(tmp_path / "m.onnx", width=8, layers=2)
        model = onnx.load(path)
        model.opset_import[0].version = opset
        onnx.save(model, path)
        with int8(path, models.images(32)) as (graph, ranges, runner, shown):
            quantized = partial(static_int8, ranges=ranges, options=U8S8)
            run = partial(runner.batches, samples=shown)
            shifts = bias_shifts(graph, quantized, run, ["conv0", "conv1", "product"])
            expected = runner.outputs(graph, shown)[0].mean(axis=0)
            before, after = (
                np.abs(runner.outputs(quantized(one), shown)[0].mean(axis=0) - expected).sum()
                for one in (graph, bias_corrected(graph, shifts))
            )
        assert list(shifts) == ["conv0", "conv1"]  # a MatMul has no bias
        assert after < before
