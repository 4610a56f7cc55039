"""Architectures: shapes, parameter counts of the literature, weights made by others, options that don't fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.errors import UserError
from kdbench.models import build
from kdbench.models.resnet import from_common_names

CIFAR = (3, 32, 32)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# The published number, in millions with the digits that are given, beside the exact one.
PUBLISHED = [
    # He et al., 1512.03385, table 6: shortcuts without parameters, 10 classes
    ("resnet", {"depth": 20, "shortcut": "pad"}, CIFAR, 10, "0.27", 269_722),
    ("resnet", {"depth": 32, "shortcut": "pad"}, CIFAR, 10, "0.46", 464_154),
    ("resnet", {"depth": 44, "shortcut": "pad"}, CIFAR, 10, "0.66", 658_586),
    ("resnet", {"depth": 56, "shortcut": "pad"}, CIFAR, 10, "0.85", 853_018),
    ("resnet", {"depth": 110, "shortcut": "pad"}, CIFAR, 10, "1.7", 1_727_962),
    # Tian et al., 1910.10699, and the papers after it: 1×1 shortcuts, 100 classes
    ("resnet8x4", {}, CIFAR, 100, "1.2", 1_233_540),
    ("resnet32x4", {}, CIFAR, 100, "7.4", 7_433_860),
    ("wide_resnet", {"depth": 16, "width": 2}, CIFAR, 100, "0.70", 703_284),
    ("wide_resnet", {"depth": 40, "width": 2}, CIFAR, 100, "2.26", 2_255_156),
    ("vgg", {"depth": 8}, CIFAR, 100, "3.97", 3_965_028),
    ("vgg", {"depth": 13}, CIFAR, 100, "9.46", 9_462_180),
    ("mobilenet_v2", {"width": 0.5}, CIFAR, 100, "0.81", 812_548),
    ("shufflenet_v1", {}, CIFAR, 100, "0.95", 949_258),
    ("shufflenet_v2", {}, CIFAR, 100, "1.36", 1_355_528),
    # Zagoruyko & Komodakis, 1605.07146, table 4
    ("wide_resnet", {"depth": 40, "width": 1}, CIFAR, 10, "0.6", 563_930),
    ("wide_resnet", {"depth": 16, "width": 8}, CIFAR, 10, "11.0", 10_961_370),
    ("wide_resnet", {"depth": 28, "width": 10}, CIFAR, 10, "36.5", 36_479_194),
    # torchvision's documentation, 1000 classes: exact numbers there
    ("mobilenet_v2", {}, CIFAR, 1000, "3.504872", 3_504_872),
    ("imagenet_resnet", {"depth": 18}, CIFAR, 1000, "11.689512", 11_689_512),
    ("imagenet_resnet", {"depth": 34}, CIFAR, 1000, "21.797672", 21_797_672),
    ("imagenet_resnet", {"depth": 50}, CIFAR, 1000, "25.557032", 25_557_032),
    ("imagenet_resnet", {"depth": 101}, CIFAR, 1000, "44.549160", 44_549_160),
]


@pytest.mark.parametrize(("name", "options", "shape", "classes", "millions", "exact"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, options, shape, classes, millions, exact):
    count = parameters(build(name, options, shape, classes))
    assert count == exact
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_default_resnet_is_resnet20_with_projections():
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert parameters(build("resnet", {}, CIFAR, 10)) == 269_722 + projections


def test_shufflenet_v2_is_torchvisions_but_for_the_stem():
    # 1×1 instead of 3×3 for small images
    assert parameters(build("shufflenet_v2", {}, CIFAR, 1000)) + 24 * 3 * (9 - 1) == 2_278_604


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_vgg_has_three_linear_layers_less_and_one_more(depth):
    model = build("vgg", {"depth": depth, "width": 2}, CIFAR, 10)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == depth - 3


@pytest.mark.parametrize("depth", [8, 14])
def test_the_shallow_resnets_have_as_many_layers_as_their_name_says(depth):
    model = build("resnet", {"depth": depth, "shortcut": "pad"}, CIFAR, 100)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth
    assert model(torch.zeros(2, *CIFAR)).shape == (2, 100)


def test_a_padded_shortcut_keeps_pixels_and_adds_zeros():
    shortcut = build("resnet", {"depth": 8, "shortcut": "pad"}, CIFAR, 10).stages[1][0].shortcut
    x = torch.randn(2, 16, 4, 4)
    padded = shortcut(x)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert padded.shape == (2, 32, 2, 2)
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


@pytest.mark.parametrize(
    ("depth", "file", "published"),
    [(20, "resnet20-12fca82f.th", 0.9173), (56, "resnet56-4bfd9763.th", 0.9339)],
)
def test_public_weights_load_and_are_as_right_as_published(shared_data, depth, file, published):
    model = build("resnet", {"depth": depth, "shortcut": "pad"}, CIFAR, 10).eval()
    saved = torch.load(shared_data / "weights" / file, map_location="cpu", weights_only=True)
    model.load_state_dict(from_common_names(saved["state_dict"]), strict=True)
    sheet = np.asarray(Image.open(shared_data / "cifar10" / "test.webp").convert("RGB"))
    tiles = sheet.reshape(100, 32, 100, 32, 3)[:10].transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(tiles / np.float32(255)) - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        predicted = torch.cat([model(batch).argmax(1) for batch in x.split(250)]).numpy()
    labels = np.load(shared_data / "cifar10" / "test-labels.npy")[:1000]
    assert abs(np.mean(predicted == labels) - published) < 0.02


def test_imagenet_resnets_have_torchvisions_keys():
    for depth, tensors in ((18, 122), (34, 218), (50, 320), (101, 626)):
        state = build("imagenet_resnet", {"depth": depth, "width": 2}, (3, 64, 64), 10).state_dict()
        assert len(state) == tensors
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {key for key in state if key.startswith(("conv1", "bn1", "fc", "layer2.0"))} == {
        "conv1.weight",
        *(f"bn1.{name}" for name in norm),
        *(f"layer2.0.conv{i}.weight" for i in (1, 2, 3)),
        *(f"layer2.0.bn{i}.{name}" for i in (1, 2, 3) for name in norm),
        "layer2.0.downsample.0.weight",
        *(f"layer2.0.downsample.1.{name}" for name in norm),
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnett", {}, "unknown model 'resnett': did you mean 'resnet'"),
        ("resnet", {"width": [1]}, "options: unknown key 'width': did you mean 'widths'"),
        ("resnet", {"classes": 2}, "options: unknown key 'classes'"),
        ("resnet", {"widths": "wide"}, "options.widths"),
        ("resnet", {"widths": [4, 8], "blocks": [1]}, "should be as many"),
        ("resnet", {"widths": [0], "blocks": [1]}, "1 or more"),
        ("resnet", {"shortcut": "padd"}, "options.shortcut: Input should be 'projection' or 'pad'"),
        ("resnet", {"depth": 21}, "depth 21 should be 6·n + 2"),
        ("resnet", {"depth": 2}, "depth 2 should be 6·n + 2"),
        ("resnet", {"depth": 8, "blocks": [1, 1, 1]}, "give one of them"),
        ("resnet", {"widths": [8, 4], "shortcut": "pad"}, "can only add channels"),
        ("resnet8x4", {"stemm": 3}, "did you mean 'stem'"),
        ("wide_resnet", {"depth": 20}, "depth 20 should be 6·n + 4"),
        ("vgg", {"depth": 12}, "options.depth: Input should be 8, 11, 13, 16 or 19"),
        ("mobilenet_v2", {"width": 0.01}, "leaves no channels"),
        ("shufflenet_v1", {"groups": 7}, "multiples of 4·groups"),
        ("shufflenet_v2", {"widths": [3, 4, 5]}, "even numbers"),
        ("imagenet_resnet", {"depth": 56}, "options.depth: Input should be 18, 34, 50 or 101"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(UserError, match=r"model|options") as error:
        build(name, options, (1, 8, 8), 10)
    assert message in str(error.value)
