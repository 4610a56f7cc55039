"""What to begin with: a student for the data and its teacher, and how such networks are usually trained."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.data.dataset import Dataset
from kdbench.functions import is_own
from kdbench.models import build
from kdbench.pipeline.looking import images

SMALL_PX = 64
"""Images up to this size are for networks that keep their resolution at first."""

SHARE = 0.4
"""Of the teacher's parameters that a student has at most, where there is one so small."""


@dataclass(frozen=True)
class Family:
    """Students for one kind of data, the largest first, and how they are trained."""

    kind: str
    students: tuple[tuple[str, Mapping[str, Any]], ...]
    training: Mapping[str, Any]
    steps: int
    """Of a training that is about long enough."""
    epochs: tuple[int, int]
    """At least and at most."""


SGD = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01}

FAMILIES = {
    family.kind: family
    for family in (
        Family(
            "small images",
            (
                ("resnet", {"depth": 20}),
                ("resnet", {"depth": 8}),
                ("resnet", {"depth": 8, "widths": [8, 16, 32]}),
                ("resnet", {"depth": 8, "widths": [4, 8, 16]}),
            ),
            SGD,
            10_000,
            (10, 60),
        ),
        Family(
            "images",
            (("mobilenet_v2", {}), ("mobilenet_v2", {"width": 0.5}), ("mobilenet_v2", {"width": 0.25})),
            SGD | {"learning_rate": 0.05, "weight_decay": 1e-4},
            10_000,
            (10, 60),
        ),
        Family(
            "text",
            (
                ("text_cnn", {"embedding": 64, "width": 64}),
                ("embedding_bag", {"width": 64}),
                ("embedding_bag", {"width": 16}),
            ),
            ADAMW,
            3_000,
            (5, 20),
        ),
        Family(
            "spectrograms",
            (("audio_cnn", {}), ("audio_cnn", {"widths": [8, 16, 32, 64]}), ("audio_gru", {"width": 32})),
            ADAMW,
            3_000,
            (10, 40),
        ),
        Family(
            "tables",
            tuple(("mlp", {"widths": [width]}) for width in (128, 64, 32, 16)),
            ADAMW,
            2_000,
            (10, 60),
        ),
    )
}


def family(source: str, dataset: Dataset) -> Family:
    """That of the data."""
    shape = dataset.x_train.shape[1:]
    if dataset.preprocessing is None:
        kind = "text"
    elif source == "audio" or (len(shape) == 3 and not images(dataset)):
        kind = "spectrograms"
    elif len(shape) == 3:
        kind = "small images" if max(shape[1:]) <= SMALL_PX else "images"
    else:
        kind = "tables"
    return FAMILIES[kind]


def student(of: Family, dataset: Dataset, teacher_parameters: int) -> tuple[str, dict[str, Any]]:
    """The largest student with at most SHARE of the teacher's parameters, or else the smallest there is."""
    chosen: tuple[str, dict[str, Any]] = ("", {})
    for model, options in of.students:
        chosen = (model, with_vocabulary(model, options, dataset))
        if parameters(*chosen, dataset) <= SHARE * teacher_parameters:
            break
    return chosen


def with_vocabulary(model: str, options: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Options of a zoo model with the number of token ids of the data, where it asks for that."""
    if dataset.preprocessing is not None or "vocabulary" in options or is_own(model):
        return dict(options)
    seen = 1 + int(max(dataset.x_train.max(), dataset.x_test.max()))
    return {"vocabulary": dataset.vocabulary or seen, **options}


def parameters(model: str, options: dict[str, Any], dataset: Dataset) -> int:
    network = build(model, options, dataset.x_train.shape[1:], len(dataset.classes), "student")
    return sum(tensor.numel() for tensor in network.parameters())


def training(of: Family, samples: int) -> dict[str, Any]:
    """Settings of a training from random weights."""
    batch = 128 if samples >= 10_000 else 64 if samples >= 1_000 else 32
    least, most = of.epochs
    epochs = min(most, max(least, round(of.steps / math.ceil(samples / batch))))
    return {"epochs": epochs, "batch_size": batch, **of.training, "precision": "auto"}


def teacher_training(of: Family, samples: int, source: str, model: str, new_head: bool) -> dict[str, Any]:
    """Settings of a teacher's: a pretrained one needs small steps, and few of them."""
    plain = training(of, samples)
    if source == "huggingface" and new_head:
        return plain | ADAMW | {"epochs": 3, "learning_rate": 5e-5, "batch_size": 32}
    if new_head:
        return plain | {"epochs": 5, "learning_rate": 0.1 * plain["learning_rate"]}
    return plain | {"learning_rate": 3e-4} if model == "bert" else plain


def augmentation(of: Family, dataset: Dataset) -> dict[str, Any]:
    """Images are moved a little, and mirrored in colour: letters and digits, mostly grey, have no mirror image.

    A few views that come again let the teacher's answers be kept.
    """
    if not of.kind.endswith("images"):
        return {}
    channels, _, width = dataset.x_train.shape[1:]
    colour = channels > 1
    return {"shift_px": max(1, width // (8 if colour else 14))} | ({"flip": True} if colour else {}) | {"views": 4}


def threads(of: Family) -> int:
    """All cores for images, up to 8; what is small gains nothing from a second one."""
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(8, cores) if of.kind.endswith("images") else 1
