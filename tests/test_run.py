"""The real ladder on a reduced recipe: what it leaves, and that no kill and no repetition changes it."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kdbench import UserError
from kdbench.backends import pick_backend
from kdbench.benchmark.cells import Cell, Subject
from kdbench.onnxfile import inspect
from kdbench.pipeline.keeping import same_results
from kdbench.pipeline.rungs import LADDER
from kdbench.records import Artifact as ArtifactRecord
from kdbench.records import from_json
from kdbench.store import find_results, load_result, save_results
from tests.conftest import REPOSITORY, TINY, Call, called, kdbench, overrides
from tests.rows import load_rows

PARENTS = {
    "teacher": None,
    "teacher-int8": "teacher",
    "student-alone": None,
    "student": "teacher",
    "student-slim": "student",
    "student-int8": "student-slim",
}


def artifact_files(run: Path) -> dict[str, bytes]:
    """Everything but what measuring changes: weights, models, their records, the pack."""
    kinds = ("*.safetensors", "*.onnx", "*.artifact.json", "pack.npz")
    return {path.name: path.read_bytes() for kind in kinds for path in run.glob(kind)}


def test_every_rung_has_file_record_and_parent(tiny_run):
    for rung in LADDER:
        artifact = from_json(ArtifactRecord, (tiny_run / f"{rung}.artifact.json").read_text(), rung)
        assert artifact.parent == PARENTS[rung]
        assert artifact.sha256 == inspect(tiny_run / f"{rung}.onnx").sha256
        assert artifact.precision == ("int8" if rung.endswith("int8") else "fp32")
        assert artifact.classes == tuple("0123456789")
        if artifact.parent:
            parent = inspect(tiny_run / f"{artifact.parent}.onnx")
            assert artifact.parent_sha256 == parent.sha256


def test_the_table_has_a_row_for_every_cell(tiny_run):
    rows = load_rows(tiny_run)
    assert [row.rung for row in rows] == list(LADDER)
    for row in rows:
        assert row.error is None
        assert row.accuracy > 0.15
        assert row.latency_p50_s > 0
        assert (row.speedup is None) == (row.rung == "teacher")


def test_accuracy_is_what_onnxruntime_says_on_the_pack(tiny_run):
    from kdbench.data.pack import load_pack

    pack = load_pack(tiny_run / "pack.npz")
    for row in load_rows(tiny_run):
        session = ort.InferenceSession(tiny_run / f"{row.rung}.onnx", providers=["CPUExecutionProvider"])
        x = pack.test_inputs(inspect(tiny_run / f"{row.rung}.onnx").inputs)["input"]
        assert row.accuracy == np.mean(session.run(None, {"input": x})[0].argmax(1) == pack.y_test)


def test_int8_files_hold_int8_weights_and_stay_close(tiny_run):
    model = onnx.load(tiny_run / "student-int8.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 30}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    accuracies = {row.rung: row.accuracy for row in load_rows(tiny_run)}
    assert abs(accuracies["student-int8"] - accuracies["student"]) < 0.05


def test_files_hold_no_path_of_this_machine(tiny_run):
    for name, content in artifact_files(tiny_run).items():
        for path in (str(REPOSITORY), str(tiny_run.parent), sys.prefix, str(Path.home()) + "/"):
            assert path.encode() not in content, (name, path)


def test_exported_models_take_any_batch(tiny_run):
    session = ort.InferenceSession(tiny_run / "student.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3, 33):
        assert session.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0].shape == (batch, 10)


def test_results_are_kept_for_the_same_data_recipe_and_settings_alone(tiny_run):
    path = tiny_run / "results.json"
    result, _ = load_result(path)
    artifacts = {artifact.rung: artifact for artifact in result.artifacts}
    cells = [
        Cell(Subject(artifacts[m.rung], path), pick_backend(m.backend), m.threads, m.batch) for m in result.measurements
    ]
    assert same_results(path, result, cells, []) is not None
    for change in (
        {"inputs_sha256": "other data"},
        {"recipe": result.recipe.model_copy(update={"seed": 1})},
        {"settings": result.settings.model_copy(update={"budget_s": 9.0})},
    ):
        assert same_results(path, result.model_copy(update=change), cells, []) is None
    assert same_results(path, result, cells[1:], []) is None


def test_a_cell_that_could_not_be_measured_is_tried_once_it_can_be(tiny_run, tmp_path):
    """No version has to change for that: a driver may have come, or a file."""
    result, arrays = load_result(tiny_run / "results.json")
    artifacts = {artifact.rung: artifact for artifact in result.artifacts}
    failed, *others = result.measurements
    cells = [
        Cell(Subject(artifacts[m.rung], tiny_run), pick_backend(m.backend), m.threads, m.batch)
        for m in result.measurements
    ]

    def kept(cells, **changes):
        changed = failed.model_copy(update={"raw": None, "processes": (), **changes})
        save_results(tmp_path / "x.json", result.model_copy(update={"measurements": (changed, *others)}), arrays)
        return same_results(tmp_path / "x.json", result, cells, []) is not None

    missing = "no device for it here"
    assert not kept(cells, error=missing, versions={})
    assert kept([replace(cells[0], error=missing), *cells[1:]], error=missing, versions={})
    assert kept(cells, error="crashed")  # in its worker


KILLED_WHEN = [
    "pack.npz",
    "teacher.checkpoint.safetensors",
    "student.safetensors",
    "teacher.onnx",
    "teacher-int8.onnx",
    "results.partial.json",
]


@pytest.fixture(scope="module")
def killed(tiny_run, tmp_path_factory):
    """The same run, killed again and again until it was let finish. Only the last test that asks may write to it."""
    folder = tmp_path_factory.mktemp("killed")
    command = ["run", "digits", *overrides(), "--out", "run"]
    whole, out = artifact_files(tiny_run), folder / "run"
    for name in KILLED_WHEN:
        with called(*command, cwd=folder) as call:
            end = time.monotonic() + 300
            while not (out / name).exists() and not call.ended.done() and time.monotonic() < end:
                time.sleep(0.002)
            os.kill(call.process, signal.SIGKILL)
            assert call.ended.result(60) == -signal.SIGKILL
        assert (out / name).exists(), f"{name} never came"
        for file, content in artifact_files(out).items():
            if "checkpoint" not in file and not file.endswith(".artifact.json"):
                assert content == whole[file], f"{file} is not whole after a kill at {name}"
        for file in out.glob("*.json"):
            json.loads(file.read_text())
    assert not load_result(out / "results.partial.json")[0].complete
    kdbench(*command, cwd=folder)
    return out


def test_a_run_killed_again_and_again_ends_with_the_same_artifacts(tiny_run, killed):
    assert artifact_files(killed) == artifact_files(tiny_run)
    assert load_result(killed / "results.json")[0].complete
    assert not list(killed.glob(".*.part"))
    assert not list(killed.glob("results.partial*"))


def test_a_second_call_reuses_what_is_unchanged(tiny_run, killed):
    def changed():
        return {name: content for name, content in artifact_files(killed).items() if content != whole[name]}

    whole, measured = artifact_files(tiny_run), (killed / "results.json").read_bytes()
    kdbench("run", "digits", *overrides(), "--out", killed, cwd=killed.parent)
    assert changed() == {}
    assert (killed / "results.json").read_bytes() == measured
    warmer = overrides(TINY | {"distill.temperature": "2"})
    with called("run", "digits", *warmer, "--out", killed, cwd=killed.parent) as call:
        while not (killed / "results.partial.json").exists():  # then all artifacts are there; the rest is left out
            assert not call.ended.done(), call.stderr.read_text()
            time.sleep(0.02)
    assert changed().keys() == {
        f"{rung}{suffix}"
        for rung in ("student", "student-slim", "student-int8")
        for suffix in (".onnx", ".artifact.json", ".safetensors")
        if (killed / f"{rung}{suffix}").exists()
    }


def test_ctrl_c_ends_within_a_second_and_keeps_what_was_measured(tiny_run, tmp_path):
    with called("bench", tiny_run, "--budget", "20", "--out", "bench", cwd=tmp_path) as call:
        said = interrupted(call, tmp_path / "bench" / "results.partial.json")
    assert "interrupted" in said
    (path,) = find_results(tmp_path / "bench")
    result, arrays = load_result(path)
    assert not result.complete
    assert len(arrays["latencies.0"]) > 0
    assert "**Interrupted**" in kdbench("report", "bench", cwd=tmp_path).stdout


def test_ctrl_c_while_training_leaves_no_traceback(tmp_path):
    longer = TINY | {"teacher.training.epochs": "500"}
    with called("run", "digits", *overrides(longer), "--out", "run", cwd=tmp_path) as call:
        said = interrupted(call, tmp_path / "run" / "teacher.checkpoint.safetensors")
    assert said.count("\n") == 2
    assert said.strip().startswith("kdbench: interrupted")


def interrupted(call: Call, awaited: Path) -> str:
    """What a call says on Ctrl-C once a file is there."""
    while not awaited.exists():
        assert not call.ended.done(), call.stderr.read_text()
        time.sleep(0.02)
    os.kill(call.process, signal.SIGINT)
    assert call.ended.result(10) == 130
    said = call.stderr.read_text()
    assert "Traceback" not in said
    return said


def test_an_export_that_differs_is_refused_with_the_figures(tiny_run, tmp_path, monkeypatch):
    from kdbench.steps import export

    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"not written: onnxruntime's outputs differ from PyTorch's by up to \d"):
        export.export(tiny_run / "student.safetensors", tmp_path / "out.onnx", tiny_run / "pack.npz")
    assert list(tmp_path.iterdir()) == []
