"""The gate as CI meets it: two models through real workers, mistakes, and the workflow that the docs have."""

import os
import subprocess
import sys

import click
import onnx
import pytest
import yaml

from kdbench import compare
from kdbench.cli import options
from kdbench.records import from_json
from kdbench.records.gate import Gate
from kdbench.report.gate.tables import gate_to_markdown, verdict
from kdbench.store import write_npz
from tests.conftest import REPOSITORY, environment, kdbench
from tests.models import cnn, images
from tests.test_gate import saved
from tests.test_report import cell

# --- two models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and another one of several times its work, and samples with the first one's answers as labels."""
    from kdbench.evaluation import answer

    folder = tmp_path_factory.mktemp("models")
    old, _ = cnn(folder / "old.onnx", width=4, layers=1), cnn(folder / "new.onnx", width=24, layers=5, seed=1)
    x = images(600)
    write_npz(folder / "pack.npz", {"x_test": x, "y_test": answer(old, {"x": x}, 100).labels()})
    return folder


def test_a_file_against_itself_is_never_beyond(models, tmp_path):
    done = kdbench(
        "compare", models / "old.onnx", models / "old.onnx", "--pack", models / "pack.npz", "--batch", "1",
        "--batch", "2", "--budget", "1", "--max-growth", "0%", "--summary", "s.md", "--json", "deep/gate.json",
        cwd=tmp_path,
    )  # fmt: skip
    gate = from_json(Gate, (tmp_path / "deep" / "gate.json").read_text(), "gate.json")
    assert gate.passed
    assert gate.beyond == gate.failures == gate.missing == ()
    assert [(check.quantity, check.batch) for check in gate.checks] == [
        ("speed", 1), ("speed", 2), ("accuracy", None), ("size", None),
    ]  # fmt: skip
    assert all(check.seen >= 5 and check.low <= check.change <= check.high for check in gate.checks[:2])
    accuracy, size = gate.checks[2:]
    assert (accuracy.old, accuracy.new, accuracy.change, accuracy.outcome) == (1.0, 1.0, 0.0, "within")
    assert (size.change, size.outcome) == (0.0, "within")
    lines = done.stdout.splitlines()
    assert lines[0] == verdict(gate)
    assert max(map(len, lines)) <= 100
    assert "OLD and NEW are the same file" in lines
    assert (tmp_path / "s.md").read_text() == gate_to_markdown(gate) + "\n"
    assert (tmp_path / "compare" / "results.json").is_file()


def test_a_cell_that_only_the_old_model_can_run_is_a_failure_by_name(models, tmp_path):
    """And without samples only speed is judged; how alike the answers are is said."""
    fixed = onnx.load(cnn(tmp_path / "fixed.onnx", width=4, layers=1))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    gate = compare(models / "old.onnx", tmp_path / "fixed.onnx", batches=[1, 2], budget_s=0.1, out=tmp_path / "out")
    assert not gate.passed
    (failure,) = gate.failures
    assert failure.startswith("cpu, 1 thread, batch 2: no longer runs: new has a fixed batch of 1")
    assert [(check.quantity, check.batch) for check in gate.checks] == [("speed", 1)]
    assert "accuracy was not judged, for want of --pack: of 1 generated inputs 100.0 % are" in gate.notes[-1]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0%", 0), (" 150 %", 1.5), ("0", 0)])
def test_a_share_that_is_allowed(text, share):
    assert options.allowed(None, None, text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "said"),
    [("5", "'5': write 5% or 0.05"), ("2.5", "write 2.5% or 0.025"),
     ("1", "write 1% or 0.01"), ("-1%", "such as 5% or"),
     ("five", "such as 5% or"), ("nan", "such as 5% or"), ("inf%", "such as 5% or"), ("%", "such as 5% or")],
)  # fmt: skip
def test_any_other_share_is_refused_with_both_spellings(text, said):
    with pytest.raises(click.BadParameter, match=said):
        options.allowed(None, None, text)


@pytest.fixture(scope="module")
def place(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("place")
    for name in ("old.onnx", "pack.npz"):
        (folder / name).write_bytes((models / name).read_bytes())
    for name in ("one.json", "two.json"):
        saved(folder / name)
    saved(folder / "other.json", {"else": 1e-3})
    saved(folder / "several" / "a.json")
    saved(folder / "several" / "b.json", seed=1)
    failed = (cell("teacher", None, error="crashed"), cell("student", None, error="crashed"))
    saved(folder / "failed.json", measurements=failed)
    (folder / "empty").mkdir()
    (folder / "text").write_text("hello")
    (folder / "cut.json").write_text('{"schema": 1, "kdbe')
    write_npz(folder / "x.npz", {"x_calibration": images(2)})
    return folder


MISTAKES = {
    "compare": "Missing argument 'OLD'",
    "compare old.onnx": "Missing argument 'NEW'",
    "compare old.onnx one.json": "old.onnx is an ONNX file, one.json a measurement: compare two of a kind",
    "compare old.onnx nowhere.onnx": "nowhere.onnx: no such file",
    "compare nowhere one.json": "nowhere: no such file or folder",
    "compare text one.json": "text: neither an ONNX file (.onnx) nor results",
    "compare empty one.json": "empty: no result files in it",
    "compare several one.json": "several: 2 result files (a.json, b.json): name one of them",
    "compare cut.json one.json": "cut.json: not valid JSON",
    "compare one.json other.json": "no cell in common: rung, backend, threads, batch and sizes have to be the same; "
    "OLD has teacher on cpu, 1 thread, batch 4, NEW else on cpu, 1 thread, batch 4",
    "compare failed.json one.json": "nothing could be compared: OLD has no numbers: crashed",
    "compare one.json two.json --max-slowdown 5": "'5': write 5% or 0.05",
    "compare one.json two.json --max-slowdown fast": "'fast' should be a share, such as 5% or 0.05",
    "compare one.json two.json --max-drop 500": "'--max-drop'",
    "compare one.json two.json --max-drop 1": "--max-drop: no answers to judge in either: bench with --pack",
    "compare one.json two.json --budget 5": "--budget: for two ONNX files, which are measured",
    "compare one.json two.json --pack pack.npz": "--pack: for two ONNX files, which are measured",
    "compare one.json two.json --batch 2 --out x": "--batch, --out: for two ONNX files, which are measured",
    "compare one.json two.json --summary empty": "empty: a folder: give --summary a file name",
    "compare one.json two.json --json one.json": "one.json: is the input itself",
    "compare old.onnx old.onnx --max-drop 1": "--max-drop: accuracy is judged on samples: give --pack",
    "compare old.onnx old.onnx --pack x.npz --max-drop 1": "--max-drop: accuracy is judged on samples: give --pack",
    "compare old.onnx old.onnx --backend cuba": "unknown backend 'cuba'",
    "compare old.onnx old.onnx --dim x=3": "--dim x: the model has no such dimension",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(command, place, monkeypatch, mistake):
    monkeypatch.chdir(place)
    assert MISTAKES[command] in mistake(command)


def test_a_summary_is_added_to_whatever_others_have_written_there(place, tmp_path, typed):
    (tmp_path / "s.md").write_bytes(earlier := "schon da: Gr\xf6\xdfe\n".encode("latin-1"))
    said = typed(
        *("compare", place / "one.json", place / "two.json"),
        *("--summary", tmp_path / "s.md", "--json", tmp_path / "gate.json"),
    )
    gate = from_json(Gate, (tmp_path / "gate.json").read_text(), "gate.json")
    assert (said.status, said.err) == (0, "")
    assert (tmp_path / "s.md").read_bytes() == earlier + f"{gate_to_markdown(gate)}\n".encode()


# --- the example for CI -----------------------------------------------------------------------------------------------


def test_the_example_for_github_actions_fails_for_a_slower_model_with_other_answers(models, tmp_path):
    workflow = yaml.safe_load((REPOSITORY / "docs" / "gate.yml").read_text())
    (job,) = workflow["jobs"].values()
    (step,) = [step for step in job["steps"] if step.get("name") == "Gate"]
    assert yaml.safe_load((REPOSITORY / "docs" / "gate.md").read_text().split("```")[1].removeprefix("yaml")) == [step]
    (tmp_path / "head").mkdir()
    for source, target in (("old.onnx", "old.onnx"), ("new.onnx", "new.onnx"), ("pack.npz", "head/pack.npz")):
        (tmp_path / target).write_bytes((models / source).read_bytes())
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "kdbench"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdbench "$@"\n')
    script.chmod(0o755)
    summary = tmp_path / "summary.md"
    summary.write_text("what the step has said before\n")
    own = {"BUDGET_S": "0.5", "GITHUB_STEP_SUMMARY": str(summary)}
    assert job["env"].keys() <= own.keys()
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", step["run"]],
        cwd=tmp_path, env=environment() | own | {"PATH": path}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("FAILS: 2 of 2 comparisons beyond their bounds\n")
    said = summary.read_text()
    assert said.startswith("what the step has said before\n### FAILS: 2 of 2 comparisons beyond their bounds\n")
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith(("| speed", "| accuracy"))]
    assert [row[-2] for row in rows] == ["beyond", "beyond"]
    (kept,) = [step["with"]["path"] for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    gate = from_json(Gate, (tmp_path / kept / "gate.json").read_text(), "gate.json")
    assert not gate.passed
    assert gate_to_markdown(gate) in said
    again = compare(tmp_path / kept, tmp_path / kept / "results.json")  # what is kept can be compared later on
    assert again.passed
    assert "OLD and NEW are the same measurement" in again.notes
