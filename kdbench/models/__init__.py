"""Architectures. To add one: a module with a function to an `nn.Module`, and its line in MODELS.

The function has typed options of its own, and asks by parameter name for what it needs to know of the data:
`input_shape` of one sample, `in_channels` (the first entry of it), `classes`.

The names of submodules are stable, so that feature losses can rely on them: `stages.0`, `stages.1` … are the features
from the input to the output, `pool` is the vector before the classifier, `head` the classifier. Where a family has
other names, its module says so.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError, validate_call
from torch import Tensor, nn

from kdbench import functions
from kdbench.errors import UserError, first_line, nearest, pick
from kdbench.models.audio_cnn import audio_cnn
from kdbench.models.bert import bert
from kdbench.models.embedding_bag import embedding_bag
from kdbench.models.imagenet_resnet import imagenet_resnet
from kdbench.models.mlp import mlp
from kdbench.models.mobilenet_v2 import mobilenet_v2
from kdbench.models.recurrent import audio_gru, gru, lstm
from kdbench.models.resnet import from_common_names, resnet
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


RENAMED: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "resnet": from_common_names,
    "resnet8x4": from_common_names,
    "resnet32x4": from_common_names,
}
"""By model: from the names of tensors that public checkpoints have to ours."""


def build(
    name: str,
    options: dict[str, Any],
    input_shape: tuple[int, ...],
    classes: int,
    field: str = "model",
    folder: Path | None = None,
) -> nn.Module:
    """A new model with random weights; raises UserError that names `field` where the options don't fit.

    `module.py:function` is a user's own, looked for in `folder`, and refused without one: it is code that is run.
    """
    own = functions.is_own(name)
    if own and folder is None:
        raise UserError(f"{field}: its model '{name}' is code of your own: say in which folder it lies with --code")
    function = functions.load(name, folder or Path(), f"{field}.model") if own else pick(MODELS, name, "model")
    data = {"input_shape": input_shape, "in_channels": input_shape[0], "classes": classes}
    parameters = inspect.signature(function).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option in data or (option not in parameters and not anything):
            raise UserError(f"{field}.options: unknown key '{option}': {nearest(option, parameters.keys() - data)}")
    asked = {key: value for key, value in data.items() if key in parameters}
    try:
        model = validate_call(function)(**asked, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{field}.options.{option}: {problem['msg']}") from None
    except ValueError as error:
        raise UserError(f"{field}.options: {error}") from None
    except (Exception, SystemExit) as error:
        if not own:
            raise
        raise UserError(f"{field}: '{name}' fails with {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{field}: '{name}' should give a torch.nn.Module, not {type(model).__name__}")
    return model
