"""From sentences to token ids, by a vocabulary of the training sentences alone. Id 0 fills up, id 1 is the unknown."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError

Kind = Literal["words", "byte_pairs"]
Encode = Callable[[str], list[int]]

PAD, UNKNOWN = 0, 1
WORD = re.compile(r"\w+|[^\w\s]")
SMALLEST_BYTE_PAIRS = 258
"""Every byte, and the two special ids."""


def learn(sentences: Sequence[str], kind: Kind, size: int) -> Encode:
    """A function from a sentence to ids below `size`, of the commonest words or byte pairs of `sentences`."""
    return _words(sentences, size) if kind == "words" else _byte_pairs(sentences, size)


def encode(sentences: Sequence[str], ids: Encode, length: int) -> NDArray[np.int64]:
    """Ids [N, length]: each sentence cut off, or filled up with 0; one without any token is one unknown."""
    rows = np.full((len(sentences), length), PAD, dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        found = (ids(sentence) or [UNKNOWN])[:length]
        row[: len(found)] = found
    return rows


def tokens(
    train: Sequence[str], test: Sequence[str], kind: Kind, size: int, length: int, lowercase: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids [N, length] of both splits, by the vocabulary of the first."""
    if lowercase:
        train, test = ([sentence.lower() for sentence in part] for part in (train, test))
    ids = learn(train, kind, size)
    return encode(train, ids, length), encode(test, ids, length)


def _words(sentences: Sequence[str], size: int) -> Encode:
    counts = Counter(word for sentence in sentences for word in WORD.findall(sentence))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    ids = {word: number for number, word in enumerate(ranked[: size - 2], 2)}
    return lambda sentence: [ids.get(word, UNKNOWN) for word in WORD.findall(sentence)]


def _byte_pairs(sentences: Sequence[str], size: int) -> Encode:
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise UserError(
            "data.options.vocabulary: byte pairs need tokenizers: pip install tokenizers, or choose 'words'"
        ) from None
    if size < SMALLEST_BYTE_PAIRS:
        raise UserError(
            f"data.options.vocabulary_size: {size} is too small for byte pairs: {SMALLEST_BYTE_PAIRS} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["[PAD]", "[UNK]"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    # Special tokens are for the trainer; one that stands in a sentence is plain text.
    tokenizer.encode_special_tokens = True
    return lambda sentence: list(tokenizer.encode(sentence).ids)
