"""What a teacher's name and a path of data mean, as the sections of a recipe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.detect import detect
from kdbench.errors import UserError, nearest
from kdbench.onnxfile import known_artifact
from kdbench.records import read_text
from kdbench.store import load_recipe, zoo_recipes

STATE_DICTS = (".safetensors", ".pth", ".th", ".pt", ".bin")

AFTER_PADDING = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text", "ibert",
    "longformer", "mpnet", "esm", "lilt", "markuplm",
)  # fmt: skip
"""Kinds of text models, as their config.json says it, that number a text's positions from that of padding plus one:
transformers' `create_position_ids_from_input_ids`."""


def data_section(path: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The section `data` for a path, or for a recipe of the zoo by name; and what it was taken from."""
    if not Path(path).exists():
        zoo = zoo_recipes()
        if path not in zoo:
            raise UserError(f"--data: no file or folder '{path}', and no recipe of the zoo: {nearest(path, zoo)}")
        known = load_recipe(path).data
        return {"source": known.source, "options": {**known.options, **options}}, [f"as in the recipe '{path}'"]
    found = detect(Path(path))
    said = list(found.facts)
    unlabelled = {}
    if found.source == "arrays" and "labelled" not in options and not _labelled(Path(found.options["path"])):
        unlabelled["labelled"] = False
        said.append("no array 'y_train': without labels to train on")
    return {"source": found.source, "options": {**found.options, **unlabelled, **options}}, said


def _labelled(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "y_train" in arrays
    except Exception:  # whatever is wrong with it: the source says so
        return True


def classes_of(model: str) -> tuple[str, ...]:
    """The classes of an ONNX file by its record, or else as many numbers as it has outputs; none where it is open."""
    artifact = known_artifact(Path(model))
    width = artifact.outputs[0].shape[-1] if artifact.outputs and artifact.outputs[0].shape else None
    return artifact.classes or (tuple(map(str, range(width))) if isinstance(width, int) else ())


@dataclass(frozen=True)
class Named:
    """A teacher's section so far, and what is known of it."""

    section: dict[str, Any]
    said: str
    untrained: bool = False
    """Whether it has no weights yet, so that it is to be trained here."""
    stated: bool = False
    """Whether the section holds all of its preprocessing already."""


def teacher_section(teacher: str, model: str | None, options: dict[str, Any]) -> Named:
    """What `teacher` names; raises UserError where it takes `model` to tell, or names nothing."""
    from kdbench.models import MODELS
    from kdbench.teachers import TEACHERS

    source, colon, name = teacher.partition(":")
    path = Path(teacher)
    if path.suffix in STATE_DICTS and path.is_file():
        return _of_weights(path, model, options)
    if model is not None:
        raise UserError(f"--model: is for a file of weights ({', '.join(STATE_DICTS)}), which '{teacher}' is not")
    given = {"options": options} if options else {}
    if colon and source in TEACHERS:
        untrained = source == "zoo" or options.get("pretrained") is False
        return Named({"source": source, "model": name, **given}, f"{name} of {source}", untrained)
    if colon and source.endswith(".py"):
        return Named({"model": teacher, **given}, f"your own {teacher}, with the weights that it comes with")
    if path.suffix == ".onnx" and path.is_file():
        return Named({"source": "onnx", "model": teacher, **given}, f"the ONNX file {path.name}, a black box")
    if path.is_dir() and (path / "config.json").is_file():
        source = "timm" if "pretrained_cfg" in (path / "config.json").read_text(encoding="utf-8") else "huggingface"
        return Named({"source": source, "model": teacher, **given}, f"the folder {path.name}, as {source} writes it")
    if teacher in MODELS:
        return Named({"model": teacher, **given}, f"{teacher} of the zoo, to be trained here", untrained=True)
    if "/" in teacher and teacher.count("/") == 1 and not path.suffix and not path.exists():
        return Named({"source": "huggingface", "model": teacher, **given}, f"{teacher} of the Hugging Face hub")
    if path.exists():
        raise UserError(
            f"--teacher: {teacher} is no teacher: give an ONNX file, weights ({', '.join(STATE_DICTS)}), or a folder "
            "with config.json"
        )
    raise UserError(f"--teacher: no file '{teacher}', and no model of the zoo: {nearest(teacher, MODELS)}")


def on_teachers_tokens(part: dict[str, Any], named: Named, given: Mapping[str, Any]) -> dict[str, Any]:
    """The data's section with the tokenizer of a text teacher, and texts no longer than the teacher can take.

    `given` are the user's own options, which stand. Raises UserError where a trained teacher's tokenizer is not at
    hand: on other tokens its answers mean nothing.
    """
    teacher = named.section
    if part["source"] != "text" or teacher.get("source") != "huggingface" or {"tokenizer", "vocabulary"} & given.keys():
        return part
    folder = Path(teacher["model"])
    if not (folder / "tokenizer.json").is_file():
        if named.untrained:
            return part
        raise UserError(
            f"{folder}: no tokenizer.json in it, without which its tokens are not known: write it with "
            "AutoTokenizer's save_pretrained, or give --data-option tokenizer=FILE"
        )
    options = {**part["options"], "tokenizer": str(folder)}
    positions = _positions(folder)
    if "length" in options and "length" not in given and positions is not None:
        options["length"] = min(options["length"], positions)
    return {**part, "options": options}


def _positions(folder: Path) -> int | None:
    """Of how many tokens a text may be for the model in a folder; None where it sets no limit."""
    config = json.loads(read_text(folder / "config.json"))
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(positions, int):
        return None
    unused = padding + 1 if config.get("model_type") in AFTER_PADDING and isinstance(padding, int) else 0
    return positions - unused


def _of_weights(path: Path, model: str | None, options: dict[str, Any]) -> Named:
    """The section of a file of weights, which says itself what it is where kdbench wrote it."""
    from kdbench.models import MODELS
    from kdbench.teachers import TEACHERS
    from kdbench.training import weights

    trained = None
    if path.suffix == ".safetensors" and model is None:
        try:
            trained = weights.record(path)
        except UserError as error:
            if "not written by kdbench" not in str(error):
                raise
    if trained is not None:
        section = {"source": trained.source, "model": trained.model, "options": {**trained.options, **options}}
        seen = trained.preprocessing
        own = {"preprocessing": seen.model_dump()} if seen else {}
        section |= {"weights": str(path), "classes": list(trained.classes), **own}
        return Named(section, f"{path.name}, which says of itself: {trained.source} {trained.model}", stated=True)
    if model is None:
        raise UserError(
            f"{path}: does not say which model it belongs to: give --model, such as --model resnet --option depth=20; "
            f"known: {', '.join(MODELS)}, or module.py:function"
        )
    source, colon, name = model.partition(":")
    of = {"source": source, "model": name} if colon and source in TEACHERS else {"model": model}
    section = {**of, **({"options": options} if options else {}), "weights": str(path)}
    return Named(section, f"{path.name}, weights of {model}")
