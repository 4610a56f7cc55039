"""Rungs of a run folder: in which order they stand, and which of them is meant where none is named."""

import pytest

from kdbench.onnxfile import inspect
from kdbench.pipeline.origins import subject_of
from kdbench.pipeline.rungs import forget, run_subjects, without
from kdbench.store import RunFolder, save_artifact
from tests.conftest import save_mlp


def folder_of(path, *rungs):
    folder = RunFolder(path)
    for rung in rungs:
        save_artifact(path, inspect(save_mlp(folder.onnx(rung))))
    return folder


def test_turns_and_teachers_stand_by_their_number(tmp_path):
    rungs = [
        *("teacher-2", "teacher-10", "student", "student-slim", "student-int8"),
        *("spiral-1", "spiral-2", "spiral-10", "spiral-final", "spiral-slim", "spiral-int8", "elsewhere"),
    ]
    folder = folder_of(tmp_path, *sorted(rungs))
    assert [subject.artifact.rung for subject in run_subjects(folder)] == rungs


@pytest.mark.parametrize(
    ("rungs", "meant"),
    [
        (("teacher", "spiral-1", "spiral-2", "spiral-final"), "spiral-final"),
        (("teacher", "student", "spiral-9", "spiral-10"), "spiral-10"),
        (("teacher", "student", "student-slim", "student-int8", "spiral-1"), "student-int8"),
        (("teacher", "student-alone", "student"), "student"),
        (("elsewhere",), "elsewhere"),
    ],
)
def test_the_last_rung_is_meant_where_none_is_named(tmp_path, rungs, meant):
    folder_of(tmp_path, *rungs)
    assert subject_of(tmp_path, None).artifact.rung == meant


def test_what_a_search_has_left_goes_with_its_rung(tmp_path):
    folder = folder_of(tmp_path, "teacher", "teacher-int8", "student", "student-sparse-int8")
    left = ("{}.budget.json", "{}-budget.svg", "{}-failed.budget.json", "{}-failed-budget.png")
    for rung in ("teacher-int8", "student-sparse-int8", "student-int8"):
        for name in left:
            (tmp_path / name.format(rung)).touch()
    forget(folder, ["teacher-1", "teacher-2"], alone=False)
    without(folder, "student-sparse")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["student.onnx", "student.artifact.json", *(name.format("student-int8") for name in left)]
    )
