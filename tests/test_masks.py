"""Unstructured pruning: which weights become zero, and that they stay exactly that whatever the training does."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from kdbench.errors import UserError
from kdbench.losses.weighted import terms
from kdbench.models import build
from kdbench.pruning import masks, shortcuts
from kdbench.pruning.masks import Masks
from kdbench.records import Loss, Sparsify, SparsifySection, Training, parse
from kdbench.training.loop import Course, fit
from kdbench.training.weights import Trained, load
from tests.test_training import StopError, stop_at

SHARE = st.floats(0.01, 0.99)


@given(SHARE, st.integers(0, 20), st.integers(1, 20), st.integers(0, 60))
def test_the_gradual_schedule_is_zhu_and_guptas(final, begin, length, epoch):
    found = masks.cubic(epoch, final, begin, begin + length)
    if epoch <= begin:
        assert found == 0
    elif epoch >= begin + length:
        assert found == pytest.approx(final)
    else:  # s_t = s_f + (s_i − s_f)(1 − (t − t_0) / (n Δt))³ with s_i = 0
        assert found == pytest.approx(final + (0.0 - final) * (1 - (epoch - begin) / length) ** 3)
        assert found > masks.cubic(epoch - 1, final, begin, begin + length)


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), min_size=1, max_size=4), SHARE)
def test_the_lowest_scores_of_all_or_of_each_tensor_are_marked(values, share):
    scores = {str(i): torch.tensor(part) for i, part in enumerate(values)}
    marked = masks.lowest(scores, share, "global")
    everything, chosen = torch.cat(list(scores.values())), torch.cat(list(marked.values()))
    assert int(chosen.sum()) == round(share * len(everything))
    if chosen.any() and not chosen.all():
        assert everything[chosen].max() <= everything[~chosen].min()
    for name, part in masks.lowest(scores, share, "layer").items():
        assert int(part.sum()) == round(share * len(part))
        if part.any() and not part.all():
            assert scores[name][part].max() <= scores[name][~part].min()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("resnet", {"widths": [4, 8], "blocks": [1, 1]}, (1, 8, 8), 10)


def test_norms_and_biases_are_never_masked(network):
    found = masks.maskable(network)
    assert set(found) == {name for name, tensor in network.named_parameters() if tensor.ndim > 1}
    shaped = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm((4, 4)))
    assert list(masks.maskable(shaped)) == ["0.weight"]


def test_constants_are_never_masked():
    """As the shortcuts of a pruned ResNet of option A are, in which every 1 counts."""
    model = build("resnet", {"widths": [4, 8], "blocks": [1, 1], "shortcut": "pad"}, (1, 8, 8), 10)
    rewritten = shortcuts.rewritable(model)
    shortcuts.redo(model, torch.zeros(1, 1, 8, 8), {"layers": rewritten})
    assert rewritten
    assert masks.maskable(model).keys().isdisjoint(f"{name}.weight" for name in rewritten)


def test_embeddings_are_masked_where_they_are_named_alone():
    text = build("embedding_bag", {"vocabulary": 20, "width": 4}, (6,), 3)
    tables = {name for name, module in text.named_modules() if isinstance(module, masks.TABLES)}
    assert tables
    assert not any(name.startswith(tuple(tables)) for name in masks.maskable(text))
    assert any(name.startswith(tuple(tables)) for name in masks.maskable(text, list(tables)))


def test_tied_weights_are_counted_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert list(masks.maskable(nn.Sequential(first, second))) == ["0.weight"]


def test_layers_are_named_and_left_out(network):
    assert set(masks.maskable(network, ["stages.1", "head"], ["stages.1.0.shortcut"])) == {
        "stages.1.0.conv1.weight",
        "stages.1.0.conv2.weight",
        "head.weight",
    }


def test_each_method_takes_what_it_says(network):
    weights = masks.maskable(network)
    gradients = {name: torch.randn_like(weight) for name, weight in weights.items()}
    expected = {
        "magnitude": torch.cat([w.detach().abs().flatten() for w in weights.values()]),
        "gradient": torch.cat([(w.detach() * gradients[n]).abs().flatten() for n, w in weights.items()]),
    }
    for method, scores in expected.items():
        zeros = masks.choose(network, Sparsify(method=method, sparsity=0.5), 0, gradients)
        chosen = torch.cat([zero.flatten() for zero in zeros.values()])
        assert set(torch.nonzero(chosen).flatten().tolist()) == set(scores.argsort()[: int(chosen.sum())].tolist())
    drawn = [masks.choose(network, Sparsify(method="random", sparsity=0.5), seed) for seed in (1, 1, 2)]
    same = [all(torch.equal(drawn[0][name], other[name]) for name in drawn[0]) for other in drawn[1:]]
    assert same == [True, False]


def test_a_threshold_takes_what_is_smaller(network):
    chosen = masks.choose(network, Sparsify(threshold=0.05))
    for name, weight in masks.maskable(network).items():
        assert torch.equal(chosen[name], weight.abs() < 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1e3}, r"sparsify.threshold: 1000 would leave nothing of 'stem.0.weight' \(36\): at 0.\d+ some"),
        ({"sparsity": 0.99, "scope": "layer"}, r"sparsify.sparsity: 0.99 would leave nothing of 'stem.0.weight'"),
        (
            {"sparsity": 0.5, "layers": ["stagse"]},
            "sparsify.layers: no weights to mask in 'stagse': did you mean 'stages",
        ),
        (
            {"sparsity": 0.5, "layers": ["stem.1"]},
            "sparsify.layers: no weights to mask in 'stem.1': did you mean 'stem",
        ),
        ({"sparsity": 0.5, "ignore": ["haed"]}, "sparsify.ignore: no weights to mask in 'haed': did you mean 'head'"),
        ({"sparsity": 0.5, "layers": ["head"], "ignore": ["head"]}, "sparsify.layers: there are no weights to mask"),
    ],
)
def test_what_cannot_be_masked_is_said(network, options, message):
    if options.get("scope") == "layer":
        network.stem[0] = nn.Conv2d(1, 4, 1)  # 4 weights, of which 99 % are all
    with pytest.raises(UserError, match=message):
        masks.choose(network, Sparsify(**options))


def test_the_highest_threshold_that_is_named_can_be_had(network):
    with pytest.raises(UserError) as refused:
        masks.choose(network, Sparsify(threshold=5.0))
    advised = float(str(refused.value).split(": at ")[1].split()[0])
    masks.choose(network, Sparsify(threshold=advised))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'threshold' should be given where sparsity is not"),
        ({"sparsity": 1.0}, "'sparsity' should be less than 1, not 1.0"),
        ({"sparsity": 0}, "'sparsity' should be greater than 0"),
        ({"sparsity": 0.5, "threshold": 0.1}, "'threshold' should be left out where sparsity is given"),
        ({"threshold": 0.1, "method": "random"}, "'threshold' should be left out where method is not 'magnitude'"),
        ({"sparsity": 0.5, "begin_epoch": 3, "end_epoch": 3}, "'end_epoch' should be after begin_epoch, 3, not 3"),
        ({"sparsity": 0.5, "begin_epoch": 3}, "'end_epoch' should be given where begin_epoch is"),
        ({"threshold": 0.5, "end_epoch": 3}, "'end_epoch' should be left out with a threshold"),
        ({"sparsity": 0.5, "end_epoch": 3, "rewind_epoch": 1}, "'rewind_epoch' should be left out where end_epoch is"),
        ({"sparsity": 0.5, "sparsty": 3}, "unknown key 'sparsty': did you mean 'sparsity'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        parse(SparsifySection, fields, "here")


# --- in a training ----------------------------------------------------------------------------------------------------


def begun(dataset, model, model_name="mlp", name="sparse"):
    return Trained(
        model=model_name,
        options={},
        input_shape=dataset.x_train.shape[1:],
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint=name,
        epoch=0,
    )


def trained(folder, dataset, options, *, progress=None, rewound=None, model="mlp", **training):
    """The state of a small network after a training with masks, its history, and the masks."""
    settings = {"epochs": 4, "learning_rate": 0.05} | training
    torch.manual_seed(1)
    shape = {"widths": [16]} if model == "mlp" else {"widths": [4, 8], "blocks": [1, 1]}
    network = build(model, shape, dataset.x_train.shape[1:], 10)
    held = Masks(options, 0, rewound)
    learnt = terms({"cross_entropy": Loss()}, 1.0, folder, settings["epochs"])
    course = Course(dataset, Training(**settings), learnt, masks=held)
    more = {"progress": progress} if progress else {}
    ends = fit(network, course, begun(dataset, network), folder / "checkpoint.safetensors", **more)
    return ends["last"], held


def assert_exact(tensors, zeros):
    """Zeros are those of the bit patterns: no −0."""
    assert zeros
    for name, zero in zeros.items():
        assert torch.equal(tensors[name][zero].view(torch.int32), torch.zeros(int(zero.sum()), dtype=torch.int32)), name
        assert (tensors[name][~zero] != 0).all(), name


ONE_SHOT = SparsifySection(sparsity=0.7)
GRADUAL = SparsifySection(sparsity=0.7, begin_epoch=1, end_epoch=3)


@pytest.mark.parametrize("options", [ONE_SHOT, GRADUAL], ids=["one-shot", "gradual"])
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
        {"ema_decay": 0.9, "schedule": "one_cycle"},
        {"clip_norm": 0.5, "schedule": "step", "step_epochs": (2,)},
        {"precision": "bf16", "model": "resnet", "epochs": 3},
    ],
    ids=lambda training: next(iter(training), "sgd"),
)
def test_zeros_stay_exact_in_every_training(tmp_path, digits, options, training):
    (tensors, record), held = trained(tmp_path, digits, options, **training)
    assert_exact(tensors, held.zeros)
    total = sum(zero.numel() for zero in held.zeros.values())
    assert sum(int(zero.sum()) for zero in held.zeros.values()) == round(0.7 * total)
    expected = [0, 0.7 * (1 - 0.5**3), 0.7, 0.7] if options is GRADUAL else [0.7] * 4
    found = [epoch["sparsity"] for epoch in record.history]
    assert found == pytest.approx(expected[: len(found)], abs=1 / total)


@pytest.mark.parametrize("method", ["magnitude", "gradient", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_is_zero_once_stays_so(tmp_path, digits, method, scope):
    options = SparsifySection(method=method, sparsity=0.6, end_epoch=3, scope=scope)
    seen = []

    class Watched(Masks):
        def begin_epoch(self, *arguments):
            super().begin_epoch(*arguments)
            seen.append(dict(self.zeros))

    torch.manual_seed(1)
    network = build("mlp", {"widths": [16]}, digits.x_train.shape[1:], 10)
    learnt = terms({"cross_entropy": Loss()}, 1.0, tmp_path, 3)
    course = Course(digits, Training(epochs=3, learning_rate=0.05), learnt, masks=Watched(options))
    fit(network, course, begun(digits, network), tmp_path / "checkpoint.safetensors")
    shares = [masks.share_of(zeros) for zeros in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.6, abs=0.01)
    for before, after in pairwise(seen):
        assert all((before[name] <= after[name]).all() for name in before)


def test_gradients_in_evaluation_mode_are_taken_without_cudnn(tmp_path, digits):
    """Its recurrent layers go back in training mode alone."""
    network = build("mlp", {"widths": [16]}, digits.x_train.shape[1:], 10)
    calls = set()
    network.register_forward_pre_hook(
        lambda module, _: calls.add((module.training, torch.is_grad_enabled(), torch.backends.cudnn.enabled))
    )
    learnt = terms({"cross_entropy": Loss()}, 1.0, tmp_path, 1)
    chosen = Masks(SparsifySection(method="gradient", sparsity=0.6))
    course = Course(digits, Training(epochs=1, learning_rate=0.05), learnt, masks=chosen)
    fit(network, course, begun(digits, network), tmp_path / "checkpoint.safetensors")
    assert {call for call in calls if call[1]} == {(False, True, False), (True, True, True)}


def test_what_was_masked_goes_before_what_happens_to_be_zero():
    model = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    masked = {"0.weight": torch.arange(16).reshape(4, 4) >= 12}
    found = masks.choose(model, Sparsify(sparsity=0.5), share=0.5, zeros=masked)
    assert int(found["0.weight"].sum()) == 8
    assert (masked["0.weight"] <= found["0.weight"]).all()


def test_gradients_of_zeros_count_in_no_momentum(tmp_path, digits):
    (_, _), held = trained(tmp_path, digits, ONE_SHOT, clip_norm=0.5)
    state, _ = load(tmp_path / "checkpoint.safetensors")
    names = ["stages.0.0.weight", "stages.0.0.bias", "head.weight", "head.bias"]
    for name, zero in held.zeros.items():
        momentum = state[f"optimizer.{names.index(name)}.momentum_buffer"]
        assert (momentum[zero] == 0).all()
        assert (momentum[~zero] != 0).any()


@pytest.mark.parametrize("method", ["magnitude", "gradient", "random"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_stopped_gradual_training_ends_with_the_same_bytes(tmp_path, digits, method, epoch):
    options = SparsifySection(method=method, sparsity=0.8, begin_epoch=1, end_epoch=3)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    (whole, _), _ = trained(tmp_path / "whole", digits, options, ema_decay=0.9)
    with pytest.raises(StopError):
        trained(tmp_path / "parts", digits, options, ema_decay=0.9, progress=stop_at(epoch))
    torch.manual_seed(epoch)
    (parts, _), held = trained(tmp_path / "parts", digits, options, ema_decay=0.9)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert_exact(parts, held.zeros)


def test_rewinding_restores_all_that_is_not_zero(network):
    early = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(torch.randn_like(tensor))
    network(torch.randn(8, 1, 8, 8))  # moves the statistics of batch norm
    late = {name: weight.detach().clone() for name, weight in masks.maskable(network).items()}
    held = Masks(SparsifySection(sparsity=0.5, rewind_epoch=1), 0, early)
    held.begin_epoch(1, dict, network)
    scores = torch.cat([weight.abs().flatten() for weight in late.values()])
    chosen = torch.cat([held.zeros[name].flatten() for name in late])
    assert scores[chosen].max() <= scores[~chosen].min()  # chosen by the late weights
    for name, tensor in network.state_dict().items():
        if name in held.zeros:
            assert torch.equal(tensor, early[name].masked_fill(held.zeros[name], 0.0)), name
        else:
            assert torch.equal(tensor, early[name]), name


def test_training_with_masks_is_that_of_torchs_own():
    """The weights that are left take the same steps as under torch.nn.utils.prune."""
    torch.manual_seed(0)
    ours, theirs = (build("mlp", {"widths": [8]}, (6,), 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    held = Masks(SparsifySection(sparsity=0.5))
    held.begin_epoch(1, dict, ours)
    for name, zero in held.zeros.items():
        layer, _, own = name.rpartition(".")
        prune.custom_from_mask(theirs.get_submodule(layer), own, ~zero)
    makers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True) for model in (ours, theirs)]
    for x in torch.randn(6, 16, 6):
        for model, optimizer in zip((ours, theirs), makers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if model is ours:
                held.before_step(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            if model is ours:
                held.after_step(model)
    found = dict(ours.named_parameters())
    for name, zero in held.zeros.items():
        layer, _, own = name.rpartition(".")
        pruned = getattr(theirs.get_submodule(layer), own + "_orig") * ~zero
        assert torch.allclose(found[name], pruned, rtol=0, atol=1e-7), name


def test_epochs_are_judged_once_all_zeros_are_there(tmp_path, digits):
    held_out = replace(digits, x_held_out=digits.x_train[:64], y_held_out=digits.y_train[:64])
    (_, record), _ = trained(tmp_path, held_out, GRADUAL, patience_epochs=1, epochs=5)
    judged = ["held_out" in epoch for epoch in record.history]
    assert judged[:3] == [False, False, True]
    assert len(judged) > 3
