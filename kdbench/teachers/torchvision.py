"""Models of torchvision by name, with its best published weights or without any."""

from kdbench.errors import UserError, nearest
from kdbench.records import Preprocessing, parse
from kdbench.teachers.source import Found, HubOptions, Wanted, needs, resized, unavailable


def load(wanted: Wanted) -> Found:
    """A classifier of images [N, 3, H, W]; raises UserError where torchvision can't be had or doesn't know it."""
    try:
        from torchvision import models
    except Exception as error:  # built for another torch it fails in many ways
        raise needs("torchvision", wanted, error) from None
    options = parse(HubOptions, wanted.options, f"{wanted.field}.options")
    known = models.list_models(module=models)
    if wanted.model not in known:
        raise UserError(f"{wanted.field}.model: torchvision has no '{wanted.model}': {nearest(wanted.model, known)}")
    published = models.get_model_weights(wanted.model).DEFAULT
    sized = {} if wanted.classes is None else {"num_classes": wanted.classes}
    try:
        model = models.get_model(wanted.model, weights=None, **sized)
        if hasattr(model, "transform_input"):  # its weights are of inputs that it normalises anew: it would see others
            raise ValueError("it normalises its inputs itself, and gives several outputs in training: take another one")
        if wanted.pretrained and options.pretrained:
            model.load_state_dict(published.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # of the network, and of every model
        raise unavailable(wanted, error) from None
    seen = published.transforms()
    return Found(
        resized(model, options),
        model,
        tuple(published.meta["categories"]) if wanted.classes is None else (),
        Preprocessing(scale=wanted.scale, mean=tuple(seen.mean), std=tuple(seen.std)),
    )
