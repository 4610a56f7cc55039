"""Why there is no int8 file within a budget, why one loses more on the test split, and why one is no faster."""

from collections.abc import Sequence
from pathlib import Path

from kdbench.backends import Target
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.pipeline.candidates import Candidate
from kdbench.pipeline.racing import Place, Raced
from kdbench.proofs.explanations import explain
from kdbench.proofs.layers import INT8_KERNELS
from kdbench.proofs.profile import profile_one
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


def why_slow(time: Raced, file: Path, target: Target, place: Place, feed: EvalPack) -> list[str]:
    """Where int8 does not win: what takes the time, and what to try."""
    if time.speedup is not None and time.speedup.low > 1:
        return []
    ratio = "its speed-up can't be told" if time.speedup is None else f"speed-up {time.speedup.value:.2f}"
    try:
        found = profile_one(file, target, place.batch, place.threads, feed, {}, PROFILE_S)
    except UserError:
        return [f"int8 does not win on {target} ({ratio}): ship it in fp32"]
    sentences = explain(found)
    slow = [(name, spent) for name, _, spent in found.by_operator() if name not in INT8_KERNELS]
    if not sentences and slow:
        name, spent = slow[0]
        share = spent / found.kernels_s
        sentences = [
            f"{name}, which is not computed in int8, takes {share:.0%} of the kernels' time; try a larger --batch"
        ]
    return [f"int8 does not win on {target} ({ratio}): {sentence}" for sentence in sentences or ["ship it in fp32"]]
