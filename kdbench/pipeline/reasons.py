"""Why there is no int8 file within a budget, why one loses more on the test split, and why one is no faster."""

from collections.abc import Sequence
from pathlib import Path

from kdbench.backends import Target
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.pipeline.candidates import Candidate
from kdbench.pipeline.mending import WHY_NOT
from kdbench.pipeline.racing import Place, Raced
from kdbench.proofs.explanations import explain
from kdbench.proofs.layers import FLOAT_KERNELS, RECURRENT
from kdbench.proofs.profile import Profile, profile_one
from kdbench.quantization.judging import Judge, Loss
from kdbench.search.int8_budget import Tried
from kdbench.stats import ROUNDING

PROFILE_S = 1.0


def why_none(model: Path, found: Sequence[Candidate], judge: Judge, max_drop: float | None) -> str:
    """What prevents it, and what came closest."""
    if (nearest := closest(found)) is None:
        return f"{model}: can't be run in int8: {'; '.join(dict.fromkeys(one.error or '' for one in found))[:300]}"
    best, point = nearest
    noisiest = best.noise[0].layer
    worst, other = f", most of all {noisiest.name} ({noisiest.operator})", ""
    if best.error == WHY_NOT["even float misses"]:
        worst, other = "", ", or choose another backend by --for"
    return (
        f"{model}: no int8 file within {max_drop:g} points of {judge.metric} on {len(judge.samples)} samples: "
        f"{best.error}{worst}; the closest, {best.name} with {len(point.left_in_float)} of {len(best.layers)} layers "
        f"in float, loses {100 * point.drop.value:.2g}: raise --max-drop{other}"
    )


def closest(found: Sequence[Candidate]) -> tuple[Candidate, Tried] | None:
    """The candidate that lost least with a layer in int8 at least, and with which ones in float; None where none of
    them could be run, or no layers were looked at."""
    tried = [(one, point) for one in found for point in one.tried if len(point.left_in_float) < len(one.layers)]
    return min(tried, key=lambda item: item[1].drop.value, default=None)


def instead(found: Sequence[Candidate], target: Target) -> list[str]:
    """What to try where static int8 loses too much; nothing where the backend itself does, in float too."""
    nearest = closest(found)
    if nearest is None or nearest[0].error == WHY_NOT["even float misses"]:
        return []
    product = nearest[0].noise[0].layer.operator in ("MatMul", "Gemm") and target.provider == "CPUExecutionProvider"
    dynamic = "`kdbench convert --to dynamic`, or " if product else ""
    return [
        f"where static int8 loses too much: {dynamic}`kdbench convert --to fp16` for a smaller file; in a recipe, "
        "aware = true without max_drop trains the student for int8"
    ]


def on_test(tested: Loss | None, bound: float | None) -> list[str]:
    if tested is None or bound is None or tested.drop.value <= bound + ROUNDING:
        return []
    return [
        f"on the {tested.parity.samples} test samples the drop is {100 * tested.drop.value:.2g} points, more than the "
        f"budget of {100 * bound:g}: a model errs less on samples that it was trained on; give others as calibration "
        "samples, or a lower --max-drop"
    ]


def why_slow(time: Raced, file: Subject, target: Target, place: Place, feed: EvalPack) -> list[str]:
    """Where int8 does not win: the operator and the node that take most of the time, then the known causes, each with
    what to try."""
    speedup = time.speedup
    if speedup is not None and speedup.low > 1:
        return []
    ratio = f"speed-up {speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]" if speedup else "speed-up not known"
    slow = f"int8 does not win on {target} ({ratio})"
    try:
        found = profile_one(file.model, target, place.batch, place.threads, feed, {}, PROFILE_S, file.artifact)
    except UserError:
        return [f"{slow}: ship it in fp32"]
    causes = [f"int8 on {target}: {cause}" for cause in explain(found)]
    said = [*_slowest(found), *([] if causes else ["ship it in fp32"])]
    return [f"{slow}: {'; '.join(said)}" if said else slow, *causes]


def _slowest(found: Profile) -> list[str]:
    """The operator that takes most of the time, and of its nodes the slowest; nothing where no kernel is told of."""
    if not found.kernels:
        return []
    name, count, spent = found.by_operator()[0]
    node = max((kernel for kernel in found.kernels if kernel.operator == name), key=lambda kernel: kernel.time_s)
    in_float = " in float" if name in (*FLOAT_KERNELS, *RECURRENT) else ""
    of_it = f"{node.time_s / found.kernels_s:.0%} in {node.name}" if count > 1 else node.name
    return [f"{name}{in_float} takes {spent / found.kernels_s:.0%} of the kernels' time ({of_it})"]
