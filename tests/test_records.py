"""Recipes and records: what is read is what was written, and every mistake is named."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.records import (
    Loss,
    Preprocessing,
    QuantizeSection,
    Recipe,
    Schedule,
    TensorSpec,
    from_json,
    recipe_from_toml,
    slug,
)

TEXT = """
name = "mine"
[data]
source = "digits"
[teacher]
model = "resnet"
training = { epochs = 3, learning_rate = 0.1 }
[student]
model = "resnet"
training = { epochs = 3, learning_rate = 0.1 }
[distill]
losses = { kd = 1.0 }
"""


def test_recipe_has_its_values_and_defaults():
    recipe = recipe_from_toml(TEXT, "mine.toml")
    assert (recipe.name, recipe.teachers[0].training.epochs, recipe.distill.temperature) == ("mine", 3, 4.0)
    assert recipe.bench.processes == 5


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("distill.temperature", "2", 2.0),
        ("distill.losses.kd", "0.5", Loss(weight=Schedule(start=0.5, end=0.5))),
        ("bench.batches", "[1, 8]", (1, 8)),
        ("description", "plain text", "plain text"),
        ("bench.budget_s", "3", 3.0),
        ("quantize", "{ max_drop = 0.5, bias_correction = true }", QuantizeSection(max_drop=0.5, bias_correction=True)),
        ("quantize", "{ for = 'cpu', equalization = true }", QuantizeSection(backend="cpu", equalization=True)),
        ("quantize.equalization", "false", False),
    ],
)
def test_any_field_can_be_overridden(field, value, read):
    found = recipe_from_toml(TEXT, "mine.toml", {field: value})
    for part in field.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == read


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distill.temprature": "2"}, "unknown key 'distill.temprature': did you mean 'temperature'?"),
        ({"bnech.budget_s": "2"}, "unknown key 'bnech': did you mean 'bench'?"),
        ({"teacher.training.epochs": "many"}, "'teacher.training.epochs' should be a valid integer"),
        ({"teacher.training.epochs": "2.5"}, "'teacher.training.epochs' should be a valid integer"),
        ({"teacher.training.epochs": "true"}, "'teacher.training.epochs' should be a valid integer"),
        ({"bench.batches": "[0]"}, "'bench.batches.1' should be greater than or equal to 1"),
        ({"bench.processes": "3"}, "'bench.processes' should be greater than or equal to 5"),
        ({"name": "../up"}, "'name' should"),
        (
            {"quantize.bias_correction": "true"},
            "'quantize.bias_correction' should be left out without max_drop or for, not true",
        ),
        ({"quantize.equalization": "true"}, "'quantize.equalization' should be left out without max_drop or for"),
        ({"name.first": "x"}, "--set name.first: 'name' is a value, not a section"),
        ({"schema": "2"}, "written by a newer kdbench (schema 2, this one reads up to 1): upgrade"),
    ],
)
def test_mistakes_are_named_with_their_field(overrides, message):
    with pytest.raises(UserError) as error:
        recipe_from_toml(TEXT, "mine.toml", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


SEVERAL = TEXT.replace("[teacher]", "[[teacher]]") + '[[teacher]]\nmodel = "mlp"\n'


def test_teachers_are_counted_as_their_rungs_are():
    found = recipe_from_toml(SEVERAL, "mine.toml", {"teacher.2.weight": "0.5"})
    assert [teacher.weight for teacher in found.teachers] == [1.0, 0.5]
    assert (found.teacher_names[1], found.teacher_fields[1]) == ("teacher-2", "teacher.2")
    with pytest.raises(UserError, match=r"'teacher.2.weight' should be greater than 0"):
        recipe_from_toml(SEVERAL, "mine.toml", {"teacher.2.weight": "0"})
    for number in ("0", "3", "last"):
        with pytest.raises(UserError, match=rf"--set teacher.{number}.weight: there are 2: name one by its number"):
            recipe_from_toml(SEVERAL, "mine.toml", {f"teacher.{number}.weight": "1"})


def test_missing_section_is_named():
    with pytest.raises(UserError, match=r"mine.toml: 'distill' is missing"):
        recipe_from_toml(TEXT[: TEXT.index("[distill]")], "mine.toml")


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_a_user_error(text):
    try:
        recipe_from_toml(text, "any.toml")
    except UserError as error:
        assert str(error).startswith("any.toml:")


@given(st.text(max_size=100) | st.binary(max_size=50).map(lambda b: b.decode("latin-1")))
def test_any_text_is_json_or_a_user_error(text):
    try:
        from_json(Preprocessing, text, "any.json")
    except UserError as error:
        assert str(error).startswith("any.json:")


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
)
def test_records_survive_the_round_trip(scale, mean):
    record = Preprocessing(scale=scale, mean=tuple(mean), std=(1.0,))
    assert from_json(Preprocessing, record.to_json(), "x") == record


@given(st.lists(st.integers(1, 9) | st.none() | st.sampled_from(["batch", "n"]), max_size=4))
def test_shapes_survive_the_round_trip(shape):
    spec = TensorSpec(name="x", dtype="float32", shape=tuple(shape))
    assert from_json(TensorSpec, spec.to_json(), "x") == spec


@given(st.text(alphabet=string.printable, max_size=40))
def test_a_slug_is_a_name(text):
    recipe = recipe_from_toml(TEXT, "mine.toml", {"name": json.dumps(slug(text))})
    assert isinstance(recipe, Recipe)
