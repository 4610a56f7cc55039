"""The file that a card belongs to: the same weights and outputs, with what is known of them in its metadata."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.generated import batch_size, described, generate
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.evaluation import Parity, parity_on
from kdbench.onnxfile import embedded_of, external_data, graph_of, with_metadata
from kdbench.records import Artifact, Embedded, placeless
from kdbench.steps.slim import BATCH, SAMPLES, derived
from kdbench.store import save_artifact, sha256, write_atomic

SAME = ("card", "bundle")
"""Steps whose files answer as their parents do."""


@dataclass(frozen=True)
class Carded:
    """The file beside the card, and how it was proven."""

    artifact: Artifact
    check: Parity | None
    """None for a file that was left alone."""
    generated: bool = False
    """Whether the samples were made up."""


def embed(
    model: Path,
    artifact: Artifact,
    facts: Embedded,
    out: Path,
    pack: EvalPack | None = None,
    dims: Mapping[str, int] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Carded:
    """Writes the model with `facts` in its metadata, its record beside it; external data goes along.

    A file that a card belongs to already keeps its parent, so that equal facts give equal bytes. Raises UserError where
    an output differs at all, on samples of the pack or generated ones, with `inputs` as `described` has them, and where
    none can be fed.
    """
    if artifact.step == "card":
        origin, origin_sha256 = artifact.parent, artifact.parent_sha256
    else:
        origin, origin_sha256 = artifact.rung, artifact.sha256
    said = facts.model_copy(update={"step": "card", "parent": origin, "parent_sha256": origin_sha256})
    _copy_data(model, out.parent)
    write_atomic(out, with_metadata(graph_of(model), placeless(Embedded, said)))
    batch = batch_size(artifact.inputs) or BATCH
    (fed,) = described([artifact], inputs or {}, pack.name if pack else None)
    if pack is None:
        samples = generate(fed.inputs, batch, dims or {})
    else:
        feed = pack.calibration_inputs if pack.x_test is None else pack.test_inputs
        samples = {name: x[:SAMPLES] for name, x in feed(artifact.inputs, artifact.preprocessing).items()}
    check = parity_on(out, model, samples, batch, task=artifact.task)
    if check.largest_difference != 0:
        raise UserError(
            f"{model}: outputs differ by {check.largest_difference:.3g} from one session to the next: there is no "
            "proof that its metadata leaves them alone; --no-embed does without"
        )
    own = {
        "parent": origin,
        "parent_sha256": origin_sha256,
        "parameters": artifact.parameters,
        "macs": artifact.macs,
        "inputs": artifact.inputs,
    }
    record = derived(out, None, artifact, "card", {}, check).model_copy(update=own)
    return Carded(save_artifact(out.parent, record), check, pack is None)


def is_of_parent(model: Path, artifact: Artifact) -> bool:
    """Whether a file that a card belongs to is, without what was written into it, the very file that it names as its
    parent. Never so for one whose parent was not written by kdbench, or whose weights lie outside."""
    return sha256(with_metadata(graph_of(model), None)) == artifact.parent_sha256


def copied(model: Path, artifact: Artifact, out: Path) -> Carded:
    """The model as it is, and its record without paths, under another name."""
    _copy_data(model, out.parent)
    shutil.copyfile(model, out)
    record = placeless(Artifact, artifact).model_copy(update={"file": out.name, "made_in_s": None})
    return Carded(save_artifact(out.parent, record), None)


def known_facts(model: Path, artifact: Artifact) -> Embedded | None:
    """What the file says of itself, where it is the artifact's."""
    return embedded_of(model) if artifact.step in SAME else None


def _copy_data(model: Path, folder: Path) -> None:
    for location in sorted(external_data(model)):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.parent / location, folder / location)
