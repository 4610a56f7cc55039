"""PyTorch on the weights of a rung, eager or compiled.

The one runner that imports kdbench, and so runs under its interpreter alone: what the weights belong to is code of
`kdbench.models`, or of a teacher's source. A user's own `module.py:function` is not run here.
"""

import shutil
import sys
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.training.weights import model_of

SHAPES = 64
"""For how many input shapes a model is compiled before torch would give it up and run it uncompiled."""

_model: Callable[[torch.Tensor], torch.Tensor]
_device = "cpu"
_precision = "fp32"

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def devices(provider: dict[str, Any]) -> list[str]:
    """The device asked for; raises where something is missing that compiling takes."""
    options = provider["options"]
    _choose(options)
    if options.get("compile") and _device == "cpu":
        compiler = environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise RuntimeError(f"torch.compile needs the C++ compiler {compiler}, which is not installed")
        if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
            raise RuntimeError("torch.compile needs Python.h: install the headers of this Python")
    return [torch.cuda.get_device_name() if _device == "cuda" else f"CPU: {torch.backends.cpu.get_cpu_capability()}"]


def load(model: str, provider: dict[str, Any], threads: int, explain: bool, optimized: str | None) -> None:
    """Builds the model and reads its weights. It is compiled by the first run of each shape."""
    global _model
    _choose(provider["options"])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    network, trained = model_of(Path(model))
    _model = network = network.to(_device)
    if provider["options"].get("compile"):
        torch._dynamo.config.recompile_limit = SHAPES
        _model = torch.compile(network, dynamic=False)
    if trained.class_map is not None:
        _model = _mapped(_model, trained.class_map)


def _mapped(model: Any, classes: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the model's own outputs to the data's classes, as the exported file has it."""
    return lambda x: classes(model(x))


def explain() -> dict[str, Any]:
    """Nothing: PyTorch has no graph of nodes that are placed."""
    return {"placement": {}}


def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """From host memory to host memory, in float32."""
    with torch.inference_mode(), _autocast():
        return [_model(_placed(feed)).float().cpu().numpy()]


def bind(feed: dict[str, np.ndarray]) -> Callable[[], object]:
    """What is timed: inputs lie on the device, and outputs stay there."""
    x = _placed(feed)

    def bound() -> None:
        with torch.inference_mode(), _autocast():
            _model(x)
            if _device == "cuda":
                torch.cuda.synchronize()

    return bound


def device_memory_bytes() -> int | None:
    """The most that tensors took at a time on a GPU."""
    return int(torch.cuda.max_memory_allocated()) if _device == "cuda" else None


def output_names() -> list[str]:
    return ["logits"]


def _choose(options: dict[str, str]) -> None:
    """Device and precision of everything that follows; raises where they don't go together."""
    global _device, _precision
    _device, _precision = options.get("device", "cpu"), options["precision"]
    if _device not in ("cpu", "cuda"):
        raise RuntimeError(f"unknown device '{_device}': known: cpu, cuda")
    if _device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no CUDA device")
    if _precision == "tf32" and _device != "cuda":
        raise RuntimeError("tf32 is a precision of NVIDIA GPUs: add the option device=cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = _precision == "tf32"
    if _device == "cpu":
        torch.set_float32_matmul_precision("highest")


def _autocast() -> AbstractContextManager[object]:
    return torch.autocast(_device, _AUTOCAST[_precision]) if _precision in _AUTOCAST else nullcontext()


def _placed(feed: dict[str, np.ndarray]) -> torch.Tensor:
    """The one input of a rung that was exported here."""
    (values,) = feed.values()
    return torch.from_numpy(np.ascontiguousarray(values)).to(_device)
