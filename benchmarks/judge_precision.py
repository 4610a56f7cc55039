"""How often the precision that a backend computes in is told right, by backends whose precision is known.

    python benchmarks/judge_precision.py [--seeds 3] [--run RUN_DIR]

Models with random weights, and those of a run, are exported to ONNX in fp32. What answers for the backend is another
implementation than that of the bands: torch in fp32, in bfloat16 and half precision, as a whole and by autocast, torch
with operands rounded or cut off to TF32's ten bits, and the int8 file that `kdbench quantize` makes. Prints each error
against the bands, and a Markdown table of what was told. About four minutes on one quiet core.
"""

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.data.pack import EvalPack
from kdbench.models import build
from kdbench.onnxfile import inspect
from kdbench.proofs.precision import answers, error, implied, reference
from kdbench.steps.export import content_of
from kdbench.steps.quantize import quantize
from kdbench.training import weights

SAMPLES = 64
MODELS: dict[str, tuple[str, dict[str, object], tuple[int, ...]]] = {
    "resnet20": ("resnet", {"depth": 20}, (3, 32, 32)),
    "resnet56": ("resnet", {"depth": 56}, (3, 32, 32)),
    "mobilenet_v2": ("mobilenet_v2", {}, (3, 32, 32)),
    "shufflenet_v2": ("shufflenet_v2", {}, (3, 32, 32)),
    "vgg8": ("vgg", {"depth": 8}, (3, 32, 32)),
    "mlp": ("mlp", {}, (64,)),
}


def shortened(x: Tensor, carry: int) -> Tensor:
    """To TF32's ten bits of mantissa: to the nearest with half of the eleventh as `carry`, towards zero with 0."""
    return ((x.contiguous().view(torch.int32) + carry) & ~0x1FFF).view(torch.float32)


def tf32(model: nn.Module, x: Tensor, carry: int) -> Tensor:
    """Answers with the operands of convolutions and linear layers shortened."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: (shortened(given[0], carry),)) for layer in layers]
    for layer in layers:
        layer.weight.data = shortened(layer.weight.data, carry)
    try:
        return model(x)
    finally:
        for hook in hooks:
            hook.remove()


def autocast(model: nn.Module, x: Tensor, kind: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=kind):
        return model(x).float()


BACKENDS: tuple[tuple[str, str, Callable[[nn.Module, Tensor], Tensor]], ...] = (
    ("torch", "fp32", lambda model, x: model(x)),
    ("torch, operands rounded", "tf32", lambda model, x: tf32(model, x, 0x1000)),
    ("torch, operands cut off", "tf32", lambda model, x: tf32(model, x, 0)),
    ("torch autocast", "bf16", lambda model, x: autocast(model, x, torch.bfloat16)),
    ("torch, all of it", "bf16", lambda model, x: model.bfloat16()(x.bfloat16()).float()),
    ("torch autocast", "fp16", lambda model, x: autocast(model, x, torch.float16)),
    ("torch, all of it", "fp16", lambda model, x: model.half()(x.half()).float()),
)
"""Name, the precision that it computes in, and its answers; some change the model's weights."""


def judge(name: str, model: nn.Module, x: Tensor, scratch: Path, told: Counter[tuple[str, str, str]]) -> None:
    path = scratch / "model.onnx"
    path.write_bytes(content_of(model, x[:2].numpy()))
    artifact, feed = inspect(path), {"input": x.numpy()}
    expected = reference(artifact, path, feed)
    assert expected is not None
    bands = ", ".join(f"{precision} {low:.1e}…{high:.1e}" for precision, (low, high) in expected.bands.items())
    print(f"\n{name}: {bands}")

    def say(backend: str, precision: str, found: np.ndarray) -> None:
        rms = error([found], expected.outputs)
        assert rms is not None
        verdict = " or ".join(implied(rms.rms, expected.bands)) or "none of them"
        told[f"{precision} ({backend})", precision, verdict] += 1
        print(f"  {precision} ({backend}): {rms.rms:.1e}: {verdict}")

    state = {key: value.clone() for key, value in model.state_dict().items()}
    for backend, precision, run in BACKENDS:
        try:
            with torch.no_grad():
                found = run(model, x).numpy()
        except RuntimeError as refusal:
            print(f"  {precision} ({backend}): torch refuses: {str(refusal).splitlines()[0]}")
            continue
        finally:
            model.float().load_state_dict(state)
        say(backend, precision, found)
    with warnings.catch_warnings(), Worker(pick_backend("cpu"), 1) as worker:
        warnings.simplefilter("ignore")
        int8 = scratch / "int8.onnx"
        pack = EvalPack("calibration", None, None, x.numpy(), (), None, "classification")
        quantize(path, int8, pack)
        worker.load(int8)
        say("kdbench quantize", "int8", answers(worker, artifact, feed)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="judge the student of this run's folder too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    told: Counter[tuple[str, str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.run:
            from kdbench.data.pack import load_pack
            from kdbench.records import TensorSpec

            model, trained = weights.model_of(options.run / "student.safetensors", None)
            pack = load_pack(options.run / "pack.npz")
            pack = replace(pack, y_test=None)
            spec = TensorSpec(name="input", dtype="float32", shape=("batch", *trained.input_shape))
            x = torch.from_numpy(pack.test_inputs([spec], trained.preprocessing)["input"][:SAMPLES])
            judge(f"{options.run}", model.eval(), x, scratch, told)
        for seed in range(options.seeds):
            for name, (kind, settings, shape) in MODELS.items():
                torch.manual_seed(seed)
                model = build(kind, settings, shape, 10)
                with torch.no_grad():
                    for _ in range(8):  # normalisation learns what comes in
                        model(torch.randn(SAMPLES, *shape))
                judge(f"{name}, seed {seed}", model.eval(), torch.randn(SAMPLES, *shape), scratch, told)
    print("\n| computed in | told | times |\n|:--|:--|--:|")
    for (backend, precision, verdict), times in sorted(told.items()):
        right = "" if precision in verdict.split(" or ") else " (wrong)"
        print(f"| {backend} | {verdict}{right} | {times} |")
    right = sum(times for (_, precision, verdict), times in told.items() if precision in verdict.split(" or "))
    print(f"\nright: {right} of {told.total()}")


if __name__ == "__main__":
    main()
