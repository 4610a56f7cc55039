"""The search for the layers that stay in float, with made-up costs."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.search.int8_budget import PUT_BACK, Found, smallest_float_set
from kdbench.stats import Interval

Drop = Callable[[frozenset[str]], Interval]


def exactly(value: float) -> Interval:
    return Interval(value, value, value)


def additive(costs: dict[str, float], floor: float = 0.0) -> Drop:
    """Each layer in int8 costs what it costs, whatever the others are in."""
    return lambda left: exactly(floor + sum(cost for layer, cost in costs.items() if layer not in left))


class Searched:
    """A search, and the sets that it has evaluated with what they cost."""

    def __init__(self, order: list[str], drop: Drop, budget: float) -> None:
        self.tried: list[tuple[frozenset[str], float]] = []

        def told(left: frozenset[str]) -> Interval:
            found = drop(left)
            self.tried.append((left, found.value))
            return found

        self.found: Found = smallest_float_set(order, told, budget)


def ordered(costs: dict[str, float]) -> list[str]:
    return sorted(costs, key=lambda layer: -costs[layer])


def bound(tried: list[tuple[frozenset[str], float]]) -> int:
    """The number of evaluations that is promised for a search that ended within the budget."""
    # Layers that could go back were in the prefix that was found: its length is the longest set that met the budget.
    longest = max(len(left) for left, _ in tried)
    return 1 if longest == 0 else 2 + 2 * math.ceil(math.log2(longest)) + min(longest, PUT_BACK)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 10))
def test_what_is_kept_meets_the_budget_with_few_evaluations(values, budget):
    costs = {f"layer{number}": value for number, value in enumerate(values)}
    search = Searched(ordered(costs), additive(costs), budget)
    kept = search.found.kept
    assert search.found.verdict in ("within", "all in float")
    assert kept.drop.value <= budget + 1e-9
    assert (kept.left_in_float, kept.drop.value) in search.tried
    assert len(search.tried) <= bound(search.tried)
    assert len({left for left, _ in search.tried}) == len(search.tried)  # none is evaluated twice


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 10))
def test_of_layers_whose_costs_add_up_the_fewest_stay_in_float(values, budget):
    costs = {f"layer{number}": value for number, value in enumerate(values)}
    found = smallest_float_set(ordered(costs), additive(costs), budget)
    cheapest_first = sorted(values)
    fewest = next(
        count for count in range(len(values) + 1) if sum(cheapest_first[: len(values) - count]) <= budget + 1e-9
    )
    assert len(found.kept.left_in_float) == fewest


@given(
    st.dictionaries(st.sampled_from("abcdefghij"), st.floats(-1, 1), min_size=1),
    st.floats(-1, 1),
    st.floats(0, 1),
    st.randoms(),
)
def test_an_accuracy_that_is_not_monotone_never_makes_it_keep_what_misses_the_budget(costs, floor, budget, random):
    order = sorted(costs)
    random.shuffle(order)
    search = Searched(order, additive(costs, floor), budget)
    found = search.found
    if found.verdict == "even float misses":
        assert found.kept.drop.value == min(value for _, value in search.tried) > budget
    else:
        assert found.kept.drop.value <= budget + 1e-9


def test_one_sensitive_layer_takes_two_evaluations():
    costs = {f"layer{number}": 0.0 for number in range(100)} | {"bad": 0.3}
    search = Searched(ordered(costs), additive(costs), 0.005)
    assert search.found.kept.left_in_float == {"bad"}
    assert len(search.tried) == 2


def test_a_layer_that_need_not_have_been_there_goes_back_to_int8():
    costs = {"innocent": 0.0, "bad": 0.3, "quiet": 0.001}
    found = smallest_float_set(["innocent", "bad", "quiet"], additive(costs), 0.005)
    assert found.kept.left_in_float == {"bad"}


def test_those_that_do_most_of_the_work_go_back_first():
    """Two layers cost as much as the budget has room for one of them: the one with more work gets it."""
    costs = {"small": 0.004, "large": 0.004, "bad": 0.3}
    found = smallest_float_set(
        ["small", "large", "bad"], additive(costs), 0.005, {"small": 1.0, "large": 100.0, "bad": 1.0}
    )
    assert found.kept.left_in_float == {"small", "bad"}


def test_nothing_is_searched_where_int8_keeps_the_accuracy():
    search = Searched(["a", "b"], additive({"a": 0.001, "b": 0.001}), 0.005)
    found = search.found
    assert (found.verdict, found.kept.left_in_float, len(search.tried)) == ("within", frozenset(), 1)


def test_a_budget_that_float_misses_says_what_comes_closest():
    found = smallest_float_set(["a", "b", "c"], additive({"a": 0.1, "b": 0.1, "c": 0.1}, floor=0.01), 0.005)
    assert (found.verdict, found.kept.left_in_float) == ("even float misses", {"a", "b", "c"})
    assert found.kept.drop.value == pytest.approx(0.01)


def test_layers_that_all_have_to_stay_are_told_apart_from_a_success():
    found = smallest_float_set(["a", "b"], additive({"a": 0.1, "b": 0.1}), 0.0)
    assert (found.verdict, found.kept.left_in_float) == ("all in float", {"a", "b"})


def test_a_budget_in_points_is_met_by_as_many_samples():
    """0.7 points as a share are a little less than 7 of 1,000."""
    assert 0.7 / 100 < 7 / 1000
    assert smallest_float_set(["a"], additive({"a": 7 / 1000}), 0.7 / 100).kept.left_in_float == frozenset()


def test_a_layer_named_twice_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="once"):
        smallest_float_set(["a", "a"], additive({"a": 1.0}), 0.5)
