"""The process that opens one session and runs it: `python WORKER_FOLDER RUNNER [CPU...]`, spoken to over pipes.

Pinned to the CPUs, if some are named.

Needs numpy and the runner's runtime, nothing of kdbench, so that another environment's interpreter can run it.
A message is one JSON line that ends with `"bytes": n`, then n bytes: the arrays named in `"arrays"`, each in numpy's
.npy format. Every request gets one reply; a reply with `"error"` leaves the process usable.
"""

import contextlib
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
from collections.abc import Callable
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


def resident_memory_bytes() -> int | None:
    """Resident memory of this process at this moment; None where that can't be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


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


def affinity() -> list[int] | None:
    """CPUs that this process may run on; None where that can't be read."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


class Server:
    """One session and the inputs it is fed with."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.feeds: dict[str, Callable[[], object]] = {}
        self.samples: Arrays = {}
        self.sessions: list[Server] = [self]
        self.loaded: dict[str, Any] = {}
        self.energy_j: Callable[[], float | None] = lambda: None
        """Of the device."""
        self.collection: Any = None
        """What is known of the model's tensors, while it is calibrated."""

    def hello(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        runtime = {"python": platform.python_version(), "numpy": np.__version__, **self.runner.versions()}
        return {"protocol": PROTOCOL, "versions": runtime, "affinity": affinity()}, {}

    def survey(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return self.runner.survey(request), {}

    def devices(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {"devices": self.runner.devices(request["provider"])}, {}

    def load(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Opens the model; with arrays, they are run once, and what that compiles counts as loading."""
        self.loaded, provider = request, request["provider"]
        if provider["binds"] == "cuda" or provider["options"].get("device") == "cuda":
            self.energy_j = importlib.import_module("gpu").energy_j
        start = time.perf_counter()
        plain = {"plain": True} if request.get("plain") else {}
        self.runner.load(
            request["model"], request["provider"], request["threads"], request["explain"], request["optimized"], **plain
        )
        if arrays:
            self.runner.bind(arrays)()
        return {"load_s": time.perf_counter() - start, "affinity": affinity()}, {}

    def optimize(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Writes a model as the runtime's portable optimizations leave it."""
        self.runner.optimize(request["model"], request["optimized"], request["without"])
        return {}, {}

    def explain(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return self.runner.explain(), {}

    def feed(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Keeps inputs under a slot's name and runs them once."""
        run = self.feeds[request["slot"]] = self.runner.bind(arrays)
        start = time.perf_counter()
        run()
        return {"first_run_s": time.perf_counter() - start, "peak_memory_bytes": peak_memory_bytes()}, {}

    def slice(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Runs a slot's inputs until `seconds` or `runs` are over; answers with each run's latency, and the machine.

        Each run is made longer by the share `slower` of its own time, for comparisons whose outcome is known.
        """
        run, clock = self.feeds[request["slot"]], time.perf_counter
        slower = request.get("slower", 0.0)
        before, energy_j = _machine_state(), self.energy_j()
        run()  # not counted: it finds the caches as another cell has left them
        latencies: list[float] = []
        end = clock() + request["seconds"]
        while len(latencies) < request["runs"]:
            start = clock()
            run()
            now = clock()
            if slower:
                longer = now + slower * (now - start)
                while now < longer:
                    now = clock()
            latencies.append(now - start)
            if now >= end:
                break
        facts, spent_j = _between(before, _machine_state()), self.energy_j()
        facts["gpu_j"] = None if energy_j is None or spent_j is None else spent_j - energy_j
        return facts, {"latencies_s": np.asarray(latencies, dtype=np.float32)}

    def memory(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        on_device = self.runner.device_memory_bytes() if hasattr(self.runner, "device_memory_bytes") else None
        return {"steady_memory_bytes": resident_memory_bytes(), "device_memory_bytes": on_device}, {}

    def profile(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Where the time of a model's runs goes, in a session opened for that."""
        if not hasattr(self.runner, "profile"):
            raise RuntimeError(f"the runtime '{self.runner.__name__}' does not tell where its time goes")
        asked = (request[name] for name in ("model", "provider", "threads"))
        return self.runner.profile(*asked, arrays, request["seconds"], request["runs"]), {}

    def predict(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        found = dict(zip(self.runner.output_names(), self.runner.run(arrays), strict=True))
        for name, values in found.items():
            if isinstance(values, (list, dict)) or np.asarray(values).dtype.hasobject:
                raise RuntimeError(
                    f"output '{name}' is text, a sequence or a map, not a tensor of numbers: export without it "
                    "(skl2onnx: zipmap=False)"
                )
        return {}, found

    def observe(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Runs inputs, and adds what the tensors hold to what `observed` answers; names those that aren't finite."""
        if self.collection is None:
            self.collection = importlib.import_module("calibrate").Collection()
        names = self.runner.output_names()
        return {"not_finite": self.collection.observe(self.runner.run, names, arrays, request)}, {}

    def observed(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        answer: tuple[dict[str, Any], Arrays] = self.collection.result()
        return answer

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


def go_first() -> None:
    """Asks Linux to kill this process, and not another one, where memory runs out: a model may take any amount."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    die_with_parent()
    go_first()
    if len(sys.argv) > 2:  # before the runtime is imported: its threads are pinned as well
        os.sched_setaffinity(0, map(int, sys.argv[2:]))
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
            kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
            reply, results = {"error": f"{kind}{error}"}, {}
        write_message(replies, reply, results)


if __name__ == "__main__":
    main()
