"""How good an artifact's answers are, one number a backend, as a card and the file itself have it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.records import Measured, ResultFile
from kdbench.store import Arrays


def judged(result: ResultFile, arrays: Arrays, rung: str) -> list[Measured]:
    """Accuracy, or micro and macro F1, of a rung through each backend that answered; without labels nothing.

    Of several thread counts the first: they give the same answers.
    """
    labels = arrays.get("labels")
    if labels is None or not len(labels):
        return []
    found: dict[str, list[Measured]] = {}
    for evaluation in result.evaluations:
        if evaluation.rung != rung or evaluation.raw is None or evaluation.backend in found:
            continue
        place = {
            "samples": len(labels),
            "backend": evaluation.backend,
            "threads": evaluation.threads,
            "machine": result.machine.name,
            "cpu": result.machine.cpu,
            "date": result.date[:10],
        }
        found[evaluation.backend] = _of(arrays[f"predictions.{evaluation.raw}"], labels, place)
    return [one for several in found.values() for one in several]


def _of(answers: NDArray[Any], labels: NDArray[Any], place: dict[str, Any]) -> list[Measured]:
    if labels.ndim == 2:
        micro = stats.f1_interval(answers, labels)
        _, macro = stats.f1(answers, labels)
        return [
            Measured(metric="f1_micro", value=micro.value, low=micro.low, high=micro.high, **place),
            Measured(metric="f1_macro", value=macro, **place),
        ]
    share = stats.proportion(int(np.sum(answers == labels)), len(labels))
    return [Measured(metric="accuracy", value=share.value, low=share.low, high=share.high, **place)]
