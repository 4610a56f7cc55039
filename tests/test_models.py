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
]


@pytest.mark.parametrize(("name", "options", "shape", "classes", "millions", "exact"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, options, shape, classes, millions, exact):
    count = parameters(build(name, options, shape, classes))
    assert count == exact
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_default_resnet_is_resnet20_with_projections():
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert parameters(build("resnet", {}, CIFAR, 10)) == 269_722 + projections


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
    ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(UserError, match=r"model|options") as error:
        build(name, options, (1, 8, 8), 10)
    assert message in str(error.value)
