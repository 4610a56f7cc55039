"""Which channels go first, and what draws them towards zero before."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn

from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.pruning.graph import follow
from kdbench.pruning.importance import unit_scores
from kdbench.pruning.sparse import check_drawn, penalty
from kdbench.records import Sparse
from kdbench.steps import prune as steps
from kdbench.training import weights
from tests.prunable import IMAGE, ROW, asked, plain, samples, saved, small


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


@pytest.mark.parametrize(("classes", "by_labels"), [("abcde", True), ("vwxyz", False)])
def test_taylor_goes_by_the_labels_of_a_pack_of_the_networks_own_classes(classes, by_labels, tmp_path):
    source = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    x, y = samples(ROW, 16).numpy(), np.arange(16) % 5
    pack = EvalPack("pack", None, None, x, tuple(classes), None, y_calibration=y)

    def taken_out(data):
        found = steps.prune(source, tmp_path / "pruned.safetensors", asked(importance="taylor"), data)
        return weights.record(found.path).changes

    known, unknown = taken_out(steps.Samples(x, y)), taken_out(steps.Samples(x))
    assert known != unknown
    assert taken_out(pack) == (known if by_labels else unknown)


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


@pytest.mark.parametrize(
    ("inner", "kind", "message"),
    [
        (nn.ReLU(), "batch_norm", "sparse.kind: this network has no batch norms: take group"),
        (nn.BatchNorm1d(16, affine=False), "batch_norm", "sparse.kind: this network has no batch norms: take group"),
        (nn.LayerNorm(16), "group", "sparse.kind: this network has no channels that can be taken out: take l1"),
        (nn.LayerNorm(16), "growing", "sparse.kind: this network has no channels that can be taken out: take l1"),
        (nn.BatchNorm1d(16), "batch_norm", None),
        (nn.ReLU(), "group", None),
        (nn.ReLU(), "growing", None),
        (nn.LayerNorm(16), "l1", None),
    ],
)
def test_a_loss_that_would_draw_nothing_is_refused(inner, kind, message):
    model = nn.Sequential(nn.Linear(20, 16), inner, nn.Linear(16, 5)).requires_grad_(False)
    refused = pytest.raises(UserError) if message else nullcontext()
    with refused as error:
        check_drawn(model, Sparse(kind=kind, epochs=1), samples(ROW), "sparse")
    assert not message or str(error.value) == message


def test_padding_shortcuts_do_not_keep_their_stage_from_being_drawn():
    model, x = small("resnet-pad"), samples(IMAGE)
    found = gradients_of(penalty(model, Sparse(strength=0.01, epochs=1), x), model)
    assert found["stages.1.0.conv2.weight"].abs().sum() > 0
