"""Ranges and histograms: those of samples that stream against those of all values kept, and against onnxruntime's."""

import dataclasses
import weakref

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.calibrate import HistogramCollector
from onnxruntime.quantization.quant_utils import compute_scale_zp, quantize_nparray

from kdbench.errors import UserError
from kdbench.quantization.calibration import float_tensors, observe, watched
from kdbench.quantization.histograms import (
    RULES,
    SHARES,
    Histogram,
    divergences,
    least_divergent,
    range_of,
    squared_errors,
    trimmed,
)
from kdbench.records import Quantize
from kdbench.worker import calibrate as worker
from tests import models

VALUES = st.floats(2**-60, 2**60, width=32) | st.floats(-(2**60), -(2**-60), width=32) | st.just(0.0)
BATCHES = st.lists(st.lists(VALUES, min_size=1, max_size=30), min_size=1, max_size=6)


def histogram(values):
    tensor = worker.Tensor()
    assert tensor.add(np.asarray(values, np.float32), counted=True)
    return trimmed(tensor.lowest, tensor.highest, 2.0**tensor.exponent, tensor.counts)


# --- histograms -------------------------------------------------------------------------------------------------------


@given(BATCHES)
def test_a_histogram_of_batches_is_that_of_all_values_kept(batches):
    tensor = worker.Tensor()
    for batch in batches:
        assert tensor.add(np.array(batch, np.float32), counted=True)
    kept = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert (tensor.lowest, tensor.highest) == (kept.min(), kept.max())
    found = trimmed(tensor.lowest, tensor.highest, 2.0**tensor.exponent, tensor.counts)
    assert found.counts.sum() == kept.size
    # Multiples of a power of two are exact edges: numpy puts each value where it belongs.
    expected, _ = np.histogram(kept.astype(np.float64), bins=found.edges)
    np.testing.assert_array_equal(found.counts, expected)


@given(BATCHES)
def test_bins_are_as_narrow_as_the_largest_value_allows(batches):
    found = histogram(np.concatenate([np.array(batch, np.float32) for batch in batches]))
    largest = max(abs(found.lowest), abs(found.highest))
    if largest:
        assert worker.HALF / 2 <= largest / found.width <= worker.HALF
        assert len(found.counts) // 2 in (int(largest / found.width), int(largest / found.width) + 1)
    else:
        assert len(found.counts) == 2


def test_half_precision_is_counted_and_what_is_not_finite_is_told():
    tensor = worker.Tensor()
    assert tensor.add(np.array([0.5, -1, 2], np.float16), counted=True)
    assert tensor.add(np.empty((0, 3), np.float32), counted=True)
    for wrong in (np.nan, np.inf):
        assert not tensor.add(np.array([1, wrong], np.float32), counted=True)
    assert (tensor.lowest, tensor.highest, tensor.counts.sum()) == (-1, 2, 3)


# --- rules ------------------------------------------------------------------------------------------------------------


@given(BATCHES, st.sampled_from([60.0, 90.0, 99.0, 99.99, 100.0]), st.booleans())
def test_percentiles_are_within_a_bin_of_the_exact_ones(batches, percent, symmetric):
    values = np.concatenate([np.array(batch, np.float32) for batch in batches]).astype(np.float64)
    found = histogram(values)
    options = Quantize(calibration="percentile", percentile=percent, symmetric=symmetric)
    low, high = range_of(found, options)
    # The share as the rule computes it: a rounding apart, the quantile may be the next value.
    share = percent / 100
    if symmetric:
        bound = np.quantile(np.abs(values), share, method="inverted_cdf")
        assert min(bound, -values.min()) - 1e-9 <= -low <= bound + found.width or -low <= bound
        assert high <= bound + found.width
        assert high >= min(bound, values.max())
    else:
        exact = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], method="inverted_cdf")
        assert abs(low - exact[0]) <= found.width
        assert abs(high - exact[1]) <= found.width
        assert low <= exact[0] and high >= exact[1]


def entropy_cases():
    generator = np.random.default_rng(0)
    return {
        "normal": generator.standard_normal(40000),
        "relu": np.maximum(generator.standard_normal(40000), 0),
        "heavy tails": generator.standard_t(3, 40000),
        "one outlier": np.append(generator.standard_normal(4000), 40.0),
        "few values": generator.choice([-1.0, 0.25, 3.0], 500),
        "negative": -generator.exponential(size=3000),
        "sparse": generator.standard_normal(50),
    }


@pytest.mark.parametrize("levels", [128, 255])
@pytest.mark.parametrize("name", entropy_cases())
def test_entropy_finds_the_range_that_onnxruntime_finds_on_the_same_histogram(name, levels):
    full = histogram(entropy_cases()[name])
    # Joined to at most 300 bins a side: onnxruntime's loops take seconds for more.
    joined = max(1, len(full.counts) // 400)
    half = len(full.counts) // 2 // joined * joined
    middle = len(full.counts) // 2
    counts = full.counts[middle - half : middle + half].reshape(-1, joined).sum(axis=1)
    found = Histogram(full.lowest, full.highest, full.width * joined, counts)
    edges = found.edges.astype(np.float32)
    ends = np.float32(found.lowest), np.float32(found.highest)
    collector = HistogramCollector("entropy", False, 128, levels, 99.99, "same")
    theirs = tuple(map(float, collector.get_entropy_threshold((counts, edges, *ends), levels)))
    ours = least_divergent(found, levels)
    if ours != theirs:  # the divergences are rounded to single precision there: a tie may go to another candidate
        start, end = candidates_of(len(counts), levels)
        all_of_them = divergences(counts, start, end, levels)
        chosen = [
            value
            for value, a, b in zip(all_of_them, edges[start], edges[end], strict=True)
            if (max(a, ends[0]), min(b, ends[1])) == theirs
        ]
        assert min(chosen) <= all_of_them.min() + 2e-6


def test_zeros_of_a_relu_do_not_narrow_the_range_of_the_rest():
    values = np.abs(np.random.default_rng(5).standard_normal(200_000))
    dense = RULES["entropy"](histogram(values), Quantize())
    zeros = RULES["entropy"](histogram(np.append(values, np.zeros(200_000))), Quantize())
    assert zeros[1] == dense[1] > 2.5


def candidates_of(bins, levels):
    reach = np.arange(levels // 2, bins // 2 + 1)
    return bins // 2 - reach, np.minimum(bins // 2 + reach + 1, bins)


@pytest.mark.parametrize("name", entropy_cases())
def test_divergences_are_those_of_the_formula(name):
    counts = histogram(entropy_cases()[name]).counts
    start, end = candidates_of(len(counts), 128)
    found = divergences(counts, start, end, 128)
    for number in (0, 1, 63, 64, len(start) // 2, len(start) - 1):
        assert found[number] == pytest.approx(by_the_formula(counts, start[number], end[number]), rel=1e-6, abs=1e-9)


def by_the_formula(counts, start, end):
    p = counts[start:end].astype(float)
    levels, merged = 128, (end - start) // 128
    sliced = p.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    q = np.zeros_like(p)
    for level in range(levels):
        part = slice(level * merged, (level + 1) * merged)
        mass = sliced[part].sum() + (sliced[levels * merged :].sum() if level == levels - 1 else 0)
        if (p[part] > 0).any():
            q[part] = mass // (p[part] > 0).sum()
    if not q.any():
        return np.inf

    def smoothed(values):
        empty = (values == 0).sum()
        return np.where(values > 0, values - 1e-4 * empty / (len(values) - empty), 1e-4)

    p, q = (smoothed(values) / smoothed(values).sum() for values in (p, q))
    return (p * np.log(p / q)).sum()


@pytest.mark.parametrize("symmetric", [False, True])
def test_squared_errors_are_those_of_onnxruntimes_own_rounding(symmetric):
    values = np.random.default_rng(3).standard_t(3, 500).astype(np.float32)
    low, high = (np.float32(-2.5), np.float32(2.5 if symmetric else 6.0))
    kind, ends = (TensorProto.INT8, (-127, 127)) if symmetric else (TensorProto.UINT8, (0, 255))
    ends = np.array(ends, np.int8 if symmetric else np.uint8)
    zero, scale = compute_scale_zp(low, high, ends[0], ends[1], symmetric)
    rounded = quantize_nparray(kind, values, scale, zero, *(ends if symmetric else (None, None)))
    restored = (rounded.astype(np.float64) - float(zero)) * float(scale)
    found = squared_errors(
        values.astype(np.float64), np.ones(500), np.array([float(low)]), np.array([float(high)]), symmetric
    )
    assert found[0] == pytest.approx(np.mean((restored - values) ** 2), rel=1e-4)


@pytest.mark.parametrize("name", entropy_cases())
def test_mse_is_nearly_as_good_as_the_best_pair_of_ends(name):
    found = histogram(entropy_cases()[name])
    middles = found.edges[:-1] + found.width / 2
    counts = found.counts.astype(float)
    lows, highs = np.meshgrid(SHARES[4::5] * min(found.lowest, 0), SHARES[4::5] * max(found.highest, 0))
    best = squared_errors(middles, counts, lows.ravel(), highs.ravel()).min()
    low, high = RULES["mse"](found, Quantize())
    ours = squared_errors(middles, counts, np.array([min(low, 0)]), np.array([max(high, 0)]))[0]
    everything = squared_errors(middles, counts, np.array([min(found.lowest, 0)]), np.array([max(found.highest, 0)]))[0]
    assert ours <= 1.05 * best
    assert ours <= everything * (1 + 1e-9)


def test_rare_large_values_are_clipped_by_all_rules_but_minmax():
    generator = np.random.default_rng(1)
    found = histogram(np.append(generator.standard_normal(100_000), [50.0, -60.0]))
    found = dataclasses.replace(found, counts=np.where(found.counts > 1, found.counts * 1000, found.counts))
    ranges = {name: rule(found, Quantize()) for name, rule in RULES.items()}
    assert ranges.pop("minmax") == (-60, 50)
    for name, (low, high) in ranges.items():
        assert -20 < low < -2 and 2 < high < 20, name


@pytest.mark.parametrize("rule", RULES)
def test_degenerate_tensors_have_a_range(rule):
    for values in ([0.0], [3.0, 3.0], [-2.0], [1e-35, 0.0], [3e38, -3e38]):
        low, high = RULES[rule](histogram(values), Quantize())
        kept = np.array(values, np.float32)
        assert kept.min() <= low <= high <= kept.max()


# --- through a worker -------------------------------------------------------------------------------------------------


class Stream:
    """Batches that are made when they are asked for; how many of them are held at a time."""

    def __init__(self, count=6, size=8):
        self.count, self.size, self.passes, self.most_held = count, size, 0, 0

    def batch(self, number):
        return {"x": models.images(self.size, seed=number) * (1 + number)}

    def __call__(self):
        self.passes += 1
        made = []
        for number in range(self.count):
            batch = self.batch(number)
            made.append(weakref.ref(batch["x"]))
            self.most_held = max(self.most_held, sum(reference() is not None for reference in made))
            yield batch


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return models.cnn(tmp_path_factory.mktemp("calibration") / "cnn.onnx")


def kept_activations(path, stream):
    """Of all tensors, over all batches."""
    model = onnx.load(path)
    names = list(float_tensors(model))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(watched(model, names).SerializeToString(), options)
    outputs = [output.name for output in session.get_outputs()]
    kept = {name: [] for name in names}
    for number in range(stream.count):
        feed = stream.batch(number)
        for name, values in (dict(zip(outputs, session.run(None, feed), strict=True)) | feed).items():
            kept[name].append(values.ravel())
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def test_a_worker_counts_what_all_activations_kept_would_give(network):
    stream = Stream()
    observed = observe(network, stream)
    kept = kept_activations(network, stream)
    assert observed.samples == 48
    assert observed.histograms.keys() == kept.keys() >= {"x", "h0", "r2", "p", "y"}
    for name, found in observed.histograms.items():
        assert (found.lowest, found.highest) == (kept[name].min(), kept[name].max())
        np.testing.assert_array_equal(found.counts, np.histogram(kept[name].astype(float), bins=found.edges)[0])
    assert observed.histograms["r0"].lowest == 0


def test_samples_are_read_once_and_let_go(network):
    stream = Stream(count=9)
    observe(network, stream, counted=True)
    assert stream.passes == 1
    assert stream.most_held <= 3


def test_a_large_batch_is_run_in_parts_to_the_same_end(network, monkeypatch):
    collection = worker.Collection()
    session = ort.InferenceSession(watched(onnx.load(network), ["h0", "r2"]).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    sizes = []

    def run(feed):
        sizes.append(len(feed["x"]))
        return session.run(None, feed)

    monkeypatch.setattr(worker, "MOST_BYTES", 4 * (2 * 8 * 16 * 16 * 4 + 40))
    asked = {"tensors": ["x", "h0", "r2"], "outputs": ["y"], "counted": True, "independent": True, "shared": []}
    assert collection.observe(run, names, {"x": models.images(10)}, asked) == []
    assert sizes == [1, 4, 4, 2]
    assert collection.result()[0]["names"] == ["x", "h0", "r2"]
    assert collection.tensors["h0"].counts.sum() == 10 * 8 * 16 * 16
    assert collection.result()[0]["same"] == []


def test_minmax_is_onnxruntimes(network, tmp_path):
    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = Stream()()

        def get_next(self):
            return next(self.batches, None)

    calibrator = create_calibrator(
        network, augmented_model_path=str(tmp_path / "augmented.onnx"), calibrate_method=CalibrationMethod.MinMax
    )
    calibrator.collect_data(Reader())
    theirs = {name: tuple(end.item() for end in data.range_value) for name, data in calibrator.compute_data().items()}
    ours = observe(network, Stream(), counted=False).ranges(Quantize(calibration="minmax"))
    assert {name: ours[name] for name in theirs} == theirs


# --- what can't be calibrated -----------------------------------------------------------------------------------------


def batches_of(*arrays):
    return lambda: iter([{"x": values} for values in arrays])


def test_samples_that_say_nothing_are_refused(network):
    good = models.images(4)
    spoilt = good.copy()
    spoilt[2, 0, 0, 0] = np.nan
    for batches, reason in {
        batches_of(): "no calibration samples",
        batches_of(good[:1].repeat(4, axis=0), good[:1].repeat(2, axis=0)): "all 6 calibration samples are the same",
        batches_of(good, spoilt): "calibration sample 7 has NaN or infinite values in 'x'",
        batches_of(good[:, :, :8]): "can't be calibrated: .*dimensions",
    }.items():
        with pytest.raises(UserError, match=reason):
            observe(network, batches)
    observe(network, batches_of(good[:1]))  # a single sample is few, but not the same as another one


def test_a_tensor_without_a_range_is_named_with_the_nodes_to_leave_out(tmp_path):
    nodes = [
        helper.make_node("Log", ["x"], ["logarithm"], name="log"),
        helper.make_node("MatMul", ["logarithm", "w"], ["y"], name="product"),
    ]
    path = models.save(
        tmp_path / "log.onnx", nodes, {"w": np.eye(3, dtype=np.float32)}, {"x": ["n", 3]}, {"y": ["n", 3]}
    )
    values = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)
    with pytest.raises(
        UserError, match=r"tensor 'logarithm' becomes NaN or infinite .* --exclude log --exclude product"
    ):
        observe(path, batches_of(values))


def test_outputs_that_never_change_are_told(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "b"], ["y"]),
        helper.make_node("Relu", ["x"], ["z"]),
    ]
    weights = {"zeros": np.zeros((3, 3), np.float32), "b": np.ones(3, np.float32)}
    path = models.save(tmp_path / "dead.onnx", nodes, weights, {"x": ["n", 3]}, {"y": ["n", 3], "z": ["n", 3]})
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    assert observe(path, batches_of(values)).same_outputs == ("y",)
    assert observe(path, batches_of(values[:1])).same_outputs == ()
