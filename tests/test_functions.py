"""The functions of `import kdbench`: what each of them takes, and what it says of what it doesn't."""

from pathlib import Path

import pytest

import kdbench
from kdbench import UserError
from kdbench.store import zoo_recipes


@pytest.mark.parametrize("name", ["run", "check", "distill", "compare_methods", "spiral"])
def test_a_recipe_may_be_given_as_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"mine\.toml: no such file"):
        getattr(kdbench, name)(Path("mine.toml"))
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_of_a_path_is_read():
    with pytest.raises(UserError, match=r"digits: no \[spiral\] in the recipe"):
        kdbench.spiral(zoo_recipes()["digits"])


def test_a_teacher_may_be_given_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no file 'mine\.onnx'"):
        kdbench.init(Path("mine.onnx"), "digits")


@pytest.mark.parametrize("name", ["slim", "quantize"])
def test_a_pack_stands_third(name, small_model, tmp_path):
    with pytest.raises(UserError, match=r"pack\.npz: no such file"):
        getattr(kdbench, name)(small_model, tmp_path / "out.onnx", tmp_path / "pack.npz")
