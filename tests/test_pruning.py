"""Structured pruning: what is taken out, how much of it, and that the rest computes what it should."""

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.models import build
from kdbench.pruning import blocks, channels, shortcuts, structured
from kdbench.pruning.changes import Change, replay
from kdbench.pruning.graph import follow
from kdbench.pruning.targets import MEASUREMENTS, cost, least
from kdbench.records import Prune, parse
from kdbench.steps import prune as steps
from kdbench.steps.prune import Samples
from kdbench.training import weights
from tests.prunable import CLASSES, IMAGE, SMALL, TEXT, asked, plain, samples, saved, small

# What can't be followed: channels that a layer norm mixes, or shuffles all along a stage.
LEFT = {
    "bert": ("stages.1.feed_forward.2",),
    "shufflenet_v1": ("stem.0", "stages.0.0.layers.3.0", "stages.1.0.layers.3.0", "stages.2.0.layers.3.0"),
    "shufflenet_v2": ("stages.0.3.branch.2.0", "stages.1.7.branch.2.0", "stages.2.3.branch.2.0"),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_is_pruned_and_reloads_bit_for_bit(name, tmp_path):
    x = samples(SMALL[name][1])
    found = structured.prune(small(name), asked(), x)
    assert found.changes[-1].kind == "channels"
    assert found.after.parameters <= 0.8 * found.before.parameters
    assert found.share == pytest.approx(found.after.parameters / found.before.parameters)
    assert set(LEFT.get(name, ())) == set(found.left)

    pruned = found.model
    again, _ = weights.model_of(saved(tmp_path / "pruned.safetensors", name, pruned, found.changes))
    assert again.state_dict().keys() == pruned.state_dict().keys()
    for key, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(again(x), pruned(x))
        assert again(x).shape == (len(x), CLASSES)
    assert {p.requires_grad for n, p in again.named_parameters() if "shortcut" not in n} == {True}


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_cells_are_refused_by_name(name):
    model = build(name, {"vocabulary": 50, "embedding": 16, "width": 16}, TEXT, CLASSES)
    with pytest.raises(UserError, match=r"'stages\.0\.cell', an? (LSTM|GRU)"):
        structured.prune(model, asked(), samples(TEXT))


def test_whole_heads_are_taken_out():
    x = samples(TEXT)
    model = small("bert")
    graph = follow(model, x)
    heads = {group.attention: group for group in graph.groups if group.attention}
    assert set(heads) == {"stages.0.attention", "stages.1.attention"}
    group = heads["stages.0.attention"]
    assert [len(unit) for unit in group.units] == [8] * 4
    change = Change(kind="channels", options=channels.options(group.cuts([1]), {group.attention: 3}))
    replay(model, [change], x, "test")
    assert model.stages[0].attention.heads == 3
    assert model.stages[0].attention.query.weight.shape == (24, 32)
    assert model(x).shape == (4, CLASSES)


class Mixed(nn.Module):
    """Channels that are turned around, which no dependency graph knows of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.first(x)).flip(1)
        return self.head(torch.relu(self.third(self.second(x))).mean((2, 3)))


def test_a_wrong_mapping_of_equal_shapes_is_found():
    torch.manual_seed(0)
    graph = follow(Mixed(), samples(IMAGE))
    assert {group.name for group in graph.groups} == {"second", "third"}
    assert "mixed" in graph.left["first"]


class Padded(nn.Module):
    """A shortcut that pads by a function, as many copies of CIFAR's ResNets have it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = self.second(torch.relu(self.inner(x)))
        return self.head(torch.relu(y + nn.functional.pad(x, (0, 0, 0, 0, 2, 2))).mean((2, 3)))


def test_a_padding_shortcut_of_ones_own_is_left_and_named():
    torch.manual_seed(0)
    model = Padded()
    graph = follow(model, samples(IMAGE))
    assert [group.name for group in graph.groups] == ["inner"]
    assert set(graph.left) & {"first", "second"}
    found = structured.prune(model, asked(macs=0.9, parameters=None), samples(IMAGE))
    assert found.model.inner.out_channels < 8
    assert (found.model.first.out_channels, found.model.second.out_channels) == (8, 12)


def test_a_model_of_which_nothing_can_be_followed_is_refused_by_the_name_of_its_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 5))
    with pytest.raises(UserError, match=r"no layer .* can be pruned \(left alone: '0': .* '1', a LayerNorm"):
        structured.prune(model, asked(), samples((8,)))


# --- shortcuts --------------------------------------------------------------------------------------------------------


def test_padding_shortcuts_become_equal_convolutions():
    x = samples(IMAGE, 8)
    model = build("resnet", {"depth": 20, "shortcut": "pad"}, IMAGE, 10).eval()
    whole = model(x)
    names = shortcuts.rewritable(model)
    assert names == ["stages.1.0.shortcut", "stages.2.0.shortcut"]
    parameters = {name for name, _ in model.named_parameters()}
    drawn = torch.random.get_rng_state()
    replay(model, [Change(kind="shortcuts", options={"layers": names})], x, "test")
    assert torch.equal(model(x), whole)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    new = {name: p.requires_grad for name, p in model.named_parameters() if name not in parameters}
    assert new == {f"{name}.weight": False for name in names}


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["macs", "parameters"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_target_is_reached_with_the_least_pruning(what, scope):
    model, x = small("vgg"), samples(IMAGE)
    found = structured.prune(model, Prune(**{what: 0.5}, scope=scope, round_to=4), x)
    before, after = (getattr(price, what) for price in (found.before, found.after))
    assert 0.35 < after / before <= 0.5
    widths = [module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)
    assert cost(model, x) == found.before  # the network itself stays


def test_the_scope_layer_leaves_the_same_share_of_each_layer_where_global_spares_the_important():
    """Which by the scales of the batch norms is the first layer alone."""
    model, x = small("vgg"), samples(IMAGE)
    with torch.no_grad():
        next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).weight.mul_(10)

    def widths(network):
        return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]

    wide = widths(model)
    for scope in ("layer", "global"):
        left = widths(structured.prune(model, asked(importance="batch_norm", parameters=0.5, scope=scope), x).model)
        alike = [kept / before for kept, before in zip(left, wide, strict=True)]
        rounding = [1 / before for before in wide]  # to multiples of 2: one channel more or less
        least = max(share - by for share, by in zip(alike, rounding, strict=True))
        most = min(share + by for share, by in zip(alike, rounding, strict=True))
        assert (least <= most) == (scope == "layer")
        assert (left[0] == wide[0]) == (scope == "global")


def test_a_network_that_computes_something_else_without_all_that_should_go_is_not_written(monkeypatch, tmp_path):
    """Though it did without the channels of each layer by themselves."""
    source = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    monkeypatch.setattr(structured, "differs", lambda *_: "its channels depend on each other")
    with pytest.raises(
        structured.UnreachableError, match=r"the network as a whole doesn't stand it.*: its channels depend"
    ):
        steps.prune(source, tmp_path / "pruned.safetensors", asked())
    assert not (tmp_path / "pruned.safetensors").exists()


def test_a_target_that_cannot_be_reached_says_the_closest():
    model, x = small("resnet"), samples(IMAGE)
    with pytest.raises(
        structured.UnreachableError, match=r"prune.macs: 0.01 can't be reached: 0\.\d+ is the closest"
    ) as error:
        structured.prune(model, Prune(macs=0.01, round_to=4), x)
    closest = float(str(error.value).split("reached: ")[1].split()[0])
    found = structured.prune(model, Prune(macs=closest + 0.001, round_to=4), x)
    assert found.share == pytest.approx(closest, abs=1e-3)
    assert min(module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)) == 4


def test_layers_narrower_than_the_rounding_are_left():
    with pytest.raises(UserError, match=r"no layer of this network can be pruned.*: lower round_to"):
        structured.prune(small("resnet"), Prune(macs=0.5, round_to=64), samples(IMAGE))


def test_ignored_layers_keep_their_channels():
    model, x = small("vgg"), samples(IMAGE)
    found = structured.prune(model, asked(ignore=("stages.0", "stages.2"), parameters=0.5), x)
    assert found.model.stages[0][0][0].out_channels == 8
    assert found.model.stages[2][1][0].out_channels == 32
    assert set(found.left) == {"stages.0.0.0", "stages.2.1.0"}
    with pytest.raises(UserError, match=r"prune.ignore: no submodule 'stages\.00': did you mean 'stages\.0"):
        structured.prune(model, asked(ignore=("stages.00",)), x)


class Named(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(input=x, weight=self.weight, bias=self.bias)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (Named(3, 8, 3), (3, 8, 8), 8 * 6 * 6 * 3 * 9),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), (4, 8, 8), 4 * 8 * 8 * 4 * 9),
        # Three products with a weight of 32 × 32 before, one behind, of 16 tokens; scores, and the sums by them.
        (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (16, 32), 16 * 32 * (4 * 32 + 2 * 16 + 2 * 64)),
    ],
)
def test_macs_are_those_of_the_formula(model, shape, macs):
    found = cost(model, torch.randn(2, *shape))
    assert found.macs == macs
    assert sum(own for _, own in found.layers.values()) == macs


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False)])
def test_norms_without_weights_are_narrowed_with_their_layers(norm):
    model, x = plain(), samples(IMAGE)
    model[1] = norm
    found = structured.prune(model, Prune(macs=0.6, round_to=2), x)
    assert found.after.macs <= 0.6 * found.before.macs
    assert found.model[1].num_features == found.model[0].out_channels < 8


def test_a_measured_latency_is_reached_with_few_measurements():
    model, x = small("vgg"), samples(IMAGE)
    measured = []

    def measure(network):
        measured.append(1e-3 + 1e-9 * cost(network, x).macs)
        return measured[-1]

    found = structured.prune(model, Prune(latency=0.6, round_to=2), x, measure=measure)
    assert found.share == measured[1:][[m / measured[0] for m in measured[1:]].index(found.share)] / measured[0]
    assert 0.5 < found.share <= 0.6
    assert len(measured) <= 9


def test_for_blocks_and_channels_no_more_is_measured_than_was_said():
    model, x = small("resnet"), samples(IMAGE)
    whole, said = cost(model, x).macs, []

    def slow(network):
        return 1.0 + cost(network, x).macs / whole

    def progress(label, done, total):
        said.extend([(done, total)] if label == "measure latency" else [])

    structured.prune(model, Prune(latency=0.8, round_to=2, blocks=True), x, measure=slow, progress=progress)
    assert len(said) > 1 + MEASUREMENTS  # more than one search may take
    assert said == [(place, 2 * (1 + MEASUREMENTS)) for place in range(len(said))]
    assert len(said) <= 2 * (1 + MEASUREMENTS)


@pytest.mark.parametrize("target", range(1, 21))
def test_the_search_finds_the_least(target):
    shares = [1 - i / 20 for i in range(21)]
    assert least(20, lambda number: shares[number], 1 - target / 20) == target
    assert least(20, lambda number: shares[number], -0.1) is None


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet", ["stages.0.0", "stages.0.1", "stages.1.1"]),
        ("resnet-pad", ["stages.0.0", "stages.0.1"]),
        ("imagenet_resnet", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("vgg", []),
        ("shufflenet_v2", []),
        ("bert", []),
    ],
)
def test_blocks_are_those_with_an_identity_beside_them(name, expected):
    assert blocks.removable(small(name), samples(SMALL[name][1])) == expected


def test_the_block_that_does_least_goes_first(tmp_path):
    model, x = small("imagenet_resnet"), samples(IMAGE)
    with torch.no_grad():
        for parameter in model.layer3[1].parameters():
            parameter.zero_()
    source = saved(tmp_path / "whole.safetensors", "imagenet_resnet", model)
    options = Prune(macs=0.85, blocks=True, round_to=2, ignore=("conv1",))
    found = steps.prune(source, tmp_path / "pruned.safetensors", options, Samples(x.numpy()))
    again, trained = weights.model_of(found.path)
    assert trained.changes[0] == Change(kind="blocks", options={"blocks": ["layer3.1"]})
    assert isinstance(again.layer3[1], nn.Identity)
    assert found.share <= 0.85
    with torch.no_grad():
        skipped, _ = weights.model_of(source)
        skipped.layer3[1] = nn.Identity()
        assert torch.equal(skipped(x), model(x))


class Adds(nn.Module):
    def __init__(self, *features):
        super().__init__()
        self.features = nn.Parameter(torch.tensor(features))

    def forward(self, x):
        return x + self.features


def test_blocks_are_judged_by_all_samples_but_a_part_of_them_at_a_time():
    """The activations of hundreds of large images don't fit into memory."""
    model, x = small("resnet"), samples(IMAGE, 150)
    names, seen, effects = blocks.removable(model, x[:4]), [], {}
    with torch.no_grad():
        whole = model(x)
        for name in names:
            skipped = small("resnet")
            shortcuts.put(skipped, name, nn.Identity())
            effects[name] = float((skipped(x) - whole).square().mean())
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert next(blocks.removal_order(model, names, x)) == min(effects, key=effects.get)
    assert sum(seen) == 150 * (1 + len(names))
    assert max(seen) <= 64


def test_of_two_blocks_that_do_the_same_one_stays():
    """Either of the first two can go and nothing is lost, for the outputs end at 1; without both much is."""
    model = nn.Sequential(Adds(1.0, 0.0), Adds(1.0, 0.0), Adds(0.0, 0.1), nn.Hardtanh(-1, 1))
    assert list(blocks.removal_order(model, ["0", "1", "2"], torch.zeros(4, 2))) == ["0", "2", "1"]


def test_blocks_alone_reach_a_target_that_fits_them():
    model, x = small("resnet"), samples(IMAGE)
    whole = cost(model, x).macs
    replay(model, [Change(kind="blocks", options={"blocks": ["stages.0.0", "stages.0.1", "stages.1.1"]})], x, "test")
    share = cost(model, x).macs / whole
    found = structured.prune(small("resnet"), Prune(macs=share, blocks=True), x)
    assert [change.kind for change in found.changes] == ["blocks"]
    assert found.share == share


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": 0.5, "parameters": 0.5}, "one of macs, parameters and latency"),
        ({}, "one of macs, parameters and latency"),
        ({"macs": 1.5}, "less than 1"),
        ({"macs": 0.5, "importance": "magnitude"}, "'l1', 'l2'"),
        ({"macs": 0.5, "rond_to": 4}, "did you mean 'round_to'"),
    ],
)
def test_options_that_mean_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        parse(Prune, given, "options")


def test_indices_are_kept_as_runs():
    assert channels.runs([0, 1, 2, 5, 7, 8]) == [[0, 2], [5, 5], [7, 8]]
    assert channels.indices([[0, 2], [5, 5], [7, 8]]) == [0, 1, 2, 5, 7, 8]
