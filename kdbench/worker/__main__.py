"""The process that opens one session and runs it: `python WORKER_FOLDER RUNNER`, spoken to over pipes.

Needs numpy and the runner's runtime, nothing of kdbench, so that another environment's interpreter can run it.
A message is one JSON line that ends with `"bytes": n`, then n bytes: the arrays named in `"arrays"`, each in numpy's
.npy format. Every request gets one reply; a reply with `"error"` leaves the process usable.
"""

import ctypes
import importlib
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


def _machine_state() -> dict[str, float]:
    """Of this moment: wall and CPU seconds of this process, on Linux also CPU seconds that all processes have used and
    the clock of this CPU in Hz."""
    state = {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}
    try:
        ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        state["busy_s"] = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        cpu = ctypes.CDLL(None).sched_getcpu()
        state["clock_hz"] = 1e3 * int(Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq").read_text())
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return state


def _between(before: dict[str, float], after: dict[str, float]) -> dict[str, float | None]:
    """Wall and CPU seconds of this process between two states, the share of the machine's CPU time that others used,
    and the clock at the end; None for what can't be told here.

    The kernel counts in ticks of about 10 ms, so that over less than many of them the share is a sample, at times below
    0 or above 1, whose mean over many slices is right.
    """
    cpu_s, wall_s = after["cpu_s"] - before["cpu_s"], after["wall_s"] - before["wall_s"]
    others_s = after["busy_s"] - before["busy_s"] - cpu_s if "busy_s" in after else None
    return {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "others_share": None if others_s is None else others_s / (wall_s * (os.cpu_count() or 1)),
        "clock_hz": after.get("clock_hz"),
    }


class Server:
    """One session and the inputs it is fed with."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.feeds: dict[str, Arrays] = {}

    def hello(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        runtime = {"python": platform.python_version(), "numpy": np.__version__, **self.runner.versions()}
        return {"protocol": PROTOCOL, "versions": runtime}, {}

    def devices(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {"devices": self.runner.devices(request["provider"])}, {}

    def load(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
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
        """Runs a slot's inputs until `seconds` or `runs` are over; answers with each run's latency, and the machine.

        Each run is made longer by the share `slower` of its own time, for comparisons whose outcome is known.
        """
        feed, run, clock = self.feeds[request["slot"]], self.runner.run, time.perf_counter
        slower = request.get("slower", 0.0)
        before = _machine_state()
        run(feed)  # not counted: it finds the caches as another cell has left them
        latencies: list[float] = []
        end = clock() + request["seconds"]
        while len(latencies) < request["runs"]:
            start = clock()
            run(feed)
            now = clock()
            if slower:
                longer = now + slower * (now - start)
                while now < longer:
                    now = clock()
            latencies.append(now - start)
            if now >= end:
                break
        return _between(before, _machine_state()), {"latencies_s": np.asarray(latencies, dtype=np.float32)}

    def predict(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {}, dict(zip(self.runner.output_names(), self.runner.run(arrays), strict=True))


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
