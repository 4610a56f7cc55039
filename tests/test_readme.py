"""The README does what it says: its commands run, its generated parts are current, the digits keep their promises."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kdbench.pipeline.rungs import LADDER
from kdbench.report.plots import plots_of, save_plots
from kdbench.report.table import load_ladders
from kdbench.store import RESULTS, load_result
from tests.conftest import PUBLISHED, REPOSITORY, kdbench, overrides
from tests.rows import load_rows

README = (REPOSITORY / "README.md").read_text()


SHORTENED = {
    "kdbench run digits": overrides({"bench.budget_s": "0.1"}),
    "kdbench bench": ["--budget", "0.1"],
    "kdbench quantize slim.onnx": ["--no-prove"],
    "kdbench quantize model.onnx": ["--budget", "1", "--samples", "300"],
    "kdbench run mine.toml": overrides(
        {"student.training.epochs": "1", "bench.budget_s": "0.1", "bench.batches": "[1]", "data.augment.views": "1"}
    ),
}
"""How commands that start so are given less to do here than in the README: time to measure, or epochs."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every kdbench command of the README's console blocks, comments cut; `kdbench run digits` first."""
    lines = [line[2:].split("  #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    assert all(line.split()[0] in ("make", "kdbench") for line in lines)
    found = [line for line in lines if line.startswith("kdbench ")]
    return sorted(found, key=lambda line: line != "kdbench run digits")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the README has been followed: the real ladder, then all the other commands."""
    folder = tmp_path_factory.mktemp("readme")
    for number, command in enumerate(commands()):
        less = [argument for start, found in SHORTENED.items() if command.startswith(start) for argument in found]
        done = kdbench(*shlex.split(command)[1:], *less, cwd=folder)
        assert done.stdout.strip(), command
        if number == 0:
            (folder / "printed.txt").write_text(done.stdout)
            shutil.copy(folder / "runs" / "digits" / "student.onnx", folder / "model.onnx")
            shutil.copy(folder / "runs" / "digits" / "pack.npz", folder / "pack.npz")
    return folder


@pytest.fixture(scope="module")
def digits(place):
    return {(row.rung, row.backend, row.batch): row for row in load_rows(place / "runs" / "digits")}


def test_the_console_blocks_run(place):
    assert (place / "mine" / "report.md").is_file()
    assert (place / "threads" / "results.json").is_file()
    assert (place / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (place / "card" / "model.onnx").is_file()


def test_the_python_blocks_run(place):
    (code,) = (block.replace("budget_s=5", "budget_s=0.1") for block in blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3


def test_the_make_targets_exist():
    for line in "".join(blocks("console")).splitlines():
        words = shlex.split(line[2:], comments=True)
        if words[0] == "make":
            done = subprocess.run(
                [shutil.which("make"), "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


def test_the_digits_ladder_is_printed_and_fits_the_terminal(place):
    printed = (place / "printed.txt").read_text()
    for rung in LADDER:
        assert rung in printed
    for name in ("report.md", "accuracy-latency.svg", "training-curves.svg", "results.json"):
        assert (place / "runs" / "digits" / name).is_file()
        assert f"runs/digits/{name}" in printed
    assert (place / "runs" / "digits" / "accuracy-latency.png").is_file()
    assert max(map(len, printed.splitlines())) <= 100


def test_the_student_keeps_98_percent_of_the_teachers_accuracy(digits):
    teacher, student = digits["teacher", "cpu", 1], digits["student", "cpu", 1]
    assert teacher.accuracy > 0.97
    assert student.accuracy >= 0.98 * teacher.accuracy


def test_the_int8_file_is_at_most_a_tenth_of_the_teachers(digits):
    assert digits["student-int8", "cpu", 1].size_bytes <= digits["teacher", "cpu", 1].size_bytes / 10


def test_int8_changes_the_net_count_of_right_answers_by_two_images_at_most(place):
    result, arrays = load_result(place / "runs" / "digits" / "results.json")
    assert len(arrays["labels"]) == 450
    right = {
        (e.rung, e.backend): int(np.sum(arrays[f"predictions.{e.raw}"] == arrays["labels"]))
        for e in result.evaluations
        if e.raw is not None
    }
    for backend in {backend for _, backend in right}:
        assert abs(right["student-int8", backend] - right["student-slim", backend]) <= 2
        assert abs(right["teacher-int8", backend] - right["teacher", backend]) <= 2


def test_an_unavailable_backend_gives_its_reason(digits, place):
    from kdbench.backends.available import why_unavailable

    reason = why_unavailable("openvino")
    for row in (row for (_, backend, _), row in digits.items() if backend == "openvino"):
        assert row.error == (None if reason is None else f"openvino: {reason}")
    if reason:
        assert f"not measured: openvino: {reason}" in (place / "printed.txt").read_text()


def test_generated_documents_are_current(monkeypatch):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cogapp",
            "--check",
            "README.md",
            "docs/cli.md",
            "docs/recipe.md",
            "docs/results-format.md",
            "results/README.md",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run 'make docs'\n{done.stdout}{done.stderr}"


def test_the_readmes_plot_is_of_the_published_results(tmp_path):
    (ladder,) = load_ladders([PUBLISHED])
    svg, png = save_plots(plots_of([ladder])[:1], tmp_path)
    assert svg.read_text() == (REPOSITORY / "docs" / svg.name).read_text(), "run 'make docs'"
    assert (REPOSITORY / "docs" / png.name).is_file()


def test_published_results_are_sound():
    for ladder in load_ladders([REPOSITORY / RESULTS]):
        assert ladder.result.complete
        turns = {"teacher", "spiral-1", "spiral-2", "spiral-3", "spiral-final"}
        wanted = turns if ladder.result.name.endswith("-spiral") else set(LADDER)
        assert {row.rung for row in ladder.rows} == wanted
