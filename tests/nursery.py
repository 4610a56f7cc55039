"""A process that has imported what takes long, also what a first export imports, and forks for each call of kdbench.

`python -m tests.nursery SOCKET` serves whoever connects, until nobody is connected any more. A request is
`{"arguments", "cwd", "stdout", "stderr"}` for a call of kdbench, or `{"worker", "env", "cwd"}` with the open files of
its standard streams for a worker; the answers are the number of the process, then its exit status.
"""

import contextlib
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.onnx
import tqdm

import kdbench.cli
from kdbench.backends import client
from tests.conftest import keep_imported, read_operators_once
from tests.hatched import MESSAGE, locked

SLOW = (
    "kdbench.pipeline", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.figure",
    "onnx", "onnxruntime.quantization", "onnxscript", "onnxslim", "rich.console", "scipy.stats", "sklearn.datasets",
    "sklearn.model_selection", "torch._dynamo",
)  # fmt: skip
"""Modules that calls import when they need them."""


class Forked:
    """Stands for a worker's process in which onnxruntime runs: the same code, without the time to import numpy."""

    def __init__(self, command: list[str], stderr: Any, env: Mapping[str, str], **how: Any) -> None:
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            work(command, env, (theirs_in, theirs_out, stderr.fileno()))
        os.close(theirs_in)
        os.close(theirs_out)
        self.stdin, self.stdout = os.fdopen(ours_in, "wb", 0), os.fdopen(ours_out, "rb", 0)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def work(command: list[str], env: Mapping[str, str], files: Sequence[int]) -> NoReturn:
    """Becomes the worker of a command, with these files as its standard streams."""
    for number, opened in enumerate(files):
        os.dup2(opened, number)
    os.closerange(3, 4096)
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.stdin = command[1:], os.fdopen(0)
    try:
        runpy.run_path(command[1], run_name="__main__")
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def start(command: list[str], **how: Any) -> Any:
    """A worker's process: forked where it runs onnxruntime under this interpreter, on CPUs that nobody chose."""
    forked = command == [sys.executable, str(client.WORKER), "ort"]
    return Forked(command, **how) if forked else subprocess.Popen(command, **how)


def prepare() -> None:
    for name in SLOW:
        importlib.import_module(name)
    read_operators_once()
    warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 and newer
    client.subprocess = types.SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves ignore it
    tqdm.tqdm.monitor_interval = 0  # no thread before a fork
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        example, free = torch.zeros(2, 2), torch.export.Dim("batch")
        torch.onnx.export(torch.nn.Linear(2, 2), (example,), dynamo=True, verbose=False, dynamic_shapes=({0: free},))
    keep_imported()


def serve(request: dict[str, Any]) -> None:
    """Calls the command line, and ends this process as it would."""
    os.chdir(request["cwd"])
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["kdbench", *request["arguments"]]
    status: Any = 1
    try:
        kdbench.cli.main()
    except SystemExit as ending:
        status = ending.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def attend(line: socket.socket) -> None:
    """Serves one who has connected, until the line is closed."""

    def say(**fields: int) -> None:
        line.send(json.dumps(fields).encode())

    while True:
        message, files, *_ = socket.recv_fds(line, MESSAGE, 3)
        if not message:
            return
        request = json.loads(message)
        child = os.fork()
        if child == 0:
            line.close()
            if "worker" in request:
                os.chdir(request["cwd"])
                work(request["worker"], request["env"], files)
            serve(request)
        for opened in files:
            os.close(opened)
        with contextlib.suppress(BrokenPipeError):  # whoever asked may be gone
            say(child=child)
            say(status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def main(path: Path) -> None:
    prepare()
    attending: set[int] = set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        while True:
            if select.select([listening], [], [], 1)[0]:
                line, _ = listening.accept()
                child = os.fork()
                if child == 0:
                    listening.close()
                    attend(line)
                    os._exit(0)
                line.close()
                attending.add(child)
            attending -= {child for child in attending if os.waitpid(child, os.WNOHANG)[0]}
            if not attending:
                with locked(path.with_suffix(".lock")):  # who connects holds it
                    if not select.select([listening], [], [], 0)[0]:
                        path.unlink()
                        return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
