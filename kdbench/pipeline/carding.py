"""A card of an artifact, and the artifact beside it with what is known of it inside."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.pack import open_pack
from kdbench.errors import UserError
from kdbench.pipeline.origins import Known, look_up, subject_of
from kdbench.progress import unsaid
from kdbench.records import Artifact, Embedded, TensorSpec, placeless
from kdbench.report.card import model_card
from kdbench.steps.card import Carded, copied, embed
from kdbench.store import Paths, new_folder, paths_of, write_atomic

MODEL, CARD = "model.onnx", "README.md"


@dataclass(frozen=True)
class Card:
    """A card, and the folder that it lies in with its model, if one was made."""

    text: str
    rung: str
    folder: Path | None = None
    carded: Carded | None = None


def card(
    source: str | Path,
    *,
    results: Paths = (),
    license: str | None = None,
    out: str | Path | None = None,
    embed_facts: bool = True,
    dims: Mapping[str, int] | None = None,
    inputs: Mapping[str, str] | None = None,
    url: str | None = None,
    say: Callable[[str], None] = unsaid,
) -> Card:
    """The model card of `source`, an ONNX file, a run folder or one of its rungs as `RUN_DIR:RUNG`.

    Figures are those of the run and of the `results`, files or folders of them, which were measured of this very file
    or of what a card or a bundle was made from. With `out` that becomes a folder of card, `model.onnx` and its record,
    whole or not at all: the model gets what is known of it into its metadata, and its outputs are compared with those
    of before, unless `embed_facts` is false. `url` is where the figures are published, for Hugging Face's model index.

    Raises UserError where `out` exists, where none of the `results` is of this artifact, and as `embed` does.
    """
    check_license(license)
    if url is not None and not re.fullmatch(r"https?://[^\s\"<>\\]+", url):
        raise UserError(f"--url: should be an address such as https://example.org/results, not '{url}'")
    subject = subject_of(*_named(str(source)), say)
    known = look_up(subject, paths_of(results), license, say=say)
    rung = subject.artifact.rung
    if out is None:
        return Card(card_of(known, url=url), rung)
    out = Path(out)
    with new_folder(out) as made:
        if embed_facts:
            pack = known.folder.pack if known.folder and known.folder.pack.is_file() else None
            carded = embed(subject.model, subject.artifact, known.facts, made / MODEL, open_pack(pack), dims, inputs)
        else:
            carded = copied(subject.model, subject.artifact, made / MODEL)
        text = card_of(known.carded(carded.artifact) if embed_facts else known, url=url)
        write_atomic(made / CARD, text)
    return Card(text, rung, out, carded)


def card_of(
    known: Known,
    *,
    classes: Sequence[str] = (),
    takes: TensorSpec | None = None,
    usage: str = "",
    measured_on: str = "",
    url: str | None = None,
) -> str:
    """The card of what is known of an artifact; the rest as `model_card` has it."""
    artifact = known.subject.artifact
    name = (artifact.parent if artifact.step == "card" else None) or artifact.rung
    recipe = known.facts.recipe
    return model_card(
        placeless(Artifact, artifact).model_copy(update={"made_in_s": known.made_in_s}),
        placeless(Embedded, known.facts),
        title=f"{recipe}: {name}" if recipe else name,
        lineage=[placeless(Artifact, one) for one in known.lineage],
        seen=known.seen,
        classes=classes,
        takes=takes,
        usage=usage,
        measured_on=measured_on,
        source=url,
    )


def check_license(license: str | None) -> None:
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise UserError(f"--license: should be an identifier such as apache-2.0, not '{license}'")


def _named(source: str) -> tuple[Path, str | None]:
    """A path, and behind the last colon a rung, where there is no path of the whole name."""
    folder, colon, rung = source.rpartition(":")
    if colon and not Path(source).exists() and Path(folder).is_dir():
        return Path(folder), rung
    return Path(source), None
