"""Processes forked by the nursery, which all workers of pytest share: see `tests.nursery`."""

import atexit
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parent.parent
MESSAGE = 1 << 17
"""Bytes of a message to the nursery or from it, at most: far more than any has."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with what the file at `path` stands for, among all processes."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Nursery:
    """Where it listens, and the line to it, which is laid when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._line: socket.socket | None = None

    def line(self) -> socket.socket:
        """The nursery is started by the first who needs it, and ends when nobody is connected."""
        if self._line is None:
            with locked(self.path.with_suffix(".lock")):
                self._line = self._called() or self._started()
            atexit.register(self._line.close)
        return self._line

    def _called(self) -> socket.socket | None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if line.connect_ex(str(self.path)) == 0:
            return line
        line.close()
        return None

    def _started(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.nursery", str(self.path)]
        streams = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        # Not by subprocess, which wants to see the end of what it has started: the nursery may outlive this process.
        process = os.posix_spawn(sys.executable, command, environment(), file_actions=streams)
        while (line := self._called()) is None:
            assert os.waitpid(process, os.WNOHANG)[0] == 0, "the nursery has not come up"
            time.sleep(0.05)
        return line

    def worker(self, command: Sequence[str], **how: Any) -> Any:
        """In the place of `subprocess.Popen` where kdbench starts a worker: forked by the nursery, if that is there and
        the worker runs onnxruntime under this interpreter, on CPUs that nobody chose."""
        from kdbench.backends import client

        if command == [sys.executable, str(client.WORKER), "ort"]:
            if self._line is None and self.path.exists():
                self.line()  # so that it stays
            if self._line is not None and (line := self._called()) is not None:
                return Hatched(line, command, **how)
        return subprocess.Popen(command, **how)


class Hatched:
    """Stands for a worker's process: the same code, without the time to import numpy and onnxruntime."""

    def __init__(
        self, line: socket.socket, command: Sequence[str], stderr: IO[bytes], env: Mapping[str, str], **how: Any
    ) -> None:
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        request = {"worker": command, "env": dict(env), "cwd": str(Path.cwd())}
        socket.send_fds(line, [json.dumps(request).encode()], [theirs_in, theirs_out, stderr.fileno()])
        os.close(theirs_in)
        os.close(theirs_out)
        self._line = line
        self.pid: int = json.loads(line.recv(MESSAGE))["child"]
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(ours_in, "wb", 0), os.fdopen(ours_out, "rb", 0)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = json.loads(self._line.recv(MESSAGE))["status"]
            self._line.close()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, 9)
