"""The rungs beside the ladder: a student with zeros, one of low rank, and the commands that make such weights files."""

import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from kdbench import pipeline
from kdbench.errors import UserError
from kdbench.pipeline.checking import _one_epoch as one_epoch
from kdbench.pruning import masks
from kdbench.steps import check as fitting
from kdbench.steps import lighter, train
from kdbench.steps.lesson import Lesson
from kdbench.steps.teach import teach
from kdbench.store import RunFolder, load_artifact, load_recipe, sidecar
from kdbench.training import weights
from tests.conftest import FLAT, kdbench, overrides
from tests.rows import load_rows
from tests.test_training import StopError, stop_at

SPARSE = FLAT | {"student.options": "{ widths = [16] }", "student.training.epochs": "4"}
GRADUAL = SPARSE | {
    "sparsify.sparsity": "0.75",
    "sparsify.begin_epoch": "1",
    "sparsify.end_epoch": "3",
    "sparsify.training": "{ epochs = 4, learning_rate = 0.01 }",
}


@pytest.fixture(scope="module")
def learnt(dataset, tmp_path_factory):
    """Teacher and student weights, trained without any zeros."""
    recipe, folder = load_recipe("digits", SPARSE), RunFolder(tmp_path_factory.mktemp("learnt"))
    teacher = teach(folder, "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    return teacher, train.distill(folder, "student", [teacher], Lesson(recipe, dataset, ""))


def sparse(folder, fields, learnt, dataset, *more):
    teacher, student = learnt
    folder.mkdir(exist_ok=True)
    recipe = load_recipe("digits", fields)
    return lighter.sparse(
        RunFolder(folder), "student-sparse", student, {"teacher": teacher}, Lesson(recipe, dataset, "", *more)
    )


def zeros_in(path):
    model, _ = weights.model_of(path)
    return {name: weight == 0 for name, weight in masks.maskable(model).items()}


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_rung_that_was_stopped_ends_with_the_same_bytes(learnt, dataset, tmp_path, epoch):
    whole = sparse(tmp_path / "whole", GRADUAL, learnt, dataset)
    with pytest.raises(StopError):
        sparse(tmp_path / "parts", GRADUAL, learnt, dataset, stop_at(epoch))
    assert weights.load(tmp_path / "parts" / "student-sparse.checkpoint.safetensors")[1].epoch == epoch
    assert sparse(tmp_path / "parts", GRADUAL, learnt, dataset).read_bytes() == whole.read_bytes()
    assert masks.share_of(zeros_in(whole)) == pytest.approx(0.75, abs=1e-3)


def test_what_the_zeros_are_decides_on_the_rung(learnt, dataset, tmp_path):
    first = sparse(tmp_path / "run", GRADUAL, learnt, dataset)
    before, content = first.stat().st_mtime_ns, first.read_bytes()
    sparse(tmp_path / "run", GRADUAL, learnt, dataset)
    assert first.stat().st_mtime_ns == before
    sparse(tmp_path / "run", GRADUAL | {"sparsify.ignore": '["head"]'}, learnt, dataset)
    assert first.read_bytes() != content
    assert not zeros_in(first)["head.weight"].any()


def test_the_early_epoch_is_kept_and_gone_back_to(learnt, dataset, tmp_path):
    teacher, student = learnt
    fields = SPARSE | {"sparsify.sparsity": "0.5", "sparsify.rewind_epoch": "2"}
    recipe, folder = load_recipe("digits", fields), RunFolder(tmp_path)
    with pytest.raises(StopError):
        train.distill(folder, "student", [teacher], Lesson(recipe, dataset, "", stop_at(3)))
    early = tmp_path / "student-epoch-2.safetensors"
    kept = early.read_bytes()
    early.unlink()  # as where the section came later than the training
    again = train.distill(folder, "student", [teacher], Lesson(recipe, dataset, ""))
    assert again.read_bytes() == student.read_bytes()
    assert early.read_bytes() == kept
    (tmp_path / "other").mkdir()
    other = RunFolder(tmp_path / "other")
    with pytest.raises(StopError):
        train.distill(other, "student", [teacher], Lesson(recipe, dataset, "", stop_at(2)))
    before, after_two = weights.load(early)[0], weights.load(other.checkpoint("student"))[0]
    assert all(torch.equal(tensor, after_two[f"model.{name}"]) for name, tensor in before.items())
    kept_of_another = weights.load(early)[1].model_copy(update={"fingerprint": "of an earlier recipe"})
    strange = RunFolder(tmp_path / "strange")
    strange.path.mkdir()
    weights.save(strange.weights_of_epoch("student", "epoch-2"), before, kept_of_another)
    with pytest.raises(UserError, match=r"sparsify\.rewind_epoch: 2, but the student's training ended before"):
        lighter.sparse(strange, "rewound", again, {"teacher": teacher}, Lesson(recipe, dataset, ""))
    still = {"sparsify.training": "{ epochs = 1, learning_rate = 1e-30, weight_decay = 0, momentum = 0 }"}
    path = lighter.sparse(
        folder, "rewound", again, {"teacher": teacher}, Lesson(load_recipe("digits", fields | still), dataset, "")
    )
    found = weights.load(path)[0]
    for name, zero in zeros_in(path).items():
        assert 0 < int(zero.sum()) < zero.numel()
        assert torch.equal(found[name], before[name].masked_fill(zero, 0.0)), name
        assert not torch.equal(found[name], weights.load(again)[0][name].masked_fill(zero, 0.0)), name


def test_rewound_weights_learn_as_the_student_did():
    plain = load_recipe("digits", GRADUAL)
    rewound = load_recipe("digits", SPARSE | {"sparsify.sparsity": "0.5", "sparsify.rewind_epoch": "1"})
    at_once = load_recipe("digits", SPARSE | {"sparsify.sparsity": "0.5", "factorise.energy": "0.5"})
    assert lighter.training(plain, "sparsify") == plain.sparsify.training
    assert lighter.training(rewound, "sparsify") == rewound.student.training
    for section in ("sparsify", "factorise"):
        short = lighter.training(at_once, section)
        assert short.epochs == 2
        assert short.learning_rate == pytest.approx(at_once.student.training.learning_rate / 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsify.sparsity": "0.5", "sparsify.end_epoch": "3"}, r"sparsify.end_epoch: 3, but it is trained for 2 ep"),
        (
            {"sparsify.sparsity": "0.5", "sparsify.rewind_epoch": "4"},
            r"sparsify.rewind_epoch: 4, but the student is tr",
        ),
        ({"sparsify.sparsity": "0.5", "sparsify.layers": '["haed"]'}, r"sparsify.layers: .*: did you mean 'head'"),
        ({"factorise.energy": "0.5", "factorise.layers": '["haed"]'}, r"factorise.layers: .*: did you mean 'head'"),
        (
            {"sparsify.sparsity": "0.5", "sparsify.training": '{ epochs = 2, learning_rate = 0.1, keep = "best" }'},
            r"sparsify.training.keep: .*: set data.held_out_samples",
        ),
        (
            {"sparsify.sparsity": "0.5", "sparsify.rewind_epoch": "1", "distill.mode": "mutual"},
            "sparsify.rewind_epoch: no early epoch is kept in mutual learning",
        ),
    ],
)
def test_mistakes_are_found_before_training(fields, message, dataset):
    recipe = load_recipe("digits", SPARSE | fields)
    with pytest.raises(UserError, match=message):
        lighter.check(recipe, dataset)
        fitting.check(recipe, dataset)


def test_a_recipe_makes_both_rungs_and_removes_them_again(tmp_path):
    fields = SPARSE | {
        "student.options": "{ widths = [64, 64] }",
        "sparsify.threshold": "0.05",
        "factorise.macs": "0.4",
        "factorise.ignore": '["head"]',
    }
    said = []
    made = pipeline.distill(load_recipe("digits", fields), tmp_path, say=said.append)
    student, thin, low = (made[rung] for rung in ("student", "student-sparse", "student-low-rank"))
    for artifact, step in ((thin, "sparsify"), (low, "factorise")):
        assert (artifact.parent, artifact.parent_sha256, artifact.step) == ("student", student.sha256, step)
        assert artifact == load_artifact(sidecar(tmp_path / artifact.file))
        assert artifact.metrics["parity_largest_difference"] < 1e-3

    model = onnx.load(tmp_path / thin.file)
    values = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) > 1]
    zeros = sum(int(np.sum(value == 0)) for value in values)
    assert thin.metrics["sparsity"] == zeros / sum(value.size for value in values) > 0.3
    expected = sum(int(zero.sum()) for zero in zeros_in(tmp_path / "student-sparse.safetensors").values())
    assert zeros == expected
    assert thin.metrics["compressed_size_bytes"] == len(zlib.compress((tmp_path / thin.file).read_bytes(), 9))
    assert thin.metrics["compressed_size_bytes"] < thin.metrics["parent_compressed_size_bytes"]
    assert any("dense kernels no faster" in warning and "[prune]" in warning for warning in thin.warnings)
    assert thin.size_bytes == pytest.approx(student.size_bytes, abs=16)

    assert low.macs <= 0.4 * student.macs
    assert low.parameters < student.parameters
    assert set(low.options["changes"][0]["options"]["ranks"]) <= {"stages.0.0", "stages.1.0"}
    assert any("student-low-rank" in line and "named in factorise.ignore" in line for line in said)
    assert not low.warnings

    before = (tmp_path / "student.onnx").read_bytes()
    plain = {field: value for field, value in fields.items() if not field.startswith(("sparsify", "factorise"))}
    assert set(pipeline.distill(load_recipe("digits", plain), tmp_path)) == {"teacher", "student"}
    assert (tmp_path / "student.onnx").read_bytes() == before
    assert not list(tmp_path.glob("student-sparse.[oa]*")) + list(tmp_path.glob("student-low-rank.[oa]*"))


def test_a_run_puts_all_of_its_students_into_int8_where_that_is_asked_for(tmp_path):
    fields = SPARSE | {"sparsify.sparsity": "0.75", "factorise.macs": "0.5", "quantize.all_rungs": "true"}
    kdbench("run", "digits", *overrides(fields), "--out", "run", cwd=tmp_path)
    report = (tmp_path / "run" / "report.md").read_text()
    rows = {row.rung: row for row in load_rows(tmp_path / "run")}
    for student in ("student-sparse", "student-low-rank"):
        light, int8 = rows[f"{student}-slim"], rows[f"{student}-int8"]
        assert (light.parent, int8.parent, int8.precision) == (student, light.rung, "int8")
        assert light.accuracy == rows[student].accuracy
        assert int8.accuracy == pytest.approx(light.accuracy, abs=0.05)
        assert f"| {student}-int8 |" in report
    model = onnx.load(tmp_path / "run" / "student-sparse-int8.onnx")
    weights_ = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    integers = [array for array in weights_ if array.dtype == np.int8 and array.ndim == 2]
    assert sum((array == 0).sum() for array in integers) >= 0.75 * sum(array.size for array in integers)


def test_a_check_asks_for_what_a_few_steps_can_give(learnt, dataset, tmp_path):
    """The real recipe asks for what only trained weights could."""
    teacher, _ = learnt
    fields = {"sparsify.threshold": "10.0", "sparsify.rewind_epoch": "3", "factorise.energy": "0.999"}
    short = one_epoch(load_recipe("digits", SPARSE | fields))
    folder = RunFolder(tmp_path)
    first = train.distill(folder, "student", [teacher], Lesson(short, dataset, ""))
    lessons = ({"teacher": teacher}, Lesson(short, dataset, ""))
    thin = lighter.sparse(folder, "student-sparse", first, *lessons)
    assert masks.share_of(zeros_in(thin)) == pytest.approx(0.5, abs=0.01)
    low = lighter.low_rank(folder, "student-low-rank", first, *lessons)
    assert set(weights.record(low).changes[0].options["ranks"].values()) == {1}
    assert weights.record(thin).epoch == weights.record(low).epoch == 1


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands_on_a_weights_file(learnt, tmp_path):
    _, student = learnt
    before = student.read_bytes()
    done = kdbench("sparsify", student, "--sparsity", "80%", "--out", "sparse.safetensors", cwd=tmp_path)
    assert "80.0 % of " in done.stdout
    assert "compressed instead of" in done.stdout
    assert "dense kernels no faster" in done.stderr
    assert masks.share_of(zeros_in(tmp_path / "sparse.safetensors")) == pytest.approx(0.8, abs=1e-3)
    done = kdbench("factorise", student, "--energy", "0.3", "--out", "low.safetensors", cwd=tmp_path)
    assert "layers factorised" in done.stdout
    assert ": rank " in done.stdout
    assert student.read_bytes() == before
    kdbench("export", "low.safetensors", "--out", "low.onnx", cwd=tmp_path)
    assert json.loads((tmp_path / "low.artifact.json").read_text())["macs"] < 64 * 16 + 16 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sparsify {} --out x", "sparsify: 'threshold' should be given where sparsity is not"),
        ("sparsify {} --sparsity 1 --out x", "'1' should be a share between 0 and 1"),
        ("sparsify {} --sparsity 0.5 --threshold 1 --out x", "'threshold' should be left out where sparsity is given"),
        ("sparsify {} --threshold 99 --out x", "sparsify.threshold: 99 would leave nothing of 'stages.0.0.weight'"),
        ("sparsify {} --sparsity 0.5 --layer haed --out x", "sparsify.layers: no weights to mask in 'haed': did you"),
        ("sparsify {} --sparsity 0.5 --out {}", "is the input itself"),
        ("factorise {} --energy 0.5 --macs 0.5 --out x", "factorise: 'macs' should be left out where energy is given"),
        ("factorise {} --macs 0.01 --out x", "factorise.macs: 0.01 can't be reached: rank 1 in all 2 layers"),
        ("factorise {} --energy 0.999 --out x", "factorise.energy: at 0.999 no layer gets cheaper; at 0."),
        ("factorise nowhere --energy 0.5 --out x", "nowhere: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(learnt, tmp_path, arguments, message):
    done = kdbench(*arguments.replace("{}", str(learnt[1])).split(), cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(Path(tmp_path).iterdir()) == []
