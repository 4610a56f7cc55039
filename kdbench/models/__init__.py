"""Architectures. To add one: a module with a function to an `nn.Module`, and its line in MODELS.

The function takes `in_channels` and `classes`, which come from the data, and its own options, typed.
"""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError, validate_call
from torch import nn

from kdbench.errors import UserError, nearest, pick
from kdbench.models.resnet import resnet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
}


def build(name: str, options: dict[str, Any], in_channels: int, classes: int, field: str = "model") -> nn.Module:
    """A new model with random weights; raises UserError that names `field` where the options don't fit."""
    function = pick(MODELS, name, "model")
    try:
        return validate_call(function)(in_channels=in_channels, classes=classes, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "unexpected_keyword_argument":
            known = [n for n in function.__annotations__ if n not in ("return", "in_channels", "classes")]
            raise UserError(f"{field}.options: unknown key '{option}': {nearest(option, known)}") from None
        raise UserError(f"{field}.options.{option}: {problem['msg']}") from None
    except ValueError as error:
        raise UserError(f"{field}.options: {error}") from None
