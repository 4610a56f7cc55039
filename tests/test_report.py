"""Reports: numbers from raw values that are easy to recompute, and text that says no more than they do."""

import csv
import io
import math
import re

import numpy as np
import pytest

from kdbench.errors import UserError
from kdbench.records import (
    Artifact,
    BenchSettings,
    Evaluation,
    Machine,
    Measurement,
    Process,
    RawFile,
    ResultFile,
)
from kdbench.report import ladder_tables, text
from kdbench.report.comma import to_csv
from kdbench.report.markdown import to_markdown
from kdbench.report.plots import plots_of, save_plots
from kdbench.report.plots.sensitivity import labelled
from kdbench.report.plots.style import sign
from kdbench.report.rows import COLUMNS
from kdbench.report.table import ladder
from kdbench.report.terminal import print_table
from kdbench.store import save_results
from tests.rows import load_rows

SPEC = (
    "rung, parent, backend, precision, batch, threads, accuracy, accuracy_diff, accuracy_diff_low, accuracy_diff_high, "
    "agreement, size_bytes, parameters, macs, latency_p50_s, latency_p99_s, throughput_per_s, speedup, speedup_low, "
    "speedup_high, load_s, first_run_s, peak_memory_bytes, flags, error, f1_micro, f1_macro, f1_micro_diff, "
    "f1_micro_diff_low, f1_micro_diff_high, rounds, smallest_difference, outlier_share, node_share, time_share, "
    "int8_share, fused_share, rms_error, ran_as, threads_used, broken_claims, dims, cost_per_million, "
    "reference_speedup, reference_speedup_low, reference_speedup_high, start_s, steady_memory_bytes, "
    "device_memory_bytes, energy_j, optimize_s, parent_diff, parent_diff_low, parent_diff_high, made_in_s, "
    "teacher_agreement, machine, result"
)
MACHINE = Machine(
    name="here", cpu="A|B <CPU>", features=("avx2",), cores_physical=1, cores_logical=2, governor=None,
    memory_bytes=8_000_000_000, os="Linux", python="3.11", versions={"onnxruntime": "1"},
)  # fmt: skip
ROUNDS = np.repeat(np.arange(5, dtype=np.uint16), 3)


def artifact(rung, parent=None, precision="fp32", **changes):
    fields = {
        "rung": rung, "file": f"{rung}.onnx", "sha256": rung, "size_bytes": 1000, "parameters": 10, "macs": 100,
        "precision": precision, "inputs": (), "outputs": (), "opset": 17, "ir_version": 8,
        "operators": {}, "parent": parent, "parent_sha256": parent,
    }  # fmt: skip
    return Artifact(**(fields | changes))


def cell(rung, raw, precision="fp32", rounds=5, **changes):
    processes = tuple(
        Process(round=r, load_s=0.01 * (r + 1), first_run_s=0.002, peak_memory_bytes=50_000_000) for r in range(rounds)
    )
    fields = {
        "rung": rung, "artifact_sha256": rung, "backend": "cpu", "precision": precision, "batch": 4, "threads": 1,
        "processes": processes, "raw": raw,
    }  # fmt: skip
    return Measurement(**(fields | changes))


def evaluation(rung, raw, **changes):
    fields = {"rung": rung, "artifact_sha256": rung, "backend": "cpu", "threads": 1, "batch": 4, "raw": raw}
    return Evaluation(**(fields | changes))


def result(**changes):
    fields = {
        "kdbench": "0", "date": "2026-01-02T03:04:05+00:00", "name": "made", "complete": True, "machine": MACHINE,
        "baseline": "teacher", "settings": BenchSettings(seed=0, processes=5, budget_s=1, slice_s=1, slice_runs=9),
        "inputs": "data", "artifacts": (artifact("teacher"), artifact("student", "teacher")),
        "measurements": (cell("teacher", "0"), cell("student", "1")),
        "evaluations": (evaluation("teacher", "0"), evaluation("student", "1")),
        "raw": RawFile(file="x.npz", sha256=""),
    }  # fmt: skip
    return ResultFile(**(fields | changes))


def arrays(speed=2.0, noise=0.0):
    teacher = np.tile([0.9, 1.0, 1.1], 5) * 1e-3
    jitter = np.repeat(1 + noise * np.array([-1, 1, -1, 1, 0]), 3)
    return {
        "latencies.0": teacher, "latencies.1": teacher / speed * jitter, "rounds.0": ROUNDS, "rounds.1": ROUNDS,
        "labels": np.arange(4), "predictions.0": np.array([0, 1, 2, 0]), "predictions.1": np.array([0, 1, 0, 0]),
    }  # fmt: skip


def test_csv_has_the_stable_columns():
    assert ", ".join(COLUMNS) == SPEC
    header = to_csv([]).splitlines()[0]
    assert header == SPEC.replace(", ", ",")


def test_rows_by_hand():
    teacher, student = ladder(result(), arrays()).rows
    assert (teacher.accuracy, student.accuracy) == (0.75, 0.5)
    assert student.accuracy_diff == -0.25
    assert student.accuracy_diff_low <= -0.25 <= student.accuracy_diff_high
    assert student.agreement == 0.75
    assert student.latency_p50_s == pytest.approx(0.5e-3)
    assert student.latency_p99_s is None  # 15 runs are too few for a p99
    assert student.throughput_per_s == pytest.approx(4 / 0.5e-3)
    assert student.speedup == pytest.approx(2.0)
    assert student.load_s == pytest.approx(0.03)
    assert teacher.speedup is teacher.accuracy_diff is teacher.agreement is None


def test_a_ratio_that_covers_one_reads_no_difference():
    noisy = ladder(result(), arrays(speed=1.02, noise=0.09)).rows[1]
    assert text.ratio(noisy.ratio).startswith("no difference [")
    assert text.ratio(noisy.ratio, brief=True) == "no difference"
    assert text.ratio(ladder(result(), arrays()).rows[1].ratio) == "2.000× [2.000, 2.000]"


def test_error_cells_have_a_reason_and_no_numbers():
    failed = cell("student", "1", error="crashed during 'slice'")
    row = ladder(result(measurements=(cell("teacher", "0"), failed)), arrays()).rows[1]
    assert row.error == "crashed during 'slice'"
    assert row.latency_p50_s is row.speedup is row.throughput_per_s is None
    line = next(csv.DictReader(io.StringIO(to_csv([row]))))
    assert (line["error"], line["latency_p50_s"]) == ("crashed during 'slice'", "")


def flags_of(measurement, of=None, evaluated=None, raw=None, **changes):
    of = of or artifact("student", "teacher")
    made = result(
        artifacts=(artifact("teacher"), of),
        measurements=(cell("teacher", "0"), measurement),
        evaluations=(evaluation("teacher", "0"), evaluated or evaluation("student", "1")),
        **changes,
    )
    return "; ".join(ladder(made, raw or arrays()).rows[1].flags)


def test_nothing_is_flagged_without_a_reason():
    assert flags_of(cell("student", "1")) == ""


def test_nodes_on_another_provider_are_flagged_by_operator():
    placement = {"CPUExecutionProvider": {"Conv": 3}, "OtherExecutionProvider": {"Resize": 2}}
    found = flags_of(cell("student", "1"), evaluated=evaluation("student", "1", placement=placement))
    assert found == "fallback: of 5 nodes 2 on OtherExecutionProvider (Resize)"


def test_int8_that_did_not_fuse_is_flagged():
    graph = {"Conv": 2, "QLinearConv": 6}
    found = flags_of(
        cell("student", "1", "int8"),
        artifact("student", "teacher", "int8"),
        evaluation("student", "1", optimized_operators=graph),
    )
    assert "int8 did not fuse: 2 of 8" in found


def test_the_parent_of_a_cell_is_the_file_that_it_was_made_from():
    unrelated = artifact("student", "teacher", "int8", parent_sha256="another file of that name")
    assert "slower than" not in flags_of(cell("student", "1", "int8"), unrelated, raw=arrays(speed=0.5))


def test_int8_that_is_slower_says_so_and_what_runs():
    graph = {"QLinearConv": 6, "QuantizeLinear": 3}
    found = flags_of(
        cell("student", "1", "int8"),
        artifact("student", "teacher", "int8"),
        evaluation("student", "1", optimized_operators=graph),
        arrays(speed=0.5),
    )
    assert "2× slower than teacher" in found
    assert "all of its 6" in found
    recurrent = evaluation("student", "1", optimized_operators=graph | {"GRU": 1})
    said = flags_of(cell("student", "1", "int8"), artifact("student", "teacher", "int8"), recurrent, arrays(speed=0.5))
    assert "2× slower than teacher" in said
    assert "in int8" not in said  # what takes the time stays in float
    assert "3 conversions" in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"float_layers": 2}, "2 of 6 layers run in float (Conv) to keep the accuracy: raise max_drop"),
        ({}, "2 of 6 layers run in float (Conv): `kdbench profile` says why"),
    ],
)
def test_int8_that_is_slower_with_layers_in_float_says_so(options, said):
    found = flags_of(
        cell("student", "1", "int8"),
        artifact("student", "teacher", "int8", options=options),
        evaluation("student", "1", optimized_operators={"QLinearConv": 4, "Conv": 2}),
        arrays(speed=0.5),
    )
    assert f"2× slower than teacher: {said}" in found


def test_a_rung_trained_in_int8_says_how_good_it_is_beside_the_static_one():
    made = result(
        artifacts=(
            artifact("teacher"),
            artifact("static", "teacher", "int8"),
            artifact("trained", "static", "int8", options={"aware": True}),
        ),
        measurements=(cell("teacher", "0"), cell("static", "1", "int8"), cell("trained", "2", "int8")),
        evaluations=(evaluation("teacher", "0"), evaluation("static", "1"), evaluation("trained", "2")),
    )
    known = arrays() | {"predictions.2": np.arange(4), "rounds.2": ROUNDS, "latencies.2": arrays()["latencies.1"]}
    _, static, trained = ladder(made, known).rows
    assert (static.parent_diff, trained.parent_diff) == (-0.25, 0.5)
    assert not any("trained in int8" in flag for flag in static.flags)
    low, high = (f"{100 * end:.0f}".replace("-", "−") for end in (trained.parent_diff_low, trained.parent_diff_high))
    said = f"trained in int8: +50 [{low}, {high}] points against static, which was not, McNemar's p 0.5"
    assert trained.flags[0] == said


def test_noisy_and_interrupted_cells_are_flagged():
    assert "noisy: medians of the processes vary by" in flags_of(cell("student", "1"), raw=arrays(noise=0.3))
    few = arrays()
    few["rounds.1"] = np.minimum(ROUNDS, 2)
    assert "3 of 5 processes measured" in flags_of(cell("student", "1", rounds=3), raw=few)


def test_warnings_of_the_artifact_stand_beside_its_numbers():
    warned = artifact("student", "teacher", warnings=("calibrated on generated inputs",))
    assert "calibrated on generated inputs" in flags_of(cell("student", "1"), warned)


def test_markdown_escapes_what_it_would_read():
    shown = to_markdown([ladder(result(), arrays())])
    assert "A\\|B \\<CPU\\>" in shown
    assert "Interrupted" not in shown
    assert "**Interrupted**" in to_markdown([ladder(result(complete=False), arrays())])


def test_footnotes_are_numbered_and_shared():
    warned = artifact("student", "teacher", warnings=("note one",))
    (table,) = ladder_tables.ladder_tables(
        ladder(result(artifacts=(artifact("teacher", warnings=("note one",)), warned)), arrays())
    )
    assert [row[-1] for row in table.lines] == ["¹", "¹"]
    assert table.notes == ("note one",)


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (text.seconds, 1.3456e-4, "135 µs"), (text.seconds, 0.003364, "3.36 ms"), (text.seconds, 2.0, "2 s"),
        (text.seconds, 5e-8, "50 ns"), (text.seconds, None, "–"), (text.size, 196_737, "197 kB"),
        (text.size, 999_999, "1.00 MB"), (text.size, 2_828_431, "2.83 MB"), (text.count, 950, "950"),
        (text.count, 1_710_528, "1.71 M"), (text.percent, 0.98765, "98.8 %"), (text.mark, 12, "¹²"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(function, value, shown):
    assert function(value) == shown


def test_two_files_keep_their_rungs_apart(tmp_path):
    for number in (1, 2):
        save_results(tmp_path / f"{number}.json", result(), arrays(speed=1.0 + number))
    rungs = [row.rung for row in load_rows(tmp_path)]
    assert rungs == ["here/1/teacher", "here/1/student", "here/2/teacher", "here/2/student"]
    assert [row.rung for row in load_rows(tmp_path / "1.json")] == ["teacher", "student"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "was it cut off"),
        (lambda content: re.sub('"schema": [0-9]+', '"schema": 99', content, count=1), "newer kdbench, 0 (schema 99"),
        (lambda content: content.replace('"complete"', '"compleet"'), "edited after it was written"),
        (lambda content: "[]", "expected a JSON object"),
    ],
)
def test_result_files_that_cannot_be_read_are_named(tmp_path, change, message):
    path = tmp_path / "r.json"
    save_results(path, result(), arrays())
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError) as error:
        load_rows(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_plots_show_cells_with_both_numbers_and_are_reproducible(tmp_path):
    found = ladder(result(), arrays())
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        assert [path.suffix for path in save_plots(plots_of([found])[:1], folder)] == [".svg", ".png"]
    svg = (first / "accuracy-latency.svg").read_text()
    assert svg == (second / "accuracy-latency.svg").read_text()
    without = result(evaluations=())
    unjudged = plots_of([ladder(without, {k: v for k, v in arrays().items() if k != "labels"})])
    assert [plot.name for plot in unjudged] == ["latency-distribution"]


def test_no_two_rungs_of_a_long_ladder_look_alike():
    assert len({sign(number) for number in range(64)}) == 64


def test_labels_of_points_that_lie_on_each_other_are_left_out():
    assert labelled([0.0, 1.0, 50.0, 100.0, 100.0], [0.0, 0.01, 0.0, 2.0, 5.0]) == [0, 2, 3, 4]
    assert labelled([3.0], [1.0]) == [0]


def test_infinite_and_missing_values_never_reach_the_csv(tiny_run):
    for row in load_rows(tiny_run):
        for name in COLUMNS:
            value = getattr(row, name)
            assert not isinstance(value, float) or math.isfinite(value)


def test_many_footnotes_push_no_number_off_the_terminal(capsys):
    header = ("rung", "F1 µ %", "F1 macro %", "Δ µ points", "p50", "speed-up")
    row = ("student-int8", "64.3", "38.47", "−0.7 [−11.6, 10.2]", "12.3 µs", "3.86× [3.74, 3.98]")
    columns = (*(text.Column(name, name, left=name == "rung") for name in header), text.FLAGS)
    numbers = tuple(range(1, 16))
    cells = (*map(text.Cell, row), text.Cell("", notes=numbers))
    print_table(text.TextTable("cpu", columns, (cells,), tuple(f"note {number}" for number in numbers)))
    printed = capsys.readouterr().out
    assert "F1 macro %" in printed
    assert all(text.mark(number) in printed.partition(f"{text.mark(1)} note 1")[0] for number in range(1, 16))
    assert max(map(len, printed.splitlines())) <= 100
