"""Architectures: shapes, parameter counts of the literature, options that don't fit."""

import pytest
import torch

from kdbench.errors import UserError
from kdbench.models import build


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_default_resnet_is_resnet20():
    # 0.27 M in He et al.; 1×1 shortcuts instead of padding add 16·32 + 32·64 weights and their norms.
    model = build("resnet", {}, 3, 10)
    assert parameters(model) - (16 * 32 + 32 * 64 + 2 * (32 + 64)) == 269_722
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnett", {}, "unknown model 'resnett': did you mean 'resnet'"),
        ("resnet", {"width": [1]}, "options: unknown key 'width': did you mean 'widths'"),
        ("resnet", {"widths": "wide"}, "options.widths"),
        ("resnet", {"widths": [4, 8], "blocks": [1]}, "should be as many"),
        ("resnet", {"widths": [0], "blocks": [1]}, "1 or more"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(UserError, match=r"model|options") as error:
        build(name, options, 1, 10)
    assert message in str(error.value)
