"""Training: the same weights for the same seed, also when it was stopped in between."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdbench.errors import UserError
from kdbench.losses import LOSSES
from kdbench.records import Augment, Network, Training
from kdbench.steps import check as fitting
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.steps.teach import teach
from kdbench.store import RunFolder, load_recipe, zoo_recipes
from kdbench.training import weights
from kdbench.training.optimizer import learning_rate
from tests.conftest import TINY


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("digits", TINY)


@pytest.fixture(scope="module")
def trained(recipe, dataset, tmp_path_factory):
    """Teacher and student weights, trained without interruption."""
    folder = RunFolder(tmp_path_factory.mktemp("trained"))
    teacher = teach(folder, "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    return teacher, train.distill(folder, "student", [teacher], Lesson(recipe, dataset, ""))


def test_augmentation_of_every_kind_trains_and_repeats(recipe, dataset, tmp_path):
    section = Augment(shift_px=1, flip=True, mixup_alpha=0.4, cutmix_alpha=1.0, erase_probability=0.3, views=2)
    varied = recipe.model_copy(update={"data": recipe.data.model_copy(update={"augment": section})})
    found = {}
    for name, chosen in {"first": varied, "again": varied, "plain": recipe}.items():
        (tmp_path / name).mkdir()
        path = train.train(RunFolder(tmp_path / name), "student", Lesson(chosen, dataset, ""))
        found[name] = path.read_bytes()
    assert found["first"] == found["again"]
    assert found["first"] != found["plain"]


def test_data_that_the_losses_cannot_learn_from_are_refused(recipe, dataset):
    with pytest.raises(UserError, match="no labels: training a teacher needs them"):
        fitting.check(recipe, replace(dataset, y_train=None))
    with pytest.raises(UserError, match="cross_entropy: is for one class a sample, this data has any number of them"):
        fitting.check(recipe, replace(dataset, y_train=np.eye(10, dtype=int)[dataset.y_train], task="multi_label"))


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
        train.distill(folder, "student", [teacher], Lesson(recipe, dataset, "", stop_at(epoch)))
    assert weights.load(folder.checkpoint("student"))[1].epoch == epoch
    resumed = train.distill(folder, "student", [teacher], Lesson(recipe, dataset, ""))
    assert resumed.read_bytes() == student.read_bytes()
    assert not folder.checkpoint("student").exists()


FEATURES = {
    "hint": '{ weight = 1.0, pairs = [["stages.0", "stages.0"], ["stages.1", "stages.1"]], warmup_epochs = 2 }',
    "crd": '{ weight = 0.8, pairs = [["pool", "pool"]], negatives = 64 }',
    "parameters": '{ layers = [["stages", "stages"]], stop_below = 1e9 }',
    "staged": '{ pairs = [["stages.1", "stages.1"]], until_epoch = 1 }',
}


def with_losses(**fields):
    overrides = {f"distill.{name.replace('__', '.')}": value for name, value in fields.items()}
    return load_recipe("digits", TINY | overrides)


@pytest.mark.parametrize("name", FEATURES)
def test_a_stopped_training_by_a_loss_with_a_state_of_its_own_ends_with_the_same_bytes(
    name, trained, dataset, tmp_path
):
    teacher, student = trained
    loss = "hint" if name == "staged" else name
    kd = "{ from_epoch = 2 }" if name == "staged" else "0.9"
    recipe = with_losses(losses=f"{{ cross_entropy = 0.1, kd = {kd}, {loss} = {FEATURES[name]} }}")
    fitting.check(recipe, dataset)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    for folder in (whole, parts):
        folder.path.mkdir()
    finished = train.distill(whole, "student", [teacher], Lesson(recipe, dataset, ""))
    assert finished.read_bytes() != student.read_bytes()
    for epoch in (1, 2):
        torch.manual_seed(epoch)  # whatever was drawn elsewhere makes no difference
        with pytest.raises(StopError):
            train.distill(parts, "student", [teacher], Lesson(recipe, dataset, "", stop_at(epoch)))
        state, record = weights.load(parts.checkpoint("student"))
        assert record.epoch == epoch
        assert any(key.startswith("loss.") for key in state)
    assert train.distill(parts, "student", [teacher], Lesson(recipe, dataset, "")).read_bytes() == finished.read_bytes()
    seen = [[key for key in entry if key.startswith("loss.")] for entry in weights.load(finished)[1].history]
    every = ["loss.cross_entropy", f"loss.{loss}", "loss.kd"]
    expected = {
        "parameters": [["loss.cross_entropy", "loss.kd", "loss.parameters"], *[["loss.cross_entropy", "loss.kd"]] * 2],
        "staged": [["loss.cross_entropy", "loss.hint"], *[["loss.cross_entropy", "loss.kd"]] * 2],
    }
    assert [sorted(keys) for keys in seen] == expected.get(name, [sorted(every)] * 3)


def test_all_losses_together_train(trained, dataset, tmp_path):
    teacher, _ = trained
    pairs = '{ weight = 0.01, pairs = [["stages.1", "stages.1"]] }'
    given = dict.fromkeys(("attention", "cosine", "hint", "rkd", "sp"), pairs)
    given |= dict.fromkeys(("cross_entropy", "dist", "dkd", "kd", "soft_targets"), "0.1")
    given |= {"crd": FEATURES["crd"], "parameters": '{ layers = [["head", "head"]] }'}
    assert sorted(given) == sorted(LOSSES.keys() - {"binary_cross_entropy", "multi_label"})
    recipe = with_losses(losses="{ " + ", ".join(f"{name} = {table}" for name, table in given.items()) + " }")
    first, *_, last = weights.load(
        train.distill(RunFolder(tmp_path), "student", [teacher], Lesson(recipe, dataset, ""))
    )[1].history
    assert len(first) == len(given) + 2
    assert last["loss"] < first["loss"]


def test_the_weights_file_has_the_students_tensors_alone(trained, dataset, tmp_path):
    teacher, student = trained
    recipe = with_losses(losses=f"{{ cross_entropy = 1.0, hint = {FEATURES['hint']} }}")
    hinted = train.distill(RunFolder(tmp_path), "student", [teacher], Lesson(recipe, dataset, ""))
    assert weights.load(hinted)[0].keys() == weights.load(student)[0].keys()


def test_a_users_own_loss_is_a_part_of_what_the_training_started_from(trained, dataset, tmp_path):
    teacher, _ = trained
    file = tmp_path / "mine.py"
    recipe = with_losses(losses='{ cross_entropy = 1.0, "mine.py:mine" = 1.0 }').placed(tmp_path)
    ends = []
    for factor in (1.0, 2.0, 1.0):
        file.write_text(f"def mine(student, teacher, target):\n    return {factor} * student.logits.square().mean()\n")
        fitting.check(recipe, dataset)
        ends.append(train.distill(RunFolder(tmp_path), "student", [teacher], Lesson(recipe, dataset, "")).read_bytes())
    assert ends[0] != ends[1]
    assert ends[0] == ends[2]


def test_a_recipe_remembers_where_its_file_is_and_does_not_say_so(tmp_path):
    (tmp_path / "mine.toml").write_text(zoo_recipes()["digits"].read_text())
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.folder == tmp_path
    assert recipe.to_json() == load_recipe("digits").to_json()


SAME_STUDENT = TINY | {"student.options": TINY["teacher.options"]}


def test_a_student_starts_from_layers_of_its_teacher(trained, dataset, tmp_path):
    teacher, _ = trained
    layers = '{ stem = "stem", "stages.1" = "stages.1", "head.bias" = "head.bias" }'
    slow = {"student.training.epochs": "1", "student.training.learning_rate": "1e-12"}
    recipe = load_recipe("digits", SAME_STUDENT | slow | {"distill.start_from": layers})
    fitting.check(recipe, dataset)
    student = weights.load(train.distill(RunFolder(tmp_path), "student", [teacher], Lesson(recipe, dataset, "")))[0]
    theirs = weights.load(teacher)[0]
    for name in (n for n in student if n.endswith(("weight", "bias"))):
        copied = name.startswith(("stem.", "stages.1.")) or name == "head.bias"
        same = torch.allclose(student[name], theirs[name], rtol=0, atol=1e-6)
        assert same == copied or name.startswith("stages.0.0.norm"), name
    alone = train.distill(
        RunFolder(tmp_path), "other", [teacher], Lesson(load_recipe("digits", SAME_STUDENT | slow), dataset, "")
    )
    assert not torch.equal(weights.load(alone)[0]["head.bias"], student["head.bias"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"start_from": '{ stem = "stem" }'},
            r"'stem' of the student and 'stem' of the teacher differ in '0.weight': ",
        ),
        ({"start_from": '{ stem = "stem" }'}, r"\(4, 1, 3, 3\) and \(6, 1, 3, 3\): name layers of equal shapes"),
        ({"start_from": '{ "head.bias" = "head.weight" }'}, r"'head.bias': \(10,\) and \(10, 12\)"),
        ({"start_from": '{ stemm = "stem" }'}, "student has no weights in 'stemm': did you mean 'stem'?"),
        ({"start_from": '{ stem = "steem" }'}, "teacher has no weights in 'steem': did you mean 'stem'?"),
        (
            {"losses__hint": '{ pairs = [["stages.0", "stages.5"]] }'},
            r"teacher: no submodule 'stages.5': did you mean 'stages.\d'",
        ),
        (
            {"losses__kd": "{ temprature = 2 }"},
            "distill.losses.kd: unknown key 'temprature': did you mean 'temperature'",
        ),
        (
            {"losses__parameters": '{ layers = [["stem.0", "head"]] }'},
            r"stem.0.weight of the student has shape \(4, 1, 3, 3\), head.weight of the teacher \(10, 12\)",
        ),
    ],
)
def test_mistakes_are_found_before_training(fields, message, dataset):
    with pytest.raises(UserError, match=message):
        fitting.check(with_losses(**fields), dataset)


def test_a_checkpoint_of_another_training_is_not_continued(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    folder = RunFolder(tmp_path)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(StopError):
        train.distill(folder, "student", [teacher], Lesson(other, dataset, "", stop_at(1)))
    assert train.distill(folder, "student", [teacher], Lesson(recipe, dataset, "")).read_bytes() == student.read_bytes()


def test_a_damaged_checkpoint_is_trained_again(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    folder = RunFolder(tmp_path)
    folder.checkpoint("student").write_bytes(b"cut off")
    assert train.distill(folder, "student", [teacher], Lesson(recipe, dataset, "")).read_bytes() == student.read_bytes()


def test_finished_weights_are_kept(trained, recipe, dataset):
    teacher, _ = trained
    before = teacher.stat().st_mtime_ns
    teach(RunFolder(teacher.parent), "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    assert teacher.stat().st_mtime_ns == before


def test_distillation_depends_on_teacher_and_temperature(trained, recipe, dataset, tmp_path):
    teacher, student = trained
    warmer = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"temperature": 1.0})})
    folder = RunFolder(tmp_path)
    alone = train.train(folder, "alone", Lesson(recipe, dataset, ""))
    other = train.distill(folder, "student", [teacher], Lesson(warmer, dataset, ""))
    tensors = [weights.load(path)[0]["head.weight"] for path in (student, alone, other)]
    assert not torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])


def test_the_teacher_is_not_touched_by_teaching(trained, recipe, dataset, tmp_path):
    teacher, _ = trained
    before = teacher.read_bytes()
    train.distill(RunFolder(tmp_path), "student", [teacher], Lesson(recipe, dataset, ""))
    assert teacher.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(recipe, dataset, tmp_path):
    broken = Network(
        model="resnet",
        options=recipe.student.options,
        training=Training(epochs=2, learning_rate=1e30, warmup_share=0),
    )
    with pytest.raises(UserError, match=r"epoch 1, batch \d+: lower training.learning_rate"):
        train.train(RunFolder(tmp_path), "student", Lesson(recipe.model_copy(update={"student": broken}), dataset, ""))


def test_a_vocabulary_that_is_too_small_for_the_data_is_named(recipe, dataset):
    student = recipe.student.model_copy(update={"model": "lstm", "options": {"vocabulary": 16}})
    with pytest.raises(UserError, match=r"student.options.vocabulary: 16, but the data has token ids up to 16"):
        fitting.check(recipe.model_copy(update={"student": student}), dataset)


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
