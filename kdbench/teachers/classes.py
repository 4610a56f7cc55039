"""From a teacher's own classes to the data's."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdbench.errors import UserError, nearest
from kdbench.records import Count, Record

SHOWN = 3


class ClassMap(Record):
    """Which of the teacher's outputs stand for which of the data's classes."""

    own: Count
    """The teacher's outputs."""
    known: tuple[int, ...]
    """The data's classes that it knows, ascending."""
    groups: tuple[tuple[int, ...], ...]
    """For each of these its own outputs: the class is any of them."""

    @property
    def identity(self) -> bool:
        """Whether it changes nothing of the logits."""
        return self.groups == tuple((output,) for output in range(self.own))

    def whole(self, classes: int) -> bool:
        """Whether it is as if there were no map: each of so many classes is the output of its place."""
        return self.identity and len(self.known) == classes

    @property
    def single(self) -> bool:
        """Whether each class is one output."""
        return all(len(group) == 1 for group in self.groups)

    def __call__(self, logits: Tensor) -> Tensor:
        """From its logits [N, own] to logits of the classes that it knows, [N, known]: log Σ exp of each group."""
        if self.identity:
            return logits
        if self.single:
            return logits[:, [group[0] for group in self.groups]]
        return torch.stack([torch.logsumexp(logits[:, list(group)], dim=1) for group in self.groups], dim=1)


class MismatchError(UserError):
    """A teacher's classes that are not the data's, with nothing said of which stands for which."""

    def __init__(self, own: Sequence[str], data: Sequence[str], field: str) -> None:
        super().__init__(
            f"{field}: answers {len(own)} classes ({_some(own)}), the data has {len(data)} ({_some(data)}): map them "
            f"in {field}.class_map, or set {field}.new_head = true and give {field}.training"
        )
        self.own = tuple(own)


def class_map(own: Sequence[str], data: Sequence[str], mapping: Mapping[str, str], field: str = "teacher") -> ClassMap:
    """The map from the names of a teacher's outputs to the data's classes.

    Without a `mapping` the same names are matched in any order, and as many outputs as classes one by one where either
    have no names but numbers. Raises UserError where that leaves it open which is which, and for unknown names.
    """
    if mapping:
        for name, meant in mapping.items():
            if name not in own:
                raise UserError(f"{field}.class_map: the teacher has no class '{name}': {nearest(name, own[:20])}")
            if meant not in data:
                raise UserError(f"{field}.class_map: the data has no class '{meant}': {nearest(meant, data[:20])}")
        meanings = [mapping.get(name) for name in own]
        known = tuple(index for index, name in enumerate(data) if name in meanings)
        groups = tuple(
            tuple(output for output, meaning in enumerate(meanings) if meaning == data[index]) for index in known
        )
        return ClassMap(own=len(own), known=known, groups=groups)
    every = tuple(range(len(data)))
    if len(own) == len(data) and (tuple(own) == tuple(data) or not (named(own) and named(data))):
        return ClassMap(own=len(own), known=every, groups=tuple((output,) for output in every))
    if sorted(own) == sorted(data):
        return ClassMap(own=len(own), known=every, groups=tuple((list(own).index(name),) for name in data))
    raise MismatchError(own, data, field)


def named(classes: Sequence[str]) -> bool:
    """Whether classes have names, not mere numbers."""
    return not all(re.fullmatch(r"(LABEL_|class_?)?\d+", name, re.IGNORECASE) for name in classes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
