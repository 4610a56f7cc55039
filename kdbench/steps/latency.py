"""How long a network takes on a backend, as a share of another's: exported, and measured beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench import stats
from kdbench.backends import own_options
from kdbench.benchmark.cells import Subject, check_backends, inputs, plan
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.records import Bench
from kdbench.steps.export import content_of

BUDGET_S = 4.0
"""Of one comparison."""


def beside_the_first(
    scratch: Path,
    x: torch.Tensor,
    backend: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Callable[[nn.Module], float]:
    """A function to a network's latency at batch 1 on one thread, as a share of that of the first one it was given.

    Of `options`, by the names of backends, those of this one hold. The files lie in the folder `scratch`. Raises
    UserError for a backend that is unknown or not there; the function does where a network can't be measured.
    """
    given = {name: dict(own) for name, own in own_options(backend, options or {}).items()}
    check_backends([backend], given)
    bench = Bench(backends=(backend,), options=given, budget_s=BUDGET_S)
    paths: list[Path] = []

    def share(model: nn.Module) -> float:
        path = scratch / f"{len(paths)}.onnx"
        path.write_bytes(content_of(model, x.numpy()))
        paths.append(path)
        if len(paths) == 1:
            return 1.0
        subjects = [Subject(inspect(file, rung), file) for file, rung in ((paths[0], "whole"), (path, "narrow"))]
        cells = plan(subjects, bench)
        fed = inputs(cells[0], None)
        schedule = Schedule(cells, settings_of(bench, seed), lambda cell: fed, baseline="whole")
        for _ in schedule.rounds():
            pass
        ((base, narrow),) = schedule.pairs()
        rounds = sorted(base.medians.keys() & narrow.medians.keys())
        faster = stats.speedup([base.medians[r] for r in rounds], [narrow.medians[r] for r in rounds])
        if base.error or narrow.error or faster is None:
            raise UserError(f"prune.backend: {base.error or narrow.error or 'too few rounds were measured'}")
        return 1 / faster.value

    return share
