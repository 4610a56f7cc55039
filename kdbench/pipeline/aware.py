"""The rung of quantization-aware training, beside the static int8 one that it starts from."""

from pathlib import Path

from kdbench.data.pack import load_pack
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.learning import Ground
from kdbench.pipeline.proving import with_layers
from kdbench.pipeline.rungs import AWARE, kept
from kdbench.records import Artifact
from kdbench.store import RunFolder, sha256, sidecar

FOLDER = "aware"
"""Within the run folder: its weights are a graph's, which no model of the zoo could load."""


def aware(ground: Ground, weights: dict[str, Path], floating: str, static: str) -> Artifact | None:
    """The student's int8 rung `static`, of fp32 parent `floating`, trained further; None where none is asked for, or
    there is none to start from.

    `weights` are those of all trained rungs. What an earlier recipe has left in the folder is removed.
    """
    folder, recipe = ground.folder, ground.recipe
    wanted, there = recipe.quantize.aware, folder.onnx(static).is_file()
    if wanted and not there:
        ground.say(f"no rung {AWARE}: there is no {static} that it could start from")
    if not (wanted and there):
        for left in (folder.onnx(AWARE), sidecar(folder.onnx(AWARE))):
            left.unlink(missing_ok=True)
        return None
    from kdbench.steps.aware import quantize_aware, train_aware

    place = RunFolder(folder.path / FOLDER)
    place.path.mkdir(exist_ok=True)
    files = folder.onnx(floating), folder.onnx(static)
    trained = train_aware(
        place,
        AWARE,
        weights[known_artifact(files[0]).parent or "student"],
        *files,
        {name: weights[name] for name in recipe.teacher_names},
        ground.lesson,
        folder,
    )
    folder.note_duration(AWARE, "training", place.duration_s(AWARE))
    options = {"training": recipe.quantize.training_after(recipe.student.training).model_dump()}
    facts = {name: sha256(path.read_bytes()) for name, path in zip(("parent", "static"), files, strict=True)}

    def make(out: Path) -> Artifact:
        pack = load_pack(folder.pack)
        return with_layers(quantize_aware(trained, *files, out, pack, AWARE, options), files[0], out, pack)

    return kept(folder, AWARE, make, "quantize aware", weights=sha256(trained.read_bytes()), **facts)
