"""A runtime without a model, for tests of the schedule: the "model" is a JSON file that says how it behaves.

`latency_s` (default 0.0002), `latencies_s` (of the first runs, one after the other), `fail_load`,
`crash_at_batch`, `hang_at_batch`, `fail_at_batch`, `classes`, `profile` (what is answered when asked for it),
`placement`, `device_memory_bytes`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_behaviour: dict[str, Any] = {}


def versions() -> dict[str, str]:
    return {"fake": "1"}


def devices(provider: dict[str, Any]) -> list[str]:
    return ["FAKE: none"]


def load(model: str, provider: dict[str, Any], threads: int, explain: bool, optimized: str | None) -> None:
    _behaviour.update(json.loads(Path(model).read_text()))
    if "fail_load" in _behaviour:
        raise RuntimeError(_behaviour["fail_load"])


def explain() -> dict[str, Any]:
    return {"placement": _behaviour.get("placement", {"FakeExecutionProvider": {"Conv": 1}})}


def profile(
    model: str, provider: dict[str, Any], threads: int, feed: dict[str, np.ndarray], seconds: float, runs: int
) -> dict[str, Any]:
    load(model, provider, threads, explain=False, optimized=None)
    answer: dict[str, Any] = _behaviour["profile"]
    return answer


def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    batch = next(iter(feed.values())).shape[0]
    if batch == _behaviour.get("crash_at_batch"):
        sys.stderr.write("fake: about to crash\n")
        sys.stderr.flush()
        os.abort()
    if batch == _behaviour.get("hang_at_batch"):
        time.sleep(3600)
    if batch == _behaviour.get("fail_at_batch"):
        raise ValueError("Got invalid dimensions for input")
    first = _behaviour.get("latencies_s")
    time.sleep(first.pop(0) if first else _behaviour.get("latency_s", 0.0002))
    return [np.zeros((batch, _behaviour.get("classes", 2)), dtype=np.float32)]


def bind(feed: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: run(feed)


def device_memory_bytes() -> int | None:
    found: int | None = _behaviour.get("device_memory_bytes")
    return found


def output_names() -> list[str]:
    return ["logits"]
