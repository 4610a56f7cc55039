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


FEWEST_TICKS = 10
"""Of all CPUs together, below which a share of the machine's time says nothing: the kernel counts hundredths."""


def usage() -> tuple[float, float, list[int]]:
    """Now, as `usage_since` wants it: the clock, this process's CPU time, both in seconds, and the machine's ticks."""
    return time.perf_counter(), time.process_time(), machine_ticks()


def machine_ticks() -> list[int]:
    """Clock ticks of all CPUs since the start, by kind as `man proc_stat` has them; empty where it isn't Linux."""
    try:
        with Path("/proc/stat").open() as stat:
            return [int(ticks) for ticks in stat.readline().split()[1:9]]
    except (OSError, ValueError):
        return []


def usage_since(before: tuple[float, float, list[int]]) -> dict[str, float | None]:
    """What has been used since: seconds by the clock and of this process's CPU time (all threads), the share of the
    machine's CPU time that others used, and the clock of the CPU now, in Hz; None where that can't be read."""
    now = usage()
    wall_s, cpu_s = now[0] - before[0], now[1] - before[1]
    ticks = [after - earlier for earlier, after in zip(before[2], now[2], strict=True)]
    others = None
    if sum(ticks) >= FEWEST_TICKS:
        idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
        others = max(0.0, sum(ticks) - idle - cpu_s * os.sysconf("SC_CLK_TCK")) / sum(ticks)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "others_share": others, "clock_hz": clock_hz()}


def clock_hz() -> float | None:
    """Of the CPU that this process ran on last; of a virtual machine it may be the nominal one."""
    try:
        cpu = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])
        now = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")
        if now.is_file():
            return int(now.read_text()) * 1e3
        with Path("/proc/cpuinfo").open() as lines:
            clocks = [float(line.partition(":")[2]) * 1e6 for line in lines if line.startswith("cpu MHz")]
        return clocks[cpu]
    except (OSError, ValueError, IndexError):
        return None


def affinity() -> list[int] | None:
    """CPUs that this process may run on; None where that can't be read."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


class Server:
    """One session and the inputs it is fed with."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.feeds: dict[str, Arrays] = {}

    def hello(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        runtime = {"python": platform.python_version(), "numpy": np.__version__, **self.runner.versions()}
        return {"protocol": PROTOCOL, "versions": runtime, "affinity": affinity()}, {}

    def devices(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {"devices": self.runner.devices(request["provider"])}, {}

    def load(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        start = time.perf_counter()
        plain = {"plain": True} if request.get("plain") else {}
        self.runner.load(
            request["model"], request["provider"], request["threads"], request["explain"], request["optimized"], **plain
        )
        return {"load_s": time.perf_counter() - start, "affinity": affinity()}, {}

    def explain(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return self.runner.explain(), {}

    def feed(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Keeps inputs under a slot's name and runs them once."""
        self.feeds[request["slot"]] = arrays
        start = time.perf_counter()
        self.runner.run(arrays)
        return {"first_run_s": time.perf_counter() - start, "peak_memory_bytes": peak_memory_bytes()}, {}

    def slice(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Runs a slot's inputs until `seconds` or `runs` are over; answers with latencies and `usage_since`."""
        feed, run, clock = self.feeds[request["slot"]], self.runner.run, time.perf_counter
        run(feed)  # not counted: it finds the caches as another cell has left them
        latencies: list[float] = []
        before = usage()
        end = clock() + request["seconds"]
        while len(latencies) < request["runs"]:
            start = clock()
            run(feed)
            now = clock()
            latencies.append(now - start)
            if now >= end:
                break
        return usage_since(before), {"latencies_s": np.asarray(latencies, dtype=np.float32)}

    def profile(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Where the time of a model's runs goes, in a session opened for that."""
        if not hasattr(self.runner, "profile"):
            raise RuntimeError(f"the runtime '{self.runner.__name__}' does not tell where its time goes")
        asked = (request[name] for name in ("model", "provider", "threads"))
        return self.runner.profile(*asked, arrays, request["seconds"], request["runs"]), {}

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
