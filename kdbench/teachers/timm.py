"""Models of timm: by name, or a local folder as its `save_for_hf` writes it."""

from pathlib import Path

from kdbench.functions import find
from kdbench.records import Preprocessing, parse
from kdbench.teachers.source import Found, HubOptions, Wanted, needs, resized, unavailable


def load(wanted: Wanted) -> Found:
    """A classifier of images [N, 3, H, W]; raises UserError where timm can't be had or doesn't know it."""
    try:
        import timm
    except Exception as error:  # it needs torchvision, which fails in many ways
        raise needs("timm", wanted, error) from None
    options = parse(HubOptions, wanted.options, f"{wanted.field}.options")
    folder = find(wanted.model, wanted.folder or Path())
    name = f"local-dir:{folder}" if folder is not None and folder.is_dir() else wanted.model
    pretrained = wanted.pretrained and options.pretrained
    sized = {} if wanted.classes is None else {"num_classes": wanted.classes}
    try:
        model = timm.create_model(name, pretrained=pretrained, **sized)
        about = timm.data.resolve_model_data_config(model)
    except Exception as error:  # of the network, of the hub, and of every model
        raise unavailable(wanted, error) from None
    labels = (model.pretrained_cfg or {}).get("label_names") or ()
    return Found(
        resized(model, options),
        model,
        tuple(labels) if len(labels) == model.num_classes else (),
        Preprocessing(scale=wanted.scale, mean=tuple(about["mean"]), std=tuple(about["std"])),
    )
