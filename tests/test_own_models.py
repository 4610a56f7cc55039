"""Networks of a user's own that are built as none of the zoo is: layers that share weights, or are kept in lists."""

import torch
from torch import nn

from kdbench.pruning.graph import follow
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe
from kdbench.training import weights
from tests.conftest import FLAT
from tests.prunable import IMAGE, samples

TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x.flatten(1)).relu()).relu()))

def tied(classes):
    return Tied(classes)
"""


def test_a_model_whose_layers_share_weights_is_trained_and_comes_back_so(digits, tmp_path):
    (tmp_path / "mine.py").write_text(TIED)
    fields = {"student.model": '"mine.py:tied"', "student.options": "{}"}
    recipe = load_recipe("digits", FLAT | fields).placed(tmp_path)
    path = train.train(RunFolder(tmp_path), "student", Lesson(recipe, digits, ""))
    model, trained = weights.model_of(path, tmp_path)
    assert model.second.weight is model.first.weight
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


class Listed(nn.Module):
    """Layers that are called by a list, with channels between them that are turned around."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.layers = [self.first, self.second]
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        first, second = self.layers
        return self.head(torch.relu(second(torch.relu(first(x)).flip(1))).mean((2, 3)))


def test_the_proof_of_a_group_reaches_layers_in_a_list():
    torch.manual_seed(0)
    graph = follow(Listed(), samples(IMAGE))
    assert [group.name for group in graph.groups] == ["second"]
    assert "mixed" in graph.left["first"]
