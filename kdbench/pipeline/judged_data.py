"""The samples that an int8 file is calibrated on, judged by and reported on, from any data that kdbench knows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench import data
from kdbench.data.dataset import check_labels
from kdbench.data.pack import EvalPack, classes_told, load_pack, pack_of
from kdbench.errors import UserError
from kdbench.pipeline.sections import data_section
from kdbench.quantization.judging import judged_samples
from kdbench.quantization.samples import Samples, halved, samples_of
from kdbench.records import Artifact, Data, parse
from kdbench.store import npz_names

CALIBRATION = 512
"""Samples that ranges are found on, where there are enough."""

PACKED = {"x_test", "y_test", "x_calibration", "y_calibration", "meta"}


def pack_for(
    source: EvalPack | str | Path | None,
    options: Mapping[str, Any],
    artifact: Artifact,
    samples: int | None,
    seed: int,
) -> EvalPack:
    """The pack of what `source` names, with labels in the order of the model's classes.

    Of data that is no pack, `samples` of the training set are drawn as calibration samples, by default as many as a
    verdict on this model takes. Raises UserError where there is none, or it doesn't fit.
    """
    if source is None:
        raise UserError("--max-drop: accuracy is judged on data: give --data, such as a folder, an .npz or a pack")
    if isinstance(source, EvalPack):
        pack = source
    elif is_pack(Path(source)):
        if options:
            raise UserError(f"{source}: a pack has no options: leave --data-option out")
        pack = load_pack(Path(source))
    else:
        part, _ = data_section(str(source), options)
        dataset = data.load(parse(Data, part, "data"))
        wanted = CALIBRATION + judged_samples(artifact.macs, len(dataset.x_train)) if samples is None else samples
        pack = pack_of(dataset, wanted, seed, str(source))
    return _fitting(pack, artifact)


def is_pack(path: Path) -> bool:
    """Whether an `.npz` has nothing but what packs have; arrays to train on make it a data set."""
    return path.suffix == ".npz" and path.is_file() and set(npz_names(path)) <= PACKED


def _fitting(pack: EvalPack, artifact: Artifact) -> EvalPack:
    """The pack with labels as the model numbers its classes; raises UserError where these are others."""
    if named(pack.classes) and named(artifact.classes) and pack.classes != artifact.classes:
        if set(pack.classes) != set(artifact.classes):
            ours, theirs = (", ".join(names[:5]) for names in (pack.classes, artifact.classes))
            raise UserError(f"{pack.name}: its classes ({ours}, …) are not those of the model ({theirs}, …)")
        order = np.array([artifact.classes.index(name) for name in pack.classes])
        pack = replace(
            pack,
            classes=artifact.classes,
            y_test=_renumbered(pack.y_test, order),
            y_calibration=_renumbered(pack.y_calibration, order),
        )
    for part in ("y_test", "y_calibration"):
        labels = getattr(pack, part)
        if labels is not None:
            check_labels(labels, classes_told(artifact.outputs, pack.task), f"{pack.name}: {part}", pack.task)
    return pack


def named(classes: tuple[str, ...]) -> bool:
    """Whether classes have names that tell more than numbers do."""
    return bool(classes) and not all(name.isdecimal() for name in classes)


def _renumbered(labels: Any, order: Any) -> Any:
    """Labels [N], or [N, C] by column, with class i as `order[i]`."""
    if labels is None:
        return None
    return order[labels] if labels.ndim == 1 else labels[:, np.argsort(order)]


def parted(pack: EvalPack, artifact: Artifact, samples: int | None) -> tuple[Samples, Samples]:
    """Samples to calibrate on, and others to judge by: at most half of them where they are few.

    Of more than `samples` as many are drawn, of each class its share.
    """
    every = samples_of(pack, artifact.inputs, artifact.preprocessing)
    if samples is not None:
        if samples > len(every):
            raise UserError(
                f"--samples {samples}: {pack.name} has {len(every)} calibration samples: give a lower number"
            )
        every = halved(every, samples)[1] if samples < len(every) else every
    return halved(every, max(len(every) - CALIBRATION, len(every) // 2))


def test_samples(pack: EvalPack, artifact: Artifact) -> Samples | None:
    """The evaluation samples, as the judge wants them; None where there are none."""
    if pack.x_test is None:
        return None
    shown = replace(pack, x_calibration=pack.x_test, y_calibration=pack.y_test)
    return samples_of(shown, artifact.inputs, artifact.preprocessing)
