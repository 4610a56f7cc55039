"""Structured pruning: what is taken out, that the rest computes what it should, and that a file remembers it."""

import pytest
import torch
import torch_pruning
from torch import nn

from kdbench.errors import UserError
from kdbench.models import build
from kdbench.pruning import blocks, channels, shortcuts, structured
from kdbench.pruning.changes import Change, replay
from kdbench.pruning.graph import follow
from kdbench.pruning.importance import unit_scores
from kdbench.pruning.sparse import penalty
from kdbench.pruning.targets import cost, least
from kdbench.records import Preprocessing, Prune, Sparse, parse
from kdbench.steps import prune as steps
from kdbench.steps.export import export
from kdbench.steps.prune import Samples
from kdbench.training import weights

IMAGE, SPECTROGRAM, TEXT, ROW = (3, 32, 32), (1, 16, 24), (12,), (20,)
CLASSES = 5

SMALL = {
    "resnet": ({"widths": [8, 16], "blocks": [2, 2]}, IMAGE),
    "resnet-pad": ({"widths": [8, 16, 20], "blocks": [2, 1, 1], "shortcut": "pad"}, IMAGE),
    "wide_resnet": ({"depth": 10, "width": 1}, IMAGE),
    "vgg": ({"depth": 8, "width": 8}, IMAGE),
    "mobilenet_v2": ({"width": 0.25}, IMAGE),
    "shufflenet_v1": ({"width": 32, "groups": 2}, IMAGE),
    "shufflenet_v2": ({"widths": [16, 32, 64], "last": 64}, IMAGE),
    "imagenet_resnet": ({"depth": 18, "width": 8}, IMAGE),
    "imagenet_resnet-50": ({"depth": 50, "width": 8}, IMAGE),
    "bert": ({"vocabulary": 50, "heads": 4, "width": 32}, TEXT),
    "text_cnn": ({"vocabulary": 50, "embedding": 16, "width": 16}, TEXT),
    "embedding_bag": ({"vocabulary": 50, "width": 16}, TEXT),
    "lstm": ({"vocabulary": 50, "embedding": 16, "width": 16}, TEXT),
    "audio_cnn": ({"widths": [8, 16]}, SPECTROGRAM),
    "mlp": ({"widths": [32, 16]}, ROW),
}
"""By name, the options and the shape of a sample."""


def samples(shape, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if shape == TEXT:
        return torch.randint(0, 50, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


def small(name, seed=0):
    """A model whose batch norms have seen something, so that none of them is the identity."""
    options, shape = SMALL[name]
    torch.manual_seed(seed)
    model = build(name.partition("-")[0], options, shape, CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def saved(path, name, model):
    options, shape = SMALL[name]
    tokens = shape == TEXT
    trained = weights.Trained(
        model=name.partition("-")[0],
        options=options,
        input_shape=shape,
        classes=tuple("abcde"),
        preprocessing=None if tokens else Preprocessing(),
        fingerprint="",
        epoch=1,
        input_dtype="int64" if tokens else "float32",
    )
    weights.save(path, model.state_dict(), trained)
    return path


def asked(**options):
    return Prune(**({"round_to": 2, "parameters": 0.8} | options))


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_is_pruned_and_reloads_bit_for_bit(name, tmp_path):
    source = saved(tmp_path / "whole.safetensors", name, small(name))
    x = samples(SMALL[name][1])
    found = steps.prune(source, tmp_path / "pruned.safetensors", asked(), Samples(x.numpy()))
    assert found.after.parameters <= 0.8 * found.before.parameters
    assert found.share == pytest.approx(found.after.parameters / found.before.parameters)

    again, trained = weights.model_of(found.path)
    pruned = structured.prune(weights.model_of(source)[0], asked(), x).model
    assert trained.changes[-1].kind == "channels"
    assert again.state_dict().keys() == pruned.state_dict().keys()
    for key, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(again(x), pruned(x))
        assert again(x).shape == (len(x), CLASSES)
    assert {p.requires_grad for n, p in again.named_parameters() if "shortcut" not in n} == {True}


# What can't be followed is left, whatever else is pruned: channels that a norm, a shuffle or a cell mixes.
LEFT = {
    "bert": ("positions", "tokens", "stages.0.attention.output"),
    "shufflenet_v1": ("stages.1.0.layers.0.0",),
    "shufflenet_v2": ("stages.0.0.branch.2.0",),
    "lstm": ("embedding",),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_graph_cannot_follow_is_left_and_named(name):
    graph = follow(small(name), samples(SMALL[name][1]))
    made = {member.layer for group in graph.groups for member in group.members if member.part not in channels.READS}
    assert not made & set(LEFT[name])
    assert graph.left


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


def test_a_pruned_padding_shortcut_stays_constant_and_is_kept_in_the_file(tmp_path):
    source = saved(tmp_path / "whole.safetensors", "resnet-pad", small("resnet-pad"))
    out = tmp_path / "pruned.safetensors"
    steps.prune(source, out, asked(parameters=0.5), Samples(samples(IMAGE).numpy()))
    model, trained = weights.model_of(out)
    assert [change.kind for change in trained.changes] == ["shortcuts", "channels"]
    for name in trained.changes[0].options["layers"]:
        weight = model.get_submodule(name).weight
        assert not weight.requires_grad
        assert set(weight.unique().tolist()) <= {0.0, 1.0}
    assert model.stages[1][0].conv2.out_channels < 16


# --- what goes first --------------------------------------------------------------------------------------------------


def plain(seed=0):
    """Two convolutions with batch norm, a linear classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def loss_gradients(x, y, size=4):
    def run(model):
        for start in range(0, len(x), size):
            model.zero_grad()
            nn.functional.cross_entropy(model(x[start : start + size]), y[start : start + size]).backward()
            yield

    return run


@pytest.mark.parametrize("kind", ["l1", "l2", "group", "batch_norm", "taylor"])
def test_the_channel_that_matters_least_goes_first(kind):
    model = plain()
    with torch.no_grad():
        model[0].weight[5] *= 1e-3
        model[0].bias[5] = 0
        model[1].weight[5] *= 1e-3
        model[3].weight[:, 5] *= 1e-3
    x, y = samples(IMAGE, 8), torch.arange(8) % 5
    groups = {group.name: group for group in follow(model, x).groups}
    assert set(groups) == {"0", "3"}
    scores = unit_scores(kind, model, list(groups.values()), loss_gradients(x, y))
    assert scores["0"].argmin() == 5
    assert scores["0"].shape == (8,)


def test_magnitudes_are_those_of_the_papers():
    model = plain()
    groups = follow(model, samples(IMAGE)).groups
    scores = {kind: unit_scores(kind, model, groups)["0"] for kind in ("l1", "l2", "batch_norm")}
    norm = model[0].weight.detach().flatten(1)
    for kind, expected in (("l1", norm.abs().sum(1)), ("l2", norm.norm(dim=1))):
        torch.testing.assert_close(scores[kind], expected / expected.mean())
    torch.testing.assert_close(scores["batch_norm"], model[1].weight.detach())


def test_taylor_is_the_squared_derivative_by_a_gate_on_the_channel():
    model = plain()
    x, y = samples(IMAGE, 8), torch.arange(8) % 5
    groups = follow(model, x).groups
    score = unit_scores("taylor", model, groups, loss_gradients(x, y))["0"]
    expected = torch.zeros(8)
    for start in (0, 4):
        gate = torch.ones(1, 8, 1, 1, requires_grad=True)
        logits = model[3:](model[:3](x[start : start + 4]) * gate)
        nn.functional.cross_entropy(logits, y[start : start + 4]).backward()
        expected += gate.grad.flatten().square() / 2
    torch.testing.assert_close(score, expected)


def test_group_importance_is_torch_prunings():
    model = plain()
    x = samples(IMAGE)
    scores = unit_scores("group", model, follow(model, x).groups)
    graph = torch_pruning.DependencyGraph().build_dependency(model, x)
    for group in graph.get_all_groups(ignored_layers=[model[8]]):
        name = next(name for name, module in model.named_modules() if module is group[0].dep.target.module)
        torch.testing.assert_close(scores[name], torch_pruning.importance.GroupMagnitudeImportance(p=2)(group))


def test_random_importance_repeats_with_its_seed():
    model, x = plain(), samples(IMAGE)
    groups = follow(model, x).groups
    first, again, other = (unit_scores("random", model, groups, seed=seed)["0"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_taylor_without_data_is_refused(tmp_path):
    source = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    with pytest.raises(UserError, match="'taylor' needs data to take gradients on: give --pack"):
        steps.prune(source, tmp_path / "pruned.safetensors", asked(importance="taylor"))
    assert not (tmp_path / "pruned.safetensors").exists()


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


def test_macs_are_those_of_the_exported_file(tmp_path):
    for name in ("mobilenet_v2", "bert"):
        source = saved(tmp_path / f"{name}.safetensors", name, small(name))
        found = steps.prune(source, tmp_path / "pruned.safetensors", asked(), Samples(samples(SMALL[name][1]).numpy()))
        artifact = export(found.path, tmp_path / "pruned.onnx")
        assert artifact.macs == found.after.macs


def test_a_target_that_cannot_be_reached_says_the_closest():
    model, x = small("resnet"), samples(IMAGE)
    with pytest.raises(UserError, match=r"prune.macs: 0.01 can't be reached: 0\.\d+ is the closest") as error:
        structured.prune(model, Prune(macs=0.01, round_to=4), x)
    closest = float(str(error.value).split("reached: ")[1].split()[0])
    found = structured.prune(model, Prune(macs=closest + 0.001, round_to=4), x)
    assert found.share == pytest.approx(closest, abs=1e-3)
    assert min(module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)) == 4


def test_layers_narrower_than_the_rounding_are_left():
    with pytest.raises(UserError, match=r"can't be reached: 1\.000 is the closest.*lower round_to"):
        structured.prune(small("resnet"), Prune(macs=0.5, round_to=64), samples(IMAGE))


def test_ignored_layers_keep_their_channels():
    model, x = small("vgg"), samples(IMAGE)
    found = structured.prune(model, asked(ignore=("stages.0", "stages.2"), parameters=0.5), x)
    assert found.model.stages[0][0][0].out_channels == 8
    assert found.model.stages[2][1][0].out_channels == 32
    assert set(found.left) == {"stages.0.0.0", "stages.2.1.0"}
    with pytest.raises(UserError, match=r"prune.ignore: no submodule 'stages\.00': did you mean 'stages\.0"):
        structured.prune(model, asked(ignore=("stages.00",)), x)


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
    options = Prune(macs=0.95, blocks=True, round_to=2, ignore=("conv1",))
    found = steps.prune(source, tmp_path / "pruned.safetensors", options, Samples(x.numpy()))
    again, trained = weights.model_of(found.path)
    assert trained.changes[0] == Change(kind="blocks", options={"blocks": ["layer3.1"]})
    assert isinstance(again.layer3[1], nn.Identity)
    assert found.share <= 0.95
    with torch.no_grad():
        skipped, _ = weights.model_of(source)
        skipped.layer3[1] = nn.Identity()
        assert torch.equal(skipped(x), model(x))


def test_blocks_alone_reach_a_target_that_fits_them():
    model, x = small("resnet"), samples(IMAGE)
    whole = cost(model, x).macs
    replay(model, [Change(kind="blocks", options={"blocks": ["stages.0.0", "stages.0.1", "stages.1.1"]})], x, "test")
    share = cost(model, x).macs / whole
    found = structured.prune(small("resnet"), Prune(macs=share, blocks=True), x)
    assert [change.kind for change in found.changes] == ["blocks"]
    assert found.share == share


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_pruned_again_and_keeps_both_changes(tmp_path):
    first = saved(tmp_path / "0.safetensors", "resnet-pad", small("resnet-pad"))
    x = Samples(samples(IMAGE).numpy())
    second = steps.prune(first, tmp_path / "1.safetensors", asked(parameters=0.7), x)
    third = steps.prune(second.path, tmp_path / "2.safetensors", asked(parameters=0.7), x)
    kinds = [change.kind for change in weights.record(third.path).changes]
    assert kinds == ["shortcuts", "channels", "channels"]
    assert third.before.parameters == second.after.parameters
    assert third.after.parameters < 0.5 * second.before.parameters
    assert (tmp_path / "2.safetensors").stat().st_size < (tmp_path / "1.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            Change(kind="channels", options={"cuts": [{"removed": [[0, 31]], "of": [["stages.0.0", "linear.out"]]}]}),
            "stages.0.0 has 32 channels, of which these can't be removed",
        ),
        (
            Change(kind="channels", options={"cuts": [{"removed": [[40, 41]], "of": [["stages.0.0", "linear.out"]]}]}),
            "stages.0.0 has 32 channels",
        ),
        (
            Change(kind="channels", options={"cuts": [{"removed": [[0, 1]], "of": [["stages.9", "linear.out"]]}]}),
            "'stages.9'",
        ),
        (Change(kind="channels", options={"cuts": 3}), "'int' object"),
        (Change(kind="blocks", options={"blocks": ["stages.9"]}), "9"),
        (Change(kind="chanels"), "did you mean 'channels'"),
    ],
)
def test_a_history_that_does_not_fit_is_refused(change, reason, tmp_path):
    path = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    tensors, trained = weights.load(path)
    weights.save(path, tensors, trained.model_copy(update={"changes": (change,)}))
    with pytest.raises(UserError) as error:
        weights.model_of(path)
    assert reason in str(error.value)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not written by kdbench"):
        steps.prune(path, tmp_path / "out.safetensors", asked())
    with pytest.raises(UserError, match="is the input itself"):
        steps.prune(path, path, asked())


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


# --- sparse learning --------------------------------------------------------------------------------------------------


def gradients_of(loss, model):
    model.zero_grad()
    loss(model, 3).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["l1", "batch_norm"])
def test_l1_draws_every_weight_alike(kind):
    model = plain()
    found = gradients_of(penalty(model, Sparse(kind=kind, strength=0.01, epochs=1), samples(IMAGE)), model)
    drawn = {"l1": {"0.weight", "3.weight", "8.weight"}, "batch_norm": {"1.weight", "4.weight"}}[kind]
    assert set(found) == drawn
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, 0.01 * model.get_parameter(name).sign())


def test_group_regularisation_is_torch_prunings():
    model, x = plain(), samples(IMAGE)
    with torch.no_grad():
        nn.init.uniform_(model[1].weight)
    found = gradients_of(penalty(model, Sparse(kind="group", strength=0.01, epochs=1), x), model)
    pruner = torch_pruning.pruner.GroupNormPruner(
        model, x, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), reg=0.01, ignored_layers=[model[8]]
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(model)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, msg=name)
    assert set(found) == {"0.weight", "1.weight", "3.weight", "4.weight", "8.weight"}


def test_growing_regularisation_grows_for_the_least_important():
    model, x = plain(), samples(IMAGE)
    loss = penalty(model, Sparse(kind="growing", strength=0.01, epochs=9), x)
    scores = unit_scores("group", model, follow(model, x).groups)["0"]
    growth = gradients_of(loss, model)["0.weight"] / model[0].weight.detach()
    assert growth[scores.argmax()].mean() == pytest.approx(0.01, rel=1e-4)
    assert growth[scores.argmin()].mean() == pytest.approx(0.04, rel=1e-4)


def test_padding_shortcuts_do_not_keep_their_stage_from_being_drawn():
    model, x = small("resnet-pad"), samples(IMAGE)
    found = gradients_of(penalty(model, Sparse(strength=0.01, epochs=1), x), model)
    assert found["stages.1.0.conv2.weight"].abs().sum() > 0
