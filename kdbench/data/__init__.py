"""Sources of data. To add one: a module with a function `load(**options) -> Dataset`, and its line in SOURCES."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, validate_call

from kdbench.data import arrays, audio, augment, digits, folders, huggingface, idx, tables, text
from kdbench.data.dataset import Dataset
from kdbench.errors import UserError, nearest, pick
from kdbench.functions import find
from kdbench.records import Data

SOURCES: dict[str, Callable[..., Dataset]] = {
    "arrays": arrays.load,
    "audio": audio.load,
    "digits": digits.load,
    "folders": folders.load,
    "huggingface": huggingface.load,
    "idx": idx.load,
    "tables": tables.load,
    "text": text.load,
}


def load(data: Data, folder: Path = Path()) -> Dataset:
    """The data of a recipe in `folder`, with the splits that it asks for.

    Raises UserError where options or arrays don't fit.
    """
    source = pick(SOURCES, data.source, "data source")
    try:
        dataset = validate_call(source)(**_placed(data.options, source, folder))
    except ValidationError as error:
        # A misspelt option is also a missing one: the misspelling is what helps.
        problem = min(error.errors(), key=lambda problem: problem["type"] != "unexpected_keyword_argument")
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "unexpected_keyword_argument":
            known = [name for name in source.__annotations__ if name != "return"]
            raise UserError(f"data.options: unknown key '{option}': {nearest(option, known)}") from None
        raise UserError(f"data.options.{option}: {problem['msg']}") from None
    dataset.check()
    augment.check(data.augment, dataset.x_train)
    dataset = dataset.with_validation(data.validation_samples) if data.split == "validation" else dataset
    dataset = dataset.with_train_samples(data.train_samples) if data.train_samples else dataset
    return dataset.with_held_out(data.held_out_samples) if data.held_out_samples else dataset


def _placed(options: Mapping[str, Any], source: Callable[..., Dataset], folder: Path) -> dict[str, Any]:
    """The options, with paths as they are found: beside the recipe, in `folder`, or in the working directory."""
    paths = [name for name, kind in source.__annotations__.items() if Path in (kind, *get_args(kind))]
    found = {name: find(options[name], folder) for name in paths if isinstance(options.get(name), str)}
    return {**options, **{name: path for name, path in found.items() if path is not None}}
