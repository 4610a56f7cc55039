"""One contender of `peers.py` in a process of its own, also under another interpreter: nothing of kdbench at the top.

    python peer.py WHO METHOD MODEL.onnx SAMPLES.npz OUT.onnx

SAMPLES.npz holds the model's inputs by name, all samples of one in one array; for kdbench it is a pack. Prints one line
of JSON: seconds of the quantization without imports, wall and CPU; this process's peak memory; versions.
"""

import contextlib
import importlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
NAMES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""Of methods, as onnxruntime and Olive write them."""
PACKAGES = ("kdbench", "onnxruntime", "onnx", "olive-ai", "torch", "numpy")
IMPORTED = {
    "kdbench": ("kdbench.quantization.calibration", "kdbench.pipeline.quantizing"),
    "budget": ("kdbench.quantization.calibration", "kdbench.pipeline.quantizing"),
    "onnxruntime": ("onnxruntime.quantization",),
    "onnxruntime-u8s8": ("onnxruntime.quantization",),
    "olive": ("olive.passes.onnx.quantization", "onnxruntime.quantization"),
}
"""What each contender imports before the clock starts."""


def peak_bytes(pid: int | str = "self") -> int:
    """Peak resident memory of a process so far; 0 for one that has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return 0


def batches(samples: Path) -> Iterator[dict[str, Any]]:
    with np.load(samples, allow_pickle=False) as arrays:
        inputs = dict(arrays)
    count = len(next(iter(inputs.values())))
    for start in range(0, count - BATCH + 1, BATCH):  # whole ones: onnxruntime's calibrators stack them
        yield {name: values[start : start + BATCH] for name, values in inputs.items()}


def kdbench(method: str, model: Path, samples: Path, out: Path) -> None:
    """As `kdbench quantize MODEL --calibration PACK --method METHOD --no-prove` does."""
    from kdbench import quantize
    from kdbench.records import Quantize

    quantize(model, out, samples, Quantize.model_validate({"calibration": method}))


def budget(max_drop: str, model: Path, samples: Path, out: Path) -> None:
    """As `kdbench quantize MODEL --data PACK --max-drop …` does."""
    from kdbench import fastest_int8
    from kdbench.records import Quantize

    fastest_int8(model, out, samples, Quantize.model_validate({"max_drop": float(max_drop), "for": "cpu"}))


def onnxruntime(method: str, model: Path, samples: Path, out: Path, same_types: bool = False) -> None:
    """`quantize_static` as its documentation has it: after `quant_pre_process`, all else left as it is by default; or
    with the types and scales that kdbench writes for x86."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = batches(samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        try:
            quant_pre_process(str(model), str(prepared))
        except Exception:  # as its documentation advises where symbolic shapes can't be inferred
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            calibrate_method=CalibrationMethod[NAMES[method]],
            **(types if same_types else {}),
        )


def olive(method: str, model: Path, samples: Path, out: Path) -> None:
    """Olive's pass OnnxStaticQuantization, with its defaults."""
    from olive.data.config import DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    @Registry.register_dataset("kept_samples")  # type: ignore[untyped-decorator]
    def kept_samples(**_: Any) -> list[Any]:
        with np.load(samples, allow_pickle=False) as arrays:
            inputs = dict(arrays)
        count = len(next(iter(inputs.values()))) // BATCH * BATCH
        return [({name: values[i] for name, values in inputs.items()}, 0) for i in range(count)]

    data = DataConfig(
        name="calibration",
        load_dataset_config={"type": "kept_samples"},
        pre_process_data_config={"type": "skip_pre_process"},
        dataloader_config={"type": "default_dataloader", "params": {"batch_size": BATCH}},
    )
    options = {"data_config": data, "calibrate_method": NAMES[method]}
    made = create_pass_from_dict(OnnxStaticQuantization, options, disable_search=True).run(
        ONNXModelHandler(str(model)), str(out)
    )
    Path(made.model_path).replace(out)


CONTENDERS = {
    "kdbench": kdbench,
    "budget": budget,
    "onnxruntime": onnxruntime,
    "onnxruntime-u8s8": lambda *given: onnxruntime(*given, same_types=True),
    "olive": olive,
}


def cpu_s() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> None:
    who, method, *paths = sys.argv[1:]
    for module in IMPORTED[who]:
        importlib.import_module(module)
    start, start_cpu_s = time.perf_counter(), cpu_s()
    with contextlib.redirect_stdout(sys.stderr):
        CONTENDERS[who](method, *(Path(path).resolve() for path in paths))
    found = {"seconds": time.perf_counter() - start, "cpu_s": cpu_s() - start_cpu_s}
    print(json.dumps(found | {"bytes": peak_bytes(), "versions": versions()}))


if __name__ == "__main__":
    main()
