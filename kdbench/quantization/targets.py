"""What static int8 should be like for each kind of machine: a table. To add one, add a row, and name it under the
backends that it is for.

Sources: onnxruntime's own notes in `quantize_static` and
<https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html> ("Data type selection"); NVIDIA's
"Working with Quantized Types"; Hugging Face optimum's `AutoQuantizationConfig`; `get_qnn_qdq_config`; and measurements
on a two-core x86 machine with VNNI.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.backends import pick_backend
from kdbench.errors import pick
from kdbench.machine import features
from kdbench.records import Machine, Quantize


@dataclass(frozen=True)
class Candidate:
    """A row of the table."""

    target: str
    why: str
    """In one sentence, with its source."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Quantize that differ from its defaults."""

    def over(self, options: Quantize) -> Quantize:
        """The options, with what they leave unsaid as the target wants it."""
        wanted = {name: value for name, value in self.options.items() if name not in options.model_fields_set}
        return options.model_copy(update=wanted | {"target": self.target})


SIGNED = {"activations": "int8", "symmetric": True, "reduce_range": False}

_ROWS = (
    Candidate(
        "x86-vnni",
        "VNNI multiplies unsigned by signed bytes: uint8 activations and int8 weights in QDQ were the fastest measured "
        "(3 times fp32; QOperator with signed activations 8 times slower than fp32).",
        {"reduce_range": False},
    ),
    Candidate(
        "x86",
        "Without VNNI a product of bytes overflows its 16-bit sum, which weights of 7 bits avoid (onnxruntime, "
        "quantize_static).",
        {"reduce_range": True},
    ),
    Candidate(
        "x86-signed",
        "Signed activations in QDQ are as fast as unsigned ones on some models, and onnxruntime's first choice.",
        {"activations": "int8", "reduce_range": False},
    ),
    Candidate(
        "per-tensor",
        "One scale for all channels of a weight is what some kernels have alone, at some accuracy (onnxruntime, "
        "quantize_static: the best throughput on CPUs).",
        {"per_channel": False, "reduce_range": False},
    ),
    Candidate(
        "arm",
        "Arm's kernels multiply signed by signed bytes, and want symmetric activations (onnxruntime, quantize_static).",
        SIGNED,
    ),
    Candidate(
        "arm-unsigned",
        "Unsigned activations run on Arm too, with twice the steps after a ReLU (onnxruntime, quantize_static).",
        {"reduce_range": False},
    ),
    Candidate(
        "tensorrt",
        "TensorRT knows int8 with zero point 0 alone, reads weights in float behind a pair of QuantizeLinear and "
        "DequantizeLinear for each use, and refuses int32 biases (NVIDIA; optimum; onnxruntime issue 14229).",
        SIGNED | {"float_weights": True},
    ),
    Candidate(
        "cuda",
        "Quantization on GPUs is signed by signed alone (onnxruntime, Data type selection), and the CUDA provider has "
        "few int8 kernels: expect fp16 to be faster.",
        SIGNED,
    ),
    Candidate(
        "openvino",
        "OpenVINO runs unsigned activations and weights signed by channel from QDQ; there, signed activations with "
        "scales by channel failed to compile, unsigned weights were 10 times slower, and QOperator stayed on the CPU "
        "provider (measured, plugin 1.8.1).",
        {"reduce_range": False},
    ),
    Candidate(
        "qnn",
        "Qualcomm's NPU takes unsigned activations and weights with one scale each (get_qnn_qdq_config).",
        {"weights": "uint8", "per_channel": False, "reduce_range": False},
    ),
    Candidate(
        "migraphx",
        "MIGraphX computes int8 with zero point 0 from QDQ (AMD, MIGraphX execution provider).",
        SIGNED,
    ),
    Candidate(
        "portable",
        "QDQ with unsigned activations and signed weights by channel is what most providers read.",
        {"reduce_range": False},
    ),
)

TARGETS: dict[str, Candidate] = {row.target: row for row in _ROWS}

CPU: dict[str, tuple[str, ...]] = {
    "x86-vnni": ("x86-vnni", "x86-signed", "per-tensor"),
    "x86": ("x86", "x86-signed"),
    "arm": ("arm", "arm-unsigned"),
    "": ("portable",),
}
"""Candidates by kind of CPU, the best guess first."""

PROVIDERS: dict[str, tuple[str, ...]] = {
    "TensorrtExecutionProvider": ("tensorrt",),
    "NvTensorRTRTXExecutionProvider": ("tensorrt",),
    "CUDAExecutionProvider": ("cuda",),
    "OpenVINOExecutionProvider": ("openvino", "per-tensor"),
    "QNNExecutionProvider": ("qnn", "portable"),
    "MIGraphXExecutionProvider": ("migraphx",),
}
"""Candidates by execution provider, the best guess first; others have `portable`."""

KINDS = ("CPUExecutionProvider", "XnnpackExecutionProvider", "ACLExecutionProvider")
"""Providers for which the kind of CPU decides."""


def candidates(backend: str, machine: Machine | None = None) -> list[Candidate]:
    """What is plausible for a backend, the best guess first: on `machine`, or on this one.

    Which of them is the fastest is for a measurement to say. Raises UserError for an unknown backend.
    """
    provider = pick_backend(backend).provider
    names = CPU[_kind(machine)] if provider in KINDS else PROVIDERS.get(provider, ("portable",))
    return [TARGETS[name] for name in names]


def targeted(options: Quantize) -> Quantize:
    """The options with their `target`'s fields where they leave them unsaid; raises UserError for an unknown one."""
    return options if options.target is None else pick(TARGETS, options.target, "target").over(options)


def _kind(machine: Machine | None) -> str:
    """Of CPU, as CPU has it; empty for one that isn't known."""
    has = set(machine.features if machine else features())
    architecture = machine.os.rpartition(" ")[2] if machine else platform.machine()
    if architecture.lower() in ("aarch64", "arm64") or "asimd" in has:
        return "arm"
    if architecture.lower() in ("x86_64", "amd64", "i686") or "avx2" in has:
        return "x86-vnni" if has & {"avx512_vnni", "avx_vnni"} else "x86"
    return ""
