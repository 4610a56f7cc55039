"""Small networks to prune."""

import torch
from torch import nn

from kdbench.models import build
from kdbench.records import Preprocessing, Prune
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


def saved(path, name, model, changes=()):
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
        changes=changes,
    )
    weights.save(path, model.state_dict(), trained)
    return path


def asked(**options):
    return Prune(**({"round_to": 2, "parameters": 0.8} | options))


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
