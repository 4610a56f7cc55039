"""Teachers at work: each answers the view that the student sees, under its own preprocessing, or from its cache."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.data import augment, preprocess
from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs, full_precision
from kdbench.losses.several import Voice, averaged
from kdbench.losses.weighted import Term
from kdbench.progress import Progress, is_main, silent, unsaid
from kdbench.records import Augment, Preprocessing
from kdbench.store import fingerprint
from kdbench.teachers.classes import ClassMap
from kdbench.training import precision as precisions
from kdbench.training import processes
from kdbench.training.cache import Cache, views_of
from kdbench.training.features import Model, layers, observe
from kdbench.training.precision import Precision


@dataclass(frozen=True)
class Teaching:
    """A teacher at work: what answers, what it wants to see, and how its answers are read."""

    model: Model
    preprocessing: Preprocessing | None
    class_map: ClassMap | None = None
    name: str = "teacher"
    weight: float = 1.0
    digest: str = ""
    """Of the file that it comes from."""

    def known(self, classes: int) -> tuple[int, ...]:
        """Which of so many classes of the data it knows."""
        return self.class_map.known if self.class_map else tuple(range(classes))

    def same_inputs(self, preprocessing: Preprocessing | None) -> bool:
        """Whether it sees samples as the data's preprocessing has them."""
        return self.preprocessing == preprocessing

    def sees(self, samples: NDArray[Any], x: Tensor, preprocessing: Preprocessing | None) -> Tensor:
        """Raw samples [N, …] as the teacher sees them: `x`, which is them under `preprocessing`, if that is its own."""
        same = self.same_inputs(preprocessing)
        return x if same else torch.from_numpy(preprocess.apply(samples, self.preprocessing)).to(x.device)

    def observe(self, x: Tensor, layers: Iterable[str] = ()) -> Outputs:
        """What it gives for samples that it sees, with logits of those of the data's classes that it knows."""
        outputs = observe(self.model, x, layers, self.name)
        return outputs if self.class_map is None else outputs._replace(logits=self.class_map(outputs.logits))


@dataclass(frozen=True)
class Shelf:
    """Where the answers of teachers are kept, and what they depend on beside teacher and view."""

    folder: Callable[[str], Path]
    """By the teacher's name."""
    facts: Mapping[str, Any]
    say: Callable[[str], None] = unsaid
    progress: Progress = silent


class Faculty:
    """All that teach one student."""

    def __init__(
        self,
        members: Sequence[Teaching],
        preprocessing: Preprocessing | None,
        classes: int,
        shelf: Shelf | None = None,
    ) -> None:
        """`preprocessing` and `classes` are the data's; without a `shelf` every answer is given anew."""
        self.members = tuple(members)
        self.preprocessing = preprocessing
        self.classes = classes
        self.shelf = shelf
        self.precision: Precision = "fp32"
        self.caches: list[Cache] = []
        self.kept: list[NDArray[np.float16]] = []
        """The cached answers of each teacher to this epoch's view."""

    @property
    def partial(self) -> bool:
        """Whether one of them knows a part of the classes only."""
        return any(len(member.known(self.classes)) < self.classes for member in self.members)

    def prepare(self, device: torch.device, precision: Precision) -> None:
        """Evaluation mode and no gradients: a teacher is never trained while it teaches."""
        self.precision = precision
        for member in self.members:
            if isinstance(member.model, nn.Module):
                member.model.eval().requires_grad_(False).to(device)
                precisions.arrange(member.model, precision)

    def cached(self, terms: Sequence[Term], augmentation: Augment) -> bool:
        """Whether answers are kept: there is a place for them, and they can be."""
        return self.shelf is not None and keeps_answers(terms, augmentation)

    def begin(self, dataset: Dataset, augmentation: Augment, seed: int, epoch: int) -> None:
        """Makes the answers to the epoch's view ready: read where they are kept, else given now and kept."""
        views = views_of(augmentation)
        assert self.shelf is not None
        assert views is not None
        view = epoch % views
        self.kept = []  # the last epoch's, which may be another view, is given back first

        def opened() -> None:
            self.caches = self.caches or [self._cache(member, len(dataset.x_train), seed) for member in self.members]
            self.kept = [
                cache.view(view, self._answers(member, dataset, augmentation, (seed, view)), self.shelf.progress)
                for member, cache in zip(self.members, self.caches, strict=True)
                if self.shelf
            ]

        # The main process fills what is missing; the others find it on the disk that they share.
        processes.agreed(lambda: opened() if is_main() else None)
        processes.agreed(lambda: None if is_main() else opened())

    def say(self, samples: NDArray[Any], x: Tensor, index: NDArray[np.int64], layers: Iterable[str] = ()) -> "Said":
        """What the teachers give for raw `samples`, the batch `index` of the training set; the student sees them as
        `x`. One for all where all know all classes, else a voice for each."""
        if self.kept:
            answers = [
                Outputs(torch.from_numpy(kept[index].astype(np.float32)).to(x.device), parameters=_parameters(member))
                for member, kept in zip(self.members, self.kept, strict=True)
            ]
        else:
            answers = [member.observe(self._seen(member, samples, x), layers) for member in self.members]
        answers = [answer._replace(logits=full_precision(answer.logits)) for answer in answers]
        known = [member.known(self.classes) for member in self.members]
        if len(answers) == 1 and not self.partial:
            return answers[0]
        voices = [
            Voice(answer, torch.tensor(list(classes), device=x.device), member.weight)
            for answer, classes, member in zip(answers, known, self.members, strict=True)
        ]
        return voices if self.partial else averaged(voices)

    def answer(self, samples: NDArray[Any], x: Tensor) -> Tensor:
        """Logits [N, classes] of the teachers together for raw `samples` outside of the training set.

        Raises UserError where they don't know the same classes.
        """
        said = [member.observe(self._seen(member, samples, x)).logits for member in self.members]
        voices = [
            Voice(Outputs(logits), torch.arange(self.classes), member.weight)
            for logits, member in zip(said, self.members, strict=True)
        ]
        if any(logits.shape[1] != self.classes for logits in said):
            raise UserError("data.held_out_samples: teachers of a part of the classes can't judge them: leave it out")
        return averaged(voices).logits

    def _seen(self, member: Teaching, samples: NDArray[Any], x: Tensor) -> Tensor:
        return precisions.arranged(member.sees(samples, x, self.preprocessing), self.precision)

    def _cache(self, member: Teaching, samples: int, seed: int) -> Cache:
        assert self.shelf is not None
        facts = {**self.shelf.facts, "teacher": member.digest, "seed": seed, "precision": self.precision}
        return Cache(self.shelf.folder(member.name), fingerprint(**facts), samples, self.shelf.say)

    def _answers(
        self, member: Teaching, dataset: Dataset, augmentation: Augment, seeds: tuple[int, int]
    ) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
        device = processes.device()

        def answer(index: NDArray[np.int64]) -> NDArray[Any]:
            samples = augment.view(dataset.x_train, index, augmentation, seeds).images
            x = torch.from_numpy(preprocess.apply(samples, self.preprocessing)).to(device)
            with torch.no_grad(), precisions.autocast(self.precision, device):
                logits: NDArray[Any] = member.observe(self._seen(member, samples, x)).logits.float().cpu().numpy()
            return logits

        return answer


def keeps_answers(terms: Sequence[Term], augmentation: Augment) -> bool:
    """Whether answers can be kept: views come again, and no loss wants more of the teachers than logits."""
    return views_of(augmentation) is not None and not layers(terms)[1]


Said = Outputs | list[Voice]
"""What teachers give: together, or each for the classes that it knows."""


def sample_outputs(
    student: nn.Module, faculty: Faculty | None, dataset: Dataset, x: Tensor, terms: Sequence[Term]
) -> tuple[Outputs, Outputs]:
    """One forward pass of all in evaluation mode on the training set's first samples: the shapes that losses are built
    from. `x` are these samples as the student sees them.

    Raises UserError for a loss that needs more of the teachers than their logits where these are all that they give.
    """
    for term in terms:
        if (term.pairs or term.name == "parameters") and not (faculty and len(faculty.members) == 1):
            what = "features" if term.pairs else "parameters"
            raise UserError(f"distill.losses.{term.name}: reads {what} of one teacher, and there are several")
        if term.pairs and faculty and not isinstance(faculty.members[0].model, nn.Module):
            name = getattr(faculty.members[0].model, "__name__", "none")
            raise UserError(
                f"distill.losses.{term.name}: needs features of the teacher, and '{name}' is a black box that gives "
                "logits alone: take losses on logits, such as kd"
            )
        if (term.pairs or term.name == "parameters") and faculty and faculty.partial:
            raise UserError(
                f"distill.losses.{term.name}: the teacher knows a part of the classes, and is heard by losses on "
                "logits alone: take those, such as kd"
            )
    our_layers, their_layers = layers(terms)
    student.eval()
    with torch.no_grad():
        labels = None if dataset.y_train is None else torch.from_numpy(dataset.y_train)
        seen = observe(student, x, our_layers, "student")._replace(labels=labels)
        said = faculty.say(dataset.x_train[: len(x)], x, np.arange(len(x)), their_layers) if faculty else seen
    return seen, said if isinstance(said, Outputs) else seen


def _parameters(member: Teaching) -> dict[str, Tensor]:
    return dict(member.model.named_parameters()) if isinstance(member.model, nn.Module) else {}
