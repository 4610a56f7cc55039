"""Classifiers of images and of text in the formats of transformers: of the hub by name, or a local folder."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.functions import find
from kdbench.models.layers import PAD
from kdbench.records import Preprocessing, parse
from kdbench.teachers.source import Found, HubOptions, Wanted, needs, resized, unavailable


class Images(nn.Module):
    """Preprocessed images [N, C, H, W] to logits [N, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


class Text(nn.Module):
    """Token ids [N, L], 0 for padding, to logits [N, classes]; the model's own `pad` changes places with 0."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        super().__init__()
        self.model = model
        self.pad = pad

    def forward(self, tokens: Tensor) -> Tensor:
        ids = tokens
        if self.pad != PAD:
            ids = torch.where(tokens == PAD, self.pad, torch.where(tokens == self.pad, PAD, tokens))
        logits: Tensor = self.model(input_ids=ids, attention_mask=(tokens != PAD).long()).logits
        return logits


def load(wanted: Wanted) -> Found:
    """The model with its classes, preprocessing or vocabulary. Weights are read from safetensors alone, no code is.

    Raises UserError where transformers can't be had, the model can't be loaded, or its files lack trained tensors.
    """
    try:
        transformers = import_module("transformers")
    except Exception as error:  # it fails in many ways beside another torch
        raise needs("transformers", wanted, error) from None
    options = parse(HubOptions, wanted.options, f"{wanted.field}.options")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import_module("huggingface_hub").utils.logging.set_verbosity_error()
    folder = find(wanted.model, wanted.folder or Path())
    name = str(folder) if folder is not None and folder.is_dir() else wanted.model
    auto = (
        transformers.AutoModelForSequenceClassification
        if wanted.tokens
        else (transformers.AutoModelForImageClassification)
    )
    sized = {} if wanted.classes is None else {"num_labels": wanted.classes}
    # Other attentions choose their code by what is in the mask, which an exported graph can't.
    fixed: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager"}
    missing: list[str] = []
    try:
        if wanted.architecture:
            config = transformers.AutoConfig.for_model(**wanted.architecture, **sized)
        else:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **sized)
        if wanted.pretrained and options.pretrained:
            model, info = auto.from_pretrained(
                name, config=config, use_safetensors=True, output_loading_info=True, **fixed
            )
            missing = sorted(info["missing_keys"])
        else:
            model = auto.from_config(config, **fixed)
    except Exception as error:  # of the network, of the hub, and of every model
        raise unavailable(wanted, error) from None
    if missing and not wanted.new_head:
        raise UserError(
            f"{wanted.field}.model: '{wanted.model}' has no trained weights for {len(missing)} tensors, such as "
            f"'{missing[0]}': set {wanted.field}.new_head = true, and give {wanted.field}.training"
        )
    model = model.float()
    classes = tuple(str(config.id2label[label]) for label in sorted(config.id2label)) if wanted.classes is None else ()
    if wanted.tokens:
        pad = getattr(config, "pad_token_id", None)
        vocabulary = getattr(config, "vocab_size", None)
        return Found(Text(model, pad or PAD), model, classes, vocabulary=vocabulary, architecture=_plain(config))
    seen = None if wanted.architecture else _preprocessing(name, wanted)
    return Found(resized(Images(model), options), model, classes, seen, architecture=_plain(config))


def _plain(config: Any) -> dict[str, Any]:
    """The configuration without its labels, and without a trace of where it lay."""
    said: dict[str, Any] = json.loads(config.to_json_string())
    left_out = ("_name_or_path", "transformers_version", "id2label", "label2id", "num_labels")
    return {key: value for key, value in said.items() if key not in left_out}


def _preprocessing(name: str, wanted: Wanted) -> Preprocessing | None:
    """Mean and deviation as the model's image processor states them; None where it has none."""
    try:
        said, _ = import_module("transformers").BaseImageProcessor.get_image_processor_dict(name)
    except Exception:  # no such file, or no network: the data's own then
        return None
    if not said.get("do_normalize", True) or "image_mean" not in said:
        return Preprocessing(scale=wanted.scale)
    return Preprocessing(scale=wanted.scale, mean=tuple(said["image_mean"]), std=tuple(said["image_std"]))
