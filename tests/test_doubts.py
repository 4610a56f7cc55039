"""What a measurement says against its own numbers: made-up raw values, each with one fault."""

import re

import numpy as np
import pytest

from kdbench import stats
from kdbench.records import BenchSettings, Measurement, Process
from kdbench.report import ladder_tables, text
from kdbench.report.markdown import to_markdown
from kdbench.report.table import ladder
from tests.test_report import cell, result

SLICES, RUNS = 6, 20
SETTINGS = BenchSettings(seed=0, processes=5, precision=0.02, budget_s=30, slice_s=0.1, slice_runs=100)


def measured(rounds=6, processes=()):
    made = [
        cell(rung, raw, processes=processes or tuple(Process(round=r, load_s=0.01, warm=True) for r in range(rounds)))
        for rung, raw in (("teacher", "0"), ("student", "1"))
    ]
    return result(settings=SETTINGS, measurements=tuple(made), evaluations=())


def arrays(speed=2.0, rounds=6, by_round=None, noise=0.001, **facts):
    """Raw values of teacher and student; `by_round` [rounds] is what strikes both, facts are by slice."""
    generator = np.random.default_rng(0)
    made = {}
    for place, latency_s in enumerate((1e-3, 1e-3 / speed)):
        common = np.zeros(rounds) if by_round is None else np.log(by_round)
        logs = common + noise * generator.normal(size=rounds)
        logs = np.repeat(logs, SLICES * RUNS) + 0.01 * generator.normal(size=rounds * SLICES * RUNS)
        made |= {
            f"latencies.{place}": latency_s * np.exp(logs),
            f"rounds.{place}": np.repeat(np.arange(rounds), SLICES * RUNS),
            f"slices.{place}": np.repeat(2 * np.arange(rounds * SLICES) + place, RUNS),
            f"start_s.{place}": 0.2 * np.arange(rounds * SLICES) + 0.1 * place,
            f"wall_s.{place}": np.full(rounds * SLICES, 0.1),
        }
        made |= {f"{name}.{place}": np.asarray(values, dtype=np.float64) for name, values in facts.items()}
    return made


def said(made, raw):
    return "; ".join(ladder(made, raw).rows[1].flags)


N = 6 * SLICES


def test_a_sound_measurement_has_nothing_against_it():
    assert said(measured(), arrays(others_share=np.full(N, 0.01), clock_hz=np.full(N, 3e9))) == ""


def test_older_files_are_shown_as_they_were():
    old = measured().model_copy(update={"settings": SETTINGS.model_copy(update={"precision": None})})
    raw = arrays(speed=1.0, by_round=np.linspace(1, 1.3, 6), others_share=np.full(N, 0.5))
    assert said(old, raw) == said(old, arrays()) == ""
    assert "could have found" not in to_markdown([ladder(old, raw)])


def test_no_difference_says_which_one_would_have_been_found():
    row = ladder(measured(), arrays(speed=1.0)).rows[1]
    assert row.smallest_difference == pytest.approx(0.0025, rel=0.8)
    assert f"no difference: one of {100 * row.smallest_difference:.3g} % would have been found" in "; ".join(row.flags)
    assert "no difference:" not in said(measured(), arrays(speed=1.1))


def test_the_smallest_difference_stands_beside_every_ratio():
    table = ladder(measured(), arrays())
    details = ladder_tables.details_table(table)
    place = details.header.index("could have found")
    assert details.lines[0][place] == "–"
    assert details.lines[1][place] == text.percent(table.rows[1].smallest_difference)
    assert details.lines[1][details.header.index("processes")] == "6"


def test_the_interval_of_rounds_that_end_when_it_is_narrow_is_wider():
    new = ladder(measured(), arrays()).rows[1]
    old = measured().model_copy(update={"settings": SETTINGS.model_copy(update={"precision": None})})
    old = ladder(old, arrays()).rows[1]
    assert new.speedup == old.speedup
    assert new.speedup_low < old.speedup_low < old.speedup_high < new.speedup_high


def test_a_budget_that_was_too_short_is_named():
    assert "known to ±" in said(measured(), arrays(noise=0.05))
    assert "not to the ±2 % asked for: raise --budget" in said(measured(), arrays(noise=0.05))


def test_an_interval_that_is_a_little_too_wide_does_not_read_as_wide_as_asked_for():
    row = ladder(measured(), arrays()).rows[1]
    reach = row.speedup_high / row.speedup - 1
    settings = SETTINGS.model_copy(update={"precision": reach * 0.9999})
    words = ", ".join(ladder(measured().model_copy(update={"settings": settings}), arrays()).rows[1].flags)
    known, asked = re.search(r"known to ±(\S+) %, not to the ±(\S+) %", words).groups()
    assert float(known) > float(asked)


def test_outliers_are_counted_and_kept():
    raw = arrays()
    raw["latencies.1"][::50] = 0.02
    row = ladder(measured(), raw).rows[1]
    count = len(raw["latencies.1"][::50])
    assert f"outliers: {count} of {len(raw['latencies.1'])} runs, the slowest 20 ms; none is dropped" in row.flags
    assert row.throughput_per_s == pytest.approx(4 / raw["latencies.1"].mean())
    assert row.outlier_share == count / len(raw["latencies.1"])
    few = arrays()
    few["latencies.1"][0] = 6e-4
    assert "outliers" not in said(measured(), few)


def test_few_outliers_that_take_much_time_are_named():
    raw = arrays()
    raw["latencies.1"][0] = 1.0
    assert "outliers: 1 of 720 runs, the slowest 1 s" in said(measured(), raw)


def test_processes_that_were_not_warm_are_counted():
    processes = tuple(Process(round=r, load_s=0.01, warm=[True, False, None][r % 3]) for r in range(6))
    assert "still getting faster when timed: 2 of 6 processes" in said(measured(processes=processes), arrays())


@pytest.mark.parametrize(("end", "words"), [(1.1, "got 10.2 % slower"), (0.9, "faster")])
def test_a_drift_of_all_cells_is_the_machines(end, words):
    found = said(measured(), arrays(by_round=np.linspace(1, end, 6)))
    assert "the machine drifted: all cells got" in found
    assert words in found
    assert "drifted" not in said(measured(), arrays(by_round=np.linspace(1, 1.01, 6)))
    assert "drifted" not in said(measured(), arrays(by_round=[1, 1.1, 1, 1.1, 1, 1.1]))


def test_a_drift_of_one_cell_is_not_the_machines():
    raw = arrays()
    raw["latencies.1"] *= np.repeat(np.linspace(1, 1.2, 6), SLICES * RUNS)
    assert "drifted" not in said(measured(), raw)


def test_a_busy_neighbour_is_named():
    assert "a busy neighbour: other processes used 40 % of" in said(measured(), arrays(others_share=np.full(N, 0.4)))
    noisy = np.tile([-0.5, 0.55], N // 2)  # short slices are rough samples: their mean counts
    assert "neighbour" not in said(measured(), arrays(others_share=noisy))
    assert "neighbour" not in said(measured(), arrays(others_share=np.full(N, np.nan)))


def test_a_clock_that_falls_is_throttling():
    found = said(measured(), arrays(clock_hz=np.repeat([3.5e9, 3.0e9, 2.5e9], N // 3)))
    assert "throttled: the CPU's clock fell from 3.50 to 2.50 GHz: let it cool down" in found
    assert "clock" not in said(measured(), arrays(clock_hz=np.linspace(3.5e9, 3.4e9, N)))


def test_a_clock_that_moves_and_latencies_with_it_is_named():
    by_round = np.array([1.0, 1.4, 1.0, 1.4, 1.0, 1.4])
    moving = arrays(by_round=by_round, clock_hz=np.repeat(3e9 / by_round, SLICES))
    assert "the CPU's clock moved between 2.14 and 3.00 GHz, and latencies with it" in said(measured(), moving)
    steady = arrays(clock_hz=np.repeat(3e9 / by_round, SLICES))
    assert "clock" not in said(measured(), steady)


def test_a_quota_that_stopped_rounds_is_named():
    processes = tuple(Process(round=r, load_s=0.01, throttled_s=0.4 * (r % 3 == 1)) for r in range(6))
    found = said(measured(processes=processes), arrays())
    assert "throttled by the container's CPU quota: stopped for 800 ms in 2 of 6 rounds" in found


def test_a_file_with_errors_and_without_raw_values_is_shown():
    failed = Measurement.model_validate(measured().measurements[1].model_dump() | {"raw": None, "error": "crashed"})
    made = measured().model_copy(update={"measurements": (measured().measurements[0], failed)})
    assert [row.error for row in ladder(made, arrays()).rows] == [None, "crashed"]


def test_the_report_says_how_long_rounds_went_on():
    shown = to_markdown([ladder(measured(), arrays())])
    assert "in at least 5 fresh processes" in shown
    assert "no further than 2 % to either side" in shown
    assert stats.STOPPED_LEVEL > stats.LEVEL
