"""Statistics against values computed by hand, by simulation, and by the definition."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench import stats


def test_percentile_is_withheld_below_its_smallest_sample_count():
    assert stats.percentile(np.arange(10), 50.0) is None
    assert stats.percentile(np.arange(11), 50.0) == 5.0
    assert stats.percentile(np.arange(661), 99.0) is None
    assert stats.percentile(np.arange(662), 99.0) == pytest.approx(0.99 * 661)


def test_speedup_by_hand():
    # log ratios: log 2, log 2, log 8 → mean (5/3) log 2; deviation (2/√3) log 2; t(0.975, 2) = 4.302653
    ratio = stats.speedup([2.0, 4.0, 8.0], [1.0, 2.0, 1.0])
    half = 4.302653 * (2 / math.sqrt(3)) * math.log(2) / math.sqrt(3)
    assert ratio.value == pytest.approx(2 ** (5 / 3))
    assert ratio.low == pytest.approx(math.exp(5 / 3 * math.log(2) - half), rel=1e-6)
    assert ratio.high == pytest.approx(math.exp(5 / 3 * math.log(2) + half), rel=1e-6)
    assert stats.no_difference(ratio)


def test_speedup_needs_two_processes():
    assert stats.speedup([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="pairs"):
        stats.speedup([1.0, 2.0], [1.0])


def test_speedup_interval_covers_the_true_ratio_in_95_of_100_simulated_runs():
    generator = np.random.default_rng(0)
    runs, true_ratio = 2000, 1.1
    covered = 0
    for _ in range(runs):
        # Effects that differ from process to process, and a drift that both arms of a round share.
        drift = generator.normal(0, 0.2, 5)
        slow = true_ratio * np.exp(drift + generator.normal(0, 0.05, 5))
        fast = np.exp(drift + generator.normal(0, 0.05, 5))
        ratio = stats.speedup(slow, fast)
        covered += ratio.low <= true_ratio <= ratio.high
    assert 0.93 <= covered / runs <= 0.97


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)), min_size=2, max_size=8))
def test_swapping_the_arms_inverts_the_ratio(pairs):
    slow, fast = zip(*pairs, strict=True)
    there, back = stats.speedup(slow, fast), stats.speedup(fast, slow)
    assert there.value == pytest.approx(1 / back.value, rel=1e-6)
    assert there.low == pytest.approx(1 / back.high, rel=1e-6)
    assert there.low <= there.value <= there.high


def test_accuracy_difference_is_the_bootstraps_where_there_are_many_disagreements():
    generator = np.random.default_rng(3)
    ours, theirs = generator.random(500) < 0.9, generator.random(500) < 0.8
    found = stats.accuracy_difference(ours, theirs)
    differences = ours.astype(int) - theirs.astype(int)
    resampled = differences[generator.integers(0, 500, (20_000, 500))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert found.value == pytest.approx(differences.mean())
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


@pytest.mark.parametrize(("won", "lost"), [(0.004, 0.0), (0.001, 0.003), (0.001, 0.0), (0.01, 0.01), (0.05, 0.02)])
def test_accuracy_interval_covers_the_true_difference(won, lost):
    generator = np.random.default_rng(1)
    n, runs = 450, 1000
    covered = 0
    for counts in generator.multinomial(n, [won, lost, 1 - won - lost], runs):
        ours = np.repeat([True, False, True], counts)
        theirs = np.repeat([False, True, True], counts)
        found = stats.accuracy_difference(ours, theirs)
        covered += found.low <= won - lost <= found.high
    assert covered / runs >= 0.94


def test_accuracy_difference_of_equal_answers_is_zero_but_not_certain():
    same = np.array([True, False] * 225)
    found = stats.accuracy_difference(same, same)
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert 0.005 < found.high < 0.008
    with pytest.raises(ValueError, match="same samples"):
        stats.accuracy_difference(same, same[:2])


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 0), (5, 1), (2, 2), (10, 4)])
def test_mcnemar_by_counting_all_outcomes(won, lost):
    n = won + lost
    ours = np.array([True] * won + [False] * lost + [True] * 4, dtype=bool)
    theirs = np.array([False] * won + [True] * lost + [True] * 4, dtype=bool)
    # Two-sided exact test: all coin sequences at most as likely as the one seen.
    likely = [sum(1 for _ in combinations(range(n), k)) for k in range(n + 1)]
    expected = sum(ways for ways in likely if ways <= likely[won]) / 2**n
    assert stats.mcnemar(ours, theirs) == pytest.approx(expected)


def test_process_medians_by_round():
    latencies, rounds = np.array([1.0, 2.0, 9.0, 5.0]), np.array([0, 0, 0, 3])
    assert stats.process_medians(latencies, rounds) == {0: 2.0, 3: 5.0}


# --- F1 ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first example waits for scikit-learn
@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4), min_size=1))
def test_f1_is_scikit_learns(pairs):
    from sklearn.metrics import f1_score

    predicted, labels = np.array(pairs, dtype=np.int64).transpose(2, 0, 1)
    micro, macro = stats.f1(predicted, labels)
    assert micro == pytest.approx(f1_score(labels, predicted, average="micro", zero_division=0))
    assert macro == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))


def test_f1_by_hand():
    # Label 0: one right, one missed; label 1: one right, one too many; label 2 never occurs and is never predicted.
    labels, predicted = np.array([[1, 0, 0], [1, 1, 0]]), np.array([[1, 1, 0], [0, 1, 0]])
    micro, macro = stats.f1(predicted, labels)
    assert micro == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert macro == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def answers(generator, n, flipped, labels=14):
    """Labels, a baseline that errs in 15 % of them, and a candidate that differs from it in a share `flipped`.

    In a third of the samples both err, and differ, twice as often: the labels of a sample are not independent.
    """
    hard = np.where(generator.random((n, 1)) < 1 / 3, 2.0, 1.0)
    truth = generator.random((n, labels)) < np.linspace(0.05, 0.7, labels)
    baseline = truth ^ (generator.random((n, labels)) < 0.15 * hard)
    return truth, baseline, baseline ^ (generator.random((n, labels)) < flipped * hard)


@pytest.mark.parametrize(("n", "flipped"), [(400, 0.1), (400, 0.02), (100, 0.01), (100, 0.001)])
def test_f1_interval_covers_the_true_difference(n, flipped):
    generator = np.random.default_rng(1)
    truth, baseline, candidate = answers(generator, 200_000, flipped)
    true = stats.f1(candidate, truth)[0] - stats.f1(baseline, truth)[0]
    runs, covered = 100, 0
    for _ in range(runs):
        truth, baseline, candidate = answers(generator, n, flipped)
        found = stats.f1_difference(candidate, baseline, truth)
        assert found.value == pytest.approx(stats.f1(candidate, truth)[0] - stats.f1(baseline, truth)[0])
        covered += found.low <= true <= found.high
    assert covered / runs >= 0.9


def test_f1_difference_of_equal_answers_is_zero_but_not_certain():
    truth, same, _ = answers(np.random.default_rng(0), 400, 0.0)
    found = stats.f1_difference(same, same, truth)
    assert found == stats.f1_difference(same, same, truth)
    assert found.value == 0
    assert found.low < 0 < found.high < 0.005
    with pytest.raises(ValueError, match="same samples"):
        stats.f1_difference(same, same[:2], truth)


# --- rounds, warm-up, outliers ----------------------------------------------------------------------------------------


def test_an_interval_is_narrow_enough_on_its_wider_side():
    slow, fast = [1.0, 1.02, 1.0, 1.02, 1.01], [1.0] * 5
    ratio = stats.speedup(slow, fast, stats.STOPPED_LEVEL)
    reach = ratio.high / ratio.value - 1
    assert stats.enough(slow, fast, reach * 1.001)
    assert not stats.enough(slow, fast, reach * 0.999)
    assert not stats.enough(slow[:1], fast[:1], 0.5)


def test_comparisons_that_end_when_they_are_narrow_keep_their_error_rate_and_coverage():
    from benchmarks.simulations import scenarios, simulated

    generator = np.random.default_rng(5)
    for ratio in (1.0, 1.1):
        found = [
            simulated(generator, ratio, spread, disturbance, heavy)
            for _ in range(25)
            for _, spread, disturbance, heavy in scenarios()
        ]
        held = np.mean([interval.low <= ratio <= interval.high for interval, _ in found])
        assert 0.93 <= held <= 0.97
        assert {5, 40} <= {
            rounds for _, rounds in found
        }  # some end as early as they may, some at the end of the budget


@pytest.mark.parametrize("rounds", [3, 5, 12])
def test_the_smallest_difference_is_found_nine_times_in_ten(rounds):
    generator = np.random.default_rng(2)
    spread, runs = 0.03, 2000
    one = np.exp(np.linspace(-1, 1, rounds) * spread / np.linspace(-1, 1, rounds).std(ddof=1))
    share = stats.smallest_difference(np.ones(rounds), one)
    found = 0
    for difference in generator.normal(np.log1p(share), spread, (runs, rounds)):
        ratio = stats.speedup(np.ones(rounds), np.exp(difference))
        found += ratio.high < 1
    assert found / runs == pytest.approx(stats.POWER, abs=0.025)
    assert stats.smallest_difference([1.0, 1.0], [1.0, 2.0]) is None


@given(st.integers(3, 30), st.floats(0.001, 0.2))
def test_more_rounds_find_less(rounds, spread):
    def smallest(n):
        return stats.smallest_difference(np.ones(2 * n), np.exp(np.tile([spread, -spread], n)))

    assert smallest(rounds + 1) < smallest(rounds)


def test_outliers_are_told_by_their_own_process():
    generator = np.random.default_rng(0)
    quick, slow = generator.normal(1e-3, 1e-5, 200), generator.normal(3e-3, 1e-5, 200)
    rounds = np.repeat([0, 1], 200)
    found = stats.outliers(np.concatenate([quick, slow]), rounds)
    assert (found.count, found.runs, found.time) == (0, 400, 0)
    slow[7] = 9e-3
    found = stats.outliers(np.concatenate([quick, slow]), rounds)
    assert (found.count, found.slowest_s) == (1, 9e-3)
    assert found.time == pytest.approx(9e-3 / (quick.sum() + slow.sum()))


def test_the_grain_of_the_clock_makes_no_outliers():
    latencies = np.full(1000, 5e-6)
    latencies[::10] += 1e-6
    assert stats.outliers(latencies, np.zeros(1000)).count == 0
    latencies[0] += 2e-6
    assert stats.outliers(latencies, np.zeros(1000)).count == 1


@given(st.integers(6, 200), st.floats(0.5, 0.999))
def test_runs_that_keep_getting_faster_are_cold(n, end):
    falling = np.geomspace(1.0, end, n)
    third = n // 3
    gain = 1 - np.median(falling[-third:]) / np.median(falling[-2 * third : -third])
    assert stats.warm(falling) == (gain <= stats.WARMING + 1e-9) or abs(gain - stats.WARMING) < 1e-6
    assert stats.warm(falling[::-1])  # slower is not colder


def test_runs_are_warm_once_the_slow_ones_are_behind():
    generator = np.random.default_rng(0)
    steady = 1e-3 * np.exp(generator.normal(0, 0.05, 60))
    assert stats.warm(steady)
    assert stats.warm(np.concatenate([steady[:20] * 3, steady[20:]]))
    assert not stats.warm(np.concatenate([steady[:40] * 3, steady[40:]]))
    assert stats.warm(steady[:5]) is None


def test_noise_alone_is_seldom_called_cold():
    generator = np.random.default_rng(1)
    cold = sum(not stats.warm(np.exp(generator.normal(0, 0.2, 45))) for _ in range(500))
    assert cold / 500 <= 0.08


def test_trends_by_hand():
    rising = stats.trend([1.0, 2.0, 3.0, 4.0, 9.0])
    assert rising.change == pytest.approx(4 * 1.0, rel=0.3)
    assert rising.p == pytest.approx(2 / math.factorial(5))
    assert stats.trend([1.0, 3.0, 2.0, 3.1, 0.9]).p > 0.5


@given(n=st.integers(1, 900), q=st.sampled_from([50.0, 90.0, 99.0]), seed=st.integers(0, 99))
def test_early_stopping_allows_as_many_above_as_chance_hardly_gives(n, q, seed):
    """By the definition: t is the largest number with P(at most t values above) ≤ 1 %, were q the percentile."""
    values = np.random.default_rng(seed).permutation(n).astype(float)
    p, allowed = 1 - q / 100, -1
    term = chance = (1 - p) ** n
    while chance <= 0.01:
        allowed += 1
        term *= (n - allowed) / (allowed + 1) * p / (1 - p)
        chance += term
    assert stats.smallest_bound(values, q) == (None if allowed < 0 else n - 1 - allowed)
    assert (allowed < 1) == (n < stats.SMALLEST_N[q])
