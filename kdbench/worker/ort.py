"""onnxruntime sessions, on built-in and plugin execution providers."""

import importlib
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


def load(model: str, provider: dict[str, Any], threads: int, explain: bool, optimized: str | None) -> None:
    """Opens the session; slower with `explain`, for `explain()`, and `optimized`, a file for the graph that runs."""
    global _session
    options = ort.SessionOptions()
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
