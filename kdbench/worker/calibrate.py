"""What a model's tensors hold over any number of batches: lowest and highest values, and histograms.

A histogram has 2 · HALF bins about 0, of a width that is a power of two: the smallest one at which all values so far
fit. Where one does not, the width doubles until it does, and bins are joined in pairs. Multiplying by a power of two is
exact, so the counts are those that all values kept until the end would give, and memory does not grow with samples.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

HALF = 2048
"""Bins on one side of 0; at least half of them are in use on the side of the largest value."""

NARROWEST = -100
"""Exponent of the smallest width; values far below it count as next to 0."""

BLOCK = 1 << 16
"""Values that are counted at a time, so that what is made of them stays in the processor's cache."""

MOST_BYTES = 1 << 27
"""Of a run's outputs: larger batches are run in parts, where their samples are independent."""

Arrays = dict[str, np.ndarray]


class Tensor:
    """What is known of one tensor."""

    def __init__(self) -> None:
        self.lowest = math.inf
        self.highest = -math.inf
        self.exponent = NARROWEST
        self.counts = np.zeros(2 * HALF, dtype=np.int64)
        """Of the bins from −HALF · 2^exponent on, each with its lower edge."""

    def add(self, values: np.ndarray, counted: bool) -> bool:
        """Takes values in; False, and nothing taken, where some are not finite."""
        flat = values.reshape(-1)
        if not flat.size:
            return True
        lowest, highest = float(flat.min()), float(flat.max())
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            return False
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        if counted:
            self._widen(max(abs(lowest), abs(highest)))
            self._count(flat, signed=lowest < 0)
        return True

    def _widen(self, largest: float) -> None:
        """Joins bins until `largest` fits: below HALF · 2^exponent."""
        exponent = math.frexp(largest)[1] - (HALF.bit_length() - 1) if largest else NARROWEST
        if exponent <= self.exponent:
            return
        used = np.flatnonzero(self.counts)
        joined = ((used - HALF) >> min(exponent - self.exponent, 62)) + HALF
        counts = np.zeros_like(self.counts)
        np.add.at(counts, joined, self.counts[used])
        self.exponent, self.counts = exponent, counts

    def _count(self, flat: np.ndarray, signed: bool) -> None:
        scale, scratch = np.float32(2.0**-self.exponent), np.empty(min(BLOCK, flat.size), dtype=np.float32)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            scaled = np.multiply(block, scale, out=scratch[: block.size], dtype=np.float32)
            if signed:  # converting to an integer cuts off, which is the floor of what is not negative
                np.floor(scaled, out=scaled)
                scaled += HALF
            found = np.bincount(scaled.astype(np.intp))
            first = 0 if signed else HALF
            self.counts[first : first + found.size] += found


class Collection:
    """What is known of a model's tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.first: Arrays = {}
        self.vary: set[str] = set()
        self.part: int | None = None
        """Samples that are run at once."""
        # numpy lets go of the interpreter while it computes, so that threads count different tensors at once.
        self.threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)

    def observe(
        self, run: Callable[[Arrays], Sequence[np.ndarray]], names: Sequence[str], feed: Arrays, asked: dict[str, Any]
    ) -> list[str]:
        """Runs inputs and takes the values of `asked["tensors"]` in; names of those that were not finite.

        `asked`: `counted`, whether histograms are wanted; `outputs`, of which it is told whether they ever change;
        `independent`, whether a batch may be run in parts; `shared`, the inputs that all of its samples have in common.
        """
        own = [name for name in feed if name not in asked["shared"]]
        samples = len(feed[own[0]]) if own else 1
        if self.part is None:
            self.part = samples
            if asked["independent"] and samples > 1:
                one = run(feed | {name: feed[name][:1] for name in own})
                size = sum(getattr(output, "nbytes", 0) for output in one)
                self.part = max(1, min(samples, MOST_BYTES // max(1, size)))
        bad: dict[str, None] = {}
        for start in range(0, samples, self.part):
            part = feed | {name: feed[name][start : start + self.part] for name in own}
            found = {**dict(zip(names, run(part), strict=True)), **part}
            waiting = {
                name: self.threads.submit(self.tensors.setdefault(name, Tensor()).add, found[name], asked["counted"])
                for name in asked["tensors"]
            }
            bad |= {name: None for name, taken in waiting.items() if not taken.result()}
            for name in asked["outputs"]:
                values = np.atleast_1d(found[name])
                first = self.first.setdefault(name, values[:1].copy())
                if values.shape[1:] != first.shape[1:] or not (values == first).all():
                    self.vary.add(name)
        return list(bad)

    def result(self) -> tuple[dict[str, Any], Arrays]:
        """`names` of the tensors, `exponents` of the widths of their bins, and `same`: outputs that never changed;
        ranges [T, 2] and counts [T, 2 · HALF]."""
        known = self.tensors.values()
        reply = {
            "names": list(self.tensors),
            "exponents": [tensor.exponent for tensor in known],
            "same": [name for name in self.first if name not in self.vary],
        }
        ranges = np.array([(tensor.lowest, tensor.highest) for tensor in known], dtype=np.float64).reshape(-1, 2)
        counts = np.array([tensor.counts for tensor in known], dtype=np.int64).reshape(-1, 2 * HALF)
        return reply, {"ranges": ranges, "counts": counts}
