"""What a cell claims, and the proofs of it: provider, precision, int8 and threads.

A claim that does not hold is flagged beside the number, and is an error of `kdbench bench --strict`.
"""

from typing import Any

import numpy as np

from kdbench.proofs.layers import FLOAT_KERNELS, INT8_KERNELS, LOW_KERNELS, MOVERS, QUANTIZERS, WEIGHT_INPUT
from kdbench.proofs.precision import implied
from kdbench.records import Artifact, Evaluation, Measurement, Proof
from kdbench.store import Arrays

ENOUGH_S = 0.5
"""Of slices: in less, what a process does of its own accord, such as tidying up after loading, looks like a thread."""
MORE_THREADS = 1.25
"""Times the threads asked for: CPU time above it is that of threads that nobody asked for."""


def proven(artifact: Artifact, m: Measurement, evaluation: Evaluation | None, arrays: Arrays) -> dict[str, Any]:
    """The fields of a row that prove the cell's claims, those that don't hold among them."""
    used = _threads(m, arrays)
    fields: dict[str, Any] = {"threads_used": used, "broken_claims": broken_claims(artifact, m, evaluation, used)}
    if evaluation is None or not proofs_in(evaluation):
        return fields
    int8, floating, _ = kernels(evaluation)
    wanted, proof = _provider(m), proof_of(evaluation, m)
    return fields | {
        "node_share": _share({p: sum(nodes.values()) for p, nodes in evaluation.placement.items()}, wanted),
        "time_share": _share(proof.time_share, wanted) if proof else None,
        "int8_share": int8 / (int8 + floating) if artifact.precision == "int8" and int8 + floating else None,
        "fused_share": _fused(artifact, evaluation),
        "rms_error": proof.rms_error if proof else None,
        "ran_as": " or ".join(_implied(proof)) or None if proof else None,
    }


def proofs_in(evaluation: Evaluation) -> bool:
    """Whether the evaluation was made with proofs; older files have none."""
    return bool(evaluation.proofs or evaluation.compared or evaluation.time_share)


def proof_of(evaluation: Evaluation | None, m: Measurement) -> Proof | None:
    """That of the cell's own batch and sizes; in older files all cells share one. None where there is none."""
    if evaluation is None or evaluation.proofs:
        proofs = evaluation.proofs if evaluation else ()
        return next((proof for proof in proofs if (proof.batch, proof.dims) == (m.batch, m.dims)), None)
    shared = evaluation.model_dump(include={"time_share", "compared", "rms_error", "largest_error", "bands"})
    return Proof(batch=m.batch, dims=m.dims, **shared)


def broken_claims(
    artifact: Artifact, m: Measurement, evaluation: Evaluation | None, threads_used: float | None
) -> tuple[str, ...]:
    """A sentence for each claim of the cell that does not hold."""
    return tuple(broken_by_kind(artifact, m, evaluation, threads_used).values())


def broken_by_kind(
    artifact: Artifact, m: Measurement, evaluation: Evaluation | None, threads_used: float | None
) -> dict[str, str]:
    """The same by what the claim is of: two measurements of one flaw don't word it alike."""
    found = {
        "placement": _fallback(m, evaluation),
        "kernels": _not_fused(artifact, evaluation),
        "precision": _precision(m, evaluation),
        "threads": _too_many_threads(m, threads_used),
        "cpus": _too_few_cpus(m, evaluation),
    }
    return {kind: claim for kind, claim in found.items() if claim}


def _fallback(m: Measurement, evaluation: Evaluation | None) -> str | None:
    """Nodes that another provider than the asked-for one has taken, as assigned before fusion."""
    if evaluation is None or not evaluation.placement:
        return None
    wanted = _provider(m)
    total = sum(sum(operators.values()) for operators in evaluation.placement.values())
    elsewhere = {p: operators for p, operators in evaluation.placement.items() if p != wanted}
    if not elsewhere:
        return None
    names = ", ".join(
        f"{count} on {provider} ({', '.join(sorted(operators))}){_time(proof_of(evaluation, m), provider)}"
        for provider, operators in elsewhere.items()
        for count in [sum(operators.values())]
    )
    return f"fallback: of {total} nodes {names}"


def kernels(evaluation: Evaluation | None, precision: str = "int8") -> tuple[int, int, int]:
    """Kernels in int8, or in what a file of another precision has, float kernels, and conversions, as they run."""
    operators = evaluation.optimized_operators if evaluation else {}
    return (
        sum(operators.get(name, 0) for name in LOW_KERNELS.get(precision, INT8_KERNELS)),
        sum(operators.get(name, 0) for name in FLOAT_KERNELS),
        sum(operators.get(name, 0) for name in (*QUANTIZERS, *MOVERS)),
    )


def _not_fused(artifact: Artifact, evaluation: Evaluation | None) -> str | None:
    """Layers that are quantized in the file and run in float; what a file leaves in float on purpose breaks no claim.

    Where the file has operators of its own for them, these say how many there are; the pairs of int4 too. Pairs of int8
    stand in many places, so that every layer counts.
    """
    low, floating, _ = kernels(evaluation, artifact.precision)
    names = LOW_KERNELS.get(artifact.precision, ())
    if not names or not low + floating:
        return None
    wanted = sum(artifact.operators.get(name, 0) for name in names)
    if not wanted:
        meant = int(artifact.options.get("float_layers", 0))  # left in float to keep the accuracy
        pairs = artifact.operators.get("DequantizeLinear", 0)
        wanted = pairs if artifact.precision == "int4" else low + floating - meant
    left = min(wanted - low, floating)
    if left <= 0:
        return None
    return f"{artifact.precision} did not fuse: {left} of {wanted} convolutions and matrix products run in float"


def _fused(artifact: Artifact, evaluation: Evaluation) -> float | None:
    """Of the file's light nodes, conversions apart, those that no kernel of their own is left of, int8 or not."""
    running = evaluation.optimized_operators
    light = {name: n for name, n in artifact.operators.items() if name not in (*WEIGHT_INPUT, *QUANTIZERS, *MOVERS)}
    if not running or not light:
        return None
    left = sum(min(n, running.get(name, 0) + running.get(f"QLinear{name}", 0)) for name, n in light.items())
    return 1 - left / sum(light.values())


def _precision(m: Measurement, evaluation: Evaluation | None) -> str | None:
    """The precision that the cell claims, against the one that its outputs imply."""
    proof = proof_of(evaluation, m)
    if proof is None or not proof.compared:
        return None
    if proof.rms_error is None:
        return "outputs are NaN or infinite where those of the fp32 reference are not: don't use this backend for it"
    if not proof.bands:
        return None
    against = "the CPU's with activations left in fp32" if m.precision == "int8" else "the fp32 CPU reference"
    names, off = _implied(proof), f"{100 * proof.rms_error:.2g} %"
    if not names:
        return f"outputs differ by {off} from {against}, more than int8 would: something else is computed"
    if _asked(m) in names:
        return None
    return f"“{_asked(m)}” ran as {' or '.join(names)}: outputs differ by {off} from {against}"


def _asked(m: Measurement) -> str:
    """The precision asked for: int8 of an int8 model, whose other layers alone follow the backend's; else that of the
    backend's name, as in `openvino:bf16`, or the model's own."""
    if m.precision == "int8":
        return "int8"
    return m.backend.partition("@")[0].partition(":")[2] or m.precision


def _implied(proof: Proof) -> tuple[str, ...]:
    return () if proof.rms_error is None else implied(proof.rms_error, proof.bands)


def _threads(m: Measurement, arrays: Arrays) -> float | None:
    """CPU time by wall time of all slices: so many threads computed on average; None where that isn't known."""
    cpu_s, wall_s = (arrays.get(f"{name}.{m.raw}") for name in ("cpu_s", "wall_s"))
    if cpu_s is None or wall_s is None or np.nansum(wall_s) < ENOUGH_S:
        return None
    return float(np.nansum(cpu_s) / np.nansum(wall_s))


def _too_many_threads(m: Measurement, used: float | None) -> str | None:
    if used is None or used <= MORE_THREADS * m.threads:
        return None
    return f"{used:.2g} threads computed, {m.threads} asked for: the backend has a pool of its own"


def _too_few_cpus(m: Measurement, evaluation: Evaluation | None) -> str | None:
    if evaluation is None or evaluation.affinity is None or len(evaluation.affinity) >= m.threads:
        return None
    return f"{m.threads} threads on {len(evaluation.affinity)} CPU: give the process more, or lower --threads"


def _provider(m: Measurement) -> str:
    from kdbench.backends import pick_backend

    return pick_backend(m.backend).provider


def _share(amounts: "dict[str, int] | dict[str, float]", of: str) -> float | None:
    total = sum(amounts.values())
    return amounts.get(of, 0) / total if total else None


def _time(proof: Proof | None, provider: str) -> str:
    share = _share(proof.time_share, provider) if proof and len(proof.time_share) > 1 else None
    return "" if share is None else f" for {share:.0%} of the time"
