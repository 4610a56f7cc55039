"""The losses of a recipe: their weights and schedules, a user's own ones, mistakes, and docs/methods.md."""

import re

import numpy as np
import pytest
import torch

from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses import LOSSES
from kdbench.losses.outputs import Outputs
from kdbench.losses.weighted import WeightedSum, check_data, history_key, terms, weight_at
from kdbench.models import build
from kdbench.records import recipe_from_toml
from kdbench.training.features import layers
from kdbench.training.teaching import Faculty, Teaching, sample_outputs
from tests.conftest import REPOSITORY
from tests.test_losses import FEATURES, MAPS, SEVERAL, STUDENT, TARGET, TEACHER, THEIR_FEATURES, read, value, weighted
from tests.test_records import TEXT


def test_weighted_sum_is_the_sum_of_its_weighted_terms():
    total, parts = weighted({"cross_entropy": 0.1, "kd": {"weight": 0.9, "temperature": 2.0}})(STUDENT, TEACHER, TARGET)
    expected = 0.1 * value("cross_entropy") + 0.9 * value("kd", temperature=2.0)
    assert total.item() == pytest.approx(expected.item())
    assert parts["kd"].item() == pytest.approx(value("kd", temperature=2.0).item())


def test_the_recipes_temperature_is_that_of_every_loss_that_names_none():
    loss = weighted({"kd": 1.0, "dkd": {"temperature": 3.0}, "sp": MAPS}, temperature=2.0)
    assert [getattr(part, "temperature", None) for part in loss.losses] == [3.0, 2.0, None]


def test_weights_follow_warm_up_schedule_and_epochs():
    schedule = {"start": 1.0, "end": 0.0, "epochs": 4}
    table = {
        "cross_entropy": 1.0,
        "dkd": {"weight": 2.0, "warmup_epochs": 4},
        "kd": {"weight": schedule, "until_epoch": 3},
        "dist": {"weight": {**schedule, "shape": "cosine"}},
        "soft_targets": {"weight": schedule, "from_epoch": 3},
    }
    found = {t.name: [weight_at(t, epoch) for epoch in range(1, 7)] for t in read(table)}
    assert found["cross_entropy"] == [1.0] * 6
    assert found["dkd"] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert found["kd"] == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0]
    assert found["dist"] == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466, 0.0, 0.0])
    assert found["soft_targets"] == [0.0, 0.0, 1.0, 0.75, 0.5, 0.25]


def test_temperature_follows_its_schedule():
    loss = weighted({"kd": {"temperature": {"start": 8.0, "end": 2.0, "epochs": 3}}})
    for epoch, expected in enumerate([8.0, 6.0, 4.0, 2.0, 2.0], 1):
        loss.begin(epoch, [])
        assert loss.losses[0].temperature == expected


def test_a_loss_below_its_bound_is_over_for_good():
    loss = weighted({"kd": 1.0, "sp": {**MAPS, "stop_below": 0.1}})
    key = history_key("sp")
    for history, weight in (([], 1.0), ([{key: 0.2}], 1.0), ([{key: 0.05}], 0.0), ([{key: 0.05}, {}], 0.0)):
        loss.begin(len(history) + 1, history)
        assert loss.weights == {"kd": 1.0, "sp": weight}
    _, parts = loss(STUDENT, TEACHER, TARGET)
    assert set(parts) == {"kd"}


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"kdd": 1.0}, "unknown loss 'kdd': did you mean 'kd'"),
        ({"kd": {"temprature": 2.0}}, "distill.losses.kd: unknown key 'temprature': did you mean 'temperature'?"),
        ({"kd": {"wieght": 2.0}}, "distill.losses.kd: unknown key 'wieght': did you mean 'weight'?"),
        ({"kd": {"standardize": 2}}, "distill.losses.kd: 'standardize' should be a valid boolean, not 2"),
        ({"kd": {"temperature": 0.0}}, "distill.losses.kd: 'temperature' should be greater than 0"),
        ({"sp": {"temperature": 2.0, **MAPS}}, "distill.losses.sp: unknown key 'temperature': known:"),
        ({"sp": 1.0}, "distill.losses.sp: 'pairs' is missing: add it"),
        ({"hint": {**MAPS, "direction": "back"}}, "'direction' should be 'student_to_teacher' or 'teacher_to_student'"),
        ({"kd": -1.0}, "'distill.losses.kd.weight.start' should be greater than or equal to 0, not -1.0"),
        ({"kd": {"weight": {"start": 1.0, "end": 0.0, "shape": "step"}}}, "should be 'linear' or 'cosine'"),
        ({"kd": {"until_epoch": 2}}, "distill.losses: none is left in epoch 3"),
        ({"kd": {"stop_below": 0.1}}, "distill.losses: none is left in epoch 1"),
        ({"cross_entropy": 0.0}, "distill.losses: none is left in epoch 1"),
    ],
)
def test_mistakes_are_named(losses, message):
    with pytest.raises(UserError) as error:
        read(losses, epochs=3)
    assert message in str(error.value)


def test_mistakes_of_parameters_are_named():
    for options, message in (
        ({"layers": [("c", "a")]}, "student has none in 'c'"),
        ({"layers": [("b", "a")]}, r"b of the student has shape \(4,\), a of the teacher \(2, 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            value("parameters", **options)
    with pytest.raises(UserError, match="parameters: the teacher is a black box"):
        value("parameters", teacher=Outputs(TEACHER.logits))


def test_crd_needs_places():
    with pytest.raises(UserError, match="crd: needs the place of each sample"):
        value("crd", student=Outputs(STUDENT.logits, FEATURES))


# --- a user's own loss ------------------------------------------------------------------------------------------------

MINE = """
import torch
def gap(student, teacher, target, power: float = 2.0, temperature: float = 1.0):
    return ((student.logits - teacher.logits).abs() ** power).mean() / temperature
def seen(student, teacher, target, pairs):
    return student.features[pairs[0][0]].mean() - teacher.features[pairs[0][1]].mean()
def few(student, teacher):
    return student.logits.sum()
def odd(student, teacher, target, weights: torch.Tensor):
    return student.logits.sum()
def wide(student, teacher, target):
    return student.logits
def any_of(student, teacher, target, **options):
    return student.logits.sum()
"""


def test_a_users_own_loss_is_found_beside_the_recipe_or_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    expected = float((STUDENT.logits - TEACHER.logits).abs().pow(3).mean()) / 4
    losses = {"mine.py:gap": {"weight": 2.0, "power": 3.0}}
    total, _ = weighted(losses, folder=tmp_path)(STUDENT, TEACHER, TARGET)
    assert total.item() == pytest.approx(2 * expected)
    monkeypatch.chdir(tmp_path)
    total, _ = weighted(losses)(STUDENT, TEACHER, TARGET)
    assert total.item() == pytest.approx(2 * expected)


def test_a_users_own_loss_sees_the_features_that_its_pairs_name(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    found = read({"mine.py:seen": {"pairs": [["map", "vector"]]}}, folder=tmp_path)
    assert layers(found) == (["map"], ["vector"])
    total, _ = WeightedSum(found, STUDENT, TEACHER)(STUDENT, TEACHER, TARGET)
    assert total.item() == pytest.approx((FEATURES["map"].mean() - THEIR_FEATURES["vector"].mean()).item())


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"mine.py:gp": 1.0}, "no function 'gp' in"),
        ({"mine.py:seen": {"pairs": ["map"]}}, "distill.losses.mine.py:seen: 'pairs.1' should be a valid array"),
        ({"mine.py:few": 1.0}, "should take student, teacher and target before its options"),
        ({"mine.py:odd": 1.0}, "distill.losses.mine.py:odd: its options can't be read from a recipe"),
        ({"mine.py:any_of": 1.0}, "mine.py:any_of: '**options' can't be checked: name its options one by one"),
        ({"mine.py:torch": 1.0}, "no function 'torch' in"),
        (
            {"other.py:gap": 1.0},
            "loss 'other.py:gap': no file 'other.py' beside the recipe or in the working directory",
        ),
        ({"broken.py:gap": 1.0}, "fails with ZeroDivisionError: division by zero"),
        ({"mine.txt:gap": 1.0}, "mine.txt is not a Python file"),
        ({"mine.py:gap": {"powr": 3.0}}, "distill.losses.mine.py:gap: unknown key 'powr': did you mean 'power'?"),
        ({"mine.py:wide": 1.0}, "should give a scalar tensor, not Tensor of shape (4, 5)"),
    ],
)
def test_mistakes_in_a_users_own_loss_are_named(losses, message, tmp_path):
    for name, text in (("mine.py", MINE), ("mine.txt", MINE), ("broken.py", "1 / 0")):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        weighted(losses, folder=tmp_path)(STUDENT, TEACHER, TARGET)
    assert message in str(error.value)


# --- docs/methods.md --------------------------------------------------------------------------------------------------

METHODS = (REPOSITORY / "docs" / "methods.md").read_text()


def test_every_loss_is_documented_with_a_recipe():
    sections = re.split(r"^### ", METHODS, flags=re.MULTILINE)[1:]
    assert sorted(section.splitlines()[0] for section in sections) == sorted(LOSSES)
    for section in sections:
        assert re.search(rf"```toml\n\[distill.losses\][^`]*^{section.splitlines()[0]} = ", section, re.MULTILINE)


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", METHODS, re.DOTALL))
def test_documented_recipes_can_be_built(block, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", METHODS, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    recipe = recipe_from_toml(TEXT[: TEXT.index("[distill]")] + block, "methods.md")
    resnet = build("resnet", {"widths": [4, 8], "blocks": [1, 1]}, (1, 8, 8), 5)
    read = terms(recipe.distill.losses, recipe.distill.temperature, tmp_path, 30)
    x = torch.zeros(2, 1, 8, 8)
    labels = np.arange(5)
    dataset = Dataset(np.zeros((5, 1, 8, 8), np.float32), labels, x.numpy(), None, ("a",) * 5, None)
    outputs = sample_outputs(resnet, Faculty([Teaching(resnet, None)], None, 5), dataset, x, read)
    several = any("classification" not in term.tasks for term in read)
    check_data(read, "multi_label" if several else "classification", labelled=True)
    target = SEVERAL[:2] if several else torch.arange(2)
    total, _ = WeightedSum(read, *outputs)(outputs[0]._replace(places=torch.arange(2)), outputs[1], target)
    assert torch.isfinite(total)
