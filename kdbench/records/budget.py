"""What was tried for an int8 file under a budget of accuracy: kept beside the file, and drawn."""

from typing import Any, Literal

from kdbench.records.base import NotNegative, Record, Versioned


class Estimate(Record):
    """A value with its 95 % interval."""

    value: float
    """The estimate."""
    low: float
    """Lower limit of the interval."""
    high: float
    """Upper limit."""


class CurvePoint(Record):
    """What int8 costs with these layers in float."""

    left_in_float: tuple[str, ...]
    drop: Estimate
    """Against fp32, as a share, on the judged samples."""
    int8_macs: float | None
    """Share of the multiply-accumulates of what can be quantized; None where shapes aren't known."""


class LayerNoise(Record):
    """A layer of the model, and the noise at the output when it alone is in int8."""

    layer: str
    nodes: tuple[str, ...]
    operator: str
    macs: int | None
    noise: float | None
    """As a share of the signal's power; None where it is not finite."""
    left_in_float: bool


class CandidateRecord(Record):
    """A way to quantize, and how it did."""

    name: str
    options: dict[str, Any]
    left_in_float: tuple[str, ...] = ()
    """Layers, in the model's order."""
    bias_correction: bool = False
    equalization: bool = False
    drop: Estimate | None = None
    sqnr_db: float | None = None
    """Of the first output; None where nothing differs, or where it is not finite."""
    int8_macs: float | None = None
    int8_kernels: float | None = None
    """Of the convolutions and matrix products that run, those in int8; None where the backend doesn't tell."""
    speedup: Estimate | None = None
    """Against fp32 on the same backend, paired; None for one that was not timed."""
    broken_claims: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """What speaks against the speed-up: noise, drift, busy neighbours."""
    curve: tuple[CurvePoint, ...] = ()
    """Every set of layers in float that was judged, in that order."""
    layers: tuple[LayerNoise, ...] = ()
    """The most sensitive first; empty where all of them could be in int8."""
    error: str | None = None


class Budget(Versioned):
    """The search for the fastest int8 file that keeps the accuracy."""

    model: str
    model_sha256: str
    backend: str
    threads: int
    batch: int
    metric: Literal["accuracy", "micro F1", "agreement"]
    fp32: float
    """The metric of the fp32 model, on onnxruntime's CPU provider."""
    max_drop: NotNegative | None
    """As a share; None for no bound."""
    calibration_samples: int
    judged_samples: int
    evaluations: int
    """Models that were run to judge them or their layers."""
    candidates: tuple[CandidateRecord, ...]
    chosen: str | None = None
    """None where nothing in int8 was within the budget."""
    test_drop: Estimate | None = None
    """Of the chosen one on the test split, which had no part in the choice; None where there is none."""
    test_samples: int = 0
    remarks: tuple[str, ...] = ()
