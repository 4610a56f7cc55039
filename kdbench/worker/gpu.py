"""Energy of an NVIDIA GPU by NVML, where the package nvidia-ml-py is installed."""

import functools
from typing import Any


def energy_j() -> float | None:
    """Of all that runs on it, since the driver was loaded.

    None without the package, for a GPU that doesn't tell, and where there are several: which of them is meant, is not
    known here.
    """
    found = _only_gpu()
    return None if found is None else found[0].nvmlDeviceGetTotalEnergyConsumption(found[1]) / 1e3


@functools.cache
def _only_gpu() -> tuple[Any, Any] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() != 1:
            return None
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # whatever is missing: package, library, driver, or the counter
        return None
    return pynvml, handle
