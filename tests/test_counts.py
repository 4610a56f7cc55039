"""Counts below one are refused by the functions too, before any work."""

import pytest

from kdbench import UserError, compare_methods, evaluate, fastest_int8, parity, profile, prove

CALLS = {
    "evaluate": (("batch", "threads"), lambda model, **counts: evaluate(model, model.with_name("pack.npz"), **counts)),
    "parity": (("batch",), lambda model, **counts: parity(model, model, **counts)),
    "profile": (("batch", "threads"), lambda model, **counts: profile(model, **counts)),
    "fastest_int8": (("batch", "threads"), lambda model, **counts: fastest_int8(model, **counts)),
    "compare_methods": (
        ("seeds",),
        lambda model, **counts: compare_methods("digits", model.with_name("run"), **counts),
    ),
}


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize(("call", "name"), [(call, name) for call, (names, _) in CALLS.items() for name in names])
def test_a_count_below_one_is_named(call, name, count, small_model):
    with pytest.raises(UserError, match=f"^{name}: should be 1 or more, not {count}$"):
        CALLS[call][1](small_model, **{name: count})
    assert list(small_model.parent.iterdir()) == [small_model]


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": 0}, {"budget_s": 0}])
def test_a_proof_that_could_not_be_measured_is_refused_before_the_models_answer(wrong, small_model):
    begun = []
    with pytest.raises(UserError, match=r"^bench: '(batches\.1|threads\.1|budget_s)'"):
        prove(small_model, small_model, **wrong, progress=lambda *said: begun.append(said))
    assert not begun
