"""How often a gate is wrong, by simulation, and its statistics against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench import stats
from kdbench.report.gate import deciding
from kdbench.report.gate.deciding import Change, decide, decided, looks_of, next_look

CELLS, BOUND = 24, math.log(1.05)


def gate(generator, slower, spread=0.03, most=41):
    """The outcomes of cells that are truly `slower`, in logarithms, after how many rounds: till all are decided."""
    logs = generator.normal(np.asarray(slower)[:, None], spread, (len(slower), most))
    rounds, going = 0, True
    while going:
        rounds = min(next_look(rounds), most)
        changes = [deciding.paired(own[:rounds], np.zeros(rounds), looks_of(rounds)) for own in logs]
        going = rounds < most and not all(decided(change, BOUND, len(slower)) for change in changes)
    return decide(changes, [BOUND] * len(slower)), rounds


def gates(slower, count, **options):
    generator = np.random.default_rng(0)
    return [gate(generator, slower, **options) for _ in range(count)]


def share(outcomes):
    return sum(outcomes) / len(outcomes)


def test_a_gate_over_24_equal_cells_passes():
    found = gates(np.zeros(CELLS), 80)
    assert share(["beyond" in outcomes for outcomes, _ in found]) <= 0.05
    assert share([set(outcomes) == {"within"} for outcomes, _ in found]) >= 0.95
    assert np.median([rounds for _, rounds in found]) <= 18


@pytest.mark.parametrize("cells", [1, CELLS])
def test_cells_that_lie_at_the_bound_fail_by_chance_in_a_few_gates_however_often_one_looks(cells):
    found = gates(np.full(cells, BOUND), max(60, 1000 // cells))
    assert share(["beyond" in outcomes for outcomes, _ in found]) <= 0.035  # 2.5 %, and what so few gates may add


def test_a_gate_passes_what_is_just_too_slow_as_within_its_bound_in_a_few_cases():
    slower = np.zeros(CELLS)
    slower[7] = BOUND + 1e-6
    found = gates(slower, 80)
    assert share([set(outcomes) == {"within"} for outcomes, _ in found]) <= 0.05


def test_one_cell_of_24_that_is_10_percent_slower_is_caught():
    slower = np.zeros(CELLS)
    slower[3] = math.log(1.10)
    found = gates(slower, 60)
    assert share([outcomes[3] == "beyond" for outcomes, _ in found]) >= 0.95
    assert share(["beyond" in outcomes for outcomes, _ in gates(np.full(CELLS, math.log(1.10)), 20)]) == 1


def test_who_looked_as_often_without_sharing_the_error_would_be_wrong():
    """That the simulation can tell: the same looks, each at the whole error."""
    logs = np.random.default_rng(0).normal(BOUND, 0.03, (300, 140))
    looks = [5, 8, 12, 18, 27, 41, 62, 93, 140]
    wrong = [
        any(deciding.paired(own[:n], np.zeros(n)).p_within(BOUND) <= deciding.ERROR for n in looks) for own in logs
    ]
    assert share(wrong) > 0.06


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.015), (0.05, 0.045), (0.005, 0.0)])
def test_a_drop_that_is_as_large_as_the_bound_fails_by_chance_in_a_few_gates(lost, won):
    n = 2000
    counts = np.random.default_rng(1).multinomial(n, [lost, won, 1 - lost - won], 2000)
    beyond = [deciding.accuracy_drop(a, b, n).p_within(lost - won) <= deciding.ERROR for a, b, _ in counts]
    assert share(beyond) <= 0.035


@pytest.mark.parametrize(("before", "now"), [(0.95, 0.945), (0.99, 0.98), (0.6, 0.55)])
def test_so_does_one_on_other_samples(before, now):
    generator, n, m = np.random.default_rng(2), 800, 1200
    drawn = zip(generator.binomial(n, before, 2000), generator.binomial(m, now, 2000), strict=True)
    beyond = [deciding.accuracy_drop_apart(a, n, b, m).p_within(before - now) <= deciding.ERROR for a, b in drawn]
    assert share(beyond) <= 0.035


def test_accuracies_on_the_same_samples_have_the_interval_of_the_tables():
    ours, theirs = np.array([True] * 90 + [False] * 10), np.array([True] * 85 + [False] * 5 + [True] * 10)
    expected = stats.accuracy_difference(ours, theirs)
    change = deciding.accuracy_drop(10, 5, 100)
    low, high = change.limits()
    assert (-change.value, -high, -low) == pytest.approx((expected.value, expected.low, expected.high))


def test_latencies_of_two_files_are_compared_by_welchs_test():
    new, old = [1.2, 1.5, 1.1, 1.4], [1.0, 1.1, 0.9]
    change = deciding.unpaired(new, old)
    found = scipy_stats.ttest_ind(new, old, equal_var=False, alternative="greater")
    assert change.p_within(0.0) == pytest.approx(found.pvalue)
    assert change.limits() == pytest.approx(scipy_stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95))
    assert deciding.unpaired([1.0], old) is deciding.paired([1.0], [2.0]) is None


def test_looks_share_the_error():
    looks, rounds = [], 0
    while len(looks) < 40:
        rounds = next_look(rounds)
        looks.append(rounds)
    assert looks[:7] == [5, 8, 12, 18, 27, 41, 62]
    assert [looks_of(rounds) for rounds in looks[:3]] == [2, 6, 12]
    assert looks_of(3) == 2  # whose budget was spent first
    assert looks_of(10) == 12  # between two looks counts as the next one
    assert sum(1 / looks_of(rounds) for rounds in looks) <= 1
    assert next_look(7, first=7) == 11


def test_outcomes_are_told_by_the_whole_interval():
    known = [Change(0.01, 0.01), Change(0.20, 0.01), Change(0.05, 0.01), None]
    assert decide(known, [0.05] * 4) == ["within", "beyond", "can't tell", "can't tell"]
    # By itself it would be beyond, but one of 24 comes out so by chance.
    alone = Change(0.074, 0.01)
    assert decide([alone], [0.05]) == ["beyond"]
    assert decide([alone, *[Change(0.0, 0.01)] * 23], [0.05] * 24)[0] == "can't tell"
    assert decide([Change(0.0, 0.0), Change(0.1, 0.0)], [0.05, 0.05]) == ["within", "beyond"]


def test_as_many_rounds_as_are_asked_for_decide_about_half_of_the_time():
    """Which is what the estimate at hand can promise: it may lie to either side of the truth."""
    seen = Change(0.03, 0.02, 4, 5, looks_of(5))

    def at(n):
        return Change(0.03, 0.02 * (5 / n) ** 0.5, n - 1, n, looks_of(n))

    needed = deciding.enough_for(at, seen.n, BOUND, 1, deciding.MOST_ROUNDS)
    assert not decided(seen, BOUND, 1)
    assert decided(at(needed), BOUND, 1)
    assert not decided(at(int(needed / 1.2)), BOUND, 1)
    found = [gate(np.random.default_rng(seed), [0.03], 0.02 * 5**0.5, needed)[0] for seed in range(200)]
    assert 0.3 <= share([outcome == ["within"] for outcome in found]) <= 0.8
    assert deciding.enough_for(lambda n: Change(BOUND, 0.1 / n**0.5, n - 1, n), 5, BOUND, 1, 1000) is None


def test_samples_without_labels_bound_the_drop_by_those_that_are_answered_otherwise():
    none, some = deciding.disagreement(0, 1000), deciding.disagreement(40, 1000)
    assert none.limits()[1] == pytest.approx(1 - 0.025 ** (1 / 1000))  # nothing seen: the root of the error
    assert some.limits()[1] == pytest.approx(scipy_stats.binomtest(40, 1000).proportion_ci().high)
    assert decide([none, some], [0.005, 0.005]) == ["within", "can't tell"]
    assert deciding.disagreement(7, 7).limits()[1] == pytest.approx(1.0)
