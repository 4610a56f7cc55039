"""Sources of teachers. To add one: a module with a function `load(wanted) -> Found`, and its line in TEACHERS.

What a source gives is made ready here: weights of a file, a new classifier, the map of its classes to the data's. A
teacher that is a module may be trained afterwards; any other callable is a black box that gives logits alone.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line, pick
from kdbench.functions import find, is_own, real
from kdbench.models import RENAMED
from kdbench.pruning.changes import Change, replay
from kdbench.records import Preprocessing, Teacher
from kdbench.teachers import black_box, heads, huggingface, state, timm, torchvision, zoo
from kdbench.teachers.black_box import BlackBox
from kdbench.teachers.classes import ClassMap, class_map
from kdbench.teachers.source import Found, Wanted

TEACHERS: dict[str, Callable[[Wanted], Found]] = {
    "zoo": zoo.load,
    "torchvision": torchvision.load,
    "timm": timm.load,
    "huggingface": huggingface.load,
    "onnx": black_box.load,
}


SEEN = 32
"""Training samples that a teacher answers before it is taken."""


@dataclass(frozen=True)
class Candidate:
    """A teacher as its recipe wants it, and what is known of it; not trained yet where it should be."""

    model: nn.Module | BlackBox
    preprocessing: Preprocessing | None
    input_shape: tuple[int, ...]
    """Of one sample, preprocessed."""
    class_map: ClassMap
    architecture: Mapping[str, Any]
    """What its source needs to build it again."""
    changes: tuple[Change, ...] = ()
    """Of its structure since its source built it, by the file of its weights: pruning, factorising."""


def architecture(source: str, wanted: Wanted) -> nn.Module:
    """The model without the weights of others: what a weights file is loaded into."""
    model = pick(TEACHERS, source, "teacher source")(replace(wanted, pretrained=False)).model
    assert isinstance(model, nn.Module)
    return model


def prepare(section: Teacher, dataset: Dataset, folder: Path, field: str = "teacher") -> Candidate:
    """The teacher of a recipe's section, with its weights, its new head and its class map.

    `folder` is the recipe's. Raises UserError, which begins with `field` or a file, for whatever doesn't fit.
    """
    _check(section, field)
    tokens = bool(np.issubdtype(dataset.x_train.dtype, np.integer)) and dataset.preprocessing is None
    wanted = Wanted(
        model=section.model,
        options=section.options,
        input_shape=tuple(_seen(dataset, section.preprocessing, field).shape[1:]),
        classes=None,
        folder=folder,
        tokens=tokens,
        scale=dataset.preprocessing.scale if dataset.preprocessing else 1.0,
        task=dataset.task,
        field=field,
    )
    found, changes = _found(section, wanted, len(dataset.classes))
    _check_vocabulary(section, found, dataset, field)
    model, preprocessing = found.model, section.preprocessing or found.preprocessing or dataset.preprocessing
    x = _seen(dataset, preprocessing, field)
    with model if isinstance(model, BlackBox) else nullcontext():
        if isinstance(model, BlackBox):
            model.check(x)
            model.kind = black_box.seen_kind(model, x, dataset.task)
        outputs = _outputs(model, x, section, field)
    assert isinstance(model, nn.Module | BlackBox)
    if isinstance(model, nn.Module) and section.new_head and outputs != len(dataset.classes):
        heads.replace(found.bare or model, outputs, len(dataset.classes), field)
        outputs = _outputs(model, x, section, field)
    own = dataset.classes if section.new_head else _own_classes(section, found, dataset.classes, outputs, field)
    classes = class_map(own, dataset.classes, section.class_map, field)
    if section.training is not None and not classes.whole(len(dataset.classes)):
        raise UserError(
            f"{field}.training: the teacher's classes are not the data's in their order: set {field}.new_head = true, "
            "or leave training out"
        )
    return Candidate(model, preprocessing, tuple(x.shape[1:]), classes, found.architecture, changes)


def weights_file(section: Teacher, folder: Path, field: str = "teacher") -> Path | None:
    """The section's weights file, if it names one: beside the recipe, or in the working directory."""
    if section.weights is None:
        return None
    path = find(section.weights, folder)
    if path is None:
        raise UserError(f"{field}.weights: no file '{section.weights}' beside the recipe or in the working directory")
    return real(path)


def _check(section: Teacher, field: str) -> None:
    """Raises UserError where fields of the section contradict each other."""
    pick(TEACHERS, section.source, f"{field}.source")
    if section.source == "onnx":
        for name in ("training", "weights", "new_head"):
            if getattr(section, name):
                raise UserError(f"{field}.{name}: an ONNX file is a black box, which is taken as it is: leave it out")
    elif section.new_head and section.training is None:
        raise UserError(f"{field}.training: is missing: add it: a new head knows nothing before it is trained")
    elif not (section.training or section.weights or _from_hub(section) or is_own(section.model)):
        raise UserError(f"{field}.training: is missing: add it, or give {field}.weights")


def _from_hub(section: Teacher) -> bool:
    """Whether the weights are those that the source publishes."""
    hub = section.source not in ("zoo", "onnx")
    return hub and section.weights is None and bool(section.options.get("pretrained", True))


def _found(section: Teacher, wanted: Wanted, classes: int) -> tuple[Found, tuple[Change, ...]]:
    """What the source gives, with the weights of a file if there is one, and what that did to its structure."""
    load = TEACHERS[section.source]
    outputs = classes if section.new_head else len(section.classes) or classes
    pretrained = _from_hub(section)
    wanted = replace(wanted, classes=None if pretrained else outputs, pretrained=pretrained, new_head=section.new_head)
    found = load(wanted)
    path = weights_file(section, wanted.folder or Path(), wanted.field)
    if path is None:
        return found, ()
    tensors, changes = state.read(path), state.changes(path)
    if section.source == "zoo" and section.model in RENAMED:
        tensors = RENAMED[section.model](tensors)
    # Files of ours are of all that a source gives, those of others of the module within.
    within = _bare if changes is None else _whole
    head = heads.classifier(within(found), outputs)
    if head is not None and not section.new_head and not section.classes:
        theirs = tensors.get(f"{head}.weight")
        if theirs is not None and len(theirs) != outputs:
            found = load(replace(wanted, classes=len(theirs)))
    if changes:
        example = torch.zeros(2, *wanted.input_shape, dtype=torch.int64 if wanted.tokens else torch.float32)
        replay(_whole(found), changes, example, f"{path}: does not fit {wanted.field}.model and its options")
    state.fill(within(found), tensors, str(path), wanted.field, head, section.new_head)
    return found, changes or ()


def _whole(found: Found) -> nn.Module:
    assert isinstance(found.model, nn.Module)
    return found.model


def _bare(found: Found) -> nn.Module:
    model = found.bare or found.model
    assert isinstance(model, nn.Module)
    return model


def _seen(dataset: Dataset, preprocessing: Preprocessing | None, field: str) -> Tensor:
    """Some samples as a teacher of that preprocessing sees them, of the data's where it has none of its own."""
    if preprocessing is not None and dataset.preprocessing is None:
        raise UserError(f"{field}.preprocessing: the data's samples are token ids, which have none: leave it out")
    name = f"{field}.preprocessing"
    return torch.from_numpy(apply(dataset.x_train[:SEEN], preprocessing or dataset.preprocessing, name))


def _outputs(model: Callable[[Tensor], Tensor], x: Tensor, section: Teacher, field: str) -> int:
    """How many logits it gives for a sample; raises UserError where it can't take the data's."""
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            logits = model(x[:2])
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's model raises
        raise UserError(
            f"{field}: {section.model} can't take samples of shape {tuple(x.shape[1:])}: {first_line(error)}"
        ) from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x[:2]):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise UserError(
            f"{field}: {section.model} should give logits [N, classes] for N samples, not "
            f"{type(logits).__name__}{shape} for {len(x[:2])}"
        )
    if not torch.isfinite(logits).all():
        raise UserError(f"{field}: {section.model} answers NaN or infinity: are its weights and preprocessing right?")
    return int(logits.shape[1])


def _own_classes(section: Teacher, found: Found, data: tuple[str, ...], outputs: int, field: str) -> tuple[str, ...]:
    """Names of the teacher's outputs: the recipe's, the source's, the data's where they are as many, or numbers."""
    if section.classes and len(section.classes) != outputs:
        raise UserError(f"{field}.classes: {len(section.classes)} names, but the teacher answers {outputs} classes")
    if section.classes:
        return section.classes
    if len(found.classes) == outputs:
        return found.classes
    same = outputs == len(data) and not section.class_map
    return data if same else tuple(str(output) for output in range(outputs))


def _check_vocabulary(section: Teacher, found: Found, dataset: Dataset, field: str) -> None:
    """Raises UserError where the data has token ids that the teacher has no embedding for."""
    if found.vocabulary is None:
        return
    highest = int(max(dataset.x_train.max(), dataset.x_test.max()))
    if highest < found.vocabulary:
        return
    if "vocabulary" in section.options:
        raise UserError(f"{field}.options.vocabulary: {found.vocabulary}, but the data has token ids up to {highest}")
    raise UserError(
        f"{field}: {section.model} knows {found.vocabulary} token ids, but the data has ids up to {highest}: let "
        "data.options.tokenizer be the teacher's"
    )
