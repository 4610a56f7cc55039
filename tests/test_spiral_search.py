"""The spiral's search, on made-up models: it ends, keeps the floor, halves what is refused, goes on where it was."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.search.spiral import Bounds, Outcome, spiral

BOUNDS = st.builds(
    Bounds,
    goal=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    max_drop=st.sampled_from([0.0, 0.005, 0.02, 1.0]),
    step=st.sampled_from([0.5, 0.3, 0.2]),
    smallest_step=st.sampled_from([0.2, 0.05, 0.01]),
    turns=st.integers(1, 25),
)


def fake(seed, made):
    """A made-up `make`, the same for the same seed and plan; `made` gets each plan and its outcome."""
    shares = {0: 1.0}

    def make(plan):
        draw = random.Random(f"{seed} {plan}")
        share = shares[plan.parent] * plan.keep * draw.uniform(0.9, 1.0)
        drop = draw.uniform(-0.01, 0.03) + 0.02 * (1 - share)
        refusal = draw.choice([None] * 8 + ["unreachable", "nothing"])
        outcome = Outcome(drop, share, refusal)
        shares[plan.number] = share
        made.append((plan, outcome))
        return outcome

    return make, shares


@given(BOUNDS, st.integers(0, 1000))
def test_it_ends_above_the_floor_and_halves_after_each_refusal(bounds, seed):
    made = []
    make, shares = fake(seed, made)
    found = spiral(make, bounds)
    assert [plan.number for plan, _ in made] == list(range(1, len(made) + 1))
    assert len(made) <= bounds.turns
    at, step = 0, bounds.step
    for plan, outcome in made:
        assert (plan.parent, plan.step) == (at, step)
        assert 1 - plan.step <= plan.keep < 1
        assert plan.step >= bounds.smallest_step
        if plan.number in found.refused:
            assert outcome.refusal or outcome.drop > bounds.max_drop
            step /= 2
        else:
            assert outcome.drop <= bounds.max_drop + 1e-9
            assert outcome.refusal is None
            at = plan.number
    assert found.best == at
    assert found.turns == len(made)
    reached = shares[at] <= bounds.goal + 1e-6
    assert (found.limit == "target") == reached
    if found.limit == "turns":
        assert len(made) == bounds.turns
    if found.limit in ("accuracy", "step"):
        assert step < bounds.smallest_step
    if found.limit == "nothing":
        assert made[-1][1].refusal == "nothing"


@given(BOUNDS, st.integers(0, 1000), st.integers(0, 25))
def test_from_any_prefix_it_ends_the_same_without_making_a_turn_twice(bounds, seed, stopped):
    made, again = [], []
    whole = spiral(fake(seed, made)[0], bounds)
    past = made[:stopped]
    make, shares = fake(seed, again)
    shares |= {plan.number: outcome.share for plan, outcome in past}
    assert spiral(make, bounds, past) == whole
    assert past + again == made


def test_turns_of_other_bounds_are_made_again():
    made, again = [], []
    bounds = Bounds(goal=0.5, max_drop=1.0, step=0.2, smallest_step=0.01, turns=10)
    spiral(fake(1, made)[0], bounds)
    other = Bounds(goal=0.5, max_drop=1.0, step=0.3, smallest_step=0.01, turns=10)
    spiral(fake(1, again)[0], other, made)
    assert again[0][0].number == 1


def level(drop, share_of=lambda plan, share: share * plan.keep):
    """A `make` of a fixed drop."""
    shares = {0: 1.0}

    def make(plan):
        shares[plan.number] = share_of(plan, shares[plan.parent])
        return Outcome(drop, shares[plan.number])

    return make


@pytest.mark.parametrize(("drop", "limit", "best"), [(0.0, "target", 4), (0.02, "accuracy", 0)])
def test_what_stopped_it_is_said(drop, limit, best):
    found = spiral(level(drop), Bounds(goal=0.45, max_drop=0.01, step=0.2, smallest_step=0.05, turns=9))
    assert (found.limit, found.best) == (limit, best)
    assert found.refused == ({} if best else dict.fromkeys((1, 2, 3), "accuracy"))


def test_the_last_step_ends_at_the_target():
    plans = []
    make = level(0.0)
    spiral(lambda plan: plans.append(plan) or make(plan), Bounds(0.476, 0.01, 0.2, 0.05, 9))
    assert [round(plan.keep, 3) for plan in plans] == [0.8, 0.8, 0.8, 0.93]


def test_a_floor_in_points_is_kept_to_the_sample():
    assert spiral(level(7 / 1000), Bounds(0.5, 0.7 * 0.01, 0.5, 0.1, 3)).limit == "target"


def test_a_target_that_is_met_takes_no_turn():
    def never(plan):
        raise AssertionError("no turn is needed")

    assert spiral(never, Bounds(goal=1.0, max_drop=0.0, step=0.2, smallest_step=0.1, turns=5)).limit == "target"


def test_a_pruning_that_removes_nothing_ends_it_at_once():
    calls = []

    def make(plan):
        calls.append(plan)
        return Outcome(None, None, "nothing")

    found = spiral(make, Bounds(goal=0.5, max_drop=0.1, step=0.2, smallest_step=0.001, turns=50))
    assert (found.limit, found.best, len(calls)) == ("nothing", 0, 1)
