"""A file beside the one that it was made from, in a few lines."""

import math
from collections.abc import Mapping

from kdbench import stats
from kdbench.proofs.rewritten import Kernels, Proof
from kdbench.report.text import percent, points, seconds, size, three_digits

WORST = 3
"""Layers that are named."""


def proof_lines(proof: Proof) -> list[tuple[str, str]]:
    """What was found, each with its name."""
    before, after = proof.parent, proof.child
    lines = [
        (
            "size",
            f"{size(before.size_bytes)} → {size(after.size_bytes)}, {_by_size(before.size_bytes, after.size_bytes)}",
        ),
        ("runs", _running(proof.kernels, after.precision)),
        (
            "agreement",
            f"{percent(proof.parity.agreement)} of {proof.samples}; largest error "
            f"{proof.parity.largest_difference:.3g}, largest output {proof.parity.largest_output:.3g}",
        ),
        ("SQNR", _sqnr(proof)),
    ]
    if proof.scores is not None:
        judged = f"{percent(proof.scores[0])} → {percent(proof.scores[1])}, {points(proof.difference)} points"
        test = "" if proof.mcnemar_p is None else f", McNemar p {proof.mcnemar_p:.2g}"
        lines.append((proof.metric, judged + test))
    return [*lines, ("latency", _latency(proof))]


def _by_size(before: int, after: int) -> str:
    factor = before / after
    return f"{three_digits(factor)} times smaller" if factor >= 1 else f"{three_digits(1 / factor)} times larger"


def _running(kernels: Kernels | None, precision: str) -> str:
    if kernels is None:
        return "the backend doesn't show the graph that runs"
    low, floating = sum(kernels.low.values()), sum(kernels.floating.values())
    if precision in ("int8", "int4"):
        named = _named({**kernels.low, **{f"{name} in float": n for name, n in kernels.floating.items()}})
        return f"{low} of {low + floating} layers in {precision}{named}"
    return f"{floating} layers{_named(kernels.floating)}, {kernels.casts} casts among {kernels.nodes} nodes"


def _named(operators: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {name}' for name, count in operators.items())})" if operators else ""


def sqnr(output_db: float, layers_db: Mapping[str, float]) -> str:
    """Of the output, and of the WORST layers."""
    worst = sorted(layers_db, key=lambda layer: layers_db[layer])[:WORST]
    named = ", ".join(f"{_shortened(layer)} {_db(layers_db[layer])}" for layer in worst)
    return f"output {_db(output_db)}" + (f"; worst layers: {named}" if worst else "")


def _sqnr(proof: Proof) -> str:
    untold = f"; {proof.untold} layers have no counterpart" if proof.untold and proof.layers else ""
    return sqnr(proof.output_db, {layer.layer: layer.sqnr_db for layer in proof.layers}) + untold


def _shortened(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _db(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f} dB".replace("-", "−")


def _latency(proof: Proof) -> str:
    if proof.latencies_s is None or proof.ratio is None:
        return f"not measured: {proof.untimed}"
    ratio, (before, after) = proof.ratio, proof.latencies_s
    where = (
        f"on {proof.backend}, {proof.threads} thread{'s' if proof.threads > 1 else ''}, batch {proof.batch}, "
        f"{proof.rounds} processes"
    )
    if stats.no_difference(ratio):
        verdict = f"no difference [{ratio.low:.2f}, {ratio.high:.2f}]"
    elif proof.slower:
        verdict = f"{1 / ratio.value:.2f}× SLOWER [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    else:
        verdict = f"{ratio.value:.2f}× faster [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{seconds(before)} → {seconds(after)}, {verdict} ({where})"
