"""The schedule on fake workers: what is interleaved, what an error costs, what an interruption leaves."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kdbench.backends import pick_backend
from kdbench.benchmark import schedule as scheduling
from kdbench.benchmark.cells import Cell, Subject, inputs, plan
from kdbench.benchmark.schedule import Schedule
from kdbench.data import pack
from kdbench.errors import UserError
from kdbench.records import Artifact, Bench, BenchSettings, TensorSpec


def subject(tmp_path, rung, batch="batch", **behaviour):
    path = tmp_path / f"{rung}.json"
    path.write_text(json.dumps(behaviour))
    artifact = Artifact(
        rung=rung,
        file=path.name,
        sha256=rung,
        size_bytes=1,
        parameters=1,
        macs=1,
        precision="fp32",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(batch, 4)),),
        outputs=(),
        opset=17,
        ir_version=8,
        operators={},
    )
    return Subject(artifact, path)


def settings(**changes):
    base = {"seed": 0, "processes": 5, "budget_s": 0.05, "slice_s": 1.0, "slice_runs": 3}
    return BenchSettings(**(base | changes))


def feeds(cell):
    return {"x": np.zeros((cell.batch, 4), np.float32)}


def measured(cells, patience_s=20.0, baseline=None, **changes):
    schedule = Schedule(cells, settings(**changes), feeds, patience_s, baseline)
    rounds = list(schedule.rounds())
    return rounds, *schedule.records()


def cells_of(subjects, batches=(1,)):
    return [Cell(s, pick_backend("fake"), 1, batch) for batch in batches for s in subjects]


def test_every_cell_gets_five_fresh_processes_and_all_its_raw_values(tmp_path):
    rounds, measurements, arrays = measured(cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")], (1, 2)))
    assert rounds == [0, 1, 2, 3, 4]
    for m in measurements:
        assert m.error is None
        assert [process.round for process in m.processes] == [0, 1, 2, 3, 4]
        assert all(process.load_s > 0 for process in m.processes)
        # The two batches take turns in going first: only then are first run and memory their own.
        first = [process for process in m.processes if process.first_run_s is not None]
        assert len(first) == {1: 3, 2: 2}[m.batch]
        assert all(process.first_run_s > 0 and process.peak_memory_bytes > 1e6 for process in first)
        assert set(arrays[f"rounds.{m.raw}"]) == {0, 1, 2, 3, 4}
        assert len(arrays[f"latencies.{m.raw}"]) == len(arrays[f"slices.{m.raw}"]) >= 15


def test_slices_are_capped(tmp_path):
    _, (m,), arrays = measured(cells_of([subject(tmp_path, "a", latency_s=0.0)]), slice_runs=4)
    assert np.unique(arrays[f"slices.{m.raw}"], return_counts=True)[1].max() == 4


def test_cells_take_turns_in_random_order(tmp_path):
    rungs = ["a", "b", "c"]
    subjects = [subject(tmp_path, rung) for rung in rungs]
    _, measurements, arrays = measured(cells_of(subjects), budget_s=4.0)
    turns = {}
    for m in measurements:
        for number in np.unique(arrays[f"slices.{m.raw}"]):
            turns[int(number)] = m.rung
    order = [turns[number] for number in sorted(turns)]
    assert len(order) % 3 == 0
    turns_taken = [order[i : i + 3] for i in range(0, len(order), 3)]
    # Each turn holds every cell once; the order changes from turn to turn.
    assert all(sorted(turn) == rungs for turn in turns_taken)
    assert len({tuple(turn) for turn in turns_taken}) > 2


def test_the_order_depends_on_the_seed_alone(tmp_path):
    subjects = [subject(tmp_path, rung) for rung in "abcd"]

    def order(seed):
        _, measurements, arrays = measured(cells_of(subjects), seed=seed, processes=1, budget_s=1e-6)
        return [int(arrays[f"slices.{m.raw}"][0]) for m in measurements]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"fail_load": "no kernel for Conv"}, "no kernel for Conv"),
        ({"crash_at_batch": 2}, "killed by signal 6"),
        ({"fail_at_batch": 2}, "invalid dimensions"),
        ({"hang_at_batch": 2}, "hung: no answer"),
    ],
)
def test_an_error_costs_its_own_cells_alone(tmp_path, behaviour, reason):
    good, bad = subject(tmp_path, "good"), subject(tmp_path, "bad", **behaviour)
    _, measurements, arrays = measured(cells_of([good, bad], (1, 2)), patience_s=3.0)
    found = {(m.rung, m.batch): m for m in measurements}
    assert reason in found["bad", 2].error
    assert found["good", 1].error is None
    assert found["good", 2].error is None
    if "fail_load" not in behaviour:
        m = found["bad", 1]
        assert m.error is None
        assert len(np.unique(arrays[f"rounds.{m.raw}"])) >= 4  # a crash takes the round's process with it, no more


def test_what_was_measured_before_an_interruption_is_there(tmp_path):
    schedule = Schedule(cells_of([subject(tmp_path, "a")]), settings(), feeds)
    for number in schedule.rounds():
        if number == 1:
            break
    (m,), arrays = schedule.records()
    assert set(arrays[f"rounds.{m.raw}"]) == {0, 1}


def test_a_fixed_batch_asked_for_another_one_is_an_error_cell(tmp_path):
    cells = plan(
        [subject(tmp_path, "free"), subject(tmp_path, "fixed", batch=1)], Bench(backends=("fake",), batches=(1, 8))
    )
    errors = {(cell.subject.artifact.rung, cell.batch): cell.error for cell in cells}
    assert errors["free", 1] is errors["free", 8] is errors["fixed", 1] is None
    assert "fixed has a fixed batch of 1: use --batch 1" in errors["fixed", 8]


def test_a_plan_without_a_cell_that_can_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no cell can be measured: fixed has a fixed batch of 1"):
        plan([subject(tmp_path, "fixed", batch=1)], Bench(backends=("fake",), batches=(8,)))
    with pytest.raises(UserError, match="unknown backend 'fkae'"):
        plan([subject(tmp_path, "free")], Bench(backends=("fkae",)))
    with pytest.raises(UserError, match="each one once"):
        plan([subject(tmp_path, "free")], Bench(backends=("fake", "fake")))


@pytest.mark.parametrize("batch", [2, 8])
def test_a_cell_is_fed_the_first_samples_and_no_more_are_prepared(tmp_path, monkeypatch, batch):
    prepared = []
    monkeypatch.setattr(pack.preprocess, "apply", lambda samples, *_: prepared.append(len(samples)) or samples / 2)
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    samples = pack.EvalPack("x.npz", x, np.arange(5), None, (), None)
    (cell,) = cells_of([subject(tmp_path, "a")], (batch,))
    assert inputs(cell, samples)["x"].tolist() == (x / 2)[np.arange(batch) % 5].tolist()
    assert prepared == [min(batch, 5)]


def test_a_file_that_changes_while_it_is_measured_is_an_error(tmp_path):
    schedule = Schedule(cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")]), settings(), feeds)
    for number in schedule.rounds():
        if number == 1:
            subject(tmp_path, "a", latency_s=0.001)
    errors = [m.error for m in schedule.records()[0]]
    assert "was changed while it was measured" in errors[0]
    assert errors[1] is None


# --- on simulated workers and a simulated clock -----------------------------------------------------------------------


@pytest.fixture
def simulated(monkeypatch):
    """Processes that take no time: a clock that they push on, and how they behave.

    `latency_s(rung, threads, process, run)` tells each run's, where `process` counts from 0 for each rung.
    """
    world = SimpleNamespace(now_s=0.0, started={}, noise=0.02)
    world.latency_s = lambda rung, threads, process, run: 0.001
    generator = np.random.default_rng(1)

    class Simulated:
        start_s = 0.08

        def __init__(self, backend, threads, patience_s):
            self.backend, self.threads, self.runs = backend, threads, 0

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            world.now_s += 0.01

        def hello(self):
            world.now_s += 0.08
            return {}

        def memory(self):
            return {}

        def load(self, model, first):
            self.rung = model.stem
            self.process = world.started[self.rung, self.threads] = world.started.get((self.rung, self.threads), -1) + 1
            world.now_s += 0.02
            return 0.02

        def feed(self, slot, inputs):
            return self.run(), 10_000_000

        def run(self):
            latency_s = world.latency_s(self.rung, self.threads, self.process, self.runs)
            latency_s *= 1 + world.noise * (generator.random() - 0.5)
            self.runs += 1
            world.now_s += latency_s
            return latency_s

        def slice(self, slot, seconds, runs, slower):
            self.run()
            latencies, end_s = [], world.now_s + seconds
            while len(latencies) < runs and world.now_s < end_s:
                latencies.append(self.run())
            return np.asarray(latencies, np.float32), {}

    monkeypatch.setattr(scheduling, "Worker", Simulated)
    monkeypatch.setattr(scheduling, "time", SimpleNamespace(monotonic=lambda: world.now_s))
    return world


def spread_by(share):
    """Latencies whose logarithm moves from process to process by up to so much."""
    generator = np.random.default_rng(3)
    effects = {key: share * generator.uniform(-1, 1, 1000) for key in ("a", "b")}
    return lambda rung, threads, process, run: 0.001 * float(np.exp(effects[rung][process]))


USUAL = {"slice_s": 0.1, "slice_runs": 100, "budget_s": 30.0, "precision": 0.02}


@pytest.mark.parametrize("baseline", ["a", None])
def test_rounds_end_when_all_is_known_well_enough(tmp_path, simulated, baseline):
    simulated.latency_s = spread_by(0.005)
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")])
    rounds, _, _ = measured(cells, baseline=baseline, **USUAL)
    assert len(rounds) == 5
    assert simulated.now_s < 6


@pytest.mark.parametrize("baseline", ["a", None])
def test_else_they_go_on_until_the_budget_is_spent(tmp_path, simulated, baseline):
    simulated.latency_s = spread_by(0.3)
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")])
    rounds, measurements, arrays = measured(cells, baseline=baseline, **USUAL)
    assert len(rounds) > 20
    assert 29 < simulated.now_s < 31
    for m in measurements:
        assert [process.round for process in m.processes] == rounds
        assert set(arrays[f"rounds.{m.raw}"]) == set(rounds)


def timed_share(measurements, arrays, world):
    """Of everything: starts, warm-up, runs that don't count."""
    return sum(float(arrays[f"latencies.{m.raw}"].sum()) for m in measurements) / world.now_s


@pytest.mark.parametrize(("noise", "least", "most"), [(0.02, 0.4, 0.8), (1.0, 0.9, 1.0)])
def test_a_process_is_timed_for_as_long_as_its_median_needs(tmp_path, simulated, noise, least, most):
    simulated.latency_s, simulated.noise = spread_by(0.3), noise
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")])
    _, measurements, arrays = measured(cells, baseline="a", **USUAL | {"budget_s": 60.0, "precision": 0.01})
    assert least < timed_share(measurements, arrays, simulated) < most


def test_a_short_budget_that_ends_early_is_not_spent_on_starting(tmp_path, simulated):
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")])
    _, measurements, arrays = measured(cells, baseline="a", **USUAL)
    assert (1 - timed_share(measurements, arrays, simulated)) * simulated.now_s < 0.1 * USUAL["budget_s"]


def test_a_precise_ratio_takes_the_rounds_that_it_needs(tmp_path, simulated):
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")])
    taken = []
    for share in (0.005, 0.04, 0.08):
        simulated.started.clear()
        simulated.latency_s = spread_by(share)
        taken.append(len(measured(cells, baseline="a", **USUAL | {"budget_s": 600.0})[0]))
    assert taken[0] == 5 < taken[1] < taken[2]
    assert simulated.now_s < 600


def test_a_budget_that_is_too_short_still_gives_five_processes(tmp_path, simulated):
    cells = cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")], (1, 8))
    rounds, measurements, _ = measured(cells, baseline="a", **USUAL | {"budget_s": 0.1, "precision": 1e-6})
    assert len(rounds) == 5
    assert all(len(m.processes) == 5 for m in measurements)


def test_only_groups_that_are_not_known_well_enough_go_on(tmp_path, simulated):
    noisy = spread_by(0.3)
    simulated.latency_s = lambda rung, threads, *rest: noisy(rung, threads, *rest) if threads == 2 else 0.001
    subjects = [subject(tmp_path, "a"), subject(tmp_path, "b")]
    cells = [Cell(s, pick_backend("fake"), threads, 1) for threads in (1, 2) for s in subjects]
    rounds, measurements, _ = measured(cells, baseline="a", **USUAL | {"budget_s": 60.0})
    assert {(m.threads, m.processes[-1].round) for m in measurements} == {(1, 4), (2, rounds[-1])}
    assert rounds[-1] > 4


def test_warm_up_ends_by_a_test_and_is_not_counted(tmp_path, simulated):
    simulated.latency_s = lambda rung, threads, process, run: 0.001 * (1 + 4 * float(np.exp(-run / 40)))
    _, (m,), arrays = measured(cells_of([subject(tmp_path, "a")]), **USUAL)
    for process in m.processes:
        assert process.warm is True
        assert 80 < process.warm_up_runs < 500
    assert arrays["latencies.0"].max() < 0.0013


def test_a_warm_process_is_timed_at_once(tmp_path, simulated):
    _, (m,), _ = measured(cells_of([subject(tmp_path, "a")]), **USUAL)
    assert all(process.warm and process.warm_up_runs < 30 for process in m.processes)


def test_warm_up_ends_with_its_time(tmp_path, simulated):
    simulated.latency_s, simulated.noise = lambda rung, threads, process, run: 0.01 * 0.99**run, 0.0
    _, (m,), arrays = measured(cells_of([subject(tmp_path, "a")]), **USUAL | {"budget_s": 2.0, "slice_runs": 3})
    assert all(process.warm is False for process in m.processes)
    assert len(arrays["latencies.0"]) > 0


def test_few_long_runs_cannot_tell_whether_a_process_is_warm(tmp_path, simulated):
    simulated.latency_s = lambda rung, threads, process, run: 1.0
    _, (m,), _ = measured(cells_of([subject(tmp_path, "a")]), **USUAL)
    assert all(process.warm is None and process.warm_up_runs < 6 for process in m.processes)


# --- on fake workers again --------------------------------------------------------------------------------------------


def test_an_error_of_the_baseline_leaves_the_others_measured(tmp_path):
    cells = cells_of([subject(tmp_path, "a", fail_load="no"), subject(tmp_path, "b", latency_s=0.001)])
    rounds, measurements, _ = measured(cells, baseline="a", precision=0.9)
    assert rounds == [0, 1, 2, 3, 4]
    assert [m.error for m in measurements] == ["no", None]


def test_each_slice_has_its_time_and_what_the_worker_said(tmp_path):
    _, _, arrays = measured(cells_of([subject(tmp_path, "a")]), budget_s=0.5)
    slices = np.unique(arrays["slices.0"]).size
    assert arrays["start_s.0"].shape == arrays["wall_s.0"].shape == arrays["cpu_s.0"].shape == (slices,)
    assert (np.diff(arrays["start_s.0"]) > 0).all()
    assert (arrays["wall_s.0"] >= arrays["cpu_s.0"] - 0.01).all()
    summed = np.bincount(np.unique(arrays["slices.0"], return_inverse=True)[1], arrays["latencies.0"])
    assert (summed <= arrays["wall_s.0"]).all()


def test_what_a_worker_does_not_say_is_left_out(tmp_path, monkeypatch):
    from kdbench.backends.client import Worker

    monkeypatch.setattr(Worker, "slice", lambda *_: (np.ones(3, np.float32), {"wall_s": 1.0, "clock_hz": None}))
    _, _, arrays = measured(cells_of([subject(tmp_path, "a")]))
    assert {name.split(".")[0] for name in arrays} == {"latencies", "rounds", "slices", "start_s", "wall_s"}


def test_a_round_says_for_how_long_the_quota_stopped_it(tmp_path, monkeypatch):
    readings = iter([0.0, 0.25, 0.25, 0.25, 1.0, 3.0])
    monkeypatch.setattr(scheduling, "throttled_s", lambda: next(readings))
    _, (m,), _ = measured(cells_of([subject(tmp_path, "a")]), processes=3)
    assert [process.throttled_s for process in m.processes] == [0.25, 0.0, 2.0]
