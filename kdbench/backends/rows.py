"""The table of backends: every execution provider as a row of data. To add one, add a row.

Names of options are those of onnxruntime 1.31; where a row has a `minimum`, older ones don't know what it passes.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Options = Mapping[str, Any]
"""Provider options by name: text, or a mapping that is passed as JSON. `{threads}` stands for the thread count."""


@dataclass(frozen=True)
class Way:
    """How a precision is asked for."""

    options: Options = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the worker."""


AS_IT_IS = {"fp32": Way()}
"""Of a provider that computes in float32 and nothing else, where the model does."""


@dataclass(frozen=True, eq=False)
class Backend:
    """A row of the table."""

    name: str
    summary: str
    provider: str
    install: str
    """What makes the backend available."""
    rival: bool = False
    """Whether what is to be installed overwrites the plain onnxruntime, and so wants an environment of its own."""
    runner: str = "ort"
    """The module of `worker/` that runs the model."""
    plugin: str | None = None
    """The module that carries the provider where onnxruntime itself does not; `*` for any that is installed."""
    device: str = "CPU"
    """The kind of device that is taken: CPU, GPU or NPU; empty for any."""
    needs: str = ""
    """The hardware without which an installed provider finds no device."""
    platforms: tuple[str, ...] = ()
    """Systems it exists for, as `sys.platform` has them; all where none is named."""
    precisions: Mapping[str, Way] = field(default_factory=lambda: AS_IT_IS)
    """The first is the default. Empty for a provider that isn't known: it computes as it likes."""
    options: Options = field(default_factory=dict)
    """Passed at every precision."""
    known: tuple[str, ...] | None = ()
    """Options that a user may pass on; None where the names aren't known here."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Shorter names of switches among them."""
    builtin: Mapping[str, str] = field(default_factory=dict)
    """Options for the provider as a part of onnxruntime, where a plugin is told by the choice of its device."""
    session: Mapping[str, bool | int] = field(default_factory=dict)
    """Attributes of onnxruntime's SessionOptions."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the worker."""
    minimum: str = ""
    """The oldest onnxruntime that knows what is passed."""
    binds: str | None = None
    """Where inputs and outputs lie while it is timed; host memory where nothing is said."""
    graph: str | None = None
    """The option by which runs are captured and replayed as a graph."""
    preloads: bool = False
    """Whether NVIDIA's libraries are looked for among the environment's packages."""
    builds: bool = False
    """Whether the first run of a shape compiles, and is counted as loading."""
    runs: Literal["onnx", "weights"] = "onnx"
    """The file of an artifact that is run: the ONNX file, or the weights that it was exported from."""
    saves_optimized: bool = False
    """Whether the graph that runs can be saved and read: not where the provider compiles it."""
    hidden: bool = False


def _openvino(name: str, device: str, what: str, precisions: Mapping[str, str], needs: str) -> Backend:
    # A hint in load_config is the only way that works: `precision=FP32` is ignored, and without it "fp32" runs as bf16
    # where the CPU can.
    threads = {"load_config": {"CPU": {"INFERENCE_NUM_THREADS": "{threads}"}}} if device == "CPU" else {}
    return Backend(
        name,
        f"Intel OpenVINO on the {what}",
        "OpenVINOExecutionProvider",
        "pip install onnxruntime-ep-openvino",
        plugin="onnxruntime_ep_openvino",
        device=device,
        needs=needs,
        precisions={
            precision: Way({"load_config": {device: {"INFERENCE_PRECISION_HINT": hint}}})
            for precision, hint in precisions.items()
        },
        options=threads,
        known=("load_config", "cache_dir", "num_streams", "model_priority", "disable_dynamic_shapes", "reshape_input",
               "layout", "enable_opencl_throttling", "enable_qdq_optimizer"),
        builtin={"device_type": device},
        minimum="1.22",
    )  # fmt: skip


def _torch(name: str, what: str, compiled: bool) -> Backend:
    return Backend(
        name,
        f"PyTorch on the weights that a rung was exported from, {what}",
        "PyTorch",
        "pip install torch",
        runner="torch_runner",
        precisions={
            "fp32": Way({"precision": "fp32"}),
            "tf32": Way({"precision": "tf32"}),
            "bf16": Way({"precision": "bf16"}),
            "fp16": Way({"precision": "fp16"}),
        },
        options={"compile": "true"} if compiled else {},
        known=("device",),
        # Threads that spin after a run disturb other workers; a kept compilation would hide what compiling costs.
        environment={"OMP_WAIT_POLICY": "PASSIVE", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        builds=compiled,
        runs="weights",
    )


_ROWS = (
    Backend(
        "cpu",
        "onnxruntime's own CPU provider",
        "CPUExecutionProvider",
        "pip install onnxruntime",
        saves_optimized=True,
    ),
    Backend(
        "cuda",
        "NVIDIA GPUs",
        "CUDAExecutionProvider",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        rival=True,
        device="GPU",
        needs="it needs an NVIDIA GPU and its driver",
        precisions={"fp32": Way({"use_tf32": "0"}), "tf32": Way({"use_tf32": "1"})},
        known=("device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search",
               "do_copy_in_default_stream", "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d",
               "enable_cuda_graph", "enable_cudnn", "enable_skip_layer_norm_strict_mode", "fuse_conv_bias",
               "prefer_nhwc", "sdpa_kernel", "tunable_op_enable", "tunable_op_tuning_enable",
               "tunable_op_max_tuning_duration_ms", "use_ep_level_unified_stream"),
        aliases={"graph": "enable_cuda_graph"},
        minimum="1.18",
        binds="cuda",
        graph="enable_cuda_graph",
        preloads=True,
    ),
    Backend(
        "tensorrt",
        "NVIDIA TensorRT",
        "TensorrtExecutionProvider",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
        rival=True,
        device="GPU",
        needs="it needs an NVIDIA GPU, its driver and TensorRT",
        # TensorRT takes tf32 for float32 by itself; what forbids it stands in the environment.
        precisions={
            "fp32": Way({"trt_fp16_enable": "0"}, {"NVIDIA_TF32_OVERRIDE": "0"}),
            "tf32": Way({"trt_fp16_enable": "0"}),
            "bf16": Way({"trt_fp16_enable": "0", "trt_bf16_enable": "1"}),
            "fp16": Way({"trt_fp16_enable": "1"}),
        },
        known=("device_id", "trt_auxiliary_streams", "trt_build_heuristics_enable", "trt_builder_optimization_level",
               "trt_context_memory_sharing_enable", "trt_cuda_graph_enable", "trt_dla_core", "trt_dla_enable",
               "trt_engine_cache_enable", "trt_engine_cache_path", "trt_force_sequential_engine_build",
               "trt_int8_calibration_table_name", "trt_int8_enable", "trt_int8_use_native_calibration_table",
               "trt_layer_norm_fp32_fallback", "trt_max_partition_iterations", "trt_max_workspace_size",
               "trt_min_subgraph_size", "trt_op_types_to_exclude", "trt_profile_max_shapes", "trt_profile_min_shapes",
               "trt_profile_opt_shapes", "trt_sparsity_enable", "trt_tactic_sources", "trt_timing_cache_enable",
               "trt_timing_cache_path"),
        aliases={"graph": "trt_cuda_graph_enable", "int8": "trt_int8_enable"},
        binds="cuda",
        graph="trt_cuda_graph_enable",
        preloads=True,
        builds=True,
    ),
    _openvino("openvino", "CPU", "CPU", {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}, "it serves Intel CPUs only"),
    _openvino("openvino-gpu", "GPU", "GPU", {"fp32": "f32", "fp16": "f16"}, "it needs an Intel GPU and its driver"),
    # The NPU has no float32.
    _openvino("openvino-npu", "NPU", "NPU", {"fp16": "f16"}, "it needs an Intel NPU and its driver"),
    Backend(
        "directml",
        "any GPU under Windows, by DirectX 12",
        "DmlExecutionProvider",
        "pip install onnxruntime-directml",
        rival=True,
        device="GPU",
        platforms=("win32",),
        known=("device_id", "performance_preference", "device_filter", "disable_metacommands"),
        session={"enable_mem_pattern": False},
    ),
    Backend(
        "coreml",
        "Apple's Core ML",
        "CoreMLExecutionProvider",
        "pip install onnxruntime",
        device="",
        platforms=("darwin",),
        # The older format computes in fp16 wherever it likes; a program computes in the model's own precision.
        precisions={"fp32": Way({"ModelFormat": "MLProgram", "AllowLowPrecisionAccumulationOnGPU": "0"})},
        known=("MLComputeUnits", "RequireStaticInputShapes", "EnableOnSubgraphs", "SpecializationStrategy",
               "ModelCacheDirectory", "ProfileComputePlan"),
        minimum="1.20",
        builds=True,
    ),
    Backend(
        "xnnpack",
        "XNNPACK on the CPU",
        "XnnpackExecutionProvider",
        "build onnxruntime with --use_xnnpack: no wheel has it",
        options={"intra_op_num_threads": "{threads}"},
        session={"intra_op_num_threads": 1},  # onnxruntime's own threads would get into the way of XNNPACK's
    ),
    Backend(
        "qnn",
        "Qualcomm's NPU by AI Engine Direct",
        "QNNExecutionProvider",
        "pip install onnxruntime-qnn",
        plugin="onnxruntime_qnn",
        device="NPU",
        needs="it needs a Qualcomm NPU",
        # Where nothing is said, the NPU computes float32 models in fp16.
        precisions={
            "fp32": Way({"enable_htp_fp16_precision": "0"}),
            "fp16": Way({"enable_htp_fp16_precision": "1"}),
        },
        known=("backend_type", "backend_path", "profiling_level", "htp_performance_mode", "htp_arch", "soc_model",
               "htp_graph_finalization_optimization_mode", "qnn_context_priority", "vtcm_mb", "rpc_control_latency",
               "offload_graph_io_quantization", "enable_htp_shared_memory_allocator", "device_id"),
        builtin={"backend_type": "htp"},
        minimum="1.22",
        builds=True,
    ),
    Backend(
        "migraphx",
        "AMD GPUs by MIGraphX",
        "MIGraphXExecutionProvider",
        "pip install onnxruntime-migraphx",
        rival=True,
        device="GPU",
        needs="it needs an AMD GPU and ROCm",
        platforms=("linux", "win32"),
        precisions={
            "fp32": Way({"migraphx_fp16_enable": "0"}),
            "bf16": Way({"migraphx_fp16_enable": "0", "migraphx_bf16_enable": "1"}),
            "fp16": Way({"migraphx_fp16_enable": "1"}),
        },
        known=("device_id", "migraphx_int8_enable", "migraphx_fp8_enable", "migraphx_int8_calibration_table_name",
               "migraphx_int8_use_native_calibration_table", "migraphx_exhaustive_tune", "migraphx_mem_limit",
               "migraphx_arena_extend_strategy", "migraphx_model_cache_dir", "migraphx_max_dynamic_batch"),
        builds=True,
    ),
    Backend(
        "webgpu",
        "any GPU by WebGPU: Vulkan, Metal or DirectX 12",
        "WebGpuExecutionProvider",
        "pip install onnxruntime-ep-webgpu",
        plugin="onnxruntime_ep_webgpu",
        device="GPU",
        needs="it needs a GPU and its driver",
        known=("preferredLayout", "enableInt64", "dawnBackendType", "powerPreference", "deviceId", "validationMode",
               "storageBufferCacheMode", "uniformBufferCacheMode", "queryResolveBufferCacheMode",
               "defaultBufferCacheMode", "forceCpuNodeNames"),
        minimum="1.24",
    ),
    Backend(
        "acl",
        "Arm Compute Library on the CPU",
        "ACLExecutionProvider",
        "build onnxruntime with --use_acl: no wheel has it",
        needs="it needs an Arm CPU",
        # Fast maths computes convolutions and products in less than float32, and doesn't say in what.
        precisions={"fp32": Way({"enable_fast_math": "false"})},
    ),
    _torch("torch", "operator by operator (eager)", compiled=False),
    _torch("torch-compile", "compiled by torch.compile", compiled=True),
    Backend(
        "fake",
        "no runtime at all, for tests of the schedule",
        "FakeExecutionProvider",
        "",
        runner="fake",
        precisions={"fp32": Way(), "bf16": Way({"hint": "bf16"})},
        known=("note",),
        hidden=True,
    ),
)  # fmt: skip

BACKENDS: dict[str, Backend] = {row.name: row for row in _ROWS}


@functools.cache
def unlisted(provider: str) -> Backend:
    """A row for a provider that has none, such as that of a plugin which has come out since."""
    return Backend(
        provider,
        "a provider without a row of its own: it computes in the precision that it likes",
        provider,
        "install the package that carries it",
        plugin="*",
        device="",
        precisions={},
        known=None,
    )
