"""The rungs that are made of the student beside the ladder: with zeros among its weights, and of low rank."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.pipeline.rungs import LOW_RANK, SPARSE, kept
from kdbench.progress import is_main
from kdbench.records import Artifact
from kdbench.store import sha256, sidecar

if TYPE_CHECKING:
    from kdbench.pipeline.learning import Ground

STEPS = {SPARSE: "sparsify", LOW_RANK: "factorise"}
"""By rung: its section in the recipe, and its step."""


def lighter(ground: "Ground", weights: Mapping[str, Path], artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Those of them that the recipe asks for, made of the `weights` by rung and taught again; the others are removed.

    Of several processes that train together, the main one exports; the others give no artifacts.
    """
    from kdbench.steps import lighter as steps

    recipe, folder = ground.recipe, ground.folder
    teachers = {name: weights[name] for name in recipe.teacher_names}
    made = {}
    for rung, make in {SPARSE: steps.sparse, LOW_RANK: steps.low_rank}.items():
        if getattr(recipe, STEPS[rung]):
            path = make(folder, rung, weights["student"], teachers, ground.lesson)
            if is_main():
                made[rung] = _exported(ground, rung, path, artifacts["student"])
        elif is_main():  # an earlier recipe in the same folder may have asked for it
            for left in (folder.onnx(rung), sidecar(folder.onnx(rung))):
                left.unlink(missing_ok=True)
    return made


def _exported(ground: "Ground", rung: str, path: Path, parent: Artifact) -> Artifact:
    """The rung's ONNX file and its record."""
    from kdbench.steps.export import export
    from kdbench.steps.sparsify import worth
    from kdbench.training import weights

    folder, step = ground.folder, STEPS[rung]
    section = getattr(ground.recipe, step).model_dump(mode="json", exclude={"training"})
    changes = [change.model_dump(mode="json") for change in weights.record(path).changes]

    def make(out: Path) -> Artifact:
        artifact = export(path, out, folder.pack, rung, ground.recipe.folder)
        artifact = worth(artifact, out, folder.onnx(parent.rung)) if rung == SPARSE else artifact
        told = {
            "parent": parent.rung,
            "parent_sha256": parent.sha256,
            "step": step,
            "options": {**artifact.options, step: section, **({"changes": changes} if changes else {})},
        }
        return artifact.model_copy(update=told)

    return kept(folder, rung, make, "export", weights=sha256(path.read_bytes()), parent=parent.sha256)
