"""`kdbench results verify`: what does not follow from the raw values, and what another measuring denies."""

import functools
import shutil

import numpy as np
import pytest

from kdbench import bench, results_add, results_rerun, results_verify, stats, store
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.pipeline.rerunning import compared_again
from kdbench.records import sealed
from kdbench.report.markdown import to_markdown
from kdbench.report.rendering import Asked, find, rendered
from kdbench.report.table import load_ladders, rows_of
from tests.conftest import save_mlp
from tests.test_report import MACHINE, ROUNDS, cell
from tests.test_results import OTHER, compared, digest, saved, values, whole

# --- verifying --------------------------------------------------------------------------------------------------------


def _cells(**changes):
    first, second = whole().measurements
    return {"measurements": (first, second.model_copy(update=changes))}


def _rung(**changes):
    first, second = whole().artifacts
    return {"artifacts": (first, second.model_copy(update=changes))}


RUN = {"recipe": store.load_recipe("digits")}
NEGATIVE, INFINITE, LONG = np.full(15, -1e-3), np.full(15, np.inf), np.full(16, 1e-3)
CAPPED = whole().settings.model_copy(update={"slice_runs": 2})


@pytest.mark.parametrize(
    ("changes", "raw", "problem"),
    [
        ({}, {"latencies.1": NEGATIVE}, "student, cpu, batch 4, threads 1 has latencies that are not positive numbers"),
        ({}, {"latencies.1": INFINITE}, "has latencies that are not positive numbers"),
        ({}, {"latencies.1": LONG}, "has no round for each latency"),
        ({}, {"slices.1": ROUNDS[:4]}, "has no slice for each latency"),
        ({}, {"rounds.1": ROUNDS + 1}, "has latencies of rounds without a process"),
        ({}, {"slices.1": np.zeros(15, np.uint32)}, "has a slice in two rounds"),
        ({}, {"latencies.1": np.full(15, "fast")}, "has latencies that are not positive numbers"),
        ({}, {"wall_s.1": np.ones(7)}, "has 'wall_s' of 7 slices, and 5 slices"),
        ({}, {"latencies.7": LONG}, "its .npz holds what no cell names: latencies.7"),
        ({}, {"predictions.1": np.array([0, 1])}, "its answers are of different samples (predictions.0 4, "),
        ({}, {"predictions.1": np.array([0, 1, -2, 0])}, "its 'predictions.1' has classes that can't be"),
        ({}, {"labels": np.array([0.5, 1, 2, 0])}, "its 'labels' are no classes"),
        ({"settings": CAPPED}, {}, "has 3 runs in a slice, more than its cap of 2"),
        ({"baseline": "nobody"}, {}, "its baseline 'nobody' is none of its rungs"),
        (_cells(artifact_sha256=digest("else")), {}, "a cell of 'student' on cpu is of another file"),
        (_cells(raw=None), {"latencies.1": None, "rounds.1": None, "slices.1": None}, "has neither raw values nor an"),
        (_rung(parent_sha256=digest("else")) | RUN, {}, "'student' was made of another 'teacher' than the one listed"),
        (_rung(sha256="1234"), {}, "the sha256 of 'student' is none"),
        ({"machine": MACHINE.model_copy(update={"fingerprint": "1" * 12})}, {}, "its machine's fingerprint is 1111"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(tmp_path, changes, raw, problem):
    kept = {name: array for name, array in (values() | raw).items() if array is not None}
    path = saved(tmp_path / "run", kept, **changes)
    problems = results_verify(path).problems
    assert any(problem in line for line in problems), problems
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in problems)
    assert all(": " in line.removeprefix(f"{path}: ") for line in problems), "the next step"


def test_what_is_right_has_no_problem(tmp_path):
    assert results_verify(saved(tmp_path / "run")).problems == ()


def test_files_of_two_runs_may_have_parents_of_one_name(tmp_path):
    """Of files that were benchmarked together the hashes tell who is whose parent."""
    assert results_verify(saved(tmp_path / "run", **_rung(parent_sha256=digest("else")))).problems == ()


def test_answers_of_several_labels_are_sound_whatever_the_files_say_of_themselves(tmp_path):
    """As files from elsewhere, which are taken for classifiers of one class a sample until labels say more."""
    several = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.int8)
    raw = {name: several for name in values() if name == "labels" or name.startswith("predictions.")}
    assert results_verify(saved(tmp_path / "run", values() | raw)).problems == ()


def test_files_in_the_folder_of_another_machine_are_told(tmp_path):
    into = tmp_path / "results"
    _, second = results_add(saved(tmp_path / "a"), saved(tmp_path / "b", values(3.0), machine=OTHER), into=into)
    for part in (second, second.with_suffix(".npz")):
        part.rename(into / "here" / part.name.replace("made", "made-2"))
    moved = into / "here" / "2026-01-02-made-2.json"
    record = store.load_record(moved)
    named = sealed(record.model_copy(update={"raw": record.raw.model_copy(update={"file": f"{moved.stem}.npz"})}))
    moved.write_text(named.to_json())
    problems = results_verify(into).problems
    assert len(problems) == 2, problems
    assert "was measured on here-" in problems[0]
    assert f"was measured on another machine ({MACHINE.hardware}) than {moved.name} beside it" in problems[1]


def test_what_is_left_of_a_published_file_is_told(tmp_path):
    add = functools.partial(results_add, into=tmp_path / "results")
    (file,) = add(saved(tmp_path / "run"))
    lost = file.with_name("2026-11-20-lost.npz")
    shutil.copy(file.with_suffix(".npz"), lost)
    emptied = file.with_name("2026-11-20-emptied.json")
    emptied.write_text("[]")
    shutil.copy(lost, emptied.with_suffix(".npz"))
    (file.parent / "notes.json").write_text("{}")  # somebody's own
    assert results_verify(tmp_path / "results").problems == (
        f"{emptied}: neither results nor a comparison: restore it, or remove it",
        f"{lost}: 2026-11-20-lost.json is missing beside it: restore it, or remove this one",
    )


def test_folders_of_one_name_are_told_apart_by_those_above_them(tmp_path):
    """In every table their numbers stand side by side, and none takes the place of another's."""
    paths = [saved(tmp_path / where / "digits", values(speed)) for where, speed in (("old", 2.0), ("new", 4.0))]
    paths.append(saved(tmp_path / "other", values(3.0)))
    found = load_ladders(paths)
    assert [one.source for one in found] == ["old/digits", "new/digits", "other"]
    assert len({row.rung for row in rows_of(found)}) == 6
    header, *_ = rendered(find(paths, Asked("backends")), "csv").splitlines()
    assert len(set(header.split(","))) == len(header.split(","))


def test_a_page_of_other_tables_is_told(tmp_path):
    into = tmp_path / "results"
    results_add(saved(tmp_path / "run"), into=into)
    page = f"<!-- [[[cog ]]] -->\n{to_markdown(load_ladders([into]), heading='##')}<!-- [[[end]]] -->\n"
    (into / "README.md").write_text(page)
    assert results_verify(into).problems == ()
    (into / "README.md").write_text(page.replace("75.0", "76.0", 1))
    (problem,) = results_verify(into).problems
    assert problem.startswith(f"{into / 'README.md'}: 1 lines of its tables are not those of today")


@pytest.mark.parametrize("view", ["backends", "methods"])
def test_every_table_of_a_page_is_looked_at(view, tmp_path):
    into = tmp_path / "results"
    results_add(saved(tmp_path / "run"), compared(tmp_path / "methods"), into=into)
    table = rendered(find([into], Asked(view)), "md")
    whole_page = f"<!-- [[[cog ]]] -->\n{table}{to_markdown(load_ladders([into]))}<!-- [[[end]]] -->\n"
    (into / "README.md").write_text(whole_page)
    assert results_verify(into).problems == ()
    row = [line for line in table.splitlines() if line.startswith("| ")][1]
    for spoilt in (f"{row.rstrip('|')} 1 |", f"{row}\n{row.replace('| ', '| in', 1)}", ""):
        (into / "README.md").write_text(whole_page.replace(row, spoilt, 1))
        (problem,) = results_verify(into).problems
        assert "1 lines of its tables are not those of today" in problem


# --- measuring again --------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert stats.holm([]) == []
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_equal_means_by_welch():
    assert stats.same_mean([1.0], [1.0, 2.0]) is None
    assert stats.same_mean([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert stats.same_mean([1.0, 1.0], [2.0, 2.0]) == 0.0
    # t = 1 / sqrt(1/3 + 1/3) with 4 degrees of freedom
    assert stats.same_mean([0, 1, 2], [1, 2, 3]) == pytest.approx(0.287864)


def test_cells_agree_where_the_difference_covers_nothing():
    first = whole(), values(2.0, 0.01)
    again = compared_again(first, (whole(), values(2.005, 0.012)))
    teacher, student = again.cells
    assert again.agrees
    assert (teacher.p, teacher.verdict, teacher.answers) == (None, "–", "the same")
    assert student.verdict == "agrees"
    assert student.before == "2.00× [1.98, 2.03]"
    slower = compared_again(first, (whole(), values(1.8, 0.012)))
    assert [cell.verdict for cell in slower.cells] == ["–", "DISAGREES"]
    assert not slower.agrees


def test_answers_have_to_be_the_same_through_the_same_versions():
    first, other = (whole(), values()), values() | {"predictions.1": np.array([0, 1, 0, 3])}
    again = compared_again(first, (whole(), other))
    assert not again.agrees
    assert again.cells[1].answers == "1 of 4 differ: DISAGREE"
    newer = whole(machine=MACHINE.model_copy(update={"versions": {"onnxruntime": "2"}}))
    again = compared_again(first, (newer, other))
    assert again.agrees
    assert again.remarks == ("other versions this time: onnxruntime 1 → 2",)
    assert again.cells[1].answers.startswith("1 of 4 differ, +25")


def test_a_cell_that_is_not_measured_this_time_does_not_agree():
    failed = whole(measurements=(whole().measurements[0], cell("student", None, error="no such device")))
    again = compared_again((whole(), values()), (failed, values()))
    assert (again.agrees, again.cells[1].answers) == (False, "not measured this time")


def test_sizes_are_the_same_in_any_order():
    first, second = (
        whole(measurements=tuple(m.model_copy(update={"dims": dims}) for m in whole().measurements))
        for dims in ({"height": 8, "width": 4}, {"width": 4, "height": 8})
    )
    again = compared_again((first, values()), (second, values()))
    assert [cell.answers for cell in again.cells] == ["the same", "the same"]
    assert again.agrees


def test_artifacts_are_measured_again(tmp_path, typed):
    folder = tmp_path / "run"
    folder.mkdir()
    for rung, scale in (("teacher", 1.0), ("student", 1.5)):
        store.save_artifact(folder, inspect(save_mlp(folder / f"{rung}.onnx", scale=scale)))
    x = np.random.default_rng(0).random((6, 4), np.float32)
    store.write_npz(folder / "pack.npz", {"x_test": x, "y_test": np.arange(6) % 3, "x_calibration": x + 1})
    path = bench([folder], budget_s=0.1, batches=(2,), out=tmp_path / "bench").results
    before = sorted(tmp_path.rglob("*"))
    again = results_rerun(path, folder)
    assert [cell.label for cell in again.cells] == ["teacher, cpu, batch 2", "student, cpu, batch 2"]
    assert [cell.answers for cell in again.cells] == ["the same", "the same"]
    assert again.cells[1].p > 1e-4
    assert sorted(tmp_path.rglob("*")) == before

    elsewhere = store.load_result(path)[0].model_copy(update={"machine": OTHER})
    (tmp_path / "other").mkdir()
    store.save_results(tmp_path / "other" / "results.json", elsewhere, store.load_result(path)[1])
    refused = typed("results", "verify", tmp_path / "other", "--rerun", folder)
    assert refused.status == 2
    assert f"was measured on here ({OTHER.hardware}), and this is " in refused.err
    shutil.copy(folder / "pack.npz", tmp_path / "kept.npz")
    store.write_npz(folder / "pack.npz", {"x_test": x + 1, "y_test": np.arange(6) % 3, "x_calibration": x})
    with pytest.raises(UserError, match=r"pack\.npz: not the samples that .*results\.json was measured on: name the"):
        results_rerun(path, folder)
    shutil.copy(tmp_path / "kept.npz", folder / "pack.npz")
    store.save_artifact(folder, inspect(save_mlp(folder / "student.onnx", scale=2.0)))
    with pytest.raises(UserError, match=r"missing student \([0-9a-f]{12}…\): name the folder that holds them"):
        results_rerun(path, folder)
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        results_rerun(path, tmp_path / "nowhere")
