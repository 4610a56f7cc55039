"""From weights to ONNX: torch's dynamo exporter, dynamic batch, proven equal on samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.backends.client import WorkerError
from kdbench.data.generated import SMALL, generate
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError
from kdbench.evaluation import Parity, answer, compare
from kdbench.onnxfile import inspect, portable
from kdbench.quantization.quiet import quietly
from kdbench.records import Artifact, TensorSpec
from kdbench.store import output_file, part_of, save_artifact, sha256_of_file, write_atomic
from kdbench.teachers.classes import ClassMap
from kdbench.training import weights
from kdbench.training.weights import Trained

OPSET = 20
ODD_BATCH = 7
TOLERANCE = 1e-4
"""Largest difference between PyTorch's and onnxruntime's outputs, as a share of the largest output."""


class Mapped(nn.Module):
    """A model whose outputs are mapped to the data's classes."""

    def __init__(self, model: nn.Module, classes: ClassMap) -> None:
        super().__init__()
        self.model = model
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.model(x))


def export(
    source: str | Path,
    out: str | Path,
    pack: EvalPack | str | Path | None = None,
    rung: str | None = None,
    code: str | Path | None = None,
) -> Artifact:
    """Writes the model of a weights file to `out` with free batch; its record beside it.

    Where the model is a user's own, `code` is the folder in which its file lies, which is then run.

    PyTorch and onnxruntime are compared on the pack's calibration samples, or on generated ones, at batch 1 and at an
    odd batch. Raises UserError where onnxruntime can't run it, and with the figures where they differ by more than
    TOLERANCE; nothing is written then.
    """
    source, out = Path(source), Path(out)
    bare, trained = weights.model_of(source, None if code is None else Path(code))
    model = bare if trained.class_map is None else Mapped(bare, trained.class_map).eval()
    spec = TensorSpec(name="input", dtype=trained.input_dtype, shape=("batch", *trained.input_shape))
    samples = samples_of(trained, spec, open_pack(pack))
    content = content_of(model, samples)
    part = part_of(output_file(out, source), "-unproven")
    write_atomic(part, content)
    try:
        difference = _proven(model, part, samples, out)
        part.replace(out)
    except WorkerError as error:
        raise UserError(f"{out}: not written: onnxruntime can't run it: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    training = trained.model_dump(include={"precision", "bf16_speedup", "processes"}, exclude_none=True)
    artifact = inspect(
        out,
        rung,
        step="export",
        options={
            "opset": OPSET,
            "weights_sha256": sha256_of_file(source),
            "source": trained.source,
            "model": trained.model,
            "training": training,
            **trained.options,
        },
        task=trained.task,
        classes=trained.classes,
        preprocessing=trained.preprocessing,
        metrics={"parity_largest_difference": difference},
    )
    return save_artifact(out.parent, artifact)


def samples_of(trained: Trained, spec: TensorSpec, pack: EvalPack | None) -> NDArray[Any]:
    """Inputs of the model: the pack's calibration samples, or generated ones."""
    if pack:
        return pack.calibration_inputs([spec], trained.preprocessing)["input"]
    return generate([spec], 64, {}, below=trained.options.get("vocabulary", SMALL))["input"]


def content_of(model: nn.Module, samples: NDArray[Any]) -> bytes:
    """The ONNX file of a model."""
    example = torch.from_numpy(np.resize(samples, (2, *samples.shape[1:])))
    # The exporter prints and warns about itself; what matters is proven afterwards.
    with quietly():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    return portable(program.model_proto)


def _proven(model: nn.Module, path: Path, samples: NDArray[Any], out: Path) -> float:
    """The largest difference between the file at `path` and the model; raises UserError, which names `out`, where it
    is too large."""
    checks = [_parity(model, path, samples, batch) for batch in (1, ODD_BATCH)]
    worst = max(check.largest_difference / max(check.largest_output, 1.0) for check in checks)
    if not worst <= TOLERANCE:
        differences = ", ".join(f"{check.largest_difference:.3g}" for check in checks)
        raise UserError(
            f"{out}: not written: onnxruntime's outputs differ from PyTorch's by up to {differences} "
            f"(at batch 1 and {ODD_BATCH}), more than {TOLERANCE:g} of the largest output"
        )
    return max(check.largest_difference for check in checks)


def _parity(model: torch.nn.Module, path: Path, samples: NDArray[Any], batch: int) -> Parity:
    """PyTorch against onnxruntime on four batches of samples."""
    chosen = np.resize(samples, (4 * batch, *samples.shape[1:]))
    with torch.no_grad():
        expected = torch.cat([model(part) for part in torch.split(torch.from_numpy(chosen), batch)]).numpy()
    return compare([next(iter(answer(path, {"input": chosen}, batch).outputs.values()))], [expected])
