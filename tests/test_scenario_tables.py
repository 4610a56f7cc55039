"""What is said of results under load: tables, CSV, and mistakes in their options."""

from dataclasses import replace

import numpy as np
import pytest

from kdbench.errors import UserError
from kdbench.records import LoadTest, ResultFile, ScenarioMeasurement, from_json, sealed
from kdbench.report.comma import to_csv
from kdbench.report.files import save_report
from kdbench.report.markdown import to_markdown
from kdbench.report.rendering import Asked, find, rendered
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.scenarios import COLUMNS
from kdbench.report.table import ladder, load_ladders, scenario_rows_of
from kdbench.store import load_result, save_results
from tests.conftest import save_mlp
from tests.test_report import arrays, result
from tests.test_scenarios import needs_loadgen


def measurement(rung, raw, scenario="server", tests=(), **changes):
    fields = {
        "rung": rung, "artifact_sha256": rung, "backend": "cpu", "precision": "fp32", "batch": 1, "threads": 1,
        "raw": raw, "scenario": scenario, "bound_s": 0.01 if scenario == "server" else None, "tests": tests,
    }  # fmt: skip
    return ScenarioMeasurement(**(fields | changes))


def server_tests(rate, unmet=()):
    for number in range(5):
        fields = {"round": number, "queries": 662, "percentile_s": 0.008, "over_bound": 1}
        yield LoadTest(**fields, step="search", rate_per_s=rate * 1.1, valid=False)
        yield LoadTest(**fields, step="confirm", rate_per_s=rate, valid=number not in unmet)


def streams(estimate_s, **changes):
    return tuple(
        LoadTest(round=number, queries=64, estimate_s=estimate_s, valid=True, **changes) for number in range(5)
    )


def under_load(*scenarios):
    raw = {"labels": np.arange(4), "predictions.0": np.array([0, 1, 2, 0]), "predictions.1": np.array([0, 1, 0, 0])}
    for m in scenarios:
        rounds = [t.round for t in m.tests if t.valid and t.step == "confirm" for _ in range(662)]
        raw |= {f"scenarios.{m.raw}": np.linspace(0.001, 0.009, len(rounds)), f"scenario_rounds.{m.raw}": rounds}
    raw = {name: np.asarray(values) for name, values in raw.items()}
    found = result(measurements=(), scenarios=scenarios)
    return found, raw, ladder(found, raw)


def test_a_servers_table_by_hand():
    found, raw, made = under_load(
        measurement("teacher", "0", tests=tuple(server_tests(100.0))),
        measurement("student", "1", tests=tuple(server_tests(250.0))),
    )
    teacher, student = made.scenarios
    assert (teacher.rate_per_s, student.rate_per_s) == (100.0, 250.0)
    assert student.speedup == pytest.approx(2.5)
    assert (teacher.score, student.score) == (0.75, 0.5)
    assert student.flags == ()
    part = raw["scenarios.1"][raw["scenario_rounds.1"] == 2]
    assert student.latency_s == pytest.approx(np.sort(part)[-2])  # one of 662 may be above the bound
    (table,) = scenario_tables(made)
    assert table.title == "server, p99 ≤ 10 ms: cpu, 1 thread, batch up to 1, against teacher"
    assert table.lines[1][:3] == ("student", "50.0", "250")
    assert "no MLPerf submission" in table.legend
    assert "stays under 10 ms" in table.legend
    text = to_markdown([made])
    assert "# Details" not in text
    assert "server, p99 ≤ 10 ms" in text
    found = sealed(found)
    assert from_json(ResultFile, found.to_json(), "here") == found


def test_processes_that_miss_the_bound_are_counted():
    _, _, made = under_load(
        measurement("teacher", "0", tests=tuple(server_tests(100.0))),
        measurement("student", "1", tests=tuple(server_tests(250.0, unmet=(1, 4)))),
    )
    assert made.scenarios[1].flags == ("the bound was met in 3 of 5 processes: the median is of these",)
    assert made.scenarios[1].processes == 3


def test_latencies_are_compared_the_other_way_round():
    _, _, made = under_load(
        measurement("teacher", "0", "single_stream", streams(0.004)),
        measurement("student", "1", "single_stream", streams(0.001)),
    )
    assert made.scenarios[1].speedup == pytest.approx(4.0)
    assert made.scenarios[1].rate_per_s is None
    (table,) = scenario_tables(made)
    assert table.header == ("rung", "acc. %", "p90", "speed-up", "")
    assert table.lines[1][2] == "1 ms"


def test_sizes_stand_in_title_and_csv():
    sized = {"dims": {"height": 8, "width": 4}}
    _, _, made = under_load(
        measurement("teacher", "0", "single_stream", streams(0.004), **sized),
        measurement("student", "1", "single_stream", streams(0.001), **sized),
    )
    (table,) = scenario_tables(made)
    assert table.title == "single stream: cpu, 1 thread, height=8 width=4, against teacher"
    assert made.scenarios[1].speedup == pytest.approx(4.0)
    assert to_csv(made.scenarios, COLUMNS).splitlines()[2].endswith(",height=8 width=4,,here,made")


def test_a_table_that_took_longer_than_its_part_of_the_budget_says_so():
    slow, quick = (
        under_load(
            measurement("teacher", "0", "single_stream", streams(0.004), spent_s=spent_s),
            measurement("student", "1", "single_stream", streams(0.001), spent_s=spent_s),
        )[2]
        for spent_s in (60.0, 0.4)
    )
    (table,) = scenario_tables(slow)
    assert "The runs took 2 min, their part of the budget was 1 s: fewer queries would tell nothing." in table.legend
    assert "The runs took" not in scenario_tables(quick)[0].legend
    (alone,) = scenario_tables(replace(slow, scenarios=slow.scenarios[1:]))  # whichever rungs are shown
    assert "The runs took 2 min, their part of the budget was 1 s" in alone.legend


def test_what_loadgen_calls_invalid_is_flagged():
    few = tuple(
        LoadTest(round=number, queries=63, valid=False, reasons=("Only processed 63 queries.",)) for number in range(5)
    )
    _, _, made = under_load(
        measurement("teacher", "0", "single_stream", streams(0.004)), measurement("student", "1", "single_stream", few)
    )
    assert made.scenarios[1].latency_s is None
    assert "loadgen: invalid: Only processed 63 queries." in made.scenarios[1].flags


def test_errors_stand_beside_their_rung_or_once_for_all():
    missed = [f"p99 ≤ 10 ms is not met at {rate} queries a second" for rate in (3, 4)]
    _, _, made = under_load(
        measurement("teacher", None, error=missed[0]), measurement("student", None, error=missed[1])
    )
    (table,) = scenario_tables(made)
    assert [f"error: {reason}" for reason in missed] == list(table.notes)
    _, _, made = under_load(measurement("teacher", None, error="no"), measurement("student", None, error="no"))
    assert scenario_tables(made) == []
    assert unmeasured_loads(made) == ["not measured: no"]


def test_scenarios_have_files_of_their_own(tmp_path):
    found, raw, made = under_load(measurement("teacher", "0", tests=tuple(server_tests(100.0))))
    (tmp_path / "report.csv").write_text("of an earlier measurement")
    paths = save_report([made], made.rows, tmp_path)
    written = [path.name for path in paths if path.suffix not in (".svg", ".png")]
    assert written == ["report.md", "report.html", "scenarios.csv"]
    assert not (tmp_path / "report.csv").exists()
    header, line = (tmp_path / "scenarios.csv").read_text().splitlines()
    assert header == (
        "rung,parent,backend,precision,scenario,batch,threads,sessions,bound_s,score,latency_s,rate_per_s,speedup,"
        "speedup_low,speedup_high,queries,processes,flags,error,dims,spent_s,machine,result"
    )
    assert line.startswith("teacher,,cpu,fp32,server,1,1,1,0.01,0.75,")
    assert to_csv(made.scenarios, COLUMNS).splitlines()[1] == line
    save_results(tmp_path / "r.json", found, raw)
    loaded_again, arrays = load_result(tmp_path / "r.json")
    assert ladder(loaded_again, arrays).scenarios == made.scenarios
    missing = found.model_copy(update={"scenarios": (measurement("teacher", "7"),)})
    save_results(tmp_path / "r.json", missing, raw)
    with pytest.raises(UserError, match="no raw values"):
        load_result(tmp_path / "r.json")


@needs_loadgen
def test_bench_prints_a_table_a_scenario(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    for name, scale in (("teacher", 1.0), ("student", 2.0)):
        save_mlp(tmp_path / f"{name}.onnx", scale=scale)
    said = typed("bench", "teacher.onnx", "student.onnx", "--scenario", "single_stream", "--budget", "0.1")
    assert said.status == 0
    assert "single stream: cpu, 1 thread, against teacher\n" in said.out
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= 100
    assert "scenarios.csv" in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "student.onnx", "teacher.onnx"]
    csv = (tmp_path / "bench" / "scenarios.csv").read_text()
    assert typed("report", "bench", "--format", "csv").out == csv
    missed = typed("bench", "teacher.onnx", "--scenario", "server", "--bound", "1us")
    assert missed.status == 2
    assert "p99 ≤ 0.001 ms is not met at any rate that was tried: at the lowest, " in missed.out


@pytest.mark.parametrize("text", ["10", "ms", "-1ms", "0s", "10 min", "1e3s", "nan s", ""])
def test_a_bound_needs_a_number_and_a_unit(text, monkeypatch, typed, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = typed("bench", "m.onnx", "--scenario", "server", "--bound", text)
    assert said.status == 2
    assert f"'{text}' should be a time with its unit, such as 10ms or 0.5s" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--bound 10ms --scenario offline", "--sessions 2"])
def test_options_of_scenarios_want_their_scenario(arguments, mistake):
    assert f"{arguments.split()[0]} is for" in mistake(f"bench m.onnx {arguments}")


def three_files(tmp_path):
    """Scenarios, twice under one name, and latencies."""
    found, raw, _ = under_load(
        measurement("teacher", "0", tests=tuple(server_tests(100.0))),
        measurement("student", "1", tests=tuple(server_tests(250.0))),
    )
    for day in ("2026-01-01-made", "2026-01-02-made"):
        save_results(tmp_path / f"{day}.json", found, raw | {"labels": raw["labels"] + (day > "2026-01-01-made")})
    save_results(tmp_path / "latencies.json", result(), arrays())


def test_with_several_files_a_rung_is_led_by_machine_and_file_also_under_load(tmp_path):
    three_files(tmp_path)
    rows = scenario_rows_of(load_ladders([tmp_path]))
    leads = [f"here/2026-01-0{day}-made" for day in (1, 2)]
    assert [(row.rung, row.parent) for row in rows] == [
        pair for lead in leads for pair in ((f"{lead}/teacher", None), (f"{lead}/student", f"{lead}/teacher"))
    ]


def test_of_columns_asked_for_each_table_has_those_that_it_can(tmp_path):
    three_files(tmp_path)
    asked = Asked(columns=("rung", "latency_p50_s", "rate_per_s"), sort="-rate_per_s")
    found = find([tmp_path], asked)
    assert [[column.key for column in table.columns][:2] for table in found.tables()] == [
        ["rung", "rate_per_s"], ["rung", "rate_per_s"], ["rung", "latency_p50_s"],
    ]  # fmt: skip
    assert [table.lines[0][0] for table in found.tables()] == ["student", "student", "teacher"]
    assert rendered(found, "csv").splitlines()[0] == "rung,latency_p50_s,flags,error"
    alone = find([tmp_path], Asked(columns=("latency_p50_s",))).tables()
    assert [next(column.key for column in table.columns) for table in alone] == ["latency_p50_s"]
    with pytest.raises(UserError, match="--columns: no column 'rate'"):
        find([tmp_path], Asked(columns=("rate",)))
