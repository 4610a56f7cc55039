"""The schedule on fake workers: what is interleaved, what an error costs, what an interruption leaves."""

import json

import numpy as np
import pytest

from kdbench.backends import pick_backend
from kdbench.benchmark.cells import Cell, Subject, plan
from kdbench.benchmark.schedule import Schedule
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
    base = {"seed": 0, "processes": 5, "budget_s": 0.05, "slice_s": 0.01, "slice_runs": 3}
    return BenchSettings(**(base | changes))


def feeds(cell):
    return {"x": np.zeros((cell.batch, 4), np.float32)}


def measured(cells, patience_s=20.0, **changes):
    schedule = Schedule(cells, settings(**changes), feeds, patience_s)
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


def test_a_file_that_changes_while_it_is_measured_is_an_error(tmp_path):
    schedule = Schedule(cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")]), settings(), feeds)
    for number in schedule.rounds():
        if number == 1:
            subject(tmp_path, "a", latency_s=0.001)
    errors = [m.error for m in schedule.records()[0]]
    assert "was changed while it was measured" in errors[0]
    assert errors[1] is None
