"""What a recipe does with its student beside distilling it, each with the trainings that it takes."""

from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kdbench.records.base import Count
from kdbench.records.compression import Factorise, Prune, Quantize, Sparse, Sparsify, Spiral
from kdbench.records.learning import Training

AWARE_SHARE = 0.1
"""Of the student's epochs and learning rate: what a training with simulated rounding takes where nothing is said."""


class PruneSection(Prune):
    """With the trainings around it, both of the student under its teachers."""

    sparse: Sparse | None = None
    """Before pruning."""
    training: Training | None = None
    """After it; without one half of the student's epochs, at a fifth of its learning rate."""


class SparsifySection(Sparsify):
    """Of the student: when its weights become zero, and how it learns with the others, under its teachers."""

    begin_epoch: Annotated[int, Field(ge=0)] = 0
    """Of a gradual schedule: the last epoch before the first zeros."""
    end_epoch: Annotated[Count | None, Field(validate_default=True)] = None
    """The first epoch with all of them. Without it they are set at once, before the first epoch."""
    rewind_epoch: Count | None = None
    """All that is not zero goes back to what it was after that epoch of the student's training."""
    training: Training | None = None
    """Without one half of the student's epochs, at a fifth of its learning rate; after rewinding the student's own."""

    @field_validator("end_epoch")
    @classmethod
    def _gradual(cls, end: int | None, info: ValidationInfo) -> int | None:
        begin = info.data.get("begin_epoch", 0)
        if end is None and begin:
            raise PydanticCustomError("no_end", "given where begin_epoch is")
        if end is not None and end <= begin:
            raise PydanticCustomError("early_end", "after begin_epoch, {begin}", {"begin": begin})
        if end is not None and info.data.get("threshold") is not None:
            raise PydanticCustomError("gradual_threshold", "left out with a threshold: a schedule is of a sparsity")
        return end

    @field_validator("rewind_epoch")
    @classmethod
    def _at_once(cls, epoch: int | None, info: ValidationInfo) -> int | None:
        if epoch is not None and info.data.get("end_epoch") is not None:
            raise PydanticCustomError(
                "gradual_rewind", "left out where end_epoch is given: it is for zeros set at once"
            )
        return epoch


class FactoriseSection(Factorise):
    """Of the student, which then learns again under its teachers."""

    training: Training | None = None
    """Without one half of the student's epochs, at a fifth of its learning rate."""


class QuantizeSection(Quantize):
    """With the training of the rung whose training knows that it will be quantized."""

    aware: bool = False
    """The student's int8 file is trained further under its teachers, its rounding simulated."""
    all_rungs: bool = False
    """The sparse and the low-rank student and the last model of the spiral are slimmed and quantized too."""
    training: Training | None = None
    """Of that; without it a tenth of the student's epochs, at a tenth of its learning rate."""

    @field_validator("training")
    @classmethod
    def _in_float(cls, training: Training | None, info: ValidationInfo) -> Training | None:
        if training is not None and not info.data.get("aware"):
            raise PydanticCustomError("unused_training", "left out where aware is not true")
        if training is not None and training.precision != "fp32":
            raise PydanticCustomError("rounded_twice", "in fp32, in which the rounding to int8 is simulated")
        return training

    @field_validator("bias_correction", "equalization")
    @classmethod
    def _judged(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        if wanted and info.data.get("max_drop") is None and info.data.get("backend") is None:
            raise PydanticCustomError("unjudged", "left out without max_drop or for")
        return wanted

    @model_validator(mode="after")
    def _of_older_records(self) -> "QuantizeSection":
        """Those hold every field, null ones too, which a recipe can't say: what stands at its default isn't said."""
        fields = type(self).model_fields
        if self.model_fields_set == fields.keys():
            self.model_fields_set.difference_update(
                name for name, field in fields.items() if getattr(self, name) == field.default
            )
        return self

    @property
    def static(self) -> Quantize:
        """What makes the int8 file without a training."""
        return Quantize(**{name: getattr(self, name) for name in self.model_fields_set & Quantize.model_fields.keys()})

    @model_serializer(mode="wrap")
    def _as_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is filled in where it isn't said is left out, so that it isn't said in what is read from this either."""
        plain: dict[str, Any] = write(self)
        if not self.filled_in:
            return plain
        fields = {name: field for name, field in type(self).model_fields.items() if name not in self.model_fields_set}
        unsaid = {known for name, field in fields.items() for known in (name, field.alias)}
        return {name: value for name, value in plain.items() if name not in unsaid}

    def training_after(self, student: Training) -> Training:
        """That of the rung, after the student's own."""
        return self.training or Training(
            epochs=max(1, round(student.epochs * AWARE_SHARE)),
            learning_rate=student.learning_rate * AWARE_SHARE,
            **student.model_dump(include={"batch_size", "optimizer", "momentum", "weight_decay", "decay_norms"}),
            clip_norm=student.clip_norm,
        )


class SpiralSection(Spiral):
    """With its trainings, all by `distill`."""

    sparse: Sparse | None = None
    """Of each turn, before pruning."""
    training: Training | None = None
    """Of each turn, after pruning; without one a quarter of the student's epochs, at a fifth of its learning rate."""
    final: Training | None = None
    """Of the last accepted model, once more; without one there is no rung of it."""
