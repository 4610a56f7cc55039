"""What a cell costs: its cold start, memory, energy, and money."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdbench.records import BenchSettings, Evaluation, Measurement
from kdbench.store import Arrays


def costs(m: Measurement, arrays: Arrays, settings: BenchSettings, throughput_per_s: float) -> dict[str, Any]:
    """The fields of a row that tell them; of processes the median, None for what nobody tells."""

    def middle(name: str) -> float | None:
        return _median([getattr(process, name) for process in m.processes])

    in_bytes = {name: middle(name) for name in ("peak_memory_bytes", "steady_memory_bytes", "device_memory_bytes")}
    price = settings.price_per_h
    return {
        **{name: middle(name) for name in ("start_s", "load_s", "first_run_s")},
        **{name: None if value is None else int(value) for name, value in in_bytes.items()},
        "energy_j": energy_j(m, arrays),
        "cost_per_million": None if price is None else price / 3600 / throughput_per_s * 1e6,
    }


def optimize_s(load_s: float | None, evaluation: Evaluation | None) -> float | None:
    """The part of a load in which the graph is optimized: what it takes longer than opening the optimized one, once."""
    if load_s is None or evaluation is None or evaluation.optimized_load_s is None:
        return None
    return max(0.0, load_s - evaluation.optimized_load_s)


def energy_j(m: Measurement, arrays: Arrays) -> float | None:
    """An inference's, over the slices of which all of it was read; each had a run that isn't counted."""
    told = [arrays[name] for name in (f"package_j.{m.raw}", f"gpu_j.{m.raw}") if name in arrays]
    if not told:
        return None
    runs = np.unique(arrays[f"slices.{m.raw}"], return_counts=True)[1] + 1
    spent_j = np.stack(told).astype(np.float64).sum(axis=0)
    known = ~np.isnan(spent_j)
    return float(spent_j[known].sum() / (m.batch * runs[known].sum())) if known.any() else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
