"""What was measured, on which machine."""

import hashlib
import json
from typing import Literal

from kdbench.records.artifacts import Artifact
from kdbench.records.base import Count, Name, Positive, Record, Task
from kdbench.records.recipe import Recipe, ScenarioName
from kdbench.records.sealed import Sealed
from kdbench.records.turns import SpiralRecord


class Machine(Record):
    """What computed, and what could change its speed; nothing that tells whose it is."""

    name: Name
    """Readable, by CPU and cores; of published files also their folder's."""
    cpu: str
    """As it calls itself."""
    features: tuple[str, ...]
    """Of the CPU, those that decide which kernels run."""
    cores_physical: int | None
    """None where the system doesn't tell."""
    cores_logical: int
    """With those that share a core."""
    governor: str | None
    """Of the CPU's clock; None where that can't be read."""
    memory_bytes: int
    """Of all that the system has."""
    os: str
    """Name, version and kind of CPU."""
    python: str
    """Version of the interpreter."""
    versions: dict[str, str]
    """Of everything that computes."""
    gpus: tuple[str, ...] = ()
    """Names of the NVIDIA GPUs, where the driver tells."""
    fingerprint: str = ""
    """Of the hardware: CPU, features, cores, memory in whole GiB, GPUs; the same from run to run, and machines with
    different ones never share a ratio or a folder. Empty in files from before there was one."""

    @property
    def hardware(self) -> str:
        """Its fingerprint, also where none was written down: twelve hexadecimal digits of a hash of facts above.

        What the system keeps of the memory for itself moves by megabytes from one kernel to the next: whole GiB,
        rounded up, are what is built in.
        """
        facts = {
            "cpu": self.cpu,
            "features": sorted(self.features),
            "cores": [self.cores_physical, self.cores_logical],
            "memory_gib": -(-self.memory_bytes // 2**30),
            "gpus": sorted(self.gpus),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Process(Record):
    """One fresh worker process: what it cost before it was warm."""

    round: int
    """From 0."""
    start_s: float | None = None
    """Until it has imported its runtime; told of those that were started with no other beside them."""
    load_s: float
    """With the optimising of the graph; of a backend that compiles, with that too."""
    first_run_s: float | None = None
    """Of the batch that this process ran first; None for its later ones, which find it warm."""
    peak_memory_bytes: int | None = None
    """After load and first run, likewise."""
    steady_memory_bytes: int | None = None
    """Resident after the last timed run; of the process, whose batches share it. None where that can't be read."""
    device_memory_bytes: int | None = None
    """The most that lay on the device at a time, where the runtime tells."""
    warm_up_runs: int | None = None
    """Before the first run that counts."""
    warm: bool | None = None
    """Whether they had stopped getting faster when their time was over; None for too few of them to tell."""
    throttled_s: float | None = None
    """For which the container's CPU quota stopped what ran in this process's round; None where that can't be read."""


class Measurement(Record):
    """A cell: artifact × backend × threads × batch × sizes. Its latencies are the raw array `latencies.<raw>`."""

    rung: str
    artifact_sha256: str
    backend: str
    provider_options: dict[str, str] = {}
    """As passed."""
    versions: dict[str, str] = {}
    """Of the worker's interpreter, numpy and runtime."""
    precision: str
    batch: Count
    threads: Count
    dims: dict[str, Count] = {}
    """Sizes of symbolic dimensions, as they were given."""
    processes: tuple[Process, ...] = ()
    """One a round."""
    raw: str | None = None
    """Number of its raw arrays."""
    error: str | None = None


class LoadTest(Record):
    """One run of MLPerf's loadgen in the process of `round`: what loadgen says of it."""

    round: int
    """From 0."""
    step: Literal["measure", "search", "confirm"] = "measure"
    """Of the server scenario: on the way to the highest rate, or to confirm it with other arrivals."""
    queries: int
    """That were issued; of the offline scenario the samples of its one query."""
    rate_per_s: float | None = None
    """Of the arrivals, server scenario only."""
    completed_per_s: float | None = None
    """Samples, offline and server scenarios."""
    estimate_s: float | None = None
    """Early-stopping estimate of the latency: p90 of single stream, p99 of multi stream; None for too few queries."""
    percentile_s: float | None = None
    """Plain p99 of the server scenario, however few the queries."""
    over_bound: int | None = None
    """Queries above the bound."""
    valid: bool
    """For loadgen, and of a server that it keeps up with the arrivals."""
    reasons: tuple[str, ...] = ()
    """Why it is not."""


class ScenarioMeasurement(Measurement):
    """A cell under load. The latencies of all queries are the raw array `scenarios.<raw>`, of the server scenario those
    of the runs that confirm; `scenario_rounds.<raw>` has the round of each."""

    scenario: ScenarioName
    """Of MLPerf."""
    sessions: Count = 1
    """Each with a thread and `threads` threads of its own."""
    bound_s: Positive | None = None
    """Of the server scenario's p99."""
    spent_s: float | None = None
    """In loadgen's runs, of all processes together; None in files from before that was written down."""
    tests: tuple[LoadTest, ...] = ()
    """In their order."""


class Proof(Record):
    """Of one batch at one size: how far its outputs are from the reference, and where its time goes."""

    batch: Count
    dims: dict[str, Count] = {}
    """Sizes of symbolic dimensions, as they were given."""
    time_share: dict[str, float] = {}
    """Of the kernels' time, by execution provider; empty where nobody tells."""
    compared: int = 0
    """Samples on which the outputs were compared with those of the same file in fp32 on the CPU, unoptimized."""
    rms_error: float | None = None
    """Of the outputs, relative to the reference's root mean square; None, where they were compared, for NaN and
    infinities that the reference doesn't have."""
    largest_error: float | None = None
    """The largest difference, relative to the reference's largest output; None likewise."""
    bands: dict[str, tuple[float, float]] = {}
    """RMS errors of the same model in each precision: with layers' operands rounded to it, and with all tensors; empty
    where they can't be told."""


class Evaluation(Record):
    """Answers of one artifact through one backend, with the options that are timed: raw array `predictions.<raw>`."""

    rung: str
    artifact_sha256: str
    backend: str
    threads: Count
    batch: Count
    placement: dict[str, dict[str, int]] = {}
    """Nodes by execution provider and operator, before the provider fuses them."""
    optimized_operators: dict[str, int] = {}
    """Operators of the graph that runs, where the runtime tells."""
    affinity: tuple[int, ...] | None = None
    """CPUs that the process could run on; None where that can't be read."""
    optimized_load_s: float | None = None
    """Of the graph that runs, written down and opened again without optimizing it, in a process of its own; None where
    the runtime doesn't write it."""
    proofs: tuple[Proof, ...] = ()
    """Of each batch and size that is timed; one is missing where the backend refuses to tell."""
    time_share: dict[str, float] = {}
    """This one and the next four in files from before each batch and size was proven by itself: as in `Proof`."""
    compared: int = 0
    """As in `Proof`."""
    rms_error: float | None = None
    """As in `Proof`."""
    largest_error: float | None = None
    """As in `Proof`."""
    bands: dict[str, tuple[float, float]] = {}
    """As in `Proof`."""
    raw: str | None = None
    """Number of its raw array: classes [samples], or 0 and 1 [samples, labels]."""
    error: str | None = None


class RawFile(Record):
    """The compressed numpy archive of all raw values; `labels` in it are the right answers, where there are any."""

    file: str
    """Its name; it lies beside the record."""
    sha256: str


class ReferenceCell(Record):
    """What every cell of the same batch is compared with, whatever it runs on."""

    rung: str
    backend: str
    threads: Count

    @property
    def label(self) -> str:
        return f"{self.rung}@{self.backend}"


class BenchSettings(Record):
    """How it was measured."""

    seed: int
    processes: int
    """Rounds at least, each with a fresh process."""
    precision: float | None = None
    """Rounds went on until each ratio's interval was no wider to either side, or the budget was spent; None in files
    from a fixed number of rounds."""
    budget_s: float
    """At which rounds ended in any case."""
    slice_s: float
    """After which a slice ends."""
    affinity: tuple[int, ...] = ()
    """CPUs that the workers were pinned to; empty for all that they could run on."""
    slice_runs: int
    """A slice ends after `slice_s` or `slice_runs`, whichever comes first: the cap on raw values."""
    price_per_h: Positive | None = None
    """Of the machine."""
    currency: str = ""
    """Of that price."""
    reference: ReferenceCell | None = None
    """Where one was asked for."""


class ResultFile(Sealed):
    """A measurement: `results.json` in a run folder, and what is published of it."""

    kdbench: str
    date: str
    """UTC, ISO 8601."""
    name: Name
    """Of the recipe, or of the folder that it was measured in."""
    complete: bool
    """False for one that was interrupted."""
    machine: Machine
    recipe: Recipe | None = None
    baseline: str
    """The rung that the others are compared with."""
    settings: BenchSettings
    """The plan, and the caps on raw values."""
    inputs: Literal["data", "generated"]
    """Samples of a pack, or random numbers."""
    inputs_sha256: str | None = None
    """Of the pack."""
    energy: tuple[str, ...] | None = None
    """Packages of the CPU whose energy could be read; None in files from before that was tried, and for scenarios."""
    artifacts: tuple[Artifact, ...]
    """In the order of the ladder."""
    evaluations: tuple[Evaluation, ...] = ()
    """Of each artifact, backend and thread count, where there are samples or something to prove."""
    measurements: tuple[Measurement, ...] = ()
    """One a cell, also of cells that failed."""
    scenarios: tuple[ScenarioMeasurement, ...] = ()
    """In the place of `measurements`, where scenarios were asked for."""
    spiral: SpiralRecord | None = None
    """The journal of the spiral that made the rungs; None where none did, and in files from before it was kept."""
    raw: RawFile
    """Where the raw values lie."""


class Trial(Record):
    """A trained network and what it answered: raw array `predictions.<raw>`."""

    method: str
    """`teacher` or its name, `alone`, `distilled`, or one of the recipe's `methods`."""
    seed: int
    kept: Literal["last", "best"] = "last"
    """Its last epoch, or the best one on the held-out samples."""
    artifact_sha256: str
    parameters: int
    raw: str
    """Number of its raw array."""


class Comparison(Sealed):
    """Students of one recipe, by method and seed, and their teacher, on the same evaluation samples."""

    kdbench: str
    date: str
    """UTC, ISO 8601."""
    name: Name
    """Of the recipe."""
    machine: Machine
    recipe: Recipe
    task: Task = "classification"
    """Of several classes one holds for a sample, or any number of them."""
    trials: tuple[Trial, ...]
    """The teachers first."""
    raw: RawFile
    """Where the answers lie."""
