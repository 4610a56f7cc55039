"""Sentences with a label: CSV, TSV, JSONL or Parquet by column, or one sentence a line behind its label."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdbench.data.columns import Columns, column, read_columns
from kdbench.data.dataset import Dataset, class_labels
from kdbench.data.tokenizer import load as load_tokenizer
from kdbench.data.vocabulary import Kind, encode, tokens
from kdbench.errors import UserError
from kdbench.records import Count, read_text

TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}


def load(
    train: Path,
    test: Path,
    text: str = "text",
    label: str = "label",
    labelled: bool = True,
    vocabulary: Kind = "words",
    vocabulary_size: Annotated[int, Field(ge=3)] = 8000,
    length: Count = 64,
    lowercase: bool = True,
    tokenizer: Path | None = None,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Token ids [N, length] below `vocabulary_size` of a training and a test file.

    A `tokenizer`, a tokenizer.json or a folder with one, takes the place of a vocabulary of the training sentences:
    that of a teacher, whose ids its student then learns on too. Vocabulary and case are up to it.

    `text` and `label` name the columns of tables. With `labelled` false the training labels are not looked at, and a
    test table may be without the column too.
    """
    ours, theirs = _read(train, text, label), _read(test, text, label)
    y_names = column(ours, label, str(train)) if labelled else None
    test_names = column(theirs, label, str(test)) if labelled or label in theirs else None
    known, y_train, y_test = class_labels(y_names, test_names, classes, str(train))
    sentences = column(ours, text, str(train)), column(theirs, text, str(test))
    if tokenizer is not None:
        ids, size = load_tokenizer(tokenizer, length)
        x_train, x_test = (encode(part, ids, length) for part in sentences)
    else:
        x_train, x_test = tokens(*sentences, vocabulary, vocabulary_size, length, lowercase)
        size = None
    return Dataset(x_train, y_train, x_test, y_test, known, preprocessing=None, vocabulary=size)


def parse_lines(content: str, where: str) -> tuple[list[str], list[str]]:
    """Labels and sentences of text with a label, white space and a sentence a line; empty lines are passed over."""
    labels, sentences = [], []
    for number, line in enumerate(content.split("\n"), 1):
        parts = line.split(maxsplit=1)
        if len(parts) == 1:
            raise UserError(f"{where}: line {number} has a label, but no sentence")
        if parts:
            labels.append(parts[0])
            sentences.append(parts[1].strip())
    if not labels:
        raise UserError(f"{where}: no lines in it")
    return labels, sentences


def _read(path: Path, text: str, label: str) -> Columns:
    if path.suffix.lower() in TABLES:
        return read_columns(path)
    labels, sentences = parse_lines(read_text(path), str(path))
    return {label: labels, text: sentences}
