"""Losses against golden values (from the papers' public code) and their defining properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdbench.losses import LOSSES
from kdbench.losses.features import same_size
from kdbench.losses.outputs import Outputs
from kdbench.losses.weighted import WeightedSum, terms
from kdbench.records import recipe_from_toml
from tests.test_records import TEXT

K = torch.arange(20, dtype=torch.float64)
VECTORS = torch.arange(32, dtype=torch.float64)
FEATURES = {
    "map": torch.sin(0.1 * torch.arange(192, dtype=torch.float64)).reshape(4, 3, 4, 4),
    "vector": torch.sin(0.3 * VECTORS[:24]).reshape(4, 6),
}
THEIR_FEATURES = {
    "map": torch.cos(0.07 * torch.arange(96, dtype=torch.float64)).reshape(4, 6, 2, 2),
    "vector": torch.cos(0.2 * VECTORS).reshape(4, 8),
    "vector6": torch.cos(0.2 * VECTORS[:24]).reshape(4, 6),
}
PARAMETERS = {"a": torch.sin(VECTORS[:6]).reshape(2, 3), "b": torch.cos(VECTORS[:4])}
THEIR_PARAMETERS = {"a": torch.cos(VECTORS[:6]).reshape(2, 3), "b": torch.sin(VECTORS[:8])}
STUDENT = Outputs(torch.sin(K + 1).reshape(4, 5), FEATURES, PARAMETERS, torch.tensor([3, 0, 7, 5]), VECTORS[:8] // 3)
TEACHER = Outputs((2 * torch.cos(K / 2)).reshape(4, 5), THEIR_FEATURES, THEIR_PARAMETERS)
STUDENT = STUDENT._replace(labels=STUDENT.labels.long())
TARGET = torch.tensor([0, 1, 2, 3])
SEVERAL = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
"""Labels that don't exclude each other."""

MAPS, POOLED = {"pairs": [("map", "map")]}, {"pairs": [("vector", "vector")]}
OPTIONS = dict.fromkeys(("rkd", "crd"), POOLED) | dict.fromkeys(("attention", "sp", "hint", "cosine"), MAPS)
"""What a loss needs besides its defaults."""


def target_of(name):
    return SEVERAL if name in ("binary_cross_entropy", "multi_label") else TARGET


def built(name, student=STUDENT, teacher=TEACHER, **options):
    torch.manual_seed(0)
    return LOSSES[name](student, teacher, **{**OPTIONS.get(name, {}), **options})


def value(name, student=STUDENT, teacher=TEACHER, **options):
    return built(name, student, teacher, **options)(student, teacher, target_of(name))


def read(losses, temperature=4.0, folder=None, epochs=1):
    document = {"losses": losses}
    recipe = recipe_from_toml(TEXT, "mine.toml", {f"distill.{k}": toml(v) for k, v in document.items()})
    return terms(recipe.distill.losses, temperature, folder or recipe.folder, epochs)


def toml(data):
    if isinstance(data, dict):
        return "{ " + ", ".join(f'"{key}" = {toml(item)}' for key, item in data.items()) + " }"
    if isinstance(data, list | tuple):
        return "[" + ", ".join(map(toml, data)) + "]"
    return f'"{data}"' if isinstance(data, str) else str(data).lower()


def weighted(losses, student=STUDENT, teacher=TEACHER, **options):
    return WeightedSum(read(losses, **options), student, teacher)


@pytest.mark.parametrize(
    ("name", "options", "golden"),
    [
        ("cross_entropy", {}, 1.3692643),
        ("kd", {"temperature": 1.0}, 0.4162883),
        ("kd", {"temperature": 2.0}, 0.4567032),
        ("kd", {"temperature": 4.0}, 0.4637680),
        ("kd", {"temperature": 1.0, "standardize": True}, 0.6886324),
        ("kd", {"temperature": 2.0, "standardize": True}, 0.7344285),
        ("kd", {"temperature": 4.0, "standardize": True}, 0.7286067),
        ("soft_targets", {}, 0.0361205),
        ("multi_label", {"temperature": 2.0}, 2.8077795),
        ("cosine", {"pairs": [("vector", "vector6")]}, 0.3228374),
        ("dkd", {}, 3.7841761),
        ("dkd", {"alpha": 1.0, "beta": 0.0}, 0.0776265),
        ("dkd", {"alpha": 0.0, "beta": 1.0}, 0.4633187),
        ("dist", {}, 1.5598322),
        ("dist", {"gamma": 0.0}, 0.8241452),
        ("dist", {"beta": 0.0}, 0.7356870),
        ("attention", {}, 0.0239166),
        ("rkd", {}, 2.8926289),
        ("rkd", {"distance_weight": 1.0, "angle_weight": 0.0}, 0.0548966),
        ("rkd", {"distance_weight": 0.0, "angle_weight": 1.0}, 0.0304043),
        ("sp", {}, 0.0645541),
    ],
)
def test_golden_values(name, options, golden):
    assert value(name, **options).item() == pytest.approx(golden, abs=1e-6)


# --- where no golden value is known: by hand, in numpy ----------------------------------------------------------------


def softmax(z):
    z = np.asarray(z)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_label_smoothing_by_hand():
    p = softmax(STUDENT.logits)
    smooth = [-0.9 * np.log(p[n, y]) - 0.1 * np.log(p[n]).mean() for n, y in enumerate(TARGET)]
    assert value("cross_entropy", label_smoothing=0.1).item() == pytest.approx(np.mean(smooth), abs=1e-9)


def test_binary_cross_entropy_by_hand():
    q = 1 / (1 + np.exp(-STUDENT.logits.numpy()))

    def by_hand(y):
        return -np.mean(y * np.log(q) + (1 - y) * np.log(1 - q))

    assert value("binary_cross_entropy").item() == pytest.approx(by_hand(SEVERAL.numpy()), abs=1e-9)
    mixed = 0.3 * SEVERAL.float() + 0.7 * SEVERAL.float().roll(1, 0)
    found = built("binary_cross_entropy")(STUDENT, TEACHER, mixed).item()
    assert found == pytest.approx(by_hand(mixed.numpy()), abs=1e-7)


def test_dynamic_temperature_by_hand():
    total = 0.0
    for ours, theirs in zip(STUDENT.logits.numpy(), TEACHER.logits.numpy(), strict=True):
        y, x = (np.log(np.exp(z - z.mean()).sum()) for z in (ours, theirs))
        our_t, their_t = 2 * y / (x + y) * 4.0, 2 * x / (x + y) * 4.0
        p, q = softmax(theirs / their_t), softmax(ours / our_t)
        total += our_t * their_t * (p * np.log(p / q)).sum() / 4
    assert value("kd", dynamic_temperature=True).item() == pytest.approx(total, abs=1e-9)


def test_dkd_of_standardized_logits_by_hand():
    def rows(z):
        z = z.numpy()
        return (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7) / 2.0

    total = 0.0
    for n, (ours, theirs) in enumerate(zip(rows(STUDENT.logits), rows(TEACHER.logits), strict=True)):
        p, q = softmax(theirs), softmax(ours)
        target = p[n] * np.log(p[n] / q[n]) + (1 - p[n]) * np.log((1 - p[n]) / (1 - q[n]))
        p, q = np.delete(p, n) / (1 - p[n]), np.delete(q, n) / (1 - q[n])
        total += 4 * (target + 8 * (p * np.log(p / q)).sum()) / 4
    assert value("dkd", standardize=True, temperature=2.0).item() == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("direction", ["student_to_teacher", "teacher_to_student"])
@pytest.mark.parametrize("criterion", ["mse", "cross_entropy"])
def test_hint_by_hand(direction, criterion):
    loss = built("hint", direction=direction, criterion=criterion)
    layer = loss.regressors[0]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    ours = FEATURES["map"].numpy().reshape(4, 3, 2, 2, 2, 2).mean((3, 5)).transpose(0, 2, 3, 1)
    theirs = THEIR_FEATURES["map"].numpy().transpose(0, 2, 3, 1)
    if direction == "student_to_teacher":
        ours = ours @ weight.T + bias
    else:
        theirs = theirs @ weight.T + bias
    cross_entropy = -(softmax(theirs) * np.log(softmax(ours))).sum(-1).mean()
    expected = ((ours - theirs) ** 2).mean() if criterion == "mse" else cross_entropy
    assert loss(STUDENT, TEACHER, TARGET).item() == pytest.approx(expected, abs=1e-9)


def test_parameters_by_hand():
    a = np.mean((np.sin(np.arange(6)) - np.cos(np.arange(6))) ** 2)
    b = np.mean((np.append(np.cos(np.arange(4)), np.zeros(4)) - np.sin(np.arange(8))) ** 2)
    assert value("parameters").item() == pytest.approx((a + b) / 2, abs=1e-9)
    p, q = softmax(np.cos(np.arange(6))), softmax(np.sin(np.arange(6)))
    found = value("parameters", layers=[("a", "a")], criterion="kl")
    assert found.item() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-9)


def test_crd_by_hand():
    loss = built("crd", dimensions=4, negatives=50, draw_from="other_samples")
    banks = loss.banks.clone().numpy()
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in loss.embeddings]
    torch.manual_seed(1)
    found = loss(STUDENT, TEACHER, TARGET).item()
    torch.manual_seed(1)
    drawn = loss._draw(STUDENT.places).numpy()
    expected, places = 0.0, STUDENT.places.numpy()
    for side, features in enumerate((FEATURES["vector"], THEIR_FEATURES["vector"])):
        v = features.numpy() @ layers[side][0].T + layers[side][1]
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        own = np.exp([v[n] @ banks[1 - side][places[n]] / 0.07 for n in range(4)])
        others = np.exp([[v[n] @ banks[1 - side][i] / 0.07 for i in drawn[n]] for n in range(4)])
        z = 8 * np.append(own[:, None], others, axis=1).mean()
        own, others, noise = own / z, others / z, 50 / 8
        h, rest = own / (own + noise), noise / (others + noise)
        expected -= (np.log(h).sum() + np.log(rest).sum()) / 4
        moved = 0.5 * banks[side][places] + 0.5 * v
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        assert np.allclose(loss.banks[side][STUDENT.places], moved)
        assert float(loss.scales[1 - side]) == pytest.approx(z)
    assert found == pytest.approx(expected, rel=1e-6)


# --- properties -------------------------------------------------------------------------------------------------------

SAME = STUDENT._replace(features=THEIR_FEATURES, logits=TEACHER.logits, parameters=THEIR_PARAMETERS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kd", {}),
        ("kd", {"standardize": True}),
        ("kd", {"dynamic_temperature": True}),
        ("dkd", {}),
        ("dist", {}),
        ("soft_targets", {}),
        ("attention", {}),
        ("rkd", {}),
        ("sp", {}),
        ("cosine", {}),
        ("hint", {}),
        ("parameters", {}),
        ("parameters", {"criterion": "kl"}),
    ],
)
def test_zero_for_a_student_that_equals_its_teacher_and_positive_otherwise(name, options):
    same = built(name, SAME, TEACHER, **options)
    for layer in getattr(same, "regressors", []):
        if name == "hint":
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    # DIST's and SP's divisors are a little larger than the norms
    assert same(SAME, TEACHER, TARGET).item() == pytest.approx(0, abs=1e-6)
    assert value(name, **options).item() > 1e-4


@pytest.mark.parametrize("shift", [-0.5, 0.5])
@pytest.mark.parametrize(("name", "options"), [("multi_label", {}), ("hint", {"criterion": "cross_entropy"})])
def test_a_cross_entropy_is_least_for_a_student_that_equals_its_teacher(name, options, shift):
    loss = built(name, SAME, TEACHER, **options)
    for layer in getattr(loss, "regressors", []):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    moved = THEIR_FEATURES["map"].clone()
    moved[:, 0] += shift
    other = SAME._replace(logits=TEACHER.logits + shift, features={**THEIR_FEATURES, "map": moved})
    assert loss(other, TEACHER, TARGET) > loss(SAME, TEACHER, TARGET)


def test_crd_draws_other_classes_alone():
    drawn = built("crd")._draw(STUDENT.places)
    labels = STUDENT.labels
    assert drawn.shape == (4, 16384)
    for place, row in zip(STUDENT.places, drawn, strict=True):
        assert set(row.tolist()) == set(torch.nonzero(labels != labels[place]).flatten().tolist())
    others = built("crd", draw_from="other_samples")._draw(STUDENT.places)
    for place, row in zip(STUDENT.places, others, strict=True):
        assert set(row.tolist()) == set(range(8)) - {int(place)}


def leaves(outputs):
    def leaf(tensor):
        return tensor.clone().requires_grad_()

    return outputs._replace(
        logits=leaf(outputs.logits),
        features={name: leaf(tensor) for name, tensor in outputs.features.items()},
        parameters={name: leaf(tensor) for name, tensor in outputs.parameters.items()},
    )


def tensors(outputs):
    return [outputs.logits, *outputs.features.values(), *outputs.parameters.values()]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_reach_the_student_and_the_losses_own_parameters_alone(name):
    student, teacher = leaves(STUDENT), leaves(TEACHER)
    loss = built(name, student, teacher)
    loss(student, teacher, target_of(name)).backward()
    given = [tensor.grad for tensor in tensors(student) if tensor.grad is not None]
    assert given
    assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in given)
    assert all(tensor.grad is None for tensor in tensors(teacher))
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_float64_stays_float64(name):
    assert value(name).dtype == torch.float64


def halved(outputs, sign):
    def extreme(tensor):
        return (sign * 80 * torch.sign(tensor)).bfloat16()

    return outputs._replace(
        logits=extreme(STUDENT.logits),
        features={name: extreme(tensor) for name, tensor in outputs.features.items()},
        parameters={name: extreme(tensor) for name, tensor in outputs.parameters.items()},
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in sorted(LOSSES)]
    + [("kd", {"standardize": True}), ("kd", {"dynamic_temperature": True}), ("hint", {"criterion": "cross_entropy"})],
)
def test_finite_for_extreme_values_in_bf16(name, options):
    student, teacher = leaves(halved(STUDENT, 1)), halved(TEACHER, -1)
    recipe = {"weight": 1.0, **OPTIONS.get(name, {}), **options}
    loss = weighted({name: recipe}, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = loss(student, teacher, target_of(name))
    found.backward()
    assert torch.isfinite(found)
    assert found.dtype == torch.float32
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors(student) if tensor.grad is not None)


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50), st.floats(0.5, 20), st.integers(2, 6))
def test_losses_on_logits_ignore_a_shift_of_them(shift, temperature, classes):
    torch.manual_seed(classes)
    student, teacher = Outputs(torch.randn(4, classes).double()), Outputs(torch.randn(4, classes).double())
    moved = Outputs(student.logits + shift)
    target = torch.zeros(4, dtype=torch.long)
    for name, options in (("kd", {}), ("kd", {"dynamic_temperature": True}), ("dkd", {})):
        loss = LOSSES[name](student, teacher, temperature=temperature, **options)
        assert loss(moved, teacher, target).item() == pytest.approx(loss(student, teacher, target).item(), abs=1e-9)


def test_features_of_unlike_shapes_are_pooled():
    student = STUDENT._replace(features={"tokens": torch.randn(4, 6, 3), "map": FEATURES["map"].float()})
    teacher = TEACHER._replace(features={"tokens": torch.randn(4, 4, 5), "map": torch.randn(4, 6)})
    pairs = [("tokens", "tokens"), ("map", "map"), ("map", "tokens")]
    for name in ("hint", "cosine", "attention", "rkd", "sp"):
        assert torch.isfinite(value(name, student, teacher, pairs=pairs))


@given(
    st.integers(1, 3).flatmap(lambda axes: st.lists(st.tuples(*[st.integers(1, 7)] * 2), min_size=axes, max_size=axes))
)
def test_features_of_unlike_sizes_are_pooled_as_torch_does(sizes):
    ours, theirs = (torch.randn(2, 3, *size) for size in zip(*sizes, strict=True))
    pool = (None, functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
    for found, features in zip(same_size(ours, theirs), (ours, theirs), strict=True):
        torch.testing.assert_close(found, pool[len(sizes)](features, [min(pair) for pair in sizes]))
