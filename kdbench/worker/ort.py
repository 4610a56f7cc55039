"""onnxruntime sessions, on built-in and plugin execution providers."""

import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_session: Any = None


def versions() -> dict[str, str]:
    return {"onnxruntime": ort.__version__}


def devices(provider: dict[str, Any]) -> list[str]:
    """What the provider could run on here, as `CPU: GenuineIntel`; empty where there is nothing."""
    if "plugin" not in provider:
        return [provider["name"]] if provider["name"] in ort.get_available_providers() else []
    return [f"{device.device.type.name}: {device.device.vendor}" for device in _plugin_devices(provider)]


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
    global _session
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if trace:
        options.enable_profiling = True
        options.profile_file_prefix = trace
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after a run disturb the sessions of other workers.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if explain:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimized:
        options.optimized_model_filepath = optimized
    if "plugin" in provider:
        found = _plugin_devices(provider)
        if not found:
            raise RuntimeError(f"{provider['name']} finds no device on this machine")
        options.add_provider_for_devices(found[:1], provider["options"])
        _session = ort.InferenceSession(model, options)
    else:
        # Without this the session would retry on the CPU where the provider fails, and say so in a log line only.
        _session = ort.InferenceSession(
            model, options, providers=[(provider["name"], provider["options"])], enable_fallback=0
        )
    if provider["name"] not in _session.get_providers():
        raise RuntimeError(f"{provider['name']} did not start; the session has {', '.join(_session.get_providers())}")


def explain() -> dict[str, Any]:
    """Nodes by provider and operator, as assigned before the provider fuses them."""
    placement: dict[str, dict[str, int]] = {}
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
    outputs: list[np.ndarray] = _session.run(None, feed)
    return outputs


def output_names() -> list[str]:
    return [output.name for output in _session.get_outputs()]


def _plugin_devices(provider: dict[str, Any]) -> list[Any]:
    plugin = importlib.import_module(provider["plugin"])
    registered = {device.ep_name for device in ort.get_ep_devices()}
    if provider["name"] not in registered:
        ort.register_execution_provider_library(provider["plugin"], plugin.get_library_path())
    # Equal names only: the OpenVINO plugin also lists meta devices such as OpenVINOExecutionProvider.AUTO.
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == provider["name"] and device.device.type.name == provider["device"]
    ]
