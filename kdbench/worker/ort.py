"""onnxruntime sessions, on built-in and plugin execution providers."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

PLUGINS = "onnxruntime_ep_"
"""How the names of packages begin that carry a provider."""

RELU = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201705a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a020801"
    "42040a00100d"
)
"""An ONNX file that holds one Relu of x [1]: a provider is there if it opens this."""

BUILT_IN = tuple(name for name in ort.get_available_providers() if name != "AzureExecutionProvider")
"""Asked once, as plugins are among them too when they are registered; Azure's calls a service."""

_session: Any = None
_provider: dict[str, Any] = {}
_bound = 0
"""Slots that are bound to a device: each captures a graph of its own."""


def versions() -> dict[str, str]:
    return {"onnxruntime": ort.__version__}


def survey(request: dict[str, Any]) -> dict[str, Any]:
    """What is installed: providers of this onnxruntime, which of the plugins asked for, wheels, and other devices.

    The devices are those of `get_ep_devices()` with every plugin that is installed but not among the `plugins`.
    """
    asked = request["plugins"]
    plugins = [name for name in asked if importlib.util.find_spec(name) is not None]
    for module in _installed_plugins():
        if module not in asked:
            with contextlib.suppress(Exception):
                _register(module)
    return {
        "providers": BUILT_IN,
        "plugins": plugins,
        "wheels": _wheels(),
        "devices": sorted({(device.ep_name, _described(device)) for device in _all_devices()}),
    }


def devices(provider: dict[str, Any]) -> list[str]:
    """What the provider could run on here, as `CPU: AMD`; empty where there is nothing."""
    if not _builtin(provider):
        return [_described(device) for device in _plugin_devices(provider)]
    if provider["name"] not in BUILT_IN:
        return []
    session = _opened(RELU, provider, ort.SessionOptions())
    if provider["name"] not in session.get_providers():
        raise RuntimeError(_did_not_start(provider, session))
    named = [_described(device) for device in _all_devices() if device.ep_name == provider["name"]]
    return named or [provider["name"]]


def load(
    model: str,
    provider: dict[str, Any],
    threads: int,
    explain: bool,
    optimized: str | None,
    plain: bool = False,
    trace: str | None = None,
) -> None:
    """Opens the session; slower with `explain`, for `explain()`, and `optimized`, a file for the graph that runs.

    `plain` runs the graph as it stands in the file; `trace` is how the file begins that `end_profiling` writes.
    """
    global _session, _provider
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if trace:
        options.enable_profiling = True
        options.profile_file_prefix = trace
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for name, value in provider["session"].items():
        setattr(options, name, value)
    # Threads that spin after a run disturb the sessions of other workers.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if explain:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimized:
        options.optimized_model_filepath = optimized
    _session, _provider = _opened(model, provider, options), provider
    if provider["name"] not in _session.get_providers():
        raise RuntimeError(_did_not_start(provider, _session))


def optimize(model: str, optimized: str, without: list[str]) -> None:
    """Writes the model to `optimized` after onnxruntime's basic optimizations but for those named in `without`."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = optimized
    options.log_severity_level = 3
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)


def explain() -> dict[str, Any]:
    """Nodes by provider and operator, as assigned before the provider fuses them; none where onnxruntime is too old."""
    placement: dict[str, dict[str, int]] = {}
    if hasattr(_session, "get_provider_graph_assignment_info"):
        for subgraph in _session.get_provider_graph_assignment_info():
            operators = placement.setdefault(subgraph.ep_name, {})
            for node in subgraph.get_nodes():
                operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return {"placement": placement}


def profile(
    model: str, provider: dict[str, Any], threads: int, feed: dict[str, np.ndarray], seconds: float, runs: int
) -> dict[str, Any]:
    """Time by kernel in as many runs as fit into `seconds`, at most `runs`, in a traced session of their own.

    Each kernel with its name, operator, provider and µs a run, in the order of a run.
    """
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        load(model, provider, threads, explain=False, optimized=None, trace=str(Path(folder, "trace")))
        for _ in range(2):
            run(feed)
        count, end = 0, time.perf_counter() + seconds
        while count < runs and (count == 0 or time.perf_counter() < end):
            run(feed)
            count += 1
        events = json.loads(Path(_session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[-count:]
    events = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= starts[0]]
    return {"runs": count, "kernels": _kernels(sorted(events, key=lambda e: (e["ts"], -e["dur"])), starts)}


def _kernels(events: list[dict[str, Any]], starts: list[float]) -> list[dict[str, Any]]:
    """Of a trace's kernels in order, and the times when runs began."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    spent: dict[tuple[str, str, str], np.ndarray] = {}
    holders: list[tuple[float, int, np.ndarray]] = []
    for event in events:
        told, name = event["args"], event["name"].removesuffix("_kernel_time")
        key = (told.get("node_index", ""), name, told["op_name"])
        if key not in found:
            named = name or f"{told['op_name']} {told.get('node_index', '')}"
            found[key] = {"name": named, "operator": told["op_name"], "provider": told.get("provider", "")}
            spent[key] = np.zeros(len(starts))
        number = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        us = event["dur"] + 0.5  # they are cut off to whole ones
        spent[key][number] += us
        while holders and event["ts"] >= holders[-1][0]:
            holders.pop()
        if holders:
            holders[-1][2][holders[-1][1]] -= us
        if told["op_name"] in ("If", "Loop", "Scan"):  # the kernels of their bodies are told too
            holders.append((event["ts"] + event["dur"], number, spent[key]))
    return [kernel | {"us": max(0.0, _middle_mean(spent[key]))} for key, kernel in found.items()]


def _middle_mean(values: np.ndarray) -> float:
    """Of the middle half: as deaf to a run that was interrupted as the median, without its whole microseconds."""
    ordered, cut = np.sort(values), len(values) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """From host memory to host memory."""
    outputs: list[np.ndarray] = _session.run(None, feed, _run_options(-1))
    return outputs


def bind(feed: dict[str, np.ndarray]) -> Callable[[], object]:
    """What is timed of these inputs: a run from host memory to host memory, or on the device where it `binds`.

    There, inputs are copied to the device once, here, and outputs stay on it.
    """
    global _bound
    if _provider["binds"] is None:
        return lambda: _session.run(None, feed)
    _bound += 1
    place = (_provider["binds"], int(_provider["options"].get("device_id", "0")))
    binding, options = _session.io_binding(), _run_options(_bound)
    # A captured graph writes to the addresses that it was captured with, so that its outputs are allocated here.
    fixed = [(value.shape, value.dtype) for value in run(feed)] if _provider["graph"] else []
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *place))
    for number, name in enumerate(output_names()):
        if fixed:
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_shape_and_type(*fixed[number], *place))
        else:
            binding.bind_output(name, *place)

    def bound() -> None:
        _session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    return bound


def output_names() -> list[str]:
    return [output.name for output in _session.get_outputs()]


def _run_options(graph: int) -> Any:
    """None where runs are not captured as graphs; −1 for a run that is not captured, else the graph's number."""
    if not _provider["graph"]:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _builtin(provider: dict[str, Any]) -> bool:
    """Whether onnxruntime itself is to carry the provider."""
    return provider["plugin"] is None or provider["name"] in BUILT_IN


def _opened(model: str | bytes, provider: dict[str, Any], options: Any) -> Any:
    # Without enable_fallback=0 the session would retry on the CPU where the provider fails, and only print so.
    if _builtin(provider):
        if provider["preloads"] and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        passed = {**provider["builtin"], **provider["options"]}
        return ort.InferenceSession(model, options, providers=[(provider["name"], passed)], enable_fallback=0)
    found = _plugin_devices(provider)
    if not found:
        raise RuntimeError(f"{provider['name']} finds no device on this machine")
    options.add_provider_for_devices(found[:1], provider["options"])
    return ort.InferenceSession(model, options, enable_fallback=0)


def _did_not_start(provider: dict[str, Any], session: Any) -> str:
    """With the reason, which onnxruntime tells its log alone."""
    reason = _logged_error() or f"the session has {', '.join(session.get_providers())}"
    return f"{provider['name']} did not start: {reason}"


def _logged_error() -> str:
    """The last error that onnxruntime has written to standard error, without its place in the source."""
    with contextlib.suppress(OSError):  # where it can't be read, there is nothing to be told
        said = os.pread(2, 1 << 16, max(0, os.fstat(2).st_size - (1 << 16))).decode(errors="replace")
        errors = re.findall(r"\[E:onnxruntime:[^\]]*\] (.*)", said)
        if errors:
            return re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : |\x1b\[[\d;]*m", "", errors[-1]).strip()
    return ""


def _plugin_devices(provider: dict[str, Any]) -> list[Any]:
    if not hasattr(ort, "get_ep_devices"):
        raise RuntimeError(f"onnxruntime {ort.__version__} takes no plugins: 1.22 or newer does")
    if provider["plugin"] != "*" and not _has_devices(provider):
        _register(provider["plugin"])
    for module in _installed_plugins() if provider["plugin"] == "*" else []:
        with contextlib.suppress(Exception):  # one that can't be loaded may not be the one that is wanted
            if not _has_devices(provider):
                _register(module)
    # Equal names only: the OpenVINO plugin also lists meta devices such as OpenVINOExecutionProvider.AUTO.
    return [
        device
        for device in _all_devices()
        if device.ep_name == provider["name"] and provider["device"] in ("", device.device.type.name)
    ]


def _has_devices(provider: dict[str, Any]) -> bool:
    return any(device.ep_name == provider["name"] for device in _all_devices())


def _register(module: str) -> None:
    """Under the provider's own name, as some plugins call it by the name that they are registered with."""
    plugin = importlib.import_module(module)
    name = plugin.get_ep_name() if hasattr(plugin, "get_ep_name") else module
    ort.register_execution_provider_library(name, plugin.get_library_path())


def _all_devices() -> list[Any]:
    """Of built-in providers and registered plugins; none where onnxruntime is too old to tell."""
    found: list[Any] = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else []
    return found


def _described(device: Any) -> str:
    return f"{device.device.type.name}: {device.device.vendor}"


def _installed_plugins() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules() if module.name.startswith(PLUGINS))


def _wheels() -> list[str]:
    """Every distribution that has put files into the package `onnxruntime`, with its version."""
    return sorted(
        f"{found.name} {found.version}"
        for found in importlib.metadata.distributions()
        if found.name.lower().startswith(("onnxruntime", "ort"))
        and any(file.parts[0] == "onnxruntime" for file in found.files or ())
    )
