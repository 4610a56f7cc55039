"""Everything that may be said beside a number: each flag names the fact and, where there is one, what to try."""

from kdbench.proofs.layers import DYNAMIC, FLOAT_KERNELS, RECURRENT
from kdbench.records import Artifact, Evaluation, Measurement, ResultFile
from kdbench.report.claims import kernels
from kdbench.report.text import points
from kdbench.stats import Interval

NOISY = 0.10
"""Coefficient of variation between processes above which a cell is called noisy (pyperf's bound)."""


def flags(
    result: ResultFile,
    artifact: Artifact,
    m: Measurement,
    evaluation: Evaluation | None,
    against_parent: tuple[str, Interval | None] | None,
    medians: dict[int, float],
    broken: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """What the reader of this cell has to know, its broken claims among it."""
    found = [
        *artifact.warnings,
        _failed_evaluation(evaluation),
        *broken,
        _slower(artifact, evaluation, against_parent),
        _few_processes(result, m, medians),
        noisy(m, medians),
    ]
    return tuple(flag for flag in found if flag)


def beside_static(static: str, difference: Interval, p: float | None) -> str:
    """How good a rung that was trained in int8 is beside the one that was not."""
    exact = "" if p is None else f", McNemar's p {p:.2g}"
    return f"trained in int8: {points(difference)} points against {static}, which was not{exact}"


def _failed_evaluation(evaluation: Evaluation | None) -> str | None:
    return f"not evaluated: {evaluation.error}" if evaluation and evaluation.error else None


def _slower(
    artifact: Artifact, evaluation: Evaluation | None, against_parent: tuple[str, Interval | None] | None
) -> str | None:
    parent, ratio = against_parent or ("", None)
    if artifact.precision == "fp32" or ratio is None or ratio.high >= 1:
        return None
    return f"{1 / ratio.value:.2g}× slower than {parent}{_why(artifact, evaluation)}"


def _why(artifact: Artifact, evaluation: Evaluation | None) -> str:
    """What the graph that runs shows of it."""
    operators = evaluation.optimized_operators if evaluation else {}
    casts = operators.get("Cast", 0)
    if artifact.precision == "fp16" and casts:
        return f": {casts} casts between fp16 and float32 run; take it where the provider has fp16 kernels"
    if any(operators.get(name) for name in DYNAMIC):
        return ": it looks for the ranges of its activations in each run; try `kdbench quantize`, which knows them"
    if artifact.precision != "int8":
        return ""
    int8, _, conversions = kernels(evaluation)
    floating = {name: operators[name] for name in (*FLOAT_KERNELS, *RECURRENT) if operators.get(name)}
    if floating:
        count, meant = sum(floating.values()), int(artifact.options.get("float_layers", 0))
        why = " to keep the accuracy: raise max_drop" if meant >= count else ": `kdbench profile` says why"
        return f": {count} of {int8 + count} layers run in float ({', '.join(floating)}){why}"
    if not int8:
        return ""
    all_run = f"all of its {int8} convolutions and matrix products run" if int8 > 1 else "its one matrix product runs"
    return (
        f": {all_run} in int8, but the {conversions} conversions around cost more than that gains; "
        "try more width or a larger batch"
    )


def _few_processes(result: ResultFile, m: Measurement, medians: dict[int, float]) -> str | None:
    if m.error is not None or len(medians) >= result.settings.processes:
        return None
    return f"{len(medians)} of {result.settings.processes} processes measured: interrupted, bench again"


def noisy(m: Measurement, medians: dict[int, float]) -> str | None:
    """Of a cell whose processes differ by more than NOISY."""
    values = list(medians.values())
    if m.error is not None or len(values) < 2:
        return None
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    if deviation <= NOISY * mean:
        return None
    return f"noisy: medians of the processes vary by {deviation / mean:.0%}; quiet the machine, or raise --budget"
