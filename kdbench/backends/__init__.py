"""The backends as a table: provider, options, why one is unavailable, and the command that makes it available."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from kdbench.errors import UserError, nearest


def _no_options(threads: int) -> Mapping[str, str]:
    return {}


def _openvino_options(threads: int) -> Mapping[str, str]:
    # The only way that works: `precision=FP32` is ignored, and without the hint "fp32" runs as bf16 where the CPU can.
    return {
        "load_config": f'{{"CPU":{{"INFERENCE_NUM_THREADS":{threads},"INFERENCE_PRECISION_HINT":"f32"}}}}',
    }


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    summary: str
    runner: str
    """The module of `worker/` that opens the session."""
    provider: str
    install: str
    """The command that makes the backend available."""
    plugin: str | None = None
    """The package that carries the provider, where onnxruntime itself does not."""
    device: str = "CPU"
    needs: str = ""
    """The hardware without which an installed provider finds no device."""
    options: Callable[[int], Mapping[str, str]] = field(default=_no_options)
    """Provider options by thread count."""
    saves_optimized: bool = False
    """Whether the graph that runs can be saved and read: not where the provider compiles it."""
    hidden: bool = False

    def why_missing(self) -> str | None:
        """The package that is not installed, if any. Whether a device is there, only a worker can tell."""
        package = self.plugin or ("onnxruntime" if self.runner == "ort" else None)
        return f"{package} is not installed" if package and find_spec(package) is None else None

    def request(self, threads: int) -> dict[str, object]:
        """The provider as a worker wants it."""
        request: dict[str, object] = {
            "name": self.provider,
            "device": self.device,
            "options": dict(self.options(threads)),
            "saves_optimized": self.saves_optimized,
        }
        return request | ({"plugin": self.plugin} if self.plugin else {})


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu",
            "onnxruntime's own CPU provider",
            runner="ort",
            provider="CPUExecutionProvider",
            install="pip install onnxruntime",
            saves_optimized=True,
        ),
        Backend(
            "openvino",
            "Intel OpenVINO on the CPU, in fp32 unless the model is quantized",
            runner="ort",
            provider="OpenVINOExecutionProvider",
            plugin="onnxruntime_ep_openvino",
            options=_openvino_options,
            needs="the plugin serves Intel CPUs only",
            install="pip install onnxruntime-ep-openvino",
        ),
        Backend(
            "fake",
            "no runtime at all, for tests of the schedule",
            runner="fake",
            provider="FakeExecutionProvider",
            install="",
            hidden=True,
        ),
    )
}


def pick_backend(name: str) -> Backend:
    """A row by name; raises UserError that names the known ones."""
    if name not in BACKENDS:
        raise UserError(f"unknown backend '{name}': {nearest(name, [n for n, b in BACKENDS.items() if not b.hidden])}")
    return BACKENDS[name]
