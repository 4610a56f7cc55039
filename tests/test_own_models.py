"""Networks of a user's own that are built as none of the zoo is: weights are shared, layers lie in lists."""

import pytest
import torch
from torch import nn

from kdbench.functions import load
from kdbench.pruning import blocks, structured
from kdbench.pruning.graph import follow
from kdbench.pruning.targets import cost
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe
from kdbench.training import weights
from tests.conftest import FLAT
from tests.prunable import IMAGE, asked, samples

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


def test_layers_that_share_weights_are_left_and_still_share_them_when_others_are_pruned(tmp_path):
    (tmp_path / "mine.py").write_text(TIED)
    torch.manual_seed(0)
    model = load(f"{tmp_path}/mine.py:tied", tmp_path, "model")(5)
    model.stem = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    found = structured.prune(model, asked(parameters=0.5), samples((64,)))
    assert found.model.stem[0].out_features < 32
    assert found.model.second.weight is found.model.first.weight
    assert found.left["first"] == "it hangs together with 'first', which shares its weights with another layer"
    assert found.share == pytest.approx(found.after.parameters / found.before.parameters)


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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.width = nn.Linear(8, 8), 8

    def forward(self, x, *, scale=1.0):
        return x + scale * self.inner(x).relu()


class Scaled(Block):
    def forward(self, x, *, scale):
        return super().forward(x, scale=scale)


class Blocks(nn.Module):
    def __init__(self, block, run):
        super().__init__()
        self.first, self.second, self.run = block(), block(), run
        self.listed = [self.first]

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("block", "run", "expected"),
    [
        (Block, lambda net, x: net.second(net.first(x)), ["first", "second"]),
        (Block, lambda net, x: net.second(net.first(x), scale=0.5), ["first"]),
        (Scaled, lambda net, x: net.second(net.first(x, scale=0.5), scale=0.5), []),
        (Block, lambda net, x: net.second(x=net.first(x)), ["first"]),
        (Block, lambda net, x: net.second(net.first(x)) / net.first.width, ["second"]),
        (Block, lambda net, x: net.second(net.listed[0](x)), ["second"]),
    ],
    ids=["plainly", "by keyword", "by a required keyword", "by name", "asked for its width", "in a list"],
)
def test_blocks_that_the_network_cannot_do_without_stay(block, run, expected):
    torch.manual_seed(0)
    assert blocks.removable(Blocks(block, run), samples((8,))) == expected


def test_an_encoder_of_torchs_own_keeps_its_layers():
    """It gives them masks, and looks into the first of them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert blocks.removable(encoder, samples((6, 16))) == []


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x, x.mT)


PRODUCTS = (
    lambda a, b: a.bmm(b),
    lambda a, b: a[0].mm(b[0]),
    lambda a, b: torch.addmm(torch.zeros(6), a[0], mat2=b[0]),
    lambda a, b: torch.addmm(torch.zeros(6), mat1=a[0], mat2=b[0]),
    lambda a, b: torch.baddbmm(torch.zeros(6), a, b),
    lambda a, b: torch.baddbmm(torch.zeros(6), batch1=a, batch2=b),
    lambda a, b: torch.zeros(6).addmm(a[0], b[0]),
    lambda a, b: torch.zeros(6).baddbmm(a, b),
)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        *((Does(product), (6, 4), 6 * 4 * 6) for product in PRODUCTS),
        (nn.LSTMCell(4, 8), (4,), (4 + 8) * 4 * 8),
        (nn.GRUCell(4, 8), (4,), (4 + 8) * 3 * 8),
        (nn.RNNCell(4, 8), (4,), (4 + 8) * 8),
        (nn.RNNCell(4, 8, nonlinearity="relu"), (4,), (4 + 8) * 8),
    ],
)
def test_macs_count_whatever_multiplies_matrices(model, shape, macs):
    assert cost(model, torch.randn(2, *shape)).macs == macs
