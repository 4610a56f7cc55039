"""The parent's side of a worker: starts it, asks, waits without burning CPU, and says why one died."""

import contextlib
import io
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.interpreters import clean_environment
from kdbench.backends.targets import Target
from kdbench.errors import first_line

PROTOCOL = 1
PACKAGE = Path(__file__).resolve().parent.parent
WORKER = PACKAGE / "worker"
BUILD_S = 1200.0
"""How much longer a backend that compiles may take for the first run of a shape."""

PATIENCE_S = 600.0
"""For a batch whose time nobody measures: one of a large model takes minutes on a thread."""

Arrays = dict[str, NDArray[Any]]

SLICE_FACTS = ("wall_s", "cpu_s", "others_share", "clock_hz", "gpu_j")
"""What a worker may say of a slice: seconds that it took and of CPU time that the worker used meanwhile, the share of
the machine's CPU time that other processes used (of a short slice a rough sample: average it), the clock of its CPU at
the end, and the energy of an NVIDIA GPU in joules."""


class WorkerError(Exception):
    """A request failed. `alive` says whether the worker can take another one."""

    def __init__(self, message: str, alive: bool) -> None:
        super().__init__(message)
        self.alive = alive


class Worker:
    """One process that serves one model on one backend. Use it as a context manager: leaving it ends the process."""

    def __init__(self, backend: Target, threads: int, patience_s: float = 60.0) -> None:
        """Starts the process. `patience_s` is how long a request may take beyond what it was asked to take.

        Raises WorkerError where the interpreter can't be started.
        """
        self.backend = backend
        self.threads = threads
        self.patience_s = patience_s
        self.start_s: float | None = None
        """From the process's start to its answer to `hello()`; None before."""
        self._build_s = BUILD_S if backend.row.builds else 0.0
        self._wait_s = patience_s
        """How long the request under way may take."""
        self._received = bytearray()
        self._started = time.monotonic()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the worker
        # A session of its own: Ctrl-C reaches the parent alone, and a kill reaches what the runtime may have started.
        try:
            self._process = subprocess.Popen(
                [backend.python or sys.executable, str(WORKER), backend.row.runner, *map(str, backend.cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_environment(backend),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerError(f"its interpreter can't be started: {error.strerror}", alive=False) from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process now; what it holds is not worth waiting for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def hello(self) -> dict[str, str]:
        """Versions of the worker's interpreter, numpy and runtime.

        Raises WorkerError for another protocol, and for a runtime that is too old for what the backend passes.
        """
        reply, _ = self.ask("hello")
        self.start_s = self.start_s or time.monotonic() - self._started
        if reply["protocol"] != PROTOCOL:
            raise WorkerError(f"the worker speaks protocol {reply['protocol']}, not {PROTOCOL}", alive=False)
        versions, minimum = dict(reply["versions"]), self.backend.row.minimum
        if minimum and _number(versions["onnxruntime"]) < _number(minimum):
            raise WorkerError(
                f"onnxruntime {versions['onnxruntime']} (Python {versions['python']}) is too old for the options of "
                f"{self.backend}: it takes {minimum} or newer",
                alive=False,
            )
        return versions

    def survey(self, plugins: Iterable[str]) -> dict[str, Any]:
        """What is installed there: `providers`, those of the `plugins`, `wheels`, and `devices` of other plugins."""
        return self.ask("survey", plugins=list(plugins))[0]

    def devices(self) -> list[str]:
        """What the backend could run on; empty where nothing is found."""
        return list(self.ask("devices", provider=self.backend.request(self.threads))[0]["devices"])

    def load(
        self,
        model: Path,
        explain: bool = False,
        optimized: Path | None = None,
        first: Arrays | None = None,
        plain: bool = False,
    ) -> float:
        """Opens an artifact whose ONNX file is `model`, in place of an earlier one; seconds.

        With `explain`, `explain()` can be asked afterwards; the graph that runs is written to `optimized`. A backend
        that compiles is to be given the `first` inputs too, on which it does. With `plain` the graph runs as it stands.
        """
        reply, _ = self.ask(
            "load",
            first if self.backend.row.builds else None,
            extra_s=self._build_s,
            model=str(self.backend.file(model)),
            provider=self.backend.request(self.threads),
            threads=self.threads,
            explain=explain,
            optimized=str(optimized) if optimized else None,
            plain=plain,
        )
        return float(reply["load_s"])

    def optimize(self, model: Path, optimized: Path, without: Iterable[str]) -> None:
        """Writes `model` to `optimized` after onnxruntime's basic optimizations, but for those `without`."""
        self.ask("optimize", model=str(model), optimized=str(optimized), without=list(without))

    def explain(self) -> dict[str, dict[str, int]]:
        """Nodes by provider and operator, before the provider fuses them."""
        return dict(self.ask("explain")[0]["placement"])

    def feed(self, slot: str, inputs: Arrays) -> tuple[float, int]:
        """Keeps inputs under `slot` and runs them once: seconds, and the process's peak memory so far in bytes."""
        reply, _ = self.ask("feed", inputs, extra_s=self._build_s, slot=slot)
        return float(reply["first_run_s"]), int(reply["peak_memory_bytes"])

    def slice(
        self, slot: str, seconds: float, runs: int, slower: float = 0.0
    ) -> tuple[NDArray[np.float32], dict[str, float | None]]:
        """Latencies in seconds of as many runs as fit into `seconds`, at most `runs`; and what the worker says of the
        machine meanwhile. Each run is made longer by the share `slower`."""
        reply, arrays = self.ask("slice", slot=slot, seconds=seconds, runs=runs, slower=slower, extra_s=seconds)
        return arrays["latencies_s"], {name: reply.get(name) for name in SLICE_FACTS}

    def memory(self) -> dict[str, int | None]:
        """Bytes that the process has now, and those that its device had at most; None for what can't be told."""
        reply, _ = self.ask("memory")
        return {name: reply[name] for name in ("steady_memory_bytes", "device_memory_bytes")}

    def profile(self, model: Path, inputs: Arrays, seconds: float, runs: int) -> dict[str, Any]:
        """Time by kernel in as many runs as fit into `seconds`, at most `runs`, in a session opened for that.

        Their number, `runs`, and their `kernels`: name, operator, provider and `us` a run, in the order of a run; no
        kernels where the provider tells of none.
        """
        provider = self.backend.request(self.threads)
        asked: dict[str, Any] = {"provider": provider, "threads": self.threads, "seconds": seconds, "runs": runs}
        extra_s = seconds + self._build_s
        return self.ask("profile", inputs, extra_s=extra_s, model=str(self.backend.file(model)), **asked)[0]

    def predict(self, inputs: Arrays, extra_s: float = 0.0) -> Arrays:
        return self.ask("predict", inputs, extra_s)[1]

    def ask(
        self, op: str, arrays: Mapping[str, NDArray[Any]] | None = None, extra_s: float = 0.0, **request: Any
    ) -> tuple[dict[str, Any], Arrays]:
        """One request and its reply; raises WorkerError where the worker refuses, dies or hangs."""
        body = io.BytesIO()
        for array in (arrays or {}).values():
            np.lib.format.write_array(body, np.ascontiguousarray(array), allow_pickle=False)
        content = body.getvalue()
        header = {"op": op, **request, "arrays": list(arrays or {}), "bytes": len(content)}
        self._wait_s = self.patience_s + extra_s
        deadline = time.monotonic() + self._wait_s
        self._send(json.dumps(header).encode() + b"\n" + content, op, deadline)
        reply = json.loads(self._line(op, deadline))
        payload = io.BytesIO(self._bytes(reply["bytes"], op, deadline))
        results = {name: np.lib.format.read_array(payload, allow_pickle=False) for name in reply["arrays"]}
        if "error" in reply:
            raise WorkerError(_gist(reply["error"]), alive=True)
        return reply, results

    def _send(self, content: bytes, op: str, deadline: float) -> None:
        assert self._process.stdin is not None
        view = memoryview(content)
        while view:
            if not select.select([], [self._process.stdin], [], max(0.0, deadline - time.monotonic()))[1]:
                self._hung(op)
            try:
                view = view[os.write(self._process.stdin.fileno(), view[:65536]) :]
            except BrokenPipeError:
                self._died(op)

    def _line(self, op: str, deadline: float) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            self._fill(op, deadline)
        return self._take(end + 1)

    def _bytes(self, size: int, op: str, deadline: float) -> bytes:
        while len(self._received) < size:
            self._fill(op, deadline)
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _fill(self, op: str, deadline: float) -> None:
        """Waits in select for more bytes: a parent that polls slows the worker down on a small machine."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            self._hung(op)
        chunk = os.read(self._process.stdout.fileno(), 1 << 20)
        if not chunk:
            self._died(op)
        self._received += chunk

    def _hung(self, op: str) -> NoReturn:
        self._process.kill()
        raise WorkerError(f"hung: no answer to '{op}' within {self._wait_s:.0f} s; killed", alive=False)

    def _died(self, op: str) -> NoReturn:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        last = f": {said[-1]}" if said else ""
        raise WorkerError(_gist(f"crashed during '{op}' ({how}){last}"), alive=False)


def _gist(said: str) -> str:
    """What a worker said in one line, without places in a runtime's source and without folders of this machine."""
    said = re.sub(r"/\S+\.(?:cc|cpp|h):\d+ [^()]*\([^()]*\)(?: const)?:? ", "", said)
    return first_line(RuntimeError(re.sub(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+", "", said)))


def _environment(backend: Target) -> dict[str, str]:
    """The worker's environment variables."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.getenv("PYTHONPATH")]))}
    inherited = clean_environment() if backend.python else own if backend.row.runs == "weights" else os.environ
    return {**inherited, **backend.environment_variables()}


def _number(version: str) -> tuple[int, ...]:
    """`1.31.1` as numbers that can be compared."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
