"""This machine: what computes here, and what could change its speed."""

import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdbench.records import Machine, slug

COMPUTES = (
    "kdbench",
    "mlcommons-loadgen",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-ep-openvino",
    "onnxruntime-ep-webgpu",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxslim",
    "onnxscript",
    "scikit-learn",
    "scipy",
    "tensorrt",
    "torch",
)
"""Packages whose versions can change a number."""

FEATURES = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""CPU features that decide which kernels run."""


def describe() -> Machine:
    """The machine as it is now. Reads the CPU through py-cpuinfo, which takes about a second."""
    import psutil
    from cpuinfo import get_cpu_info

    info = get_cpu_info()
    cpu = str(info.get("brand_raw") or platform.processor() or platform.machine())
    cores = psutil.cpu_count(logical=True) or 1
    machine = Machine(
        name=f"{_cpu_slug(cpu)}-{cores}-core",
        cpu=cpu,
        features=features(),
        cores_physical=psutil.cpu_count(logical=False),
        cores_logical=cores,
        governor=_governor(),
        memory_bytes=int(psutil.virtual_memory().total),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
        gpus=gpus(),
    )
    return machine.model_copy(update={"fingerprint": machine.hardware})


def gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """Names of NVIDIA's GPUs as their driver tells them on Linux, one each; none where there is no such driver."""
    found = []
    for path in root.glob("proc/driver/nvidia/gpus/*/information"):
        model = re.search(r"^Model:\s*(.+?)\s*$", path.read_text(), re.MULTILINE)
        found += [model[1]] if model else []
    return tuple(sorted(found))


def features() -> tuple[str, ...]:
    """Those of `FEATURES` that the CPU has."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text(), re.MULTILINE)
        flags = set(found[1].split() if found else ())
    else:
        from cpuinfo import get_cpu_info

        flags = set(get_cpu_info().get("flags", ()))
    return tuple(feature for feature in FEATURES if feature in flags)


def saturates_in_int8() -> bool:
    """Whether products of unsigned and signed bytes can overflow their 16-bit sums: x86 without VNNI."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return x86 and not {"avx512_vnni", "avx_vnni"} & set(features())


def versions(packages: Iterable[str] = COMPUTES) -> dict[str, str]:
    """Versions of those of the `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_slug(cpu: str) -> str:
    """`Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz` → `intel-xeon-platinum-8481c`."""
    text = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", cpu.lower())
    return slug(text)


def throttled_s(root: Path = Path("/")) -> float | None:
    """Seconds for which a CPU quota has stopped this process's control group, or one around it, so far.

    None where there is no quota, or nothing that tells of it: Linux's cgroups alone do, `cpu.stat` in either version.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mounted / path.lstrip("/")
        found += [
            _stopped_s(folder / "cpu.stat") for folder in (group, *group.parents) if folder.is_relative_to(mounted)
        ]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _stopped_s(path: Path) -> float | None:
    """Of a `cpu.stat`: in microseconds in cgroups of version 2, in nanoseconds in version 1."""
    try:
        stat = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return None
    if int(stat.get("nr_periods", 0)) == 0:
        return None
    return int(stat["throttled_usec"]) / 1e6 if "throttled_usec" in stat else int(stat["throttled_time"]) / 1e9


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.is_file() else None
