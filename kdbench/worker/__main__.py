"""The process that opens one session and runs it: `python WORKER_FOLDER RUNNER`, spoken to over pipes.

Needs numpy and the runner's runtime, nothing of kdbench, so that another environment's interpreter can run it.
A message is one JSON line that ends with `"bytes": n`, then n bytes: the arrays named in `"arrays"`, each in numpy's
.npy format. Every request gets one reply; a reply with `"error"` leaves the process usable.
"""

import ctypes
import importlib
import importlib.util
import io
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PROTOCOL = 1

Arrays = dict[str, np.ndarray]


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], Arrays] | None:
    """The next message, or None where the other side has closed the pipe."""
    line = stream.readline()
    if not line:
        return None
    header = json.loads(line)
    body = io.BytesIO(stream.read(header["bytes"]))
    return header, {name: np.lib.format.read_array(body, allow_pickle=False) for name in header["arrays"]}


def write_message(stream: BinaryIO, header: dict[str, Any], arrays: Arrays) -> None:
    body = io.BytesIO()
    for array in arrays.values():
        np.lib.format.write_array(body, np.asarray(array), allow_pickle=False)
    content = body.getvalue()
    stream.write(json.dumps({**header, "arrays": list(arrays), "bytes": len(content)}).encode() + b"\n" + content)
    stream.flush()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process. Not ru_maxrss: it starts at the parent's size."""
    try:
        with Path("/proc/self/status").open() as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Server:
    """One session and the inputs it is fed with."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.feeds: dict[str, Arrays] = {}
        self.samples: Arrays = {}
        self.sessions: list[Server] = [self]
        self.loaded: dict[str, Any] = {}

    def hello(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        runtime = {"python": platform.python_version(), "numpy": np.__version__, **self.runner.versions()}
        return {"protocol": PROTOCOL, "versions": runtime}, {}

    def devices(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {"devices": self.runner.devices(request["provider"])}, {}

    def load(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self.loaded = request
        start = time.perf_counter()
        self.runner.load(
            request["model"], request["provider"], request["threads"], request["explain"], request["optimized"]
        )
        return {"load_s": time.perf_counter() - start}, {}

    def explain(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return self.runner.explain(), {}

    def feed(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Keeps inputs under a slot's name and runs them once."""
        self.feeds[request["slot"]] = arrays
        start = time.perf_counter()
        self.runner.run(arrays)
        return {"first_run_s": time.perf_counter() - start, "peak_memory_bytes": peak_memory_bytes()}, {}

    def slice(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Runs a slot's inputs until `seconds` or `runs` are over; answers with each run's latency."""
        feed, run, clock = self.feeds[request["slot"]], self.runner.run, time.perf_counter
        run(feed)  # not counted: it finds the caches as another cell has left them
        latencies: list[float] = []
        end = clock() + request["seconds"]
        while len(latencies) < request["runs"]:
            start = clock()
            run(feed)
            now = clock()
            latencies.append(now - start)
            if now >= end:
                break
        return {}, {"latencies_s": np.asarray(latencies, dtype=np.float32)}

    def predict(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {}, dict(zip(self.runner.output_names(), self.runner.run(arrays), strict=True))

    def loadgen(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {"version": importlib.import_module("scenarios").version()}, {}

    def library(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Keeps samples for `scenario`, and opens more sessions of the loaded model: `sessions` in all."""
        self.samples = arrays
        while len(self.sessions) < request["sessions"]:
            # A module of its own for each, as a runner keeps its session in its module.
            found = importlib.util.find_spec(self.runner.__name__)
            assert found is not None and found.loader is not None
            runner = importlib.util.module_from_spec(found)
            found.loader.exec_module(runner)
            another = Server(runner)
            another.load(self.loaded, {})
            self.sessions.append(another)
        return {}, {}

    def scenario(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        runs = [session.runner.run for session in self.sessions]
        reply, latencies = importlib.import_module("scenarios").measure(request["settings"], runs, self.samples)
        return reply, latencies


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent is gone, also in the middle of a run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    die_with_parent()
    # The parent decides when a worker ends, by closing the pipe or by killing it: Ctrl-C is the parent's affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to standard output: keep the pipe to ourselves and send what they say to standard error.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runner = importlib.import_module(sys.argv[1])
    server = Server(runner)
    while (message := read_message(sys.stdin.buffer)) is not None:
        request, arrays = message
        try:
            reply, results = getattr(server, request["op"])(request, arrays)
        except Exception as error:
            reply, results = {"error": f"{type(error).__name__}: {error}"}, {}
        write_message(replies, reply, results)


if __name__ == "__main__":
    main()
