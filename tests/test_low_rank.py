"""Low rank: what is lost is what was cut off, what is saved is what is said, and the file builds itself again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdbench.errors import UserError
from kdbench.models import build
from kdbench.onnxfile import load_model
from kdbench.onnxgraph import count_macs
from kdbench.pruning import low_rank, masks
from kdbench.pruning.targets import cost
from kdbench.records import Factorise, FactoriseSection, Preprocessing, Sparsify, parse
from kdbench.steps.export import export
from kdbench.steps.factorise import factorise
from kdbench.steps.sparsify import sparsify
from kdbench.training import weights
from kdbench.training.weights import Trained


def seeded(kind, *arguments, **options):
    torch.manual_seed(0)
    return kind(*arguments, **options)


LAYERS = {
    "linear": lambda: (seeded(nn.Linear, 12, 9), torch.randn(4, 5, 12)),
    "without a bias": lambda: (seeded(nn.Linear, 12, 9, bias=False), torch.randn(4, 12)),
    "strides": lambda: (seeded(nn.Conv2d, 3, 9, 3, stride=2, padding=1), torch.randn(2, 3, 9, 9)),
    "dilation": lambda: (seeded(nn.Conv2d, 3, 9, (3, 1), dilation=2, padding="same"), torch.randn(2, 3, 9, 9)),
    "reflection": lambda: (
        seeded(nn.Conv2d, 3, 9, 3, padding=1, padding_mode="reflect", bias=False),
        torch.randn(2, 3, 9, 9),
    ),
    "1d": lambda: (seeded(nn.Conv1d, 4, 9, 5, padding=2), torch.randn(2, 4, 11)),
    "3d": lambda: (seeded(nn.Conv3d, 2, 9, 3), torch.randn(2, 2, 5, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=4)
@given(rank=st.integers(1, 9))
def test_the_error_of_the_weights_is_the_energy_that_was_cut_off(name, rank):
    layer, x = LAYERS[name]()
    matrix = layer.weight.detach().flatten(1).double()
    values = torch.linalg.svdvals(matrix)
    model = nn.Sequential(layer)
    with torch.no_grad():
        before = model(x)
    low_rank.factorise(model, {"0": rank})
    product = model[0].weight.detach().flatten(1).double()
    cut = float(values[rank:].square().sum())
    assert float((matrix - product).square().sum()) == pytest.approx(cut, rel=1e-6, abs=1e-9)
    with torch.no_grad():
        after = model(x)
    if rank == 9:
        assert torch.allclose(before, after, atol=1e-5)
    else:
        assert not torch.allclose(before, after, atol=1e-5)
    assert (model[0].bias is None) == (layer.bias is None)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.floats(0.01, 0.999))
def test_the_rank_is_the_smallest_that_keeps_the_energy(values, energy):
    layer = nn.Linear(len(values), len(values))
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(values)))
    found = low_rank._layer("x", layer, 1)
    squares = np.sort(np.float32(values).astype(float) ** 2)[::-1]
    rank = found.rank(energy)
    assert squares[:rank].sum() >= (energy - 1e-9) * squares.sum()
    assert rank == 1 or squares[: rank - 1].sum() <= (energy + 1e-9) * squares.sum()


def test_layers_of_zeros_have_rank_one():
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    assert low_rank._layer("x", layer, 64).rank(0.99) == 1


def image_model(widths=(16, 32)):
    torch.manual_seed(0)
    return build("resnet", {"widths": list(widths), "blocks": [1, 1]}, (1, 8, 8), 10), torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_share_of_the_macs_is_met_and_used_up(share):
    model, x = image_model()
    made = low_rank.plan(model, x, Factorise(macs=share))
    assert made.macs_after <= share * made.macs
    assert made.macs_after > 0.9 * share * made.macs
    low_rank.factorise(model, made.ranks)
    assert cost(model, x).macs == made.macs_after


def test_a_share_that_cannot_be_reached_names_the_nearest_that_can():
    model, x = image_model()
    with pytest.raises(UserError, match=r"factorise.macs: 0.01 can't be reached: rank 1 in all \d+ layers") as refused:
        low_rank.plan(model, x, Factorise(macs=0.01))
    nearest = float(str(refused.value).split("leaves ")[1].split()[0])
    made = low_rank.plan(model, x, Factorise(macs=nearest))
    assert set(made.ranks.values()) == {1}


def test_an_energy_that_saves_nothing_names_the_highest_that_does():
    model, x = image_model()
    with pytest.raises(UserError, match=r"factorise.energy: at 0.9999 no layer gets cheaper; at 0\.") as refused:
        low_rank.plan(model, x, Factorise(energy=0.9999))
    highest = float(str(refused.value).split("; at ")[1].split()[0])
    assert low_rank.plan(model, x, Factorise(energy=highest)).ranks


class Odd(nn.Module):
    """All that can't be factorised, and one layer that can."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.cell = nn.GRU(8, 8, batch_first=True)
        self.tied, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.attention = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.unused, self.constant = nn.Linear(8, 8), nn.Linear(8, 64)
        self.fine, self.spared = nn.Linear(8, 64), nn.Linear(64, 64)

    def forward(self, x):
        x = self.cell(self.grouped(x.transpose(1, 2)).transpose(1, 2))[0]
        return self.spared(self.fine(self.attention(self.other(self.tied(x)))))


def test_layers_that_are_left_alone_say_why():
    model, x = Odd().eval(), torch.randn(2, 4, 8)
    model.constant.weight.requires_grad_(False)
    made = low_rank.plan(model, x, Factorise(energy=0.05, ignore=["spared"]))
    assert set(made.ranks) == {"fine"}
    assert made.left["grouped"] == "a convolution of 8 groups"
    assert made.left["cell"] == "GRU is not factorised"
    assert made.left["tied"] == made.left["other"] == "shares its weights with another layer"
    assert made.left["attention.linear1"] == "TransformerEncoderLayer reads its weights"
    assert "is not factorised" in made.left["attention.self_attn.out_proj"]
    assert made.left["constant"] == "its weights are constants"
    assert made.left["unused"] == "not called in a forward pass"
    assert made.left["spared"] == "named in factorise.ignore"
    low_rank.factorise(model, made.ranks)
    assert model(x).shape == (2, 4, 64)


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count_among_the_macs(cell, gates):
    layer = nn.Sequential(cell(8, 16, num_layers=2, batch_first=True))
    assert cost(layer, torch.randn(2, 5, 8)).macs == 5 * gates * 16 * (8 + 16 + 16 + 16)


def test_the_classifier_may_be_factorised():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(64, 2) @ torch.randn(2, 64))
    made = low_rank.plan(model, torch.randn(2, 64), Factorise(energy=0.999))
    assert made.ranks == {"1": 2}
    assert made.macs_after == 2 * (64 + 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.5, "layers": ("haed",)}, "factorise.layers: no layer 'haed': did you mean 'head'"),
        ({"energy": 0.5, "ignore": ("stages.9",)}, "factorise.ignore: no layer 'stages.9': did you mean 'stages"),
        ({"energy": 0.5, "layers": ("stem.0",), "ignore": ("stem",)}, "factorise: no layer can be factorised: "),
    ],
)
def test_layers_that_are_not_there_are_named(options, message):
    model, x = image_model()
    with pytest.raises(UserError, match=message):
        low_rank.plan(model, x, Factorise(**options))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'macs' should be given where energy is not: name one of the two"),
        ({"energy": 0.9, "macs": 0.5}, "'macs' should be left out where energy is given"),
        ({"energy": 1.0}, "'energy' should be less than 1"),
        ({"macs": 0}, "'macs' should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        parse(FactoriseSection, fields, "here")


# --- files ------------------------------------------------------------------------------------------------------------


def saved(path: Path, model="resnet", options=None, shape=(1, 8, 8), dtype="float32") -> Path:
    """A weights file of random weights."""
    options = options or {"widths": [16, 32], "blocks": [1, 1]}
    torch.manual_seed(0)
    network = build(model, options, shape, 10)
    trained = Trained(
        model=model,
        options=options,
        input_shape=shape,
        classes=tuple(map(str, range(10))),
        preprocessing=Preprocessing() if dtype == "float32" else None,
        fingerprint="made by hand",
        epoch=0,
        input_dtype=dtype,
    )
    weights.save(path, network.state_dict(), trained)
    return path


@pytest.mark.parametrize(
    ("model", "options", "shape", "dtype"),
    [
        ("resnet", None, (1, 8, 8), "float32"),
        ("bert", {"vocabulary": 30, "width": 16}, (6,), "int64"),
        ("audio_cnn", {"widths": [8, 16]}, (1, 16, 20), "float32"),
        ("lstm", {"vocabulary": 30, "width": 16}, (6,), "int64"),
    ],
)
def test_a_factorised_file_reloads_bit_for_bit(tmp_path, model, options, shape, dtype):
    source = saved(tmp_path / "dense.safetensors", model, options, shape, dtype)
    before = source.read_bytes()
    made = factorise(source, tmp_path / "low.safetensors", Factorise(energy=0.4))
    assert source.read_bytes() == before
    network, trained = weights.model_of(tmp_path / "low.safetensors")
    tensors, _ = weights.load(tmp_path / "low.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    assert [change.kind for change in trained.changes] == ["low_rank"]
    by_hand, _ = weights.model_of(source)
    low_rank.factorise(by_hand, made.ranks)
    x = weights.example(trained) + 1
    with torch.no_grad():
        assert torch.equal(network(x), by_hand(x))
    again = factorise(source, tmp_path / "again.safetensors", Factorise(energy=0.4))
    assert again == made
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "low.safetensors").read_bytes()


def test_the_exported_file_has_the_macs_that_were_said(tmp_path):
    source = saved(tmp_path / "dense.safetensors")
    made = factorise(source, tmp_path / "low.safetensors", Factorise(macs=0.5))
    artifact = export(tmp_path / "low.safetensors", tmp_path / "low.onnx")  # proven equal to torch's
    assert artifact.macs == count_macs(load_model(tmp_path / "low.onnx")) == made.macs_after <= 0.5 * made.macs


def test_zeros_and_ranks_go_together(tmp_path):
    source = saved(tmp_path / "dense.safetensors")
    factorise(source, tmp_path / "low.safetensors", Factorise(energy=0.5))
    done = sparsify(tmp_path / "low.safetensors", tmp_path / "both.safetensors", Sparsify(sparsity=0.5))
    model, trained = weights.model_of(tmp_path / "both.safetensors")
    zeros = sum(int((weight == 0).sum()) for weight in masks.maskable(model).values())
    assert zeros == round(0.5 * done.weights)
    assert done.sparsity == pytest.approx(0.5, abs=1 / done.weights)
    assert done.compressed_size_bytes < done.compressed_size_before_bytes
    assert [change.kind for change in trained.changes] == ["low_rank"]
