"""The functions of `import kdbench`: what each of them takes, and what it says of what it doesn't."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import kdbench
from kdbench import UserError
from kdbench.data.pack import load_pack
from kdbench.store import load_result, sha256_of_file, zoo_recipes
from tests.conftest import PUBLISHED
from tests.prunable import saved, small


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


@pytest.mark.parametrize("kind", [str, Path])
def test_one_file_may_be_given_by_itself_where_several_are_taken(kind, small_model, tmp_path):
    with pytest.raises(UserError, match=r"digits\.json is of this file"):
        kdbench.card(small_model, results=kind(PUBLISHED))
    for function in (kdbench.bench, kdbench.self_test, kdbench.results_add):
        with pytest.raises(UserError, match=r"nowhere\.onnx: "):
            function(kind(tmp_path / "nowhere.onnx"))


def test_a_list_of_results_is_as_good_as_several(tmp_path):
    pytest.importorskip("pandas")
    assert kdbench.load_results([PUBLISHED]).equals(kdbench.load_results(PUBLISHED))
    assert kdbench.results_verify([PUBLISHED]) == kdbench.results_verify(PUBLISHED)


def test_a_benchmark_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="models: name at least one ONNX file or a run folder"):
        kdbench.bench([], out=tmp_path / "bench")
    assert list(tmp_path.iterdir()) == []


TRAINING = ["export", "factorise", "prune", "sparsify"]

WITHOUT_TORCH = """
import sys
class WithoutTorch:
    def find_spec(name, path, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, WithoutTorch)
import kdbench
from kdbench import *
for name in sys.argv[1:]:
    try:
        globals()[name]("a.safetensors", "b.safetensors")
    except kdbench.UserError as error:
        print(name, error)
print(set(kdbench.__all__) <= set(dir(kdbench)))
"""


def test_without_torch_every_name_is_there_and_those_that_train_say_what_is_missing():
    line = [sys.executable, "-c", WITHOUT_TORCH, *TRAINING]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    missing = "training needs torch, which is not installed: pip install torch onnxscript"
    assert said.splitlines() == [f"{name} {missing}" for name in TRAINING] + ["True"]


@pytest.mark.parametrize("name", ["prune", "sparsify", "factorise", "quantize", "fastest_int8"])
def test_options_are_plain_data_and_a_misspelt_one_is_named(name, tmp_path):
    with pytest.raises(UserError, match="options: unknown key 'ignored'"):
        getattr(kdbench, name)("model", tmp_path / "out", options={"ignored": ["x"]})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_made_by_options_of_plain_data(small_model, tmp_path):
    made = kdbench.quantize(small_model, tmp_path / "int8.onnx", options={"weights": "uint8", "per_channel": False})
    assert (made.options["weights"], made.options["per_channel"]) == ("uint8", False)
    source = saved(tmp_path / "mlp.safetensors", "mlp", small("mlp"))
    done = kdbench.sparsify(source, tmp_path / "sparse.safetensors", {"sparsity": 0.5})
    assert done.sparsity == pytest.approx(0.5, abs=0.01)
    assert kdbench.factorise(source, tmp_path / "low.safetensors", {"energy": 0.5}).ranks
    assert kdbench.prune(source, tmp_path / "small.safetensors", {"macs": 0.5, "round_to": 1}).share <= 0.55


def test_a_pack_that_is_open_is_measured_by_the_hash_of_its_file(small_model, tmp_path):
    np.savez(tmp_path / "pack.npz", x_test=np.ones((4, 4), np.float32), y_test=np.zeros(4, np.int64))
    pack = load_pack(tmp_path / "pack.npz")
    report = kdbench.bench([small_model], pack=pack, budget_s=0.1, out=tmp_path / "bench")
    assert report.ladder.rows[0].accuracy is not None
    assert load_result(report.results)[0].inputs_sha256 == sha256_of_file(tmp_path / "pack.npz")
    for other in (replace(pack, name="made"), replace(pack, y_test=np.ones(4, np.int64))):
        for call in (partial(kdbench.bench, [small_model]), partial(kdbench.compare, small_model, small_model)):
            with pytest.raises(UserError, match="is not what a file of that name holds"):
                call(pack=other, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
