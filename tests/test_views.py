"""Tables in every view: selections, bold, and numbers against those worked out by hand."""

import base64
import csv
import io
import json
import math

import numpy as np
import pytest

import kdbench
from kdbench.cli import cli
from kdbench.errors import UserError
from kdbench.records import Comparison, Machine
from kdbench.report.backends_view import MEASURES
from kdbench.report.comma import tables_to_csv
from kdbench.report.html import to_html
from kdbench.report.latex import to_latex
from kdbench.report.markdown import to_markdown, views_to_markdown
from kdbench.report.page import to_page
from kdbench.report.rendering import FORMATS
from kdbench.report.rows import COLUMNS
from kdbench.report.selection import Selection, in_order, rebased, selected
from kdbench.report.structured import tables_to_json
from kdbench.report.table import ladder, load_ladders
from kdbench.report.terminal import WIDTH
from kdbench.report.text import Cell, Column, TextTable
from kdbench.report.views import VIEWS, renumbered, tables_of
from kdbench.store import load_result, save_results
from tests import notebook
from tests.conftest import PUBLISHED, REPOSITORY
from tests.test_comparison import answers, compared
from tests.test_report import MACHINE, ROUNDS, artifact, cell, evaluation, result

# --- selections -------------------------------------------------------------------------------------------------------


def several(**changes):
    """Teacher and student on two backends, with one thread and with two: of the student's medians in milliseconds."""
    times = {
        ("teacher", "cpu", 1): 1.0, ("student", "cpu", 1): 0.5, ("teacher", "fast", 1): 0.5,
        ("student", "fast", 1): 0.2, ("teacher", "cpu", 2): 0.625, ("student", "cpu", 2): 0.5,
    }  # fmt: skip
    spread = np.repeat(1 + 0.01 * np.array([-1, 0.5, 0, 1, -0.5]), 3)
    raw, measurements, evaluations = {"labels": np.arange(4)}, [], []
    for number, ((rung, backend, threads), ms) in enumerate(times.items()):
        raw[f"latencies.{number}"] = ms * 1e-3 * np.tile([0.9, 1.0, 1.1], 5) * np.roll(spread, 3 * number)
        raw[f"rounds.{number}"] = ROUNDS
        raw[f"predictions.{number}"] = np.array([0, 1, 2, 0]) if rung == "teacher" else np.array([0, 1, 0, 0])
        measurements.append(cell(rung, str(number), backend=backend, threads=threads))
        evaluations.append(evaluation(rung, str(number), backend=backend, threads=threads))
    changes = {"measurements": tuple(measurements), "evaluations": tuple(evaluations)} | changes
    return result(**changes), raw


def test_another_baseline_turns_ratios_and_differences_round():
    found = ladder(*several())
    turned = rebased(found, "student")
    teacher, student = turned.rows[:2]
    assert teacher.speedup == pytest.approx(1 / found.rows[1].speedup)
    assert teacher.speedup_low == pytest.approx(1 / found.rows[1].speedup_high)
    assert (teacher.accuracy_diff, student.accuracy_diff, student.speedup) == (0.25, None, None)
    assert rebased(found, "teacher") is found
    assert turned.rows[0].accuracy == found.rows[0].accuracy


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ("studnet", "made has no rung 'studnet': did you mean 'student'?"),
        ("teacher@fast", "what compares all with fast is `kdbench bench --reference teacher@fast`"),
    ],
)
def test_a_baseline_that_is_no_rung_is_refused(baseline, said):
    with pytest.raises(UserError) as error:
        rebased(ladder(*several()), baseline)
    assert said in str(error.value)


def test_cells_are_chosen_by_what_they_are():
    found = [ladder(*several())]
    (left,) = selected(found, Selection(rungs=("student",), threads=(1,)))
    assert [(row.rung, row.backend, row.threads) for row in left.rows] == [
        ("student", "cpu", 1),
        ("student", "fast", 1),
    ]
    assert left.rows[0].speedup == found[0].rows[1].speedup  # the baseline is gone, the ratio is not
    assert selected(found, Selection()) == found
    for wanted, said in (
        (Selection(rungs=("studnt",)), "--rung studnt: no cell of that: did you mean 'student'?"),
        (Selection(batches=(8,)), "--batch 8: no cell of that: known: 4"),
        (Selection(backends=("fast",), threads=(2,)), "nothing is all that at once: there is teacher on cpu, batch 4"),
    ):
        with pytest.raises(UserError) as error:
            selected(found, wanted)
        assert said in str(error.value)


def test_rows_are_in_order_of_a_column_those_without_a_number_last():
    values = {"a": 2.0, "b": None, "c": -1.0, "d": math.nan}
    assert in_order(values, "x", lambda key, _: values[key]) == ["c", "a", "b", "d"]
    assert in_order(values, "-x", lambda key, _: values[key]) == ["a", "c", "b", "d"]
    tables = tables_of([ladder(*several())], [], "ladder", columns=["rung", "latency_p50_s"], sort="latency_p50_s")
    assert [table.lines[0][0] for table in tables] == ["student"] * 3
    assert [column.key for column in tables[0].columns] == ["rung", "latency_p50_s", "flags"]


def test_each_field_of_a_row_is_a_column():
    found = ladder(*several())
    (first, *_) = tables_of([found], [], "ladder", columns=COLUMNS)
    assert [column.key for column in first.columns if column.key != "flags"] == [n for n in COLUMNS if n != "flags"]
    shown = dict(zip((column.key for column in first.columns), first.rows[1], strict=True))
    assert (shown["size_bytes"].text, shown["size_bytes"].value) == ("1 kB", 1000.0)
    for name in COLUMNS:
        value = getattr(found.rows[1], name)
        if name not in ("flags", "broken_claims", "reference_speedup") and value not in (None, ""):
            assert shown[name].value == value, name


@pytest.mark.parametrize("view", ["ladder", "backends", "scaling", "methods"])
def test_a_column_that_does_not_exist_is_named_with_the_nearest(view):
    known = {"ladder": "latency_p50_s", "backends": "fast", "scaling": "efficiency_2", "methods": "x.score"}[view]
    for option in ({"columns": [known[:-1] + "z"]}, {"sort": "-" + known[:-1] + "z"}):
        with pytest.raises(UserError, match=f"no column '{known[:-1]}z': did you mean '{known}'") as error:
            tables_of([ladder(*several())], [compared(METHODS)], view, **option)
        assert str(error.value).startswith("--columns" if "columns" in option else "--sort")


def test_footnotes_without_a_cell_are_left_out_and_the_others_numbered_anew():
    rows = ((Cell("a", notes=(3,)), Cell("b", notes=(1, 3))),)
    left = renumbered(TextTable("t", (Column("a", "a"), Column("b", "b")), rows, ("one", "two", "three")))
    assert left.notes == ("three", "one")
    assert [cell.notes for cell in left.rows[0]] == [(1,), (1, 2)]


# --- views ------------------------------------------------------------------------------------------------------------


def cells(table, row):
    return dict(zip((column.key for column in table.columns), table.rows[row], strict=True))


def test_backends_side_by_side_with_the_best_in_bold_where_intervals_separate_it():
    one, two = tables_of([ladder(*several())], [], "backends")
    assert one.title == "made: median latency, 1 thread, batch 4"
    assert one.header == ("rung", "cpu", "fast")
    assert [cell.best for cell in one.rows[0]] == [cell.best for cell in one.rows[1]] == [False, False, True]
    student = cells(one, 1)
    assert student["cpu"].value == pytest.approx(0.5e-3, rel=0.01)
    assert student["cpu"].low < student["cpu"].value < student["cpu"].high
    assert [cell.text for cell in two.rows[0][1:]] == ["625.0 µs", "–"]
    assert two.notes == ("not measured: no part of that plan",)
    assert not any(cell.best for row in two.rows for cell in row)  # nothing to be better than
    table, _ = tables_of([ladder(*several())], [], "backends", measure="speed-up")
    assert [cell.text for cell in table.rows[0]] == ["teacher", "1", "1"]
    assert table.rows[1][2].value == pytest.approx(2.5, rel=0.01)
    assert [cell.best for cell in table.rows[1]] == [False, False, True]
    alone = selected([ladder(*several())], Selection(rungs=("student",)))
    assert tables_of(alone, [], "backends", measure="speed-up")[0].rows == table.rows[1:]
    table, _ = tables_of([ladder(*several())], [], "backends", measure="accuracy")
    assert [cell.text for cell in table.rows[1]] == ["student", "50.0", "50.0"]
    assert not any(cell.best for row in table.rows for cell in row)


def test_a_backend_that_failed_keeps_no_other_from_being_the_best():
    found, raw = several()
    failed = tuple(cell(rung, None, backend="broken", error="no device") for rung in ("teacher", "student"))
    one, _ = tables_of(
        [ladder(found.model_copy(update={"measurements": (*found.measurements, *failed)}), raw)], [], "backends"
    )
    assert one.header == ("rung", "cpu", "fast", "broken")
    assert [[cell.best for cell in row] for row in one.rows] == [[False, False, True, False]] * 2
    assert one.notes == ("error: no device",)


def test_what_lies_within_the_spread_is_not_in_bold():
    found, raw = several()
    raw["latencies.3"] = raw["latencies.1"] * np.repeat([0.9, 1.1, 0.95, 1.02, 0.99], 3)
    one, _ = tables_of([ladder(found, raw)], [], "backends")
    assert not any(cell.best for cell in one.rows[1])
    assert any(cell.best for cell in one.rows[0])


def test_a_cell_without_a_number_says_why_in_every_format():
    found, raw = several()
    broken = found.measurements[3].model_copy(update={"error": "crashed & burnt during 'slice'"})
    found = found.model_copy(update={"measurements": (*found.measurements[:3], broken, *found.measurements[4:])})
    for view in ("ladder", "backends"):
        tables = tables_of([ladder(found, raw)], [], view)
        shown = [cell for table in tables for row in table.rows for cell in row if cell.notes]
        assert shown
        for written, said in (
            (to_latex(tables), r"crashed \& burnt during 'slice'"),
            (to_html(tables), "crashed &amp; burnt during &#39;slice&#39;"),
            (views_to_markdown(tables), "crashed \\& burnt during 'slice'"),
            (tables_to_json(tables, view), "crashed & burnt during 'slice'"),
            (tables_to_csv(tables), "crashed & burnt during 'slice'"),
        ):
            assert said in written


def test_what_was_interrupted_or_generated_says_so_below_each_table():
    made = ladder(*several(complete=False, inputs="generated"))
    for view in ("ladder", "backends", "scaling"):
        for table in tables_of([made], [], view):
            assert "Interrupted: these are the cells that were measured." in table.legend
            assert "Measured on generated inputs: there is no accuracy." in table.legend


def test_machines_stand_side_by_side_and_are_never_compared():
    other = Machine(**MACHINE.model_dump() | {"name": "there"})
    here, there = (
        ladder(*several()),
        ladder(*several(machine=other, artifacts=(artifact("teacher"), artifact("student", sha256="x")))),
    )
    one, _ = tables_of([here, there], [], "backends")
    assert one.header == ("rung", "here: cpu", "here: fast", "there: cpu", "there: fast")
    assert [cell.best for cell in one.rows[0]] == [False, False, True, False, True]
    assert one.notes == ("another file of that name than on here",)
    assert [bool(cell.notes) for cell in one.rows[1]] == [False, False, False, True, True]
    titles = [table.title for table in tables_of([here, there], [], "ladder")]
    assert titles[0].startswith("here, made: cpu, 1 thread")
    assert any(title.startswith("there, made: ") for title in titles)


def test_scaling_by_hand():
    table, fast = tables_of([ladder(*several())], [], "scaling")
    assert table.header == ("rung", "batch", "1 thread: per s", "p50", "2 threads: per s", "p50", "efficiency")
    teacher, student = cells(table, 0), cells(table, 1)
    assert teacher["efficiency_2"].value == pytest.approx(1 / (0.625 * 2), rel=0.02)
    assert student["efficiency_2"].value == pytest.approx(0.5, rel=0.02)
    assert student["efficiency_2"].low < 0.5 < student["efficiency_2"].high
    assert student["throughput_per_s_1"].value == pytest.approx(4 / 0.5e-3, rel=0.01)
    assert fast.header == ("rung", "batch", "1 thread: per s", "p50")


METHODS = [("teacher", "last", [95]), ("alone", "last", [84, 85, 86]), ("distilled", "last", [89, 90, 92]),
           ("dkd", "last", [86, 87, 88])]  # fmt: skip


def test_methods_by_pairs_with_the_best_in_bold_where_seeds_separate_it():
    clear, record = compared(METHODS), compared([*METHODS[:2], ("distilled", "last", [86])])
    renamed = Comparison.model_validate(record[0].model_dump() | {"name": "other"})
    table = tables_of([], [clear, (renamed, record[1])], "methods")[0]
    assert table.header == ("method", "x: acc. %", "x: gain", "other: acc. %", "other: gain")
    by_method = {row[0].text: row for row in table.rows}
    assert [row[0].text for row in table.rows if row[1].best] == ["distilled"]
    assert not any(row[3].best for row in table.rows)  # one seed tells nothing
    assert by_method["distilled"][1].text == "90.3 ± 1.5"
    assert by_method["distilled"][2].text == "+5.3 [3.9, 6.8]"
    notes = {table.notes[note - 1] for note in by_method["distilled"][3].notes}
    assert "one seed: no deviation, and no interval" in notes
    assert [table.notes[note - 1] for note in by_method["dkd"][3].notes] == ["no method of other"]
    close = compared([METHODS[0], ("alone", "last", [84, 85, 86]), ("distilled", "last", [86, 85, 87])])
    assert not any(cell.best for row in tables_of([], [close], "methods")[0].rows for cell in row)
    assert answers(3).sum() == 97


# --- the command, and data frames -------------------------------------------------------------------------------------


def said(*arguments):
    with pytest.raises(UserError) as error:
        cli(["report", *map(str, arguments)], standalone_mode=False)
    return str(error.value)


@pytest.mark.parametrize("view", ["ladder", "backends", "scaling"])
@pytest.mark.parametrize("kind", [*FORMATS, "terminal"])
def test_every_view_of_real_results_in_every_format(view, kind, capsys):
    cli(["report", str(PUBLISHED), "--view", view, "--format", kind], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "student-int8" in shown
    assert "no device for it here" in shown or view == "scaling"
    if kind == "json":
        json.loads(shown)
    if kind == "terminal":
        assert max(map(len, shown.splitlines())) <= WIDTH


def test_the_ladder_as_today(capsys):
    cli(["report", str(PUBLISHED), "--format", "csv"], standalone_mode=False)
    shown = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert tuple(shown[0]) == COLUMNS
    cli(["report", str(PUBLISHED), "--format", "csv", "--columns", "rung,speedup", "--batch", "1", "--backend", "cpu",
         "--sort", "-speedup"], standalone_mode=False)  # fmt: skip
    first = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(first) == ["rung", "speedup", "flags", "error"]
    best = max((row for row in shown if row["batch"] == "1" and row["speedup"]), key=lambda row: float(row["speedup"]))
    assert (first["rung"], first["speedup"]) == (best["rung"], best["speedup"])


def test_mistakes_are_named(tmp_path):
    assert "no rung 'techer': did you mean 'teacher'?" in said(PUBLISHED, "--baseline", "techer")
    assert "--columns: no column 'speedupp': did you mean 'speedup'?" in said(PUBLISHED, "--columns", "speedupp")
    assert "--threads 7: no cell of that: known: 1" in said(PUBLISHED, "--threads", 7)
    assert "no comparison of methods" in said(PUBLISHED, "--view", "methods")
    assert "--columns: names none" in said(PUBLISHED, "--columns", " ,")
    assert "--measure accuracy: is for --view backends" in said(PUBLISHED, "--measure", "accuracy")
    assert "--out: writes the ladder's whole report" in said(PUBLISHED, "--out", tmp_path, "--format", "json")
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_chosen_columns_has_no_others():
    (whole,) = load_ladders([PUBLISHED])
    chosen = to_markdown([whole], columns=("rung", "size_bytes"))
    assert "McNemar p" in to_markdown([whole])
    assert "## Details" not in chosen
    assert {line for line in chosen.splitlines() if line.startswith("| rung")} == {"| rung | size |  |"}


def test_equal_headings_of_two_files_are_told_apart():
    alike = [ladder(*load_result(PUBLISHED), name) for name in ("first", "second")]
    titles = [line for line in to_markdown(alike).splitlines() if line.startswith("# ")]
    machine = alike[0].result.machine.name
    assert [title.partition(" cores")[2] for title in titles] == [f" ({machine}/first)", f" ({machine}/second)"]
    assert f"{machine}/second)</bdi></h2>" in to_page(alike)
    assert to_markdown(alike[:1]).splitlines()[0].endswith(" cores")


def test_headings_of_a_report_stand_apart():
    lines = to_markdown(load_ladders([PUBLISHED])).splitlines()
    assert all(not lines[at - 1] for at, line in enumerate(lines) if at and line.startswith("#"))


def test_data_frames_are_what_the_csv_has(capsys):
    pandas = pytest.importorskip("pandas")
    frame = kdbench.load_results(PUBLISHED, batches=[1], backends="cpu", baseline="student")
    assert tuple(frame.columns) == COLUMNS
    assert frame.speedup.dtype == frame.latency_p50_s.dtype == float
    found = rebased(ladder(*load_result(PUBLISHED)), "student")
    ours = {row.rung: row for row in found.rows if row.batch == 1 and row.backend == "cpu"}
    assert frame.set_index("rung").speedup["teacher"] == ours["teacher"].speedup
    for view in VIEWS[1:2]:
        cli(["report", str(PUBLISHED), "--view", view, "--format", "csv"], standalone_mode=False)
        written = pandas.read_csv(io.StringIO(capsys.readouterr().out))
        frame = kdbench.load_results(PUBLISHED, view=view)
        assert list(written.columns) == list(frame.columns)
        assert written["cpu"].to_list() == pytest.approx(frame["cpu"].to_list())


def test_frames_of_methods(tmp_path):
    pytest.importorskip("pandas")
    save_results(tmp_path / "comparison.json", *compared(METHODS))
    frame = kdbench.load_results(tmp_path / "comparison.json").set_index("method")
    assert frame["x.gain"]["distilled"] == pytest.approx(16 / 300)
    assert frame["x.gain_low"]["distilled"] < 16 / 300
    assert frame.best["distilled"] == "x.score"


def test_without_pandas_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UserError, match=r"data frames need pandas: pip install pandas"):
        kdbench.load_results(PUBLISHED)


def test_measures_of_the_command_are_those_of_the_view():
    options = {option.name: option.type for option in cli.get_command(None, "report").params}
    assert list(options["measure"].choices) == list(MEASURES)
    assert list(options["view"].choices) == list(VIEWS)
    assert list(options["kind"].choices) == [*FORMATS, "page", "terminal"]


def test_the_notebook_shows_what_its_code_gives():
    pytest.importorskip("pandas")
    path = REPOSITORY / "docs" / "results.ipynb"
    stored = notebook.code_cells(json.loads(path.read_text()))
    found = notebook.run(path)
    for number, (kept, now) in enumerate(zip(stored, found, strict=True), 1):
        told = "`python -m tests.notebook docs/results.ipynb` writes its outputs again"
        assert without_images(kept["outputs"]) == without_images(notebook.outputs(now, number)), told
    (image,) = found[-1]["images"]
    assert base64.b64decode(image).startswith(b"\x89PNG")


def without_images(outputs):
    return [
        {**one, "data": {**one["data"], "image/png": None}} if "image/png" in one.get("data", {}) else one
        for one in outputs
    ]
