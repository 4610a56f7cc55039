"""Which backends can be used on this machine, and why the others can't."""

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from kdbench.backends.client import Worker, WorkerError
from kdbench.backends.interpreters import why_unusable
from kdbench.backends.rows import BACKENDS, Backend
from kdbench.backends.targets import Target, pick_backend

SYSTEMS = {"win32": "Windows", "darwin": "macOS", "linux": "Linux"}


@dataclass(frozen=True)
class Survey:
    """What is installed for an interpreter."""

    versions: dict[str, str]
    """Of the interpreter, numpy and onnxruntime."""
    providers: tuple[str, ...]
    """Built into onnxruntime; a device may still be missing."""
    plugins: tuple[str, ...]
    """Modules of the table that carry another provider."""
    wheels: tuple[str, ...]
    """Distributions that share the package `onnxruntime`, with their versions."""
    devices: tuple[tuple[str, str], ...]
    """Provider and device, of what `get_ep_devices()` finds and no plugin of the table brings."""

    @property
    def rivals(self) -> str | None:
        """What is wrong where several wheels have written to one folder, and what mends it."""
        if len(self.wheels) < 2:
            return None
        names = [wheel.split()[0] for wheel in self.wheels]
        kept = next((name for name in names if name != "onnxruntime"), names[0])
        return (
            f"{', '.join(self.wheels)} are installed together: they write to the same folder, so that what runs is a "
            f"mixture of them. Keep one: pip uninstall -y {' '.join(names)} && pip install {kept}; for the others "
            "make environments of their own, and use them with --backend NAME@PATH/python"
        )

    @property
    def unlisted(self) -> tuple[tuple[str, str], ...]:
        """Devices of providers that have no row in the table."""
        listed = {row.provider for row in BACKENDS.values()}
        return tuple(found for found in self.devices if found[0].partition(".")[0] not in listed)


@functools.cache
def survey(python: str | None = None) -> Survey:
    """What is installed for an interpreter, kdbench's own where none is named; raises WorkerError where it can't tell.

    Starts a worker to find out.
    """
    unusable = why_unusable(python) if python else None
    if unusable:
        raise WorkerError(unusable, alive=False)
    with Worker(pick_backend(f"cpu@{python}" if python else "cpu"), threads=1) as worker:
        versions = worker.hello()
        found = worker.survey(row.plugin for row in BACKENDS.values() if row.plugin)
    return Survey(
        versions,
        tuple(found["providers"]),
        tuple(found["plugins"]),
        tuple(found["wheels"]),
        tuple((provider, device) for provider, device in found["devices"]),
    )


def on_this_system(row: Backend) -> bool:
    return not row.platforms or sys.platform in row.platforms


def why_missing(target: Target) -> str | None:
    """The system, interpreter or package that a backend lacks, if any; its device is not looked for.

    Raises WorkerError where the interpreter can't tell.
    """
    row = target.row
    if not on_this_system(row):
        return f"for {' and '.join(SYSTEMS[system] for system in row.platforms)} only"
    if row.runner == "torch_runner":
        return None if find_spec("torch") else "torch is not installed"
    if row.runner != "ort":
        return None
    if target.python is None and find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    found = survey(target.python)
    if row.provider in found.providers or row.plugin == "*" or row.plugin in found.plugins:
        return None
    if row.plugin:
        return f"{row.plugin} is not installed"
    return f"no part of {', '.join(found.wheels) or 'this onnxruntime'}"


@functools.cache
def devices(target: Target) -> tuple[str, ...]:
    """What a backend could run on here, if anything; raises WorkerError with the reason where it can't be started."""
    missing = why_missing(target)
    if missing:
        raise WorkerError(missing, alive=False)
    with Worker(target, threads=1) as worker:
        worker.hello()
        return tuple(worker.devices())


@functools.cache
def why_unavailable(backend: str | Target) -> str | None:
    """Why a backend can't be used on this machine, or None where it can. Starts a worker to find out."""
    target = pick_backend(backend)
    try:
        found = devices(target)
    except WorkerError as error:
        return str(error)
    return None if found else f"no device for it here{f': {target.row.needs}' if target.row.needs else ''}"


def lacks_device(backend: str | Target) -> bool:
    """Whether all is installed that a backend takes, but what it runs on isn't there."""
    try:
        return not devices(pick_backend(backend))
    except WorkerError:
        return False


def rivals(targets: Iterable[Target]) -> list[str]:
    """A sentence for each interpreter of these backends in whose environment several wheels share one folder."""
    said = []
    for python in dict.fromkeys(target.python for target in targets if target.row.runner == "ort"):
        try:
            explained = survey(python).rivals
        except WorkerError:
            continue  # its cells carry the reason
        if explained:
            said.append(explained)
    return said
