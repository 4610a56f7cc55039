"""The spiral of a network of a user's own, by a loss of their own."""

import pytest

from kdbench.errors import UserError
from kdbench.pipeline import spiral as spirals
from kdbench.store import load_recipe
from tests.conftest import FLAT
from tests.test_training import StopError

CODE = """
import torch
from torch import nn

class Attends(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.query, self.wide, self.head = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, classes)

    def forward(self, x):
        x = x.squeeze(1)
        scores = torch.einsum("bic,bjc->bij", self.query(x), x).softmax(-1)
        return self.head(self.wide(scores @ x).relu().mean(1))

def attends(classes):
    return Attends(classes)
"""
LOSS = """
def mine(student, teacher, target):
    return {factor} * student.logits.square().mean()
"""
FIELDS = FLAT | {
    "data.held_out_samples": "200",
    "teacher.model": '"mine.py:attends"',
    "teacher.options": "{}",
    "distill.losses": '{ kd = 1.0, "loss.py:mine" = 0.01 }',
    "spiral.start": '"teacher"',
    "spiral.step": "0.3",
    "spiral.max_drop": "100",
    "spiral.round_to": "4",
    "spiral.turns": "1",
    "spiral.training": "{ epochs = 1, learning_rate = 0.02 }",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the user's files, and with the run of what they did with them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(CODE)
    (folder / "loss.py").write_text(LOSS.format(factor=1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spirals, "_measured", lambda *_: None)
        yield folder


def spiral(own, **fields):
    return spirals.spiral(load_recipe("digits", FIELDS | fields).placed(own), own / "run").record


def test_a_spiral_by_macs_that_nobody_can_count_is_refused_and_one_by_parameters_is_not(own):
    with pytest.raises(UserError, match=r"spiral\.macs: the .* of .*teacher\.onnx can't be counted: take parameters"):
        spiral(own)
    record = spiral(own, **{"spiral.parameters": "0.7"})
    assert (record.limit, record.best, record.macs) == ("target", "spiral-1", None)
    assert record.remarks[0].startswith("the target is reached; ended with spiral-1: 1.")


def test_turns_that_the_recipe_no_longer_asks_for_are_made_again(own, monkeypatch):
    """Where the teacher itself is the first model, nothing else is made anew by what it says and how it is heard."""

    def begun(*_):
        raise StopError

    by = {"spiral.parameters": "0.7"}
    known = spiral(own, **by)
    monkeypatch.setattr(spirals, "one_turn", begun)
    assert spiral(own, **by) == known
    with pytest.raises(StopError):
        spiral(own, **by, **{"teacher.weight": "2.0"})
    (own / "loss.py").write_text(LOSS.format(factor=2.0))
    with pytest.raises(StopError):
        spiral(own, **by)
