"""A tokenizer that others have trained, so that students learn on the tokens of their teacher; needs `tokenizers`."""

import json
from pathlib import Path
from typing import Any

from kdbench.data.vocabulary import PAD, Encode
from kdbench.errors import UserError, first_line

PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>")

FILE = "tokenizer.json"


def load(where: Path, length: int) -> tuple[Encode, int]:
    """A function from a sentence to at most `length` ids, the special tokens among them, and how many ids there are.

    `where` is a tokenizer.json, or a folder with one as transformers writes it. The id that fills up changes places
    with 0, so that 0 fills up here as everywhere. Raises UserError where it can't be read, or says of no id that it
    fills up.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise UserError("data.options.tokenizer: needs tokenizers: pip install tokenizers") from None
    path = where / FILE if where.is_dir() else where
    if not path.is_file():
        raise UserError(f"{path}: no such file: data.options.tokenizer should be a {FILE}, or a folder with one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a plain Exception
        raise UserError(f"{path}: not a tokenizer: {first_line(error, 120)}") from None
    pad = _pad_id(tokenizer, path)
    tokenizer.no_padding()
    added = tokenizer.num_special_tokens_to_add(False)
    if length <= added:
        raise UserError(f"data.options.length: {length} leaves no token of a text: {path} adds {added} of its own")
    tokenizer.enable_truncation(length)
    # One that stands in a sentence is plain text.
    tokenizer.encode_special_tokens = True
    swapped = {pad: PAD, PAD: pad}
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    return lambda sentence: [swapped.get(token, token) for token in tokenizer.encode(sentence).ids], size


def _pad_id(tokenizer: Any, path: Path) -> int:
    """The id that fills up: of the tokenizer itself, of the settings beside it, or of a usual name."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    names = list(PAD_NAMES)
    settings = path.with_name("tokenizer_config.json")
    if settings.is_file():
        try:
            said = json.loads(settings.read_text(encoding="utf-8")).get("pad_token")
        except (ValueError, AttributeError):
            raise UserError(f"{settings}: not valid JSON: copy it again") from None
        names.insert(0, said.get("content", "") if isinstance(said, dict) else str(said))
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    raise UserError(f"{path}: says of no token that it fills up: give it a padding token, such as [PAD]")
