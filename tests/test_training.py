"""Training: the same weights for the same seed, also when it was stopped in between."""

import numpy as np
import pytest
import torch

from kdbench import data
from kdbench.errors import UserError
from kdbench.records import Data, Network, Training
from kdbench.steps import train
from kdbench.store import RunFolder, load_recipe
from kdbench.training import weights
from kdbench.training.loop import learning_rate
from tests.conftest import TINY


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("digits", TINY)


@pytest.fixture(scope="module")
def dataset():
    return data.load(Data(source="digits"))


@pytest.fixture(scope="module")
def trained(recipe, dataset, tmp_path_factory):
    """Teacher and student weights, trained without interruption."""
    folder = RunFolder(tmp_path_factory.mktemp("trained"))
    teacher = train.train(folder, "teacher", recipe.teacher, recipe, dataset, "")
    return teacher, train.distill(folder, "student", teacher, recipe, dataset, "")


class StopError(Exception):
    """Stands for the end of the process between two epochs."""


def stop_at(epoch):
    def progress(label, done, total):
        if done == epoch:
            raise StopError

    return progress


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stopped_training_ends_with_the_same_bytes(trained, recipe, dataset, tmp_path, epoch):
    teacher, student = trained
    folder = RunFolder(tmp_path)
    with pytest.raises(StopError):
        train.distill(folder, "student", teacher, recipe, dataset, "", stop_at(epoch))
    assert weights.load(folder.checkpoint("student"))[1].epoch == epoch
    resumed = train.distill(folder, "student", teacher, recipe, dataset, "")
    assert resumed.read_bytes() == student.read_bytes()
    assert not folder.checkpoint("student").exists()


def test_a_checkpoint_of_another_training_is_not_continued(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    folder = RunFolder(tmp_path)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(StopError):
        train.distill(folder, "student", teacher, other, dataset, "", stop_at(1))
    assert train.distill(folder, "student", teacher, recipe, dataset, "").read_bytes() == student.read_bytes()


def test_a_damaged_checkpoint_is_trained_again(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    folder = RunFolder(tmp_path)
    folder.checkpoint("student").write_bytes(b"cut off")
    assert train.distill(folder, "student", teacher, recipe, dataset, "").read_bytes() == student.read_bytes()


def test_finished_weights_are_kept(trained, recipe, dataset):
    teacher, _ = trained
    before = teacher.stat().st_mtime_ns
    train.train(RunFolder(teacher.parent), "teacher", recipe.teacher, recipe, dataset, "")
    assert teacher.stat().st_mtime_ns == before


def test_distillation_depends_on_teacher_and_temperature(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    warmer = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"temperature": 1.0})})
    folder = RunFolder(tmp_path)
    alone = train.train(folder, "alone", recipe.student, recipe, dataset, "")
    other = train.distill(folder, "student", teacher, warmer, dataset, "")
    tensors = [weights.load(path)[0]["head.weight"] for path in (student, alone, other)]
    assert not torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])


def test_the_teacher_is_not_touched_by_teaching(trained, recipe, dataset, tmp_path):
    teacher, _ = trained
    before = teacher.read_bytes()
    train.distill(RunFolder(tmp_path), "student", teacher, recipe, dataset, "")
    assert teacher.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(recipe, dataset, tmp_path):
    broken = Network(
        model="resnet",
        options=recipe.student.options,
        training=Training(epochs=2, learning_rate=1e30, warmup_share=0),
    )
    with pytest.raises(UserError, match=r"epoch 1, batch \d+: lower training.learning_rate"):
        train.train(RunFolder(tmp_path), "teacher", broken, recipe, dataset, "")


def test_a_vocabulary_that_is_too_small_for_the_data_is_named(recipe, dataset):
    student = recipe.student.model_copy(update={"model": "lstm", "options": {"vocabulary": 16}})
    with pytest.raises(UserError, match=r"student.options.vocabulary: 16, but the data has token ids up to 16"):
        train.check(recipe.model_copy(update={"student": student}), dataset)


def test_learning_rate_rises_then_falls_to_zero():
    training = Training(epochs=1, learning_rate=1.0, warmup_share=0.2)
    rates = [learning_rate(step, 100, training) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[20] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert np.all(np.diff(rates[20:]) < 0)


def test_weights_that_are_not_ours_are_refused(tmp_path, trained):
    import safetensors.torch

    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(UserError, match="does not say which model"):
        weights.load(foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(trained[0].read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        weights.load(cut)
