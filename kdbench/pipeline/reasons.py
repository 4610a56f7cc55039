"""Why there is no int8 file within a budget, why one loses more on the test split, and why one is no faster."""

from collections.abc import Sequence
from pathlib import Path

from kdbench.backends import Target
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.pipeline.candidates import Candidate
from kdbench.pipeline.racing import Place, Raced
from kdbench.proofs.explanations import explain
from kdbench.proofs.layers import FLOAT_KERNELS, RECURRENT
from kdbench.proofs.profile import Profile, profile_one
from kdbench.quantization.judging import Judge, Loss

PROFILE_S = 1.0


def why_none(model: Path, found: Sequence[Candidate], judge: Judge, max_drop: float | None) -> str:
    """What came closest, and what to try."""
    able = [one for one in found if one.loss is not None]
    if not able:
        return f"{model}: can't be run in int8: {'; '.join(dict.fromkeys(one.error or '' for one in found))[:300]}"
    points_ = [(point.drop.value, one, point.left_in_float) for one in able for point in one.tried]
    points_ = [item for item in points_ if len(item[2]) < len(item[1].layers)]
    reasons = " and ".join(dict.fromkeys(one.error for one in able if one.error))
    drop, best, left = min(points_, key=lambda item: item[0])
    return (
        f"{model}: no int8 file within {max_drop:g} points of {judge.metric} on {len(judge.samples)} samples: "
        f"{reasons}; the closest, {best.name} with {len(left)} of {len(best.layers)} layers in float, loses "
        f"{100 * drop:.2g}: "
        "raise --max-drop, or ship it in fp32"
    )


def on_test(tested: Loss | None, bound: float | None) -> list[str]:
    if tested is None or bound is None or tested.drop.value <= bound:
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
