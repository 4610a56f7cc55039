"""What makes a training repeat bit by bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Bit-identical results for equal seeds and threads; leaves torch as it was."""
    memory: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # of no use where nothing reads it, and a twentieth of the time
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """torch's own generator starts from `seed`, and is left as it was: what is drawn depends on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        yield
