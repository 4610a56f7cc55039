"""What a source of teachers is asked, and what it gives."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdbench.errors import UserError, first_line
from kdbench.records import Count, Preprocessing, Record, Task


@dataclass(frozen=True)
class Wanted:
    """A teacher's section of a recipe, as its source sees it."""

    model: str
    options: dict[str, Any]
    input_shape: tuple[int, ...]
    """Of one preprocessed sample."""
    classes: int | None
    """Outputs, where the source builds a model for as many; None for those that it comes with."""
    folder: Path | None
    """The recipe's; None where no code of the user's may be run."""
    pretrained: bool = True
    """Whether a hub's own weights are loaded; else the architecture alone is built."""
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the source said of it when it was first loaded, so that it can be built without its files or the hub."""
    new_head: bool = False
    """Whether the classifier is replaced afterwards, so that it need not be trained."""
    tokens: bool = False
    """Whether samples are token ids."""
    scale: float = 1.0
    """From the data's raw values to 0 … 1."""
    task: Task = "classification"
    field: str = "teacher"

    @property
    def images(self) -> bool:
        return len(self.input_shape) == 3 and not self.tokens


@dataclass(frozen=True)
class Found:
    """A teacher as it comes from its source."""

    model: Callable[[Tensor], Tensor]
    """From preprocessed samples [N, …] to logits [N, outputs]: a module, or a black box."""
    bare: nn.Module | None = None
    """Within it, the module that state_dicts belong to; itself where it is left out."""
    classes: tuple[str, ...] = ()
    """Names of its outputs, where the source knows them."""
    preprocessing: Preprocessing | None = None
    """Its own, where the source knows it."""
    vocabulary: int | None = None
    """Number of token ids that it knows."""
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Plain data that a weights file keeps, so that the model can be built without its files or the hub."""


class HubOptions(Record):
    pretrained: bool = True
    image_size_px: Count | None = None
    """Images are scaled to this size inside the model, so that the exported file does so too."""


class Resized(nn.Module):
    """Images [N, C, H, W] scaled to `size_px` × `size_px`, bilinear, before `model`.

    Interpolation and normalisation may change places: the weights of neighbouring pixels sum up to 1.
    """

    def __init__(self, model: nn.Module, size_px: int) -> None:
        super().__init__()
        self.model = model
        self.size_px = size_px

    def forward(self, x: Tensor) -> Tensor:
        size = (self.size_px, self.size_px)
        logits: Tensor = self.model(functional.interpolate(x, size, mode="bilinear", align_corners=False))
        return logits


def resized(model: nn.Module, options: HubOptions) -> nn.Module:
    return model if options.image_size_px is None else Resized(model, options.image_size_px)


def unavailable(wanted: Wanted, error: Exception, verb: str = "loaded") -> UserError:
    """What is said where a hub or its library doesn't give the model, for whatever reason."""
    return UserError(f"{wanted.field}.model: '{wanted.model}' cannot be {verb}: {first_line(error, 200)}")


def needs(package: str, wanted: Wanted, error: Exception) -> UserError:
    """What is said where a package is not installed, or is of no use here."""
    source = f"{wanted.field}.source needs {package}"
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{source}, and {error.name} is not installed: pip install {package}")
    return UserError(
        f"{source}, which fails here: {first_line(error, 120)}: install the one that is built for this torch"
    )
