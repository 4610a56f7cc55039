"""`kdbench check`: one batch of everything, the errors of a run, and an honest estimate."""

import re
import tempfile

import numpy as np
import pytest

import kdbench
from kdbench import UserError
from kdbench.cli import cli
from kdbench.data import load
from kdbench.data.dataset import Dataset
from kdbench.pipeline import checking
from kdbench.pipeline.checking import Stopwatch, drawn, learning_s, tried
from kdbench.records import Preprocessing
from kdbench.store import load_recipe
from tests.conftest import TINY, overrides


def tiny(**fields):
    fields = {**TINY, **fields}
    if "teacher" in fields:
        fields = {field: value for field, value in fields.items() if not field.startswith("teacher.")}
    return load_recipe("digits", fields)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where scratch folders are made, and the working directory."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_step_of_a_run_is_walked_and_nothing_is_left(scratch, capsys):
    wanted = ["--set", 'bench.backends=["cpu", "openvino"]']
    cli(["check", "digits", *overrides(), *wanted], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    facts = {line[:8].strip(): line[9:] for line in lines[: lines.index("")]}
    assert facts["data"] == "digits: 1,347 to train on, 450 to test, each 1×8×8 uint8"
    assert facts["teacher"].startswith("zoo resnet, ")
    assert "trained here for 3 epochs" in facts["teacher"]
    assert "% of the teacher's" in facts["student"]
    assert "cross_entropy" in facts["losses"]
    assert "kd" in facts["losses"]
    assert facts["cpu"] == "opened teacher, teacher-int8, student-alone, student, student-slim, student-int8"
    assert facts["openvino"]
    table = "\n".join(lines[lines.index("") :])
    for step in ("load, build", "teacher", "student-alone", "student", "export", "slim, quantize", "evaluate", "bench"):
        assert re.search(rf"^{step} .* \d+ (s|min)$", table, re.MULTILINE), step
    assert re.search(r"^kdbench run, estimated +\d+ s$", table, re.MULTILINE)
    assert lines[-1] == "next     kdbench run digits"
    assert list(scratch.iterdir()) == [scratch / "scratch"]
    assert not list((scratch / "scratch").glob("kdbench-*"))


@pytest.mark.parametrize(
    "fields",
    [
        {"student.model": "resnett"},
        {"student.options": "{ deep = 3 }"},
        {"teacher.weights": "nowhere.pth"},
        {"distill.losses": "{ multi_label = 1.0 }"},
        {"data.held_out_samples": "5000"},
        {"bench.backends": '["cpv"]'},
    ],
)
def test_what_would_stop_a_run_stops_here_in_the_same_words(fields, scratch):
    recipe = tiny(**fields)
    with pytest.raises(UserError) as ours:
        kdbench.check(recipe)
    with pytest.raises(UserError) as theirs:
        kdbench.run(recipe, scratch / "run")
    assert str(ours.value) == str(theirs.value)
    assert list((scratch / "scratch").iterdir()) == []


def test_mutual_learning_is_tried_with_a_loss_that_begins_late(scratch):
    fields = {
        "distill.mode": "mutual",
        "distill.losses": "{ cross_entropy = 1.0, 'late.py:fails' = { from_epoch = 3 } }",
        "data.held_out_samples": "100",
        "student.training.keep": "best",
    }
    (scratch / "late.py").write_text(
        "def fails(student, teacher, target): return student.logits.sum() * float('nan')\n"
    )
    recipe = tiny(**fields)
    with pytest.raises(UserError, match="the loss is nan in epoch 1"):
        tried(recipe, load(recipe.data))


def test_data_without_labels_is_walked(scratch):
    images = np.random.default_rng(0).integers(0, 255, (80, 1, 8, 8), dtype=np.uint8)
    np.savez(scratch / "a.npz", x_train=images, x_test=images[:20])
    (scratch / "nets.py").write_text(
        "from torch import nn\ndef net(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    recipe = tiny(
        **{
            "data.source": "arrays",
            "data.options": '{ path = "a.npz", labelled = false, classes = ["a", "b"] }',
            "teacher": '{ model = "nets.py:net" }',
            "distill.losses": "{ kd = 1.0 }",
        }
    )
    said = []
    found = kdbench.check(recipe, say=said.append)
    assert "without labels" in dict(found.facts)["data"]
    assert "taken as it is" in dict(found.facts)["teacher"]
    assert "student-alone" not in found.steps_s
    assert any("without the rung student-alone" in sentence for sentence in said)
    assert found.total_s == pytest.approx(sum(found.estimate_s.values()))


def test_the_estimate_is_the_median_step_times_all_steps(monkeypatch):
    times = iter([0, 5, 6, 7.5, 30, 0, 1, 3])
    monkeypatch.setattr(checking, "now", lambda: next(times))
    watch = Stopwatch()
    for done in range(5):
        watch("student", done / 4, 1)
    for done in (0, 100, 200):
        watch("teacher's answers, view 1", done, 200)
    recipe = load_recipe("digits", {"data.augment.views": "4", "student.training.batch_size": "50"})
    recipe = recipe.model_copy(update={"teacher": recipe.teachers[0].model_copy(update={"training": None})})
    dataset = Dataset(
        np.zeros((1010, 1, 8, 8)), np.zeros(1010, int), np.zeros((1, 1, 8, 8)), None, ("a",), Preprocessing()
    )
    expected = learning_s(recipe, dataset, watch)
    # 30 epochs of 21 batches; the first step and the one behind which files are written are left out: 1 and 1.5 s
    assert expected["student"] == pytest.approx(30 * 21 * 1.25)
    # four views of 1,010 samples, by the 200 that were answered in 3 s
    assert expected["teacher's answers, view 1"] == pytest.approx(3 * 4 * 1010 / 200)
    assert expected.keys() == {"student", "teacher's answers, view 1"}


def test_trainings_in_larger_batches_than_those_that_were_timed_take_as_much_longer(monkeypatch):
    training = "{{ epochs = 10, learning_rate = 0.1, batch_size = {} }}"
    fields = {"student.training.batch_size": "50", "spiral.start": "teacher", "data.held_out_samples": "100"}
    fields |= {"spiral.macs": "0.8", "spiral.training": training.format(50), "spiral.final": training.format(505)}
    recipe = load_recipe("digits", fields | {"prune.macs": "0.5", "prune.training": training.format(1010)})
    recipe = recipe.model_copy(update={"teacher": recipe.teachers[0].model_copy(update={"training": None})})
    data = Dataset(np.zeros((1010, 1, 8, 8)), None, np.zeros((1, 1, 8, 8)), None, ("a",), Preprocessing())
    watch = Stopwatch()
    for label, step_s in (("spiral-1", 1.25), ("student-pruned", 5.0)):  # of 200 samples, the most that are timed
        times = iter(step_s * number for number in range(5))
        monkeypatch.setattr(checking, "now", lambda times=times: next(times))
        for done in range(5):
            watch(label, done / 4, 1)
    found = learning_s(recipe, data, watch)
    assert found["student-pruned"] == pytest.approx(10 * 5.0 * 1010 / 200)
    at_once = recipe.prune.training.model_copy(update={"batch_size": 10**6})
    whole = recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"training": at_once})})
    assert learning_s(whole, data, watch)["student-pruned"] == pytest.approx(found["student-pruned"])
    turn_s, final_s = 10 * 21 * 1.25 + 20, 10 * 2 * 1.25 * 505 / 50  # 20 s to time it
    assert checking._spiral_s(recipe, data, watch, {}) == pytest.approx(turn_s + final_s)


def test_a_part_has_each_class_where_there_are_enough_of_it():
    labels = np.repeat(np.arange(4), [40, 40, 40, 4])
    chosen = drawn(labels, len(labels), 31)
    assert len(set(chosen)) == 31
    assert set(labels[chosen]) == {0, 1, 2, 3}
    assert len(drawn(np.arange(50), 50, 7)) == 7
    assert list(drawn(None, 3, 7)) == [0, 1, 2]
