"""Scenarios: the search on simulated servers, and loadgen on fake and real workers."""

import os
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from kdbench import stats
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.benchmark.cells import Cell, Subject
from kdbench.benchmark.loads import Library, Load, library, plan_loads, why_no_loadgen
from kdbench.benchmark.peak import COARSE, FINE, highest_rate
from kdbench.benchmark.scenarios import FEWEST, Loads
from kdbench.data.pack import load_pack
from kdbench.errors import UserError
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.measuring import measured
from kdbench.records import Bench, TensorSpec
from kdbench.worker import scenarios
from tests.conftest import save_mlp
from tests.test_schedule import cells_of, settings, subject

MISSING = why_no_loadgen(pick_backend("fake"))
needs_loadgen = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

SCENARIOS = ("single_stream", "multi_stream", "server", "offline")

# --- the search -------------------------------------------------------------------------------------------------------


def searched(truth, start, lowest=1e-3, more=True, factor=2.0):
    tried = []

    def passes(rate, step):
        tried.append((rate, step))
        return rate <= truth

    return highest_rate(passes, start, lowest, lambda: more, factor), tried


@given(truth=st.floats(1, 1e5), off=st.floats(0.02, 50), more=st.booleans(), factor=st.sampled_from([1.2, 2.0]))
def test_a_search_ends_just_below_the_highest_rate(truth, off, more, factor):
    found, tried = searched(truth, truth * off, more=more, factor=factor)
    assert truth / (1 + (FINE if more else COARSE)) <= found * (1 + 1e-9) <= truth * (1 + 1e-9)
    assert tried[-1] == (found, "confirm")
    assert len(tried) <= 40


def test_a_search_ends_at_the_lowest_rate():
    found, tried = searched(truth=3.0, start=100.0, lowest=5.0)
    assert found is None
    assert tried[-1] == (5.0, "search")


def test_a_rate_that_passed_by_chance_is_lowered_until_it_passes_again():
    found = highest_rate(lambda rate, step: rate <= (100 if step == "search" else 80), 64, 1, lambda: True)
    assert 80 / (1 + FINE) <= found <= 80
    assert highest_rate(lambda rate, step: step == "search" and rate <= 100, 64, 10, lambda: True) is None


def test_a_search_on_a_simulated_queue_keeps_the_bound():
    """One server that takes 1 ms a query, Poisson arrivals: the rate that is found is close to where p99 is 10 ms."""
    draws = np.random.default_rng(3)

    def latencies(rate, queries):
        due = np.cumsum(draws.exponential(1 / rate, queries))
        free, found = 0.0, np.empty(queries)
        for place, moment in enumerate(due):
            free = max(free, moment) + 1e-3
            found[place] = free - moment
        return found

    def passes(rate, step):
        return stats.smallest_bound(latencies(rate, 2648), 99.0) <= 10e-3

    found = highest_rate(passes, 100.0, 1.0, lambda: True)
    assert np.percentile(latencies(found, 100_000), 99) <= 10e-3
    assert np.percentile(latencies(found * 1.3, 100_000), 99) > 10e-3


# --- the plan ---------------------------------------------------------------------------------------------------------


@needs_loadgen
def test_a_single_stream_is_measured_once_whatever_the_batches_and_sessions(tmp_path):
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")], (8, 16))
    loads = plan_loads(cells, Bench(backends=("fake",), batches=(8, 16), scenarios=SCENARIOS, sessions=(1, 2)))
    planned = [(one.scenario, one.sessions, one.cell.batch) for one in loads if one.cell.subject == cells[0].subject]
    assert planned == [
        ("single_stream", 1, 1),
        *((name, sessions, batch) for name in SCENARIOS[1:] for sessions in (1, 2) for batch in (8, 16)),
    ]  # fmt: skip
    assert {load.bound_s for load in loads if load.scenario == "server"} == {0.01}
    with pytest.raises(UserError, match=r"bench\.sessions: 2, 2: each one once"):
        plan_loads(cells, Bench(scenarios=("server",), sessions=(2, 2)))


def test_a_worker_without_loadgen_says_what_to_install(tmp_path, monkeypatch, typed):
    """In the worker's interpreter, which may be another one than that of kdbench."""
    (tmp_path / "mlperf_loadgen.py").write_text("raise ImportError('blocked')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    save_mlp(tmp_path / "m.onnx")
    why_no_loadgen.cache_clear()
    try:
        ended = typed("bench", "m.onnx", "--scenario", "offline", "--out", "o")
    finally:
        why_no_loadgen.cache_clear()
    assert ended.status == 2
    said = ended.err
    assert "no scenario can be measured: loadgen is not in the environment of" in said
    assert "pip install mlcommons-loadgen" in said
    assert said.count("\n") == 1


# --- loadgen on workers -----------------------------------------------------------------------------------------------


def samples(cell):
    return Library({"x": np.zeros((16, 4), np.float32)}, (), None)


def loaded(loads, libraries=samples, **changes):
    measurer = Loads(loads, settings(**({"processes": 1} | changes)), libraries, patience_s=20.0)
    assert list(measurer.rounds()) == list(range(measurer.settings.processes))
    return measurer.records()


def load(tmp_path, scenario, batch=1, sessions=1, bound_s=0.01, rung="a", **behaviour):
    (cell,) = cells_of([subject(tmp_path, rung, **behaviour)], (batch,))
    return Load(cell, scenario, sessions, bound_s if scenario == "server" else None)


def early_stopping(values, q):
    """MLPerf's estimate of the q-th percentile: with t as `smallest_bound` has it, the t-th largest value."""
    allowed = np.sum(binom.cdf(np.arange(len(values)), len(values), 1 - q / 100) <= 0.01) - 1
    return np.sort(values)[len(values) - allowed]


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_on_a_fake_runtime(scenario, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rungs = (("a", 1e-4),) if scenario == "server" else (("a", 1e-4), ("b", 0.0))
    loads = [load(tmp_path, scenario, bound_s=0.2, rung=rung, latency_s=latency_s) for rung, latency_s in rungs]
    measurements, arrays = loaded(loads, processes=2 if scenario == "single_stream" else 1)
    for m in measurements:
        assert m.error is None
        counting = [test for test in m.tests if test.step != "search"]
        assert {test.round for test in counting} == {process.round for process in m.processes}
        assert all(test.queries >= FEWEST[scenario] for test in counting)
        raw, rounds = arrays[f"scenarios.{m.raw}"], arrays[f"scenario_rounds.{m.raw}"]
        for test in counting:
            if scenario == "server":
                assert not test.valid or stats.smallest_bound(raw[rounds == test.round], 99.0) <= 0.2
            elif scenario == "offline":
                assert test.completed_per_s == pytest.approx(test.queries / raw[rounds == test.round][0], rel=0.01)
            else:
                # The estimate is loadgen's own: to the nanosecond what its rule makes of the raw latencies.
                q = {"single_stream": 90.0, "multi_stream": 99.0}[scenario]
                assert test.valid
                assert len(raw[rounds == test.round]) == test.queries
                assert test.estimate_s == pytest.approx(early_stopping(raw[rounds == test.round], q), rel=1e-6)
    asked = [[test.queries for test in m.tests if test.step == "measure"] for m in measurements]
    assert asked[0] == asked[-1]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}  # loadgen's logs are elsewhere
    assert len(list(tmp_path.iterdir())) == len(rungs)


@needs_loadgen
def test_the_proof_of_a_servers_rate_is_kept(tmp_path):
    (m,), arrays = loaded([load(tmp_path, "server", latency_s=1e-3, bound_s=2.0)])
    assert m.error is None
    *search, last = m.tests
    assert (last.step, last.valid) == ("confirm", True)
    # In 662 queries of 1 ms no latency can get above the bound: that the queue grows is seen all the same.
    assert any(not test.valid and test.rate_per_s > last.rate_per_s for test in search)
    assert last.rate_per_s < 1000 / 0.9
    raw = arrays[f"scenarios.{m.raw}"]
    assert len(raw) == last.queries
    assert np.sum(raw > 2.0) == last.over_bound == 0
    assert stats.smallest_bound(raw, 99.0) <= 2.0


@needs_loadgen
def test_a_bound_that_no_rate_keeps_says_at_which_rate_it_was_missed(tmp_path):
    (m,), _ = loaded([load(tmp_path, "server", latency_s=0.004, bound_s=0.001)], processes=2)
    lowest = min(m.tests, key=lambda test: test.rate_per_s)
    assert m.error.startswith("p99 ≤ 1 ms is not met at any rate that was tried: at the lowest, ")
    assert f"{lowest.rate_per_s:.3g} queries a second, p99 was {1e3 * lowest.percentile_s:.3g} ms" in m.error
    assert {test.round for test in m.tests} == {0}


def made(tmp_path, **changes):
    return {
        "scenario": "offline", "queries": 64, "samples_per_query": 8, "batch": 1, "filled": False, "shared": [],
        "seeds": [1, 2, 3], "folder": str(tmp_path), "trace": True, "rate_per_s": 2000, "bound_s": 5.0,
        "most_waiting": 1000,
    } | changes  # fmt: skip


@needs_loadgen
@pytest.mark.parametrize(("scenario", "batch"), [("offline", 1), ("offline", 8), ("server", 1), ("multi_stream", 8)])
def test_sessions_answer_side_by_side(scenario, batch, tmp_path):
    """Every session waits in its first run for the other: were they served one after the other, none would end."""
    together = threading.Barrier(2)
    seen = {0: [], 1: []}

    def session(number):
        def run(feed):
            if len(seen[number]) == 2:  # after those that warm up
                together.wait(timeout=20)
            seen[number].append(len(feed["x"]))

        return run

    said, _ = scenarios.measure(
        made(tmp_path, scenario=scenario, batch=batch), [session(0), session(1)], {"x": np.zeros((4, 2), np.float32)}
    )
    assert said["queries"] == (1 if scenario == "offline" else 64)
    counted = seen[0][2:] + seen[1][2:]
    assert sum(counted) == 64 * (8 if scenario == "multi_stream" else 1)
    assert set(counted) == {4 if scenario == "multi_stream" else batch}


@needs_loadgen
def test_a_server_runs_what_waits_as_one_batch(tmp_path):
    """While the first query is held back, the others come: they are then run by eights."""
    seen = []

    def run(feed):
        seen.append(len(feed["x"]))
        if len(seen) == 3:
            time.sleep(0.2)

    scenarios.measure(
        made(tmp_path, scenario="server", batch=8, rate_per_s=10_000), [run], {"x": np.zeros((4, 2), np.float32)}
    )
    assert sum(seen[2:]) == 64
    assert max(seen[3:]) == 8


@needs_loadgen
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"fail_load": "no kernel for Conv"}, "no kernel for Conv"),
        ({"fail_at_batch": 2}, "invalid dimensions"),
        ({"crash_at_batch": 2}, "killed by signal 6"),
    ],
)
def test_an_error_costs_its_own_cell_alone(tmp_path, behaviour, reason):
    loads = [
        load(tmp_path, "offline", batch=2, rung="good"),
        load(tmp_path, "offline", batch=2, rung="bad", **behaviour),
    ]
    good, bad = loaded(loads)[0]
    assert good.error is None
    assert reason in bad.error


@needs_loadgen
def test_a_failure_in_the_middle_of_a_run_ends_it(tmp_path):
    """The last batch of the one query is the only one of its size: what fails is then answered, and said."""
    (m,), _ = loaded([load(tmp_path, "multi_stream", batch=5, fail_at_batch=3)])
    assert "invalid dimensions" in m.error
    (m,), _ = loaded([load(tmp_path, "multi_stream", batch=7, sessions=2, fail_at_batch=4)])
    assert "invalid dimensions" in m.error


@needs_loadgen
def test_a_model_that_is_too_slow_for_the_budget_says_how_much_it_takes(tmp_path):
    loads = [
        load(tmp_path, "multi_stream", rung=rung, latency_s=latency_s) for rung, latency_s in (("a", 0.0), ("b", 0.05))
    ]
    fast, slow = loaded(loads, budget_s=1.0)[0]
    assert fast.error is None
    assert fast.spent_s > 0
    # One process of 662 queries, of eight samples and 0.05 s each or a little more, and ten times half of the budget.
    said = re.fullmatch(
        r"p99 takes 662 queries of 8 samples, in each of 1 processes: about \d+ min, and its part of --budget is 1 s: "
        r"raise it to (\d+), or leave multi_stream out",
        slow.error,
    )
    assert int(said[1]) >= 662 * 8 * 0.05 / 10 / 0.5
    assert slow.tests == ()


@needs_loadgen
@pytest.mark.parametrize("batch", ["batch", 3])
def test_real_sessions_with_free_and_fixed_batches(batch, tmp_path):
    path = save_mlp(tmp_path / "m.onnx", batch=batch)
    known = known_artifact(path)
    cell = Cell(Subject(known, path), pick_backend("cpu"), 1, 3)
    (m,), _ = loaded([Load(cell, "multi_stream", 2, None)], lambda _: library(known, None, {}))
    assert m.error is None
    assert m.tests[0].valid


def test_an_input_that_samples_share_is_fed_whole():
    inputs = [
        TensorSpec(name="tokens", dtype="int64", shape=("batch", "seq")),
        TensorSpec(name="positions", dtype="int64", shape=("seq",)),
    ]
    batch = library(SimpleNamespace(inputs=inputs), None, {"seq": 16}).batch(2)
    assert {name: values.shape for name, values in batch.items()} == {"tokens": (2, 16), "positions": (16,)}


@needs_loadgen
def test_a_server_fills_a_fixed_batch_up(tmp_path):
    path = save_mlp(tmp_path / "m.onnx", batch=3)
    known = known_artifact(path)
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path)
        worker.ask("library", library(known, None, {}).arrays, sessions=2)
        asked = made(tmp_path, scenario="server", queries=459, batch=3, filled=True)
        said, arrays = worker.ask("scenario", settings=asked)
    assert said["valid"]
    assert said["queries"] == len(arrays["latencies_s"]) == 459


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_digits_student_under_load(scenario, tiny_run):
    path = tiny_run / "student.onnx"
    known = known_artifact(path)
    packed = library(known, load_pack(tiny_run / "pack.npz"), {})
    cell = Cell(Subject(known, path), pick_backend("cpu"), 1, 1)
    (m,), _ = loaded([Load(cell, scenario, 1, 0.2 if scenario == "server" else None)], lambda _: packed)
    assert m.error is None
    assert m.tests[-1].valid


@needs_loadgen
def test_a_finished_measurement_under_load_is_kept(tmp_path, monkeypatch):
    path = save_mlp(tmp_path / "m.onnx")
    subjects = [Subject(known_artifact(path), path)]

    def again(**options):
        bench = Bench(budget_s=0.1, scenarios=("offline",), **options)
        out = tmp_path / "out"
        report = measured(subjects, "m", bench, None, out, name="m", seed=0, keep=True)
        return report.ladder.scenarios

    first = again()
    assert first[0].processes == 5
    monkeypatch.setattr(Loads, "rounds", lambda *_: pytest.fail("measured again"))
    assert again() == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        again(sessions=(2,))
