"""Features: seen by submodule name, without a trace left in the model."""

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses import LOSSES
from kdbench.losses.weighted import terms
from kdbench.models import build
from kdbench.records import Loss, Preprocessing, Training
from kdbench.teachers.classes import class_map
from kdbench.training.features import channels_first, layers, observe
from kdbench.training.loop import Course, fit
from kdbench.training.teaching import Faculty, Teaching, sample_outputs
from kdbench.training.weights import Trained

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HINT = {"hint": Loss(pairs=[["stages.0", "stages.1"], ["head", "head"]])}


def network(seed=0):
    torch.manual_seed(seed)
    return build("resnet", {"widths": [4, 8], "blocks": [1, 1]}, (1, 8, 8), 3)


def read(losses, tmp_path, epochs=1):
    return terms(losses, 4.0, tmp_path, epochs)


def test_features_are_what_the_submodules_give():
    model = network().eval()
    seen = observe(model, X, ["stem", "stages.1", "pool", "head"])
    assert {name: tuple(tensor.shape) for name, tensor in seen.features.items()} == {
        "stem": (4, 4, 8, 8),
        "stages.1": (4, 8, 4, 4),
        "pool": (4, 8, 1, 1),
        "head": (4, 3),
    }
    assert torch.equal(seen.features["head"], seen.logits)
    assert torch.equal(seen.features["stem"], model.stem(X))
    assert seen.parameters["head.weight"] is model.head.weight


def test_no_hook_outlives_the_call():
    model = network()
    observe(model, X, ["stem"])
    model.head = nn.Linear(1, 1)  # no longer fits
    with pytest.raises(RuntimeError):
        observe(model, X, ["stem"])
    assert not any(module._forward_hooks for module in model.modules())


class Odd(nn.Module):
    """With a submodule that is never called, one that gives two tensors, and one that gives none."""

    class Two(nn.Module):
        def forward(self, x):
            return x, x + 1

    class Words(nn.Module):
        def forward(self, x):
            return {"x": x}

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.two = self.Two()
        self.words = self.Words()

    def forward(self, x):
        return self.words(self.two(x)[0])["x"].flatten(1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("unuse", "student: no submodule 'unuse': did you mean 'unused'?"),
        ("unused", "student: submodule 'unused' is not called in a forward pass"),
        ("words", "student: submodule 'words' gives dict, not a tensor"),
    ],
)
def test_submodules_without_a_feature_are_named(layer, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        observe(Odd(), X, [layer], "student")


def test_of_several_outputs_the_first_is_taken():
    assert torch.equal(observe(Odd(), X, ["two"]).features["two"], X)


TOKENS = torch.randint(1, 20, (3, 9), generator=torch.Generator().manual_seed(0))


def text_cnn(width, seed):
    torch.manual_seed(seed)
    return build("text_cnn", {"vocabulary": 20, "embedding": 5, "width": width, "kernels": [3]}, (9,), 2).eval()


@pytest.mark.parametrize("layer", ["convolutions.0", "convolutions.0.conv"])
def test_losses_on_features_tell_channels_of_a_convolution_over_tokens_from_its_positions(layer):
    student, teacher = text_cnn(4, 0), text_cnn(6, 1)
    ours, theirs = observe(student, TOKENS, [layer]), observe(teacher, TOKENS, [layer])
    assert (ours.features[layer].shape, theirs.features[layer].shape) == ((3, 10, 4), (3, 10, 6))
    pairs = [(layer, layer)]
    for name, loss in {name: LOSSES[name](ours, theirs, pairs) for name in ("hint", "cosine")}.items():
        (regressor,) = loss.regressors
        assert (regressor.in_features, regressor.out_features) == (4, 6), name
        assert loss(ours, theirs, None).isfinite()
    maps = [outputs.features[layer].square().mean(2) for outputs in (ours, theirs)]  # over channels: one for a position
    ours_map, theirs_map = (nn.functional.normalize(found, dim=1) for found in maps)
    expected = nn.functional.mse_loss(ours_map, theirs_map)
    assert torch.allclose(LOSSES["attention"](ours, theirs, pairs)(ours, theirs, None), expected)


@pytest.mark.parametrize(
    ("module", "first"),
    [
        (nn.Conv1d(2, 3, 1), True),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU()), True),
        (nn.Sequential(nn.Sequential(nn.Conv1d(2, 3, 1)), nn.GELU()), True),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(2), nn.Linear(4, 3), nn.ReLU()), False),
        (nn.Linear(2, 3), False),
        (nn.TransformerEncoderLayer(4, 1), False),
    ],
)
def test_which_modules_give_channels_first(module, first):
    assert channels_first(module) == first


def test_layers_are_those_of_all_losses(tmp_path):
    found = read({**HINT, "kd": Loss(), "sp": Loss(pairs=[["pool", "head"]])}, tmp_path)
    assert layers(found) == (["head", "pool", "stages.0"], ["head", "stages.1"])


DATASET = Dataset(X.numpy(), np.zeros(len(X), np.int64), X.numpy(), None, ("a", "b", "c"), None)


def faculty(model, preprocessing=None):
    return Faculty([Teaching(model, preprocessing)], preprocessing, 3)


def black_box(x):
    return torch.zeros(len(x), 3)


def test_a_black_box_with_a_loss_on_features_is_refused(tmp_path):
    both = {"kd": Loss(), **HINT}
    with pytest.raises(UserError, match=r"distill.losses.hint: needs features of the teacher, and 'black_box' is a"):
        sample_outputs(network(), faculty(black_box), DATASET, X, read(both, tmp_path))
    _, theirs = sample_outputs(network(), faculty(black_box), DATASET, X, read({"kd": Loss()}, tmp_path))
    assert torch.equal(theirs.logits, black_box(X))


@pytest.mark.parametrize("losses", [HINT, {"parameters": Loss()}])
def test_a_teacher_of_a_part_of_the_classes_with_a_loss_on_more_than_logits_is_refused(losses, tmp_path):
    some = Faculty([Teaching(network(), None, class_map("abz", "abc", {"a": "a", "b": "b"}))], None, 3)
    with pytest.raises(UserError, match="the teacher knows a part of the classes, and is heard by losses on logits"):
        sample_outputs(network(), some, DATASET, X, read(losses, tmp_path))


class Watched(nn.Module):
    """A teacher that remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.inner = network(1)
        self.calls = []

    def forward(self, x):
        self.calls.append((self.inner.training, torch.is_grad_enabled()))
        return self.inner(x)


def fitted(tmp_path, teacher, losses=None, samples=20):
    rng = np.random.default_rng(0)
    x, y = rng.random((samples, 1, 8, 8), dtype=np.float32), np.arange(samples) % 3
    dataset = Dataset(x, y, x, y, ("a", "b", "c"), Preprocessing())
    started = Trained(
        model="resnet",
        options={},
        input_shape=(1, 8, 8),
        classes=dataset.classes,
        preprocessing=Preprocessing(),
        fingerprint="",
        epoch=0,
    )
    training = Training(epochs=2, learning_rate=0.01, batch_size=8)
    wanted = read(losses or {"kd": Loss()}, tmp_path, 2)
    teaching = teacher if isinstance(teacher, Teaching) else Teaching(teacher, Preprocessing())
    course = Course(dataset, training, wanted, Faculty([teaching], Preprocessing(), 3))
    return fit(network(), course, started, tmp_path / "checkpoint")["last"][1]


def test_the_teacher_is_asked_in_evaluation_mode_without_gradients_and_not_changed(tmp_path):
    teacher = Watched().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pairs = [["stages.0", "inner.stages.0"]]
    trained = fitted(tmp_path, teacher, {"kd": Loss(), "attention": Loss(pairs=pairs)})
    assert set(trained.history[0]) == {"loss", "loss.kd", "loss.attention", "learning_rate"}
    assert len(teacher.calls) == 1 + 2 * 3
    assert set(teacher.calls) == {(False, False)}
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_teacher_of_other_preprocessing_is_shown_its_own_and_its_answers_are_mapped(tmp_path):
    shown = []

    def twice_as_bright(x):
        shown.append(x)
        return torch.zeros(len(x), 4)

    known = class_map("abcd", "abc", {name: name for name in "abc"})
    fitted(tmp_path, Teaching(twice_as_bright, Preprocessing(scale=2.0), known))
    assert len(shown) == 1 + 2 * 3
    assert all(1.5 < x.max() <= 2.0 for x in shown)


def test_a_black_box_teaches_by_its_logits(tmp_path):
    assert np.isfinite(fitted(tmp_path, black_box, {"kd": Loss()}).history[-1]["loss"])


def test_the_mean_of_a_loss_is_over_the_samples_that_were_learnt_from(tmp_path):
    (tmp_path / "own.py").write_text("def one(student, teacher, target):\n    return 0 * student.logits.sum() + 1\n")
    history = fitted(tmp_path, black_box, {"own.py:one": Loss()}, samples=17).history  # of a last batch of one nothing
    assert [line["loss"] for line in history] == pytest.approx([1.0, 1.0])
