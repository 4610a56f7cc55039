"""Models of the zoo, or of the user: `module.py:function`."""

from kdbench.models import build
from kdbench.teachers.source import Found, Wanted


def load(wanted: Wanted) -> Found:
    """The model with random weights; raises UserError where its options don't fit."""
    assert wanted.classes is not None
    model = build(wanted.model, wanted.options, wanted.input_shape, wanted.classes, wanted.field, wanted.folder)
    return Found(model, vocabulary=wanted.options.get("vocabulary"))
