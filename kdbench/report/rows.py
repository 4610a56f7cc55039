"""What a table says of a cell, and in which order a CSV has it."""

from dataclasses import dataclass, fields
from typing import Literal

from kdbench.stats import Interval


@dataclass(frozen=True)
class Row:
    """A cell. Its fields are the columns of the CSV, in their order; None where there is no number."""

    rung: str
    parent: str | None
    backend: str
    precision: str
    batch: int
    threads: int
    accuracy: float | None = None
    accuracy_diff: float | None = None
    """Minus the baseline's accuracy through the same backend, on the same samples."""
    accuracy_diff_low: float | None = None
    accuracy_diff_high: float | None = None
    agreement: float | None = None
    """Share of samples on which it answers as the baseline does, in all labels where there are several."""
    size_bytes: int = 0
    parameters: int = 0
    macs: int | None = None
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    throughput_per_s: float | None = None
    """Samples a second, one batch after the other."""
    speedup: float | None = None
    """Against the baseline in the same backend, batch, threads and sizes."""
    speedup_low: float | None = None
    speedup_high: float | None = None
    load_s: float | None = None
    first_run_s: float | None = None
    peak_memory_bytes: int | None = None
    flags: tuple[str, ...] = ()
    error: str | None = None
    f1_micro: float | None = None
    """Where samples have any number of labels, instead of accuracy: of all labels together."""
    f1_macro: float | None = None
    """The mean over labels."""
    f1_micro_diff: float | None = None
    """Minus the baseline's through the same backend, on the same samples."""
    f1_micro_diff_low: float | None = None
    f1_micro_diff_high: float | None = None
    rounds: int | None = None
    """Fresh processes that were timed."""
    smallest_difference: float | None = None
    """By what share a model had to be slower than the baseline to be found nine times in ten."""
    outlier_share: float | None = None
    """Of the runs, far from the median of their process; they count like all others."""
    node_share: float | None = None
    """Of the nodes, on the provider that was asked for."""
    time_share: float | None = None
    """Of the kernels' time, likewise."""
    int8_share: float | None = None
    """Of the convolutions and matrix products of an int8 model, those that run in int8."""
    fused_share: float | None = None
    """Of the file's light nodes, such as activations, those that have gone into others."""
    rms_error: float | None = None
    """Of the outputs against those in fp32 on the CPU."""
    ran_as: str | None = None
    """The precision that it implies."""
    threads_used: float | None = None
    """CPU time by wall time."""
    broken_claims: tuple[str, ...] = ()
    """Those of the flags that say that a claim of the cell does not hold."""
    dims: str = ""
    """Sizes of symbolic dimensions, such as `height=32 width=32`."""
    cost_per_million: float | None = None
    """Of inferences, at the price of the plan."""
    reference_speedup: float | None = None
    """Against the fixed reference cell in the same batch and sizes."""
    reference_speedup_low: float | None = None
    reference_speedup_high: float | None = None
    start_s: float | None = None
    """Of the worker's process, until its runtime is imported."""
    steady_memory_bytes: int | None = None
    """Of the worker's process after its timed runs."""
    device_memory_bytes: int | None = None
    """The most at a time, where the runtime tells."""
    energy_j: float | None = None
    """An inference, of all that runs on the CPU's packages and the GPU, idle power included."""
    optimize_s: float | None = None
    """Of the load, what it takes less where the graph is optimized already."""
    parent_diff: float | None = None
    """Of the accuracy or the micro F1: minus the parent's through the same backend, on the same samples."""
    parent_diff_low: float | None = None
    parent_diff_high: float | None = None
    made_in_s: float | None = None
    """What making the rung took, but not what it was made of."""
    teacher_agreement: float | None = None
    """Share of samples on which it answers as the teacher does, where that was measured too and isn't the baseline."""
    machine: str = ""
    """Its name, and that of the result."""
    result: str = ""

    @property
    def cold_start_s(self) -> float | None:
        """From nothing to the first answer: process, load and first run."""
        if self.start_s is None or self.load_s is None or self.first_run_s is None:
            return None
        return self.start_s + self.load_s + self.first_run_s

    @property
    def parent_difference(self) -> Interval | None:
        """Of the accuracy or the micro F1 to the parent's."""
        return interval(self.parent_diff, self.parent_diff_low, self.parent_diff_high)

    @property
    def difference(self) -> Interval | None:
        """Of the accuracy or the micro F1 to the baseline's."""
        return interval(self.accuracy_diff, self.accuracy_diff_low, self.accuracy_diff_high) or interval(
            self.f1_micro_diff, self.f1_micro_diff_low, self.f1_micro_diff_high
        )

    @property
    def ratio(self) -> Interval | None:
        """The speed-up against the baseline."""
        return interval(self.speedup, self.speedup_low, self.speedup_high)

    @property
    def reference_ratio(self) -> Interval | None:
        """The speed-up against the fixed reference."""
        return interval(self.reference_speedup, self.reference_speedup_low, self.reference_speedup_high)


def interval(value: float | None, low: float | None, high: float | None) -> Interval | None:
    """A number with its interval, where it has one."""
    return None if value is None or low is None or high is None else Interval(value, low, high)


COLUMNS = tuple(field.name for field in fields(Row))


def place(row: Row) -> tuple[str, int, int, str]:
    """What cells of one table share: backend, threads, batch, sizes."""
    return row.backend, row.threads, row.batch, row.dims


Metric = Literal["accuracy", "f1", "agreement"]
"""What tells how good a model's answers are: by labels of one class a sample, or of any number of them, or by the
baseline's answers where the evaluation samples have no labels."""
