"""What each rung took: kept beside it, over a stop too, and shown in every table."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest

from kdbench import data
from kdbench.records import Data
from kdbench.report import ladder_tables
from kdbench.report.markdown import to_markdown
from kdbench.report.operators import slimming_lines
from kdbench.report.table import ladder
from kdbench.report.terminal import WIDTH, print_ladder
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe
from kdbench.training.metrics import Journal, duration_s
from tests.conftest import FLAT
from tests.rows import load_rows
from tests.test_report import arrays, artifact, cell, evaluation, result
from tests.test_training import StopError


def stopping(label, done, total):
    if done >= 2:
        raise StopError


def lines(folder):
    return [json.loads(line) for line in folder.metrics("student").read_text().splitlines()]


@pytest.fixture(scope="module")
def dataset():
    found = data.load(Data(source="digits"))
    return replace(found, x_train=found.x_train[:128], y_train=found.y_train[:128])


def test_a_training_that_was_stopped_took_the_epochs_before_the_stop_too(dataset, tmp_path):
    recipe = load_recipe("digits", FLAT)
    folder = RunFolder(tmp_path)
    with pytest.raises(StopError):
        train.train(folder, "student", Lesson(recipe, dataset, "", stopping))
    assert folder.duration_s("student") is None  # it isn't made
    before = lines(folder)
    slow = [{**line, "duration_s": 100.0} for line in before]
    folder.metrics("student").write_text("".join(json.dumps(line) + "\n" for line in slow))
    train.train(folder, "student", Lesson(recipe, dataset, ""))
    epochs = lines(folder)
    assert len(epochs) == 3 > len(before) == 2
    assert folder.duration_s("student") == pytest.approx(sum(line["duration_s"] for line in epochs), abs=0.01)
    assert folder.duration_s("student") > 200

    train.train(folder, "student", Lesson(recipe, dataset, ""))  # kept as it is
    assert folder.duration_s("student") > 200
    longer = recipe.model_copy(update={"seed": 1})
    train.train(folder, "student", Lesson(longer, dataset, ""))  # another one in its place
    assert 0 < folder.duration_s("student") < 200


def test_epochs_of_older_trainings_do_not_tell_what_they_took(tmp_path):
    path = tmp_path / "student.metrics.jsonl"
    journal = Journal([], path, None)
    journal.add({"loss": 1.0}, 10.0, 2.5, "fp32")
    journal.add({"loss": 0.5}, 10.0, 2.0, "fp32")
    assert duration_s(path, 2) == 4.5
    assert duration_s(path, 3) is None
    path.write_text(path.read_text() + '{"epoch": 3, "loss": 0.4, "samples_per_s": 10.0}\n')
    assert duration_s(path, 3) is None
    assert duration_s(tmp_path / "none", 1) is None


def test_parts_add_up_and_are_replaced(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.duration_s("student") is None
    folder.note_duration("student", "training", 60.0)
    with folder.timed("student", "export"):
        pass
    folder.note_duration("teacher", "export", 1.0)
    assert folder.duration_s("student") == pytest.approx(60, abs=0.5)
    folder.note_duration("student", "training", 30.0)
    assert folder.duration_s("student") == pytest.approx(30, abs=0.5)
    folder.note_duration("student", "training", None)
    assert folder.duration_s("student") < 0.5
    with pytest.raises(StopError), folder.timed("teacher", "export"):
        raise StopError
    assert folder.duration_s("teacher") == 1.0
    for damaged in ("", "[]", '{"teacher": {"export": -1}}', '{"teacher": {"export": "NaN"}}'):
        folder.durations.write_text(damaged)
        assert folder.duration_s("teacher") is None


def test_every_rung_of_a_run_says_what_it_took(tiny_run):
    known = json.loads((tiny_run / "durations.json").read_text())
    rows = load_rows(tiny_run)
    for row in rows:
        assert row.made_in_s == pytest.approx(sum(known[row.rung].values()))
        assert row.made_in_s > 0
    assert known["student"].keys() == {"training", "export"}
    assert known["student-slim"].keys() == {"slim"}
    assert (
        json.loads((tiny_run / "student.artifact.json").read_text())["made_in_s"] is None
    )  # equal seeds, equal records
    assert "| took |" in (tiny_run / "report.md").read_text()


LONG = "student-quantized-with-a-name-that-never-ends"


def made():
    return result(
        artifacts=(
            artifact("teacher", made_in_s=720.0),
            artifact("student-low-rank-of-many", "teacher", made_in_s=3.2, parameters=1_234_567, macs=12_345_678),
            artifact(LONG, "student-low-rank-of-many", "int8", parameters=1_234_567),
        ),
        measurements=(cell("teacher", "0"), cell("student-low-rank-of-many", "1"), cell(LONG, "2", "int8")),
        evaluations=(evaluation("teacher", "0"), evaluation("student-low-rank-of-many", "1"), evaluation(LONG, "2")),
    )


def known_answers():
    found = arrays()
    return found | {f"{name}.2": found[f"{name}.1"] for name in ("predictions", "rounds", "latencies")}


def test_tables_show_what_rungs_cost_and_gained_beside_their_parents():
    shown = ladder(made(), known_answers())
    for table in (ladder_tables.rungs_table(shown), ladder_tables.details_table(shown)):
        column = {name: [row[place] for row in table.lines] for place, name in enumerate(table.header)}
        assert column["took"] == ["12 min", "4 s", "–"]
        assert column["parent"] == ["–", "teacher", "student-low-rank-of-many"]
        assert column["Δ to parent"][0] == "–"
        assert column["Δ to parent"][1].startswith("−25 [")
        assert column["Δ to parent"][2].startswith("0 [")
        assert column["McNemar p" if "McNemar p" in column else "p"] == ["–", "1", "1"]

    printed = io.StringIO()
    with redirect_stdout(printed):
        print_ladder(shown)
    told = printed.getvalue()
    assert max(map(len, told.splitlines())) <= WIDTH
    (heading,) = (line for line in told.splitlines() if "Δ to parent" in line)
    assert heading.split() == ["rung", "parent", "params", "MACs", "agree", "%", "p", "Δ", "to", "parent", "took"]


def test_beside_a_baseline_that_is_no_teacher_agreement_with_the_teacher_has_a_column():
    rungs = (
        artifact("teacher", step="train"),
        artifact("student", "teacher", step="distill"),
        artifact("spiral-1", "student", step="spiral"),
    )
    cells = tuple(cell(rung.rung, str(number)) for number, rung in enumerate(rungs))
    judged = tuple(evaluation(rung.rung, str(number)) for number, rung in enumerate(rungs))
    answers = known_answers() | {"predictions.2": np.array([0, 1, 2, 1])}  # the student has 0, the teacher 2; then 0
    made = result(artifacts=rungs, measurements=cells, evaluations=judged, baseline="student")
    shown = ladder(made, answers)
    assert [row.agreement for row in shown.rows] == [0.75, None, 0.5]
    assert [row.teacher_agreement for row in shown.rows] == [None, 0.75, 0.75]
    for table in (ladder_tables.rungs_table(shown), ladder_tables.details_table(shown)):
        assert [row[table.header.index("as teacher %")] for row in table.lines] == ["–", "75.0", "75.0"]
    against_it = ladder(made.model_copy(update={"baseline": "teacher"}), answers)
    assert "as teacher %" not in ladder_tables.details_table(against_it).header


def test_a_backend_that_is_not_here_does_not_hide_what_another_one_tells():
    rungs = (artifact("teacher", step="train"), artifact("student", "teacher", step="distill"))
    cells = [cell(rung.rung, None, backend="cuda", error="cuda: not here") for rung in rungs] + [
        cell(rung.rung, str(number)) for number, rung in enumerate(rungs)
    ]
    judged = tuple(evaluation(rung.rung, str(number)) for number, rung in enumerate(rungs))
    shown = ladder(result(artifacts=rungs, measurements=tuple(cells), evaluations=judged), known_answers())
    table = ladder_tables.rungs_table(shown)
    assert [row[table.header.index("agree %")] for row in table.lines] == ["–", "75.0"]


def test_long_names_that_end_alike_are_told_apart(capsys):
    names = [f"experiment-{number}-student-int8" for number in ("one", "two")]
    rungs = (artifact(names[0], step="train"), artifact(names[1], names[0], step="distill"))
    cells = tuple(cell(rung.rung, str(number)) for number, rung in enumerate(rungs))
    made = result(artifacts=rungs, measurements=cells, evaluations=(), baseline=names[0])
    print_ladder(ladder(made, known_answers()))
    lines = capsys.readouterr().out.split("How each rung was made")[1].strip().splitlines()
    assert lines[2].startswith("experim…ent-int8  – ")
    assert lines[3].startswith("expe…t-int8 (2)   experim…ent-int8 ")  # and its parent


def test_files_that_were_not_made_here_have_no_such_table():
    plain = ladder(result(artifacts=(artifact("a"), artifact("b")), baseline="a",
                          measurements=(cell("a", "0"), cell("b", "1")), evaluations=()),
                   {name: value for name, value in arrays().items() if name != "labels"})  # fmt: skip
    assert ladder_tables.rungs_table(plain) is None
    assert not {"took", "Δ to parent"} & set(ladder_tables.details_table(plain).header)


def test_what_slimming_did_is_a_line_below_the_rungs():
    counts = {"operators_before": {"Conv": 9, "Identity": 3, "Relu": 7}}
    done = artifact(
        "a", "t", operators={"Conv": 9, "Relu": 7}, options=counts | {"remarks": ["onnxslim left out: moved"]}
    )
    idle = artifact("b", "t", operators=counts["operators_before"], options=counts)
    assert slimming_lines([artifact("t"), done, idle]) == [
        "a: 19 → 16 nodes (Identity 3 → 0); onnxslim left out: moved",
        "b: 19 nodes, none of which could go",
    ]
    many = {"operators_before": {f"Op{number}": number for number in range(1, 9)}}
    (line,) = slimming_lines([artifact("c", "t", options=many)])
    assert line.endswith("(Op8 8 → 0, Op7 7 → 0, Op6 6 → 0, Op5 5 → 0, Op4 4 → 0, 3 more operators)")


def test_reports_have_that_line_too():
    slimmed = artifact("student", "teacher", operators={"Add": 1}, options={"operators_before": {"Add": 2}})
    shown = ladder(result(artifacts=(artifact("teacher"), slimmed)), arrays())
    assert "student: 2 → 1 nodes (Add 2 → 1)" in to_markdown([shown])
    printed = io.StringIO()
    with redirect_stdout(printed):
        print_ladder(shown)
    assert "student: 2 → 1 nodes (Add 2 → 1)" in printed.getvalue()
