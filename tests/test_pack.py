"""A packed run: what goes along, what a machine without torch makes of it, and what a bad one is answered with."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from kdbench import archive, card, pack, pipeline
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.pipeline.packing import unpacked
from kdbench.pipeline.rungs import LADDER, run_subjects
from kdbench.records import placeless, sealed
from kdbench.records.turns import SpiralRecord
from kdbench.store import RunFolder, load_artifact, load_result, save_artifact
from tests.conftest import REPOSITORY, kdbench, save_mlp
from tests.packs import rewritten
from tests.rows import load_rows
from tests.test_published_spirals import JOURNAL

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "sklearn", "transformers", "datasets", "accelerate"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Blocker())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """The environment of a Python that has what `pip install kdbench` brings, and nothing of what training needs."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}


@pytest.fixture
def two_rungs(tiny_run, tmp_path):
    """A part of a finished run: a ladder of two takes less long to measure."""
    folder = tmp_path / "two"
    folder.mkdir()
    rungs = ("teacher", "student-int8")
    for name in [
        "pack.npz",
        "durations.json",
        *(f"{rung}{suffix}" for rung in rungs for suffix in (".onnx", ".artifact.json")),
    ]:
        shutil.copy(tiny_run / name, folder / name)
    result, _ = load_result(tiny_run / "results.json")
    kept = tuple(artifact for artifact in result.artifacts if artifact.rung in rungs)
    changes = {"artifacts": kept, "spiral": JOURNAL}
    (folder / "results.json").write_text(sealed(result.model_copy(update=changes)).to_json())
    return folder


def test_a_machine_without_torch_measures_a_packed_run_and_its_results_come_home(two_rungs, tiny_run, tmp_path):
    packed = pack(two_rungs, tmp_path / "digits.kdbench.zip").path
    there = without_torch(tmp_path / "python")
    command = [sys.executable, "-c", "import torch"]
    assert b"No module named 'torch'" in subprocess.run(command, env=there, capture_output=True).stderr
    command = [sys.executable, "-m", "kdbench", "bench", packed, "--batch", "2", "--budget", "0.1", "--out", "there"]
    done = subprocess.run(command, env=there, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cpu, 1 thread, batch 2, against teacher" in done.stdout
    (back,) = (tmp_path / "there").glob("*.results.zip")
    assert f"bring back there/{back.name}" in done.stdout

    result, _ = load_result(back)
    at_home, _ = load_result(tiny_run / "results.json")
    assert result.name == "digits"
    assert all(artifact in at_home.artifacts for artifact in result.artifacts)
    assert result.inputs_sha256 == at_home.inputs_sha256
    assert result.spiral == placeless(SpiralRecord, JOURNAL)
    assert result.recipe.bench.batches == (2,)
    assert result.recipe.model_copy(update={"bench": at_home.recipe.bench}) == at_home.recipe
    assert load_rows(back) == load_rows(tmp_path / "there")
    accuracies = {row.rung: row.accuracy for row in load_rows(tiny_run)}
    assert [(row.rung, row.accuracy) for row in load_rows(back)] == [
        (rung, accuracies[rung]) for rung in ("teacher", "student-int8")
    ]

    shutil.copy(back, tmp_path / "mail.results.zip")
    done = kdbench("results", "add", "mail.results.zip", cwd=tmp_path)
    published = tmp_path / done.stdout.strip()
    assert load_rows(published) == load_rows(back)
    assert published.parent.name == result.machine.name


def test_results_that_were_edited_on_the_way_are_refused(tiny_run, tmp_path):
    from kdbench.store import find_results, save_returned

    back = save_returned(tiny_run / "results.json", tmp_path / "x.results.zip")
    assert find_results(tmp_path) == [back]
    other = tmp_path / "edited.zip"
    name = load_result(back)[0].raw.file
    rewritten(back, other, {name: archive.read(back, name)[:-100]})
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        load_result(other)
    rewritten(back, other, {name: None})
    with pytest.raises(UserError, match="are missing: bring the file back again"):
        load_result(other)
    rewritten(back, other, {"results.json": None})
    with pytest.raises(UserError, match=r"no results\.json in it"):
        load_result(other)


def test_a_run_that_is_packed_again_gives_equal_bytes_without_a_trace_of_the_machine(packed, tiny_run, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run, folder)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    again = pack(folder, tmp_path / "again.kdbench.zip")
    assert again.path.read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as found:
        assert {info.date_time for info in found.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert again.rungs == LADDER
    assert again.samples == 450
    for path in (str(tiny_run.parent), str(REPOSITORY), sys.prefix):
        assert path.encode() not in packed.read_bytes()


def test_folders_of_this_machine_stay_here(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    result, _ = load_result(folder / "results.json")
    data = result.recipe.data.model_copy(update={"options": {"path": "/home/someone/cifar", "classes": ["/", "b"]}})
    recipe = result.recipe.model_copy(update={"data": data})
    (folder / "results.json").write_text(sealed(result.model_copy(update={"recipe": recipe})).to_json())
    made = pack(folder, tmp_path / "x.kdbench.zip")
    assert made.run.recipe.data.options == {"path": "cifar", "classes": ["/", "b"]}
    assert b"someone" not in made.path.read_bytes()


def test_the_plan_is_the_recipes_unless_said_otherwise(packed, tiny_run, tmp_path):
    said = []
    made = pack(tiny_run, tmp_path / "x.kdbench.zip", plan={"batches": [1, 8], "budget_s": 5})
    at_home, _ = load_result(tiny_run / "results.json")
    assert made.run.plan == at_home.recipe.bench.model_copy(update={"batches": (1, 8), "budget_s": 5.0})
    with pytest.raises(UserError, match="unknown key 'batchs': did you mean 'batches'"):
        pack(tiny_run, tmp_path / "y.kdbench.zip", plan={"batchs": [1]})
    folder = tmp_path / "older"
    shutil.copytree(tiny_run, folder)
    for suffix in (".onnx", ".artifact.json"):
        (folder / f"student-alone{suffix}").unlink()
    assert pack(folder, tmp_path / "z.kdbench.zip", say=said.append).run.recipe is None
    assert "is of other files than those beside it" in said[0]


@pytest.mark.parametrize("fits", [True, False])
def test_a_folder_that_a_run_and_a_spiral_share_is_taken_as_it_was_measured(fits, tiny_run, tmp_path, monkeypatch):
    """A turn of a spiral lies beside the run's rungs, made from their student or from one before."""
    folder, said, benched = tmp_path / "run", [], []
    shutil.copytree(tiny_run, folder)
    shutil.copy(folder / "student.onnx", folder / "spiral-1.onnx")
    student = load_artifact(folder / "student.artifact.json")
    parent = {"parent": "student", "parent_sha256": student.sha256 if fits else "of another"}
    save_artifact(folder, student.model_copy(update={"rung": "spiral-1", "file": "spiral-1.onnx", **parent}))
    made = pack(folder, tmp_path / "x.kdbench.zip", say=said.append)
    assert made.rungs == LADDER
    assert made.run.recipe is not None
    monkeypatch.setattr(pipeline, "measured", lambda subjects, *_, **__: benched.extend(subjects))
    pipeline.bench([folder], out=tmp_path / "out", say=said.append)
    assert [subject.artifact.rung for subject in benched] == [*LADDER, *["spiral-1"] * fits]
    assert card(folder, say=said.append).rung == "student-int8"
    assert said == [f"left out, as {folder / 'results.json'} is not of them: spiral-1"] * (1 if fits else 3)


def test_only_options_that_are_given_override_the_plan(monkeypatch, packed, typed):
    called = {}
    monkeypatch.setattr(pipeline, "bench_packed", lambda path, given, *rest: called.update(given) or sys.exit(0))
    typed("bench", packed, "--batch", "1", "--budget", "30")
    assert called == {"batches": (1,), "budget_s": 30.0}


def test_a_packed_run_brings_its_own_baseline_and_samples(packed, small_model):
    with pytest.raises(UserError, match="a packed run brings its own"):
        pipeline.bench([packed], baseline=small_model)
    with pytest.raises(UserError, match="a packed run is measured by itself"):
        pipeline.bench([packed, small_model])


def test_external_data_goes_along(mlp_run, tmp_path):
    model = onnx.load(mlp_run / "teacher.onnx")
    (mlp_run / "weights").mkdir()
    onnx.save(
        model, mlp_run / "teacher.onnx", save_as_external_data=True, location="weights/teacher.bin", size_threshold=0
    )
    save_artifact(mlp_run, inspect(mlp_run / "teacher.onnx"))
    with unpacked(pack(mlp_run, tmp_path / "x.kdbench.zip").path) as (record, folder):
        assert "weights/teacher.bin" in [file.name for file in record.files]
        (subject,) = run_subjects(folder)
        assert subject.artifact.sha256 == inspect(mlp_run / "teacher.onnx").sha256


def test_a_folder_without_rungs_and_one_with_a_changed_file_are_not_packed(mlp_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: not a run folder: no \*\.artifact\.json in it"):
        pack(tmp_path / "empty", tmp_path / "x.zip")
    with pytest.raises(UserError, match="not a run folder"):
        pack(tmp_path / "nowhere", tmp_path / "x.zip")
    with pytest.raises(UserError, match="is the input itself"):
        pack(mlp_run, mlp_run / "teacher.onnx")
    save_mlp(mlp_run / "teacher.onnx", scale=3.0)
    with pytest.raises(UserError, match=r"teacher\.onnx: not the file that its record describes"):
        pack(mlp_run, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def limited() -> None:
    """As on a disk with 3 kB left."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))


def on_a_full_disk(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(cwd)},
        cwd=cwd,
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )


def test_a_full_disk_leaves_nothing_half_written(packed, tiny_run, tmp_path):
    for arguments, said in (
        (["pack", tiny_run, "--out", "x.kdbench.zip"], "x.kdbench.zip: cannot be written: File too large"),
        (["bench", packed, "--out", "out"], "cannot be unpacked: File too large: set TMPDIR elsewhere"),
    ):
        done = on_a_full_disk(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("kdbench: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == []


def test_what_pack_prints(tiny_run, tmp_path):
    done = kdbench("pack", tiny_run, "--set", "threads=[1,2]", cwd=tmp_path)
    assert (tmp_path / "digits.kdbench.zip").is_file()
    assert "6 rungs, 450 samples" in done.stdout
    assert "threads 1, 2" in done.stdout
    assert "kdbench bench digits.kdbench.zip" in done.stdout


def test_a_run_without_samples_is_packed_and_says_so(mlp_run, tmp_path):
    said = []
    made = pack(mlp_run, tmp_path / "x.kdbench.zip", say=said.append)
    assert made.samples is None
    assert "timed on generated inputs" in said[0]
    assert not np.any([file.name == "pack.npz" for file in made.run.files])
    assert RunFolder(mlp_run).artifacts().keys() == {"teacher"}
