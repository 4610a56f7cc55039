"""What NEW no longer does, and OLD did: a failure by name, whatever the bounds."""

from collections.abc import Iterable

from kdbench.report.gate.sides import Key, Side, said_once

WORSE = {"placement": "node_share", "kernels": "int8_share"}
"""What tells whether a claim that did not hold before holds even less now."""


def failures(old: Side, new: Side) -> tuple[str, ...]:
    """What NEW no longer does and OLD did: cells that don't run or can't be judged, and claims that don't hold."""
    shared = [key for key in old.cells if key in new.cells]
    return said_once((key, sentence) for key in shared for sentence in _broken(old, new, key))


def _broken(old: Side, new: Side, key: Key) -> Iterable[str]:
    before, after = old.cells[key][0], new.cells[key][0]
    if before.error is not None:
        return
    if after.error is not None:
        yield f"no longer runs: {after.error}"
        return
    judged, now = old.evaluation(key), new.evaluation(key)
    if now is not None and now.error is not None and (judged is None or judged.error is None):
        yield f"can no longer be evaluated: {now.error}"
    known = old.broken(key)
    for kind, sentence in new.broken(key).items():
        share = WORSE.get(kind, "")
        was, left = getattr(before, share, None), getattr(after, share, None)
        if kind not in known or (was is not None and left is not None and left < was - 1e-9):
            yield f"a claim no longer holds: {sentence}"
