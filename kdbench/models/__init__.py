"""Architectures. To add one: a module with a function to an `nn.Module`, and its line in MODELS.

The function has typed options of its own, and asks by parameter name for what it needs to know of the data:
`input_shape` of one sample, `in_channels` (the first entry of it), `classes`.

The names of submodules are stable, so that feature losses can rely on them: `stages.0`, `stages.1` … are the features
from the input to the output, `pool` is the vector before the classifier, `head` the classifier. Where a family has
other names, its module says so.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ValidationError, validate_call
from torch import nn

from kdbench.errors import UserError, nearest, pick
from kdbench.models.audio_cnn import audio_cnn
from kdbench.models.bert import bert
from kdbench.models.embedding_bag import embedding_bag
from kdbench.models.imagenet_resnet import imagenet_resnet
from kdbench.models.mlp import mlp
from kdbench.models.mobilenet_v2 import mobilenet_v2
from kdbench.models.recurrent import audio_gru, gru, lstm
from kdbench.models.resnet import resnet
from kdbench.models.shufflenet_v1 import shufflenet_v1
from kdbench.models.shufflenet_v2 import shufflenet_v2
from kdbench.models.text_cnn import text_cnn
from kdbench.models.vgg import vgg
from kdbench.models.wide_resnet import wide_resnet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    "resnet8x4": partial(resnet, depth=8, stem=32, widths=[64, 128, 256]),
    "resnet32x4": partial(resnet, depth=32, stem=32, widths=[64, 128, 256]),
    "wide_resnet": wide_resnet,
    "vgg": vgg,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "imagenet_resnet": imagenet_resnet,
    "bert": bert,
    "lstm": lstm,
    "gru": gru,
    "text_cnn": text_cnn,
    "embedding_bag": embedding_bag,
    "audio_cnn": audio_cnn,
    "audio_gru": audio_gru,
    "mlp": mlp,
}


def build(
    name: str, options: dict[str, Any], input_shape: tuple[int, ...], classes: int, field: str = "model"
) -> nn.Module:
    """A new model with random weights; raises UserError that names `field` where the options don't fit."""
    function = pick(MODELS, name, "model")
    data = {"input_shape": input_shape, "in_channels": input_shape[0], "classes": classes}
    parameters = inspect.signature(function).parameters
    for option in options:
        if option not in parameters or option in data:
            raise UserError(f"{field}.options: unknown key '{option}': {nearest(option, parameters.keys() - data)}")
    asked = {key: value for key, value in data.items() if key in parameters}
    try:
        return validate_call(function)(**asked, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{field}.options.{option}: {problem['msg']}") from None
    except ValueError as error:
        raise UserError(f"{field}.options: {error}") from None
