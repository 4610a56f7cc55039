"""Samples with any number of labels, and data without labels: training, evaluation, the ladder and its tables."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench import UserError, data, evaluate, parity, quantize
from kdbench.data.dataset import Dataset
from kdbench.data.pack import load_pack, save_pack
from kdbench.evaluation import F1, compare
from kdbench.pipeline import rungs
from kdbench.records import Preprocessing, Recipe, recipe_from_toml
from kdbench.report.ladder_tables import details_table, ladder_tables
from kdbench.report.markdown import to_markdown
from kdbench.report.table import ladder, load_ladders
from kdbench.report.terminal import print_ladder
from kdbench.steps import check as fitting
from kdbench.steps import teach, train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe, load_result
from kdbench.training import weights
from tests.conftest import kdbench
from tests.rows import load_rows
from tests.test_report import arrays, artifact, cell, evaluation, result

RECIPE = """
name = "several"
[data]
source = "arrays"
options = { path = "data.npz" }
calibration_samples = 64
[teacher]
model = "mlp"
options = { widths = [16] }
training = { epochs = 6, learning_rate = 0.5 }
[student]
model = "mlp"
options = { widths = [4] }
training = { epochs = 6, learning_rate = 0.5 }
[distill]
losses = { binary_cross_entropy = 0.5, multi_label = 0.5 }
temperature = 2.0
[bench]
batches = [1]
budget_s = 0.1
"""


def samples(n=600, classes=5, features=8):
    """Each label holds on one side of a plane of its own: [N, features] and 0 and 1 [N, classes]."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, features)).astype(np.float32)
    return x, (x @ generator.standard_normal((features, classes)) > 0.4).astype(np.int64)


@pytest.fixture
def dataset():
    x, y = samples()
    return Dataset(x[:400], y[:400], x[400:], y[400:], tuple("abcde"), Preprocessing(), "multi_label")


def one_class(dataset):
    """The same samples with their first label alone."""
    return replace(
        dataset,
        y_train=dataset.y_train[:, 0],
        y_test=dataset.y_test[:, 0],
        classes=("no", "yes"),
        task="classification",
    )


def recipe(**fields) -> Recipe:
    return recipe_from_toml(RECIPE, "mine.toml", {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A ladder of the command line on arrays with labels [N, C]."""
    folder = tmp_path_factory.mktemp("several")
    x, y = samples()
    np.savez(folder / "data.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "printed.txt").write_text(kdbench("run", "mine.toml", "--out", "run", cwd=folder).stdout)
    return folder


# --- which losses learn from which data -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "kd", "dkd", "dist", "soft_targets"])
def test_losses_for_one_class_are_refused_for_several_labels(dataset, loss):
    with pytest.raises(UserError) as error:
        fitting.check(recipe(distill__losses=f"{{ {loss} = 1.0 }}"), dataset)
    assert str(error.value) == (
        f"distill.losses.{loss}: is for one class a sample, this data has any number of them: "
        "take binary_cross_entropy or multi_label instead"
    )


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "multi_label"])
def test_losses_for_several_labels_are_refused_for_one_class(dataset, loss):
    with pytest.raises(UserError, match=f"distill.losses.{loss}: is for any number of classes a sample, this data has"):
        fitting.check(recipe(distill__losses=f"{{ {loss} = 1.0 }}"), one_class(dataset))


def test_losses_on_features_and_ones_own_take_every_task(dataset, tmp_path):
    (tmp_path / "own.py").write_text("def own(student, teacher, target):\n    return student.logits.square().mean()\n")
    losses = '{ hint = { pairs = [["stages.0", "stages.0"]] }, "own.py:own" = 1.0 }'
    for labels in (dataset, one_class(dataset)):
        fitting.check(recipe(distill__losses=losses).placed(tmp_path), labels)


def unlabelled(dataset):
    return replace(dataset, y_train=None)


def test_a_teacher_that_is_trained_here_needs_labels(dataset):
    with pytest.raises(UserError, match="the training set has no labels: training a teacher needs them"):
        fitting.check(recipe(distill__losses="{ multi_label = 1.0 }"), unlabelled(dataset))
    with pytest.raises(UserError, match="the training set has no labels: training student-alone needs them"):
        train.train(RunFolder(Path()), "student-alone", Lesson(recipe(), unlabelled(dataset), ""))


@pytest.mark.parametrize(
    ("loss", "instead"), [("cross_entropy", "dist, hint, kd"), ("dkd", "dist"), ("crd", "kd"), ("cross_entropy", "sp")]
)
def test_losses_that_look_at_labels_are_refused_without_them(dataset, loss, instead):
    from kdbench.losses.weighted import check_data, terms

    options = '{ pairs = [["stages.0", "stages.0"]] }' if loss == "crd" else "1.0"
    found = recipe(distill__losses=f"{{ {loss} = {options} }}")
    with pytest.raises(UserError, match=f"distill.losses.{loss}: learns from labels, and the training set") as error:
        check_data(terms(found.distill.losses, 4.0, found.folder, 6), "classification", labelled=False)
    assert instead in str(error.value)
    assert f"one of {loss}" not in str(error.value)
    assert "multi_label" not in str(error.value)


def test_labels_that_are_not_numbers_of_classes_are_refused(tmp_path):
    x, y = samples(20)
    wrong = y.astype(float)
    wrong[3, 1] = np.nan
    np.savez(tmp_path / "data.npz", x_train=x, y_train=wrong, x_test=x, y_test=y)
    with pytest.raises(UserError, match="y_train: labels should be 0 or 1 a class, not float64"):
        data.load(recipe(data__options=f'{{ path = "{tmp_path / "data.npz"}" }}').data)


# --- the ladder -------------------------------------------------------------------------------------------------------


def test_the_ladder_of_several_labels_has_f1_that_anyone_can_recompute(walked):
    from sklearn.metrics import f1_score

    ((found,), (_, raw)) = load_ladders([walked / "run"]), load_result(walked / "run" / "results.json")
    assert found.metric == "f1"
    assert [row.rung for row in found.rows] == list(rungs.LADDER)
    numbers = {e.rung: e.raw for e in found.result.evaluations}
    for row in found.rows:
        predicted = raw[f"predictions.{numbers[row.rung]}"]
        assert predicted.shape == raw["labels"].shape == (200, 5)
        assert row.f1_micro == pytest.approx(f1_score(raw["labels"], predicted, average="micro"))
        assert row.f1_macro == pytest.approx(f1_score(raw["labels"], predicted, average="macro", zero_division=0))
        assert row.accuracy is row.accuracy_diff is None
        assert row.error is None
        assert row.f1_micro > 0.6
        if row.rung != "teacher":
            assert row.f1_micro_diff_low <= row.f1_micro_diff <= row.f1_micro_diff_high


def test_predictions_of_the_ladder_are_what_the_weights_say(walked):
    result, raw = load_result(walked / "run" / "results.json")
    pack = load_pack(walked / "run" / "pack.npz")
    for rung in ("teacher", "student"):
        model, trained = weights.model_of(walked / "run" / f"{rung}.safetensors")
        assert trained.task == "multi_label"
        with torch.no_grad():
            logits = model(torch.from_numpy(pack.test_inputs(result.artifacts[0].inputs)["input"])).numpy()
        (number,) = [e.raw for e in result.evaluations if e.rung == rung]
        assert (raw[f"predictions.{number}"] == (logits > 0)).all()
    alone = weights.load(walked / "run" / "student-alone.safetensors")[1].history[-1]
    assert set(alone) == {"loss", "loss.binary_cross_entropy", "learning_rate"}


def test_agreement_is_the_share_of_samples_with_all_labels_alike(walked):
    result, raw = load_result(walked / "run" / "results.json")
    numbers = {e.rung: e.raw for e in result.evaluations}
    for row in load_rows(walked / "run"):
        theirs, ours = (raw[f"predictions.{numbers[rung]}"] for rung in ("teacher", row.rung))
        alike = [(a == b).all() for a, b in zip(ours, theirs, strict=True)]
        assert row.agreement == (None if row.rung == "teacher" else np.mean(alike))


def test_tables_and_plot_say_that_they_show_f1(walked, tmp_path):
    printed = (walked / "printed.txt").read_text()
    assert "F1 µ %" in printed
    assert "acc. %" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    (found,) = load_ladders([walked / "run"])
    report = (walked / "run" / "report.md").read_text()
    assert "F1 macro %" in report  # where the terminal has no room for it, it leaves it out
    assert "F1 µ: of all labels together" in report
    assert "McNemar" not in report
    assert "all labels agree" in details_table(found).header
    assert "micro F1, %" in (walked / "run" / "accuracy-latency.svg").read_text()
    header, first, *_ = csv.reader(io.StringIO((walked / "run" / "report.csv").read_text()))
    assert float(first[header.index("f1_micro")]) == found.rows[0].f1_micro
    assert first[header.index("accuracy")] == ""


def test_evaluate_prints_f1(walked):
    said = kdbench("evaluate", "run/student.onnx", "run/pack.npz", "--against", "run/teacher.onnx", cwd=walked).stdout
    (row,) = [row for row in load_rows(walked / "run") if row.rung == "student"]
    assert f"F1         micro {100 * row.f1_micro:.2f} %, macro {100 * row.f1_macro:.2f} %  (5 labels of 200" in said
    assert f"same answer in {100 * row.agreement:.2f} %" in said
    found = evaluate(walked / "run" / "student.onnx", walked / "run" / "pack.npz")
    assert found == F1(row.f1_micro, row.f1_macro, 200, 5)


def test_agreement_of_several_labels_by_hand():
    theirs, ours = np.tile([1.0, -1, 1, -1, 1], (8, 1)), np.tile([3.0, -2, 0.1, -1, 1], (8, 1))
    ours[:2, 4] = -1
    check = compare([ours], [theirs], "multi_label")
    assert (check.agreement, check.label_agreement) == (6 / 8, 38 / 40)
    assert compare([ours], [-ours]).label_agreement == 0  # by the largest output alone


def test_int8_of_several_labels_is_warned_of_by_single_labels(walked, tmp_path, monkeypatch):
    from kdbench.steps import quantize as step

    student, pack = walked / "run" / "student.onnx", walked / "run" / "pack.npz"
    made = quantize(student, tmp_path / "int8.onnx", pack)
    assert made.warnings == ()
    found = parity(tmp_path / "int8.onnx", student, pack=pack)
    assert found.agreement < found.label_agreement < 1
    monkeypatch.setattr(step, "LEAST_AGREEMENT", 1.01)
    (warning,) = quantize(student, tmp_path / "int8.onnx", pack).warnings
    assert "of the labels of 64 compared samples" in warning


# --- without labels ---------------------------------------------------------------------------------------------------


def test_a_ladder_without_labels_is_judged_by_its_agreement(tmp_path):
    """Under a teacher that was trained elsewhere, on labels that the recipe's data don't have."""
    from kdbench import pipeline

    x, y = samples()
    labelled = Dataset(x[:400], y[:400, 0], x[400:], y[400:, 0], ("no", "yes"), Preprocessing())
    np.savez(tmp_path / "data.npz", x_train=x[:400], x_test=x[400:])
    options = f'{{ path = "{tmp_path / "data.npz"}", labelled = false, classes = ["no", "yes"] }}'
    found = recipe(data__options=options, distill__losses="{ kd = 1.0 }")
    weights = teach.teach(RunFolder(tmp_path), "teacher", found.teachers[0], Lesson(found, labelled, ""))
    taken = found.teachers[0].model_copy(update={"training": None, "weights": str(weights)})
    taken = taken.model_copy(update={"preprocessing": Preprocessing()})
    found = found.model_copy(update={"teacher": taken})
    said = []
    report = pipeline.run(found, tmp_path / "run", say=said.append)
    assert "no labels in the training set: without the rung student-alone, which learns from them alone" in said
    rows = {row.rung: row for row in report.ladder.rows}
    assert list(rows) == [rung for rung in rungs.LADDER if rung != "student-alone"]
    assert report.ladder.metric == "agreement"
    assert rows["student"].agreement > 0.8
    assert rows["student"].accuracy is rows["teacher"].agreement is None
    (table,) = ladder_tables(report.ladder)
    assert table.header[:2] == ("rung", "agree %")
    assert table.lines[0][1] == "–"
    assert "as teacher answers them" in to_markdown([report.ladder])
    assert "agreement with teacher, %" in report.plots[0].read_text()

    student, pack = tmp_path / "run" / "student.onnx", tmp_path / "run" / "pack.npz"
    with pytest.raises(UserError, match="no array 'y_test' in it: needed for accuracy and F1; compare by --against"):
        evaluate(student, pack)
    shown = kdbench("evaluate", student, pack, "--against", "run/teacher.onnx", cwd=tmp_path).stdout
    assert "no labels in" in shown
    assert f"same answer in {100 * rows['student'].agreement:.2f} %" in shown
    # A test split may have labels while the training set has none.
    save_pack(tmp_path / "labelled.npz", replace(labelled, y_train=None), 8, 0)
    assert evaluate(student, tmp_path / "labelled.npz").accuracy > 0.8


def test_a_student_of_the_teacher_alone_is_the_same_with_labels_and_without(dataset, tmp_path):
    labelled = one_class(dataset)
    own = "def own(student, teacher, target):\n    return (student.logits - teacher.logits).abs().mean()\n"
    (tmp_path / "own.py").write_text(own)
    found = recipe(distill__losses='{ kd = 1.0, "own.py:own" = 0.1 }').placed(tmp_path)
    teacher = teach.teach(RunFolder(tmp_path), "teacher", found.teachers[0], Lesson(found, labelled, ""))
    tensors = []
    for name, chosen in (("with", labelled), ("without", unlabelled(labelled))):
        (tmp_path / name).mkdir()
        path = train.distill(RunFolder(tmp_path / name), "student", [teacher], Lesson(found, chosen, ""))
        tensors.append(weights.load(path)[0])
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_models_whose_answers_are_of_unlike_shapes_have_no_agreement():
    raw = {name: value for name, value in arrays().items() if name != "labels"}
    found = ladder(result(), raw | {"predictions.1": np.zeros((4, 3), dtype=int)})
    assert found.rows[1].agreement is None
    assert ladder_tables(found)[0].lines[1][1] == "–"


# --- tables from results by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "f1", "agreement"])
def test_wide_tables_fit_the_terminal(metric, capsys):
    generator = np.random.default_rng(0)
    names = ("teacher-of-many-1", "student-slim-int8")
    made = result(
        baseline=names[0],
        artifacts=(artifact(names[0]), artifact(names[1], names[0], "int8", warnings=("one", "two", "three"))),
        measurements=tuple(cell(name, str(number)) for number, name in enumerate(names)),
        evaluations=tuple(evaluation(name, str(number)) for number, name in enumerate(names)),
    )
    shape = (50,) if metric == "accuracy" else (50, 6)
    raw = arrays(speed=3.98, noise=0.01) | {f"predictions.{n}": generator.integers(0, 2, shape) for n in (0, 1)}
    del raw["labels"]
    if metric != "agreement":
        raw["labels"] = raw["predictions.0"]
    print_ladder(ladder(made, raw))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert [line for line in shown.splitlines() if line.startswith("student") and line.rstrip().endswith("¹ ² ³")]


def test_rows_without_labels_have_agreement_alone():
    found = ladder(result(), {name: value for name, value in arrays().items() if name != "labels"})
    assert found.metric == "agreement"
    assert (found.rows[1].agreement, found.rows[1].accuracy, found.mcnemar) == (0.75, None, {})


def test_the_zoos_yeast_recipe_fits_its_data(shared_data):
    names = {"train": "yeast-train.arff", "test": "yeast-test.arff", "labels_file": "yeast.xml"}
    found = load_recipe(
        "yeast", {f"data.options.{key}": str(shared_data / "multilabel" / name) for key, name in names.items()}
    )
    assert load_recipe("yeast").data.options == names
    dataset = data.load(found.data)
    assert dataset.task == "multi_label"
    fitting.check(found, dataset)
