"""The fastest int8 file that keeps the accuracy, as a user gets it: files, record, table, and what is refused."""

import json
import re

import numpy as np
import onnx
import pytest

from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack, load_pack
from kdbench.errors import UserError
from kdbench.onnxfile import inspect, known_artifact
from kdbench.pipeline import quantizing, rungs
from kdbench.pipeline.candidates import Candidate
from kdbench.pipeline.mending import _chosen
from kdbench.pipeline.quantizing import fastest_int8, ways_of
from kdbench.pipeline.racing import Place, raced
from kdbench.progress import silent, unsaid
from kdbench.proofs.rewritten import of_metrics
from kdbench.quantization.sensitivity import Layer
from kdbench.records import Quantize, QuantizeSection, parse
from kdbench.records.base import from_json
from kdbench.records.budget import Budget, CandidateRecord, Estimate
from kdbench.report import doubts, flags
from kdbench.report.budget import candidates_table
from kdbench.report.terminal import print_table
from kdbench.stats import Interval
from kdbench.store import RunFolder, load_artifact, load_recipe, save_artifact, sidecar, write_npz, zoo_recipes
from tests import models
from tests.conftest import kdbench, save_mlp
from tests.test_sensitivity import features, mlp

TINY, HUGE = 1e-4, 1e4


def answers(path, x):
    """Classes, as numpy makes them of the three products."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    h = x
    for number in range(3):
        h = h @ weights[f"w{number}"] if number == 2 else np.maximum(h @ weights[f"w{number}"], 0)
    return h.argmax(axis=1)


@pytest.fixture
def sensitive(tmp_path):
    """A model whose first layer loses half of its features in int8, and a pack with labels that it gets right."""
    path = mlp(tmp_path / "model.onnx", (TINY, 1.0, 1.0))
    x, x_test = features(400, TINY), features(200, TINY, seed=2)
    arrays = {
        "x_calibration": x, "y_calibration": answers(path, x), "x_test": x_test, "y_test": answers(path, x_test)
    }  # fmt: skip
    write_npz(tmp_path / "pack.npz", arrays)
    return path


def test_the_one_sensitive_layer_is_left_in_float_and_the_proof_is_printed(sensitive, tmp_path):
    found = kdbench(
        *("quantize", "model.onnx", "--data", "pack.npz", "--for", "cpu", "--max-drop", "5", "--budget", "1"),
        *("--no-equalization", "--no-bias-correction", "--method", "minmax"),
        cwd=tmp_path,
    )
    written = tmp_path / "model-int8.onnx"
    artifact = load_artifact(sidecar(written))
    assert artifact.options["left_in_float"][0] == "fc0" and "fc1" not in artifact.options["left_in_float"]
    assert artifact.precision == "int8" and artifact == known_artifact(written)
    assert {"x"} <= {name for node in onnx.load(written).graph.node if node.name == "fc0" for name in node.input}
    budget = from_json(Budget, (tmp_path / "model-int8.budget.json").read_text(), "budget")
    chosen = next(one for one in budget.candidates if one.name == budget.chosen)
    assert chosen.left_in_float == ("fc0",)
    assert chosen.drop.value <= 0.05 < next(point.drop.value for point in chosen.curve if not point.left_in_float)
    assert chosen.layers[0].layer == "fc0"
    assert chosen.int8_macs == pytest.approx(1 - 256 / (256 + 256 + 80))
    assert chosen.int8_kernels == pytest.approx(2 / 3)
    assert chosen.speedup is not None and not chosen.broken_claims
    assert (budget.metric, budget.judged_samples, budget.calibration_samples) == ("accuracy", 200, 200)
    assert (budget.fp32, budget.test_samples) == (1.0, 200)
    assert budget.test_drop is not None and budget.test_drop.value < 0.05
    for kind in ("svg", "png"):
        assert (tmp_path / f"model-int8-budget.{kind}").stat().st_size > 1000
    assert max(map(len, found.stdout.split("against fp32")[0].splitlines())) <= 100
    assert re.search(r"fc0$", found.stdout, re.MULTILINE) and "→" in found.stdout
    measured = kdbench("evaluate", written, "pack.npz", cwd=tmp_path).stdout
    assert f"{100 * (1 - budget.test_drop.value):.2f} %" in measured


def test_equalisation_is_taken_where_it_makes_layers_in_float_needless(tmp_path):
    """The same loss, made by uneven channels between two layers: evened out, all of them are in int8."""
    path = mlp(tmp_path / "model.onnx")
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: onnx.numpy_helper.to_array(tensor).copy() for name, tensor in tensors.items()}
    values["w0"][:, :8] *= HUGE
    values["w1"][:8] /= HUGE
    for name in ("w0", "w1"):
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values[name], name))
    onnx.save(model, path)
    x = features(400)
    pack = EvalPack("made", None, None, x, (), None, y_calibration=answers(path, x))
    found = fastest_int8(path, tmp_path / "int8.onnx", pack, Quantize(max_drop=5), budget_s=1)
    chosen = next(one for one in found.budget.candidates if one.name == found.budget.chosen)
    assert (chosen.equalization, chosen.left_in_float) == (True, ())
    assert found.plots == ()
    refused = [one for one in found.budget.candidates if not one.equalization]
    assert refused and all(one.drop.value > 0.05 and one.speedup is None for one in refused)


def test_without_labels_agreement_is_judged(sensitive, tmp_path):
    pack = load_pack(tmp_path / "pack.npz")
    pack = EvalPack("made", None, None, pack.x_calibration, (), None)
    found = fastest_int8(
        sensitive,
        tmp_path / "int8.onnx",
        pack,
        Quantize(max_drop=5, target="x86-vnni", calibration="minmax"),
        budget_s=1,
    )
    assert (found.budget.metric, found.budget.fp32, found.budget.test_drop) == ("agreement", 1.0, None)
    assert "fc0" in found.budget.candidates[0].left_in_float


def test_only_the_search_is_written_where_every_layer_would_have_to_stay_in_float(tmp_path):
    path, said = mlp(tmp_path / "model.onnx", (TINY, TINY, TINY)), []
    x = features(400, TINY)
    pack = EvalPack("made", None, None, x, (), None, y_calibration=answers(path, x))
    with pytest.raises(
        UserError,
        match=r"no int8 file within 0 points of accuracy on 200 samples.*stay in float, most of all fc\d \(Gemm\); "
        r"the closest.*raise --max",
    ):
        fastest_int8(path, tmp_path / "int8.onnx", pack, Quantize(max_drop=0), budget_s=1, say=said.append)
    assert any("`kdbench convert --to dynamic`" in one and "aware = true without max_drop" in one for one in said)
    written = ["int8-failed-budget.png", "int8-failed-budget.svg", "int8-failed.budget.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*written, "model.onnx"]
    assert any(all(str(tmp_path / name) in one for name in written) for one in said)
    budget = from_json(Budget, (tmp_path / "int8-failed.budget.json").read_text(), "budget")
    assert budget.chosen is None and max(len(one.curve) for one in budget.candidates) > 1


def exactly(costs):
    """Layers that cost so much each, one beside the other."""

    def drop(left):
        value = sum(cost for layer, cost in costs.items() if layer not in left)
        return Interval(value, value, value)

    return drop


def layer(name, operator, macs):
    return Layer(name, (name,), operator, macs)


LAYERS = [layer("conv", "Conv", 900), layer("add", "Add", 0), layer("mul", "Mul", 0), layer("head", "Gemm", 100)]


@pytest.mark.parametrize(
    ("costs", "left"),
    [
        ({"conv": 0.001, "add": 0.3, "mul": 0.0, "head": 0.0}, {"add"}),  # heavy layers are fine: one light one is not
        ({"conv": 0.001, "add": 0.0, "mul": 0.0, "head": 0.3}, {"head"}),
        # The most sensitive one has most of the work, but it is several light ones that have to go.
        ({"conv": 0.004, "add": 0.004, "mul": 0.004, "head": 0.0}, {"add", "mul"}),
    ],
)
def test_convolutions_and_products_stay_in_int8_if_they_can(costs, left):
    order = sorted(costs, key=lambda name: -costs[name])
    assert _chosen(0.005, LAYERS, order, {"conv", "head"}, exactly(costs)) == (left, None)


def test_where_nothing_helps_it_is_said_why():
    costs = dict.fromkeys(("conv", "add", "mul", "head"), 0.3)
    assert _chosen(0.0, LAYERS, list(costs), {"conv", "head"}, exactly(costs)) == (
        {"conv", "add", "mul", "head"}, "every layer would have to stay in float"
    )  # fmt: skip
    floor = exactly(costs | {"never": 0.1})
    assert _chosen(0.05, LAYERS, list(costs), {"conv", "head"}, floor)[1] == (
        "even with every layer in float it misses the budget"
    )


def test_options_that_are_given_stand_and_the_others_are_tried():
    tried = ways_of(Quantize(backend="cpu"))
    assert {way.calibration for way in tried} == {"minmax", "percentile", "mse"}
    assert len({way.target for way in tried}) * 3 == len(tried)
    (only,) = ways_of(Quantize(target="tensorrt", calibration="entropy", max_drop=1))
    assert (only.calibration, only.symmetric, only.max_drop) == ("entropy", True, 1)
    assert {way.activations for way in ways_of(Quantize(activations="int8"))} == {"int8"}
    assert {way.activations for way in ways_of(Quantize(weights="uint8"))} == {"uint8"}  # what else has no kernels
    assert ways_of(Quantize(activations="int8", weights="uint8"))  # which is refused by name


def test_a_recipe_that_comes_along_leaves_a_budget_all_that_can_be_tried():
    for name in zoo_recipes():
        assert ways_of(load_recipe(name, {"quantize.max_drop": "1"}).quantize.static) == ways_of(Quantize(max_drop=1))


def test_a_recipe_with_a_budget_makes_its_int8_rungs_so(sensitive, tmp_path, monkeypatch):
    monkeypatch.setattr(rungs, "RACE_S", 1.0)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    sensitive.rename(folder.onnx("student"))
    (tmp_path / "pack.npz").rename(folder.pack)
    options = parse(Quantize, {"max_drop": 3.0, "for": "cpu", "calibration": "minmax"}, "quantize")
    rungs.compressed(folder, options, None, silent, unsaid)
    made = folder.artifacts()
    assert made["student-int8"].parent == "student-slim"
    assert made["student-int8"].options["max_drop"] == 3
    assert made["student-int8"].options["left_in_float"] or made["student-int8"].options["equalization"]
    again = folder.onnx("student-int8").stat().st_mtime_ns
    rungs.compressed(folder, options, None, silent, unsaid)
    assert folder.onnx("student-int8").stat().st_mtime_ns == again
    said = []
    impossible = options.model_copy(update={"max_drop": 0.0, "bias_correction": False, "equalization": False})
    monkeypatch.setattr(quantizing, "attempts", lambda ground, ways: [])
    rungs.compressed(folder, impossible, None, silent, said.append)
    assert "no rung student-int8" in said[0] and not folder.onnx("student-int8").exists()
    assert not list(folder.path.glob("*.budget.json"))


def test_an_int8_rung_is_chosen_under_the_options_of_its_backend(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(quantizing, "fastest_int8", lambda *_, **options: asked.append(options) or bad())

    def bad():
        raise UserError("enough")

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    save_artifact(folder.path, inspect(save_mlp(folder.onnx("student"))))
    write_npz(folder.pack, {"x_calibration": np.zeros((4, 4), np.float32)})
    options = {"openvino": {"precision": "bf16"}, "cpu": {}}
    section = parse(QuantizeSection, {"for": "openvino"}, "quantize")
    with pytest.raises(UserError, match="enough"):
        rungs.in_int8(folder, section, {"student": "student"}, None, silent, unsaid, options)
    assert asked[0]["backend_options"] == {"openvino": {"precision": "bf16"}}


def test_a_default_that_a_recipe_says_no_more_makes_its_int8_rung_again(tmp_path):
    folder, rng = RunFolder(tmp_path), np.random.default_rng(0)
    write_npz(folder.pack, {"x_calibration": rng.standard_normal((64, 4)).astype(np.float32)})
    save_artifact(folder.path, inspect(save_mlp(folder.onnx("student"))))
    for said, activations in (({"activations": "uint8"}, "uint8"), ({}, "int8")):
        section = parse(QuantizeSection, {"target": "x86-signed"} | said, "quantize")
        rungs.compressed(folder, section, None, silent, unsaid)
        assert folder.artifacts()["student-int8"].options["activations"] == activations


def test_students_beside_the_ladder_are_quantized_where_all_rungs_are_asked_for(tmp_path):
    folder, rng = RunFolder(tmp_path), np.random.default_rng(0)
    write_npz(folder.pack, {"x_calibration": rng.standard_normal((64, 4)).astype(np.float32)})
    for number, rung in enumerate(("student", "student-sparse", "student-low-rank")):
        save_artifact(folder.path, inspect(save_mlp(folder.onnx(rung), scale=1 + number)))
    section = parse(QuantizeSection, {"all_rungs": True}, "quantize")
    rungs.compressed(folder, section, None, silent, unsaid)
    assert [subject.artifact.rung for subject in rungs.run_subjects(folder)] == [
        "student", "student-sparse", "student-sparse-slim", "student-sparse-int8", "student-low-rank",
        "student-low-rank-slim", "student-low-rank-int8", "student-slim", "student-int8",
    ]  # fmt: skip
    made = folder.artifacts()
    for parent in ("student", "student-sparse", "student-low-rank"):
        assert made[f"{parent}-slim"].parent_sha256 == made[parent].sha256
        assert (made[f"{parent}-int8"].parent, made[f"{parent}-int8"].precision) == (f"{parent}-slim", "int8")
        assert of_metrics(made[f"{parent}-int8"].metrics).keys() == {"w1", "w2"}
    times = {rung: folder.onnx(rung).stat().st_mtime_ns for rung in made}
    rungs.compressed(folder, section, None, silent, unsaid)
    assert {rung: folder.onnx(rung).stat().st_mtime_ns for rung in made} == times
    folder.onnx("student-low-rank").unlink()
    rungs.compressed(folder, section, None, silent, unsaid)
    assert not folder.onnx("student-low-rank-int8").exists() and folder.onnx("student-sparse-int8").exists()
    rungs.compressed(folder, parse(QuantizeSection, {}, "quantize"), None, silent, unsaid)
    left = {path.name.removesuffix(".onnx") for path in tmp_path.glob("*.onnx")}
    assert left == {"student", "student-sparse", "student-slim", "student-int8"}


def test_a_race_says_what_speaks_against_its_times(sensitive, tmp_path, monkeypatch):
    """As a benchmark does: with bounds below what any machine shows, each file is noisy and has a busy neighbour."""
    monkeypatch.setattr(doubts, "BUSY", -1.0)
    monkeypatch.setattr(doubts, "ENOUGH_S", 0.0)
    monkeypatch.setattr(flags, "NOISY", -1.0)
    first, second = (
        Subject(known_artifact(sensitive).model_copy(update={"rung": rung}), sensitive) for rung in ("fp32", "same")
    )
    pack = load_pack(tmp_path / "pack.npz")
    (found,) = raced([first, second], Place("cpu", {}, budget_s=0.5), pack).values()
    text = "\n".join(found.doubts)
    assert re.search(r"^noisy: medians of the processes vary", text, re.MULTILINE)
    assert re.search(r"^fp32: noisy: medians of the processes vary", text, re.MULTILINE)
    assert re.search(r"^a busy neighbour: other processes used", text, re.MULTILINE)
    kept = quantizing._record(Candidate("x, minmax", Quantize(), None, {}, ()), found)
    assert kept.doubts == found.doubts


BAD = {
    "quantize small.onnx --max-drop 0.5": "--max-drop: accuracy is judged on data: give --data",
    "quantize small.onnx --data pack.npz --max-drop=-1": "-1.0 is not in the range 0<=x<100",
    "quantize small.onnx --data pack.npz --for tensort": "unknown backend 'tensort': did you mean 'tensorrt'?",
    "quantize small.onnx --data pack.npz --for cuda": "no backend is available: cuda: ",
    "quantize small.onnx --data shape.npz --max-drop 1": "samples of shape (3,), the model's input 'x' takes (4,)",
    "quantize small.onnx --data labels.npz --max-drop 1": "label 5 is out of range: 0 to 2 allowed",
    "quantize small.onnx --data test.npz --max-drop 1": "no array 'x_calibration' in it",
    "quantize small.onnx --data one.npz --max-drop 1": "1 calibration samples, to be parted",
    "quantize small.onnx --data pack.npz --samples 99": "--samples 99: pack.npz has 12 calibration samples",
    "quantize small.onnx --data pack.npz --node Gem": "has no node 'Gem'",
    "quantize small.onnx --data pack.npz --data-option x=1": "pack.npz: a pack has no options",
    "quantize small.onnx --data pack.npz --preprocess mena=1": "unknown key 'mena': did you mean 'mean'?",
    "quantize small.onnx --data pack.npz --preprocess mean=[1,2]": "'x_calibration': mean has 2 and std 1 values",
    "quantize small.onnx --data pack.npz --calibration pack.npz": "--data has the samples",
    "quantize small.onnx --data nowhere --max-drop 1": "no file or folder 'nowhere'",
    "quantize small.onnx --data flat.npz --max-drop 1": "calibration samples are the same",
    "quantize small.onnx --data empty.npz --max-drop 1": "samples should be an array [N, …] with N of 1 or more",
    "quantize small.onnx --data nan.npz --max-drop 1": "x_calibration: holds NaN or infinite values: remove them",
    "quantize small.onnx --samples 3": "--samples: goes with --data",
    "quantize small.onnx --option openvino.precision=bf16": "options of 'openvino', none of the backends asked for",
    "quantize small.onnx --data pack.npz --dim n=3": "--dim: for a single file, and here several are judged",
    "quantize small.onnx --data pack.npz --no-prove": "--prove/--no-prove: for a single file",
    "quantize small.onnx --data pack.npz --out small.onnx": "is the input itself",
}


@pytest.mark.parametrize(("call", "said"), BAD.items())
def test_bad_input_is_answered_in_one_line_and_nothing_is_written(call, said, tmp_path):
    save_mlp(tmp_path / "small.onnx")
    x, y = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32), np.arange(12) % 3
    packs = {
        "pack": {"x_calibration": x, "y_calibration": y},
        "shape": {"x_calibration": x[:, :3], "y_calibration": y},
        "labels": {"x_calibration": x, "y_calibration": y + 5},
        "test": {"x_test": x, "y_test": y},
        "one": {"x_calibration": x[:1], "y_calibration": y[:1]},
        "flat": {"x_calibration": np.ones_like(x), "y_calibration": y},
        "empty": {"x_calibration": x[:0]},
        "nan": {"x_calibration": np.where(x == x[-1, 0], np.nan, x), "y_calibration": y},
    }
    for name, arrays in packs.items():
        write_npz(tmp_path / f"{name}.npz", arrays)
    before = sorted(tmp_path.iterdir())
    done = kdbench(*call.split(), cwd=tmp_path, check=False)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("NOTE")] == done.stderr.splitlines()[-1:]
    assert sorted(tmp_path.iterdir()) == before


def test_one_file_is_timed_as_the_options_have_it(tmp_path, typed):
    said = typed("quantize", save_mlp(tmp_path / "m.onnx"), "--batch", "4", "--threads", "2", "--budget", "0.1")
    assert "(on cpu, 2 threads, batch 4, 5 processes)" in said.out, said


def test_what_an_earlier_search_has_left_goes_with_its_file(tmp_path, typed):
    left = [tmp_path / f"m-int8{end}" for end in (".budget.json", "-budget.svg", "-failed.budget.json")]
    for file in left:
        file.write_text("of a search")
    assert typed("quantize", save_mlp(tmp_path / "m.onnx"), "--no-prove").status == 0
    assert not any(file.exists() for file in left)


def test_an_int8_model_is_refused(tmp_path):
    path = models.int8(models.cnn(tmp_path / "m.onnx", layers=1), tmp_path / "int8.onnx")
    with pytest.raises(UserError, match="is quantized already"):
        fastest_int8(path, tmp_path / "again.onnx", EvalPack("p", None, None, models.images(8), (), None))


# --- what is printed --------------------------------------------------------------------------------------------------


def test_the_table_of_candidates_fits_a_terminal():
    drop = Estimate(value=-0.00123, low=-0.1, high=0.0789)
    candidates = tuple(
        CandidateRecord(name=f"x86-signed, percentile{number}", options={}, drop=drop, speedup=drop, int8_kernels=0.5,
                        int8_macs=0.25, left_in_float=("a",) * number, error="refused" if number == 2 else None,
                        doubts=("noisy",) if number == 1 else ())
        for number in range(3)
    )  # fmt: skip
    budget = Budget(
        model="m.onnx", model_sha256="", backend="cpu", threads=1, batch=1, metric="accuracy", fp32=0.9, max_drop=0.005,
        calibration_samples=100, judged_samples=1000, evaluations=7, candidates=candidates,
        chosen=candidates[0].name,
    )  # fmt: skip
    table = candidates_table(budget)
    assert [row[6] for row in table.lines] == ["→", "", ""]
    assert table.lines[2][:4] == ("x86-signed", "percentile2", "2", "−0.1 [−10.0, 7.9]")
    assert table.notes == ("noisy", "error: refused") and [row[7] for row in table.lines] == ["", "¹", "²"]
    assert all(sum(len(cell) + 1 for cell in row) <= 100 for row in table.lines)
    assert json.loads(budget.to_json())["schema"] == 1


def test_a_table_of_candidates_with_many_footnotes_goes_without_empty_columns(capsys):
    drop = Estimate(value=-0.0012, low=-0.0023, high=0.0011)
    one = CandidateRecord(
        name="x86-signed, percentile", options={}, drop=drop, int8_kernels=1.0, int8_macs=1.0,
        speedup=Estimate(value=0.61672, low=0.60912, high=0.62441),
        doubts=("outliers", "a neighbour", "a drift", "throttled"),
    )  # fmt: skip
    budget = Budget(
        model="m.onnx", model_sha256="", backend="cpu", threads=1, batch=1, metric="accuracy", fp32=0.9, max_drop=0.005,
        calibration_samples=100, judged_samples=1000, evaluations=7, candidates=(one,), chosen=one.name,
    )  # fmt: skip
    print_table(candidates_table(budget))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.count("target ") == 1 and "¹ ² ³ ⁴" in printed
