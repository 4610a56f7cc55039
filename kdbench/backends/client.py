"""The parent's side of a worker: starts it, asks, waits without burning CPU, and says why one died."""

import contextlib
import functools
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import Backend, pick_backend
from kdbench.errors import first_line

PROTOCOL = 1
WORKER = Path(__file__).resolve().parent.parent / "worker"

Arrays = dict[str, NDArray[Any]]

SLICE_FACTS = ("wall_s", "cpu_s", "others_share", "clock_hz")
"""What a worker may say of a slice: seconds that it took and of CPU time that the worker used meanwhile, the share of
the machine's CPU time that other processes used (of a short slice a rough sample: average it), and the clock of its CPU
at the end."""


class WorkerError(Exception):
    """A request failed. `alive` says whether the worker can take another one."""

    def __init__(self, message: str, alive: bool) -> None:
        super().__init__(message)
        self.alive = alive


class Worker:
    """One process that serves one model on one backend. Use it as a context manager: leaving it ends the process."""

    def __init__(self, backend: Backend, threads: int, patience_s: float = 60.0) -> None:
        """Starts the process. `patience_s` is how long a request may take beyond what it was asked to take."""
        self.backend = backend
        self.threads = threads
        self.patience_s = patience_s
        self._received = bytearray()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the worker
        # A session of its own: Ctrl-C reaches the parent alone, and a kill reaches what the runtime may have started.
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), backend.runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            bufsize=0,
        )

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
        """Versions of the worker's interpreter, numpy and runtime; raises WorkerError for another protocol."""
        reply, _ = self.ask("hello")
        if reply["protocol"] != PROTOCOL:
            raise WorkerError(f"the worker speaks protocol {reply['protocol']}, not {PROTOCOL}", alive=False)
        return dict(reply["versions"])

    def devices(self) -> list[str]:
        """What the backend could run on; empty where nothing is found."""
        return list(self.ask("devices", provider=self.backend.request(self.threads))[0]["devices"])

    def load(self, model: Path, explain: bool = False, optimized: Path | None = None) -> float:
        """Opens a session on the model; seconds.

        With `explain`, `explain()` can be asked afterwards; the graph that runs is written to `optimized`.
        """
        provider = self.backend.request(self.threads)
        written = str(optimized) if optimized else None
        reply, _ = self.ask(
            "load", model=str(model), provider=provider, threads=self.threads, explain=explain, optimized=written
        )
        return float(reply["load_s"])

    def explain(self) -> dict[str, dict[str, int]]:
        """Nodes by provider and operator, before the provider fuses them."""
        return dict(self.ask("explain")[0]["placement"])

    def feed(self, slot: str, inputs: Arrays) -> tuple[float, int]:
        """Keeps inputs under `slot` and runs them once: seconds, and the process's peak memory so far in bytes."""
        reply, _ = self.ask("feed", inputs, slot=slot)
        return float(reply["first_run_s"]), int(reply["peak_memory_bytes"])

    def slice(
        self, slot: str, seconds: float, runs: int, slower: float = 0.0
    ) -> tuple[NDArray[np.float32], dict[str, float | None]]:
        """Latencies in seconds of as many runs as fit into `seconds`, at most `runs`; and what the worker says of the
        machine meanwhile. Each run is made longer by the share `slower`."""
        reply, arrays = self.ask("slice", slot=slot, seconds=seconds, runs=runs, slower=slower, extra_s=seconds)
        return arrays["latencies_s"], {name: reply.get(name) for name in SLICE_FACTS}

    def predict(self, inputs: Arrays) -> Arrays:
        return self.ask("predict", inputs)[1]

    def ask(
        self, op: str, arrays: Mapping[str, NDArray[Any]] | None = None, extra_s: float = 0.0, **request: Any
    ) -> tuple[dict[str, Any], Arrays]:
        """One request and its reply; raises WorkerError where the worker refuses, dies or hangs."""
        body = io.BytesIO()
        for array in (arrays or {}).values():
            np.lib.format.write_array(body, np.ascontiguousarray(array), allow_pickle=False)
        content = body.getvalue()
        header = {"op": op, **request, "arrays": list(arrays or {}), "bytes": len(content)}
        deadline = time.monotonic() + self.patience_s + extra_s
        self._send(json.dumps(header).encode() + b"\n" + content, op, deadline)
        reply = json.loads(self._line(op, deadline))
        payload = io.BytesIO(self._bytes(reply["bytes"], op, deadline))
        results = {name: np.lib.format.read_array(payload, allow_pickle=False) for name in reply["arrays"]}
        if "error" in reply:
            raise WorkerError(first_line(RuntimeError(reply["error"])), alive=True)
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
        raise WorkerError(f"hung: no answer to '{op}' within {self.patience_s:.0f} s; killed", alive=False)

    def _died(self, op: str) -> NoReturn:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        last = f": {said[-1]}" if said else ""
        raise WorkerError(first_line(RuntimeError(f"crashed during '{op}' ({how}){last}")), alive=False)


@functools.cache
def why_unavailable(name: str) -> str | None:
    """Why the backend `name` can't be used on this machine, or None where it can. Starts a worker to find out."""
    backend = pick_backend(name)
    missing = backend.why_missing()
    if missing:
        return missing
    try:
        with Worker(backend, threads=1) as worker:
            worker.hello()
            found = worker.devices()
    except WorkerError as error:
        return str(error)
    return None if found else f"no device for it here{': ' + backend.needs if backend.needs else ''}"
