"""Comparisons of simulated processes, made and ended as the schedule makes and ends them: see `bench.py`."""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.stats import Interval

PRECISION = 0.02
"""As `kdbench bench` has it where nothing else is said."""

Disturbance = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""What strikes both processes of a round alike, as logarithms [rounds]."""


def _wandering(generator: np.random.Generator, rounds: int) -> NDArray[np.float64]:
    return np.cumsum(generator.normal(0, 0.03, rounds))


def _neighbour(generator: np.random.Generator, rounds: int) -> NDArray[np.float64]:
    """Comes and goes, and takes up to half of the speed."""
    return np.where(generator.random(rounds) < 0.3, generator.uniform(0, np.log(2), rounds), 0.0)


DISTURBANCES: dict[str, Disturbance] = {
    "none": lambda generator, rounds: np.zeros(rounds),
    "20 % slower by the end": lambda generator, rounds: np.linspace(0, np.log(1.2), rounds),
    "wandering by 3 % a round": _wandering,
    "a neighbour in 3 of 10 rounds": _neighbour,
}
SPREADS = (0.005, 0.01, 0.02, 0.03, 0.06, 0.18)
"""Standard deviations of the logarithm of a process's median around what its round would have it."""
UNEVEN = 0.1
"""Share of a disturbance that strikes the one process of a round and not the other, as a standard deviation."""
MOST_ROUNDS = 40
"""After which the simulated budget is spent."""


def simulated(
    generator: np.random.Generator, ratio: float, spread: float, disturbance: Disturbance, heavy: bool = False
) -> tuple[Interval, int]:
    """A comparison as the schedule makes it, stopped as it is: the interval of the speed-up, and its rounds.

    The medians of processes are log-normal around those of their round, or follow Student's t with 4 degrees of freedom
    if `heavy`; `ratio` is the true speed-up.
    """
    slow, fast = _stopped(generator, ratio, spread, disturbance, heavy)
    found = stats.speedup(slow, fast, stats.STOPPED_LEVEL)
    assert found is not None
    return found, len(slow)


def _stopped(
    generator: np.random.Generator, ratio: float, spread: float, disturbance: Disturbance, heavy: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The medians of both, by round."""
    common = disturbance(generator, MOST_ROUNDS)
    noise = generator.standard_t(4, (2, MOST_ROUNDS)) / 2**0.5 if heavy else generator.normal(size=(2, MOST_ROUNDS))
    struck = common * (1 + UNEVEN * generator.normal(size=(2, MOST_ROUNDS)))
    slow, fast = np.exp(struck + spread * noise) * np.array([[ratio], [1.0]])
    for rounds in range(5, MOST_ROUNDS + 1):
        if rounds == MOST_ROUNDS or stats.enough(slow[:rounds], fast[:rounds], PRECISION):
            break
    return slow[:rounds], fast[:rounds]


def scenarios() -> list[tuple[str, float, Disturbance, bool]]:
    """Name, spread, disturbance and whether tails are heavy."""
    return [
        (f"{100 * spread:g} %, {name}{', heavy tails' if heavy else ''}", spread, disturbance, heavy)
        for (name, disturbance), spread, heavy in itertools.product(DISTURBANCES.items(), SPREADS, (False, True))
    ]


def aa_simulated(repeat: int) -> None:
    generator, claimed = np.random.default_rng(0), 0
    wanted = scenarios()
    for number in range(repeat):
        _, spread, disturbance, heavy = wanted[number % len(wanted)]
        claimed += not stats.no_difference(simulated(generator, 1.0, spread, disturbance, heavy)[0])
    print(f"{claimed} of {repeat} simulated comparisons of a file with itself claim a difference: ", end="")
    print(f"{100 * claimed / repeat:.1f} % (nominal 5 %, wanted 3 to 7 %); {len(wanted)} scenarios in turn.")


def coverage(repeat: int) -> None:
    generator, ratio = np.random.default_rng(1), 1.1
    print("| spread of processes, disturbance | rounds | intervals that hold the true ratio |\n|:---|---:|---:|")
    shares: dict[bool, list[float]] = {False: [], True: []}
    for name, spread, disturbance, heavy in scenarios():
        found = [simulated(generator, ratio, spread, disturbance, heavy) for _ in range(repeat)]
        held = sum(interval.low <= ratio <= interval.high for interval, _ in found)
        shares[disturbance is _neighbour].append(100 * held / repeat)
        rounds = np.mean([rounds for _, rounds in found])
        print(f"| {name} | {rounds:.1f} | {held} of {repeat}: {100 * held / repeat:.1f} % |", flush=True)
    print("\nNominal 95 %, wanted 93 to 97 % under process effects and drift.")
    for neighbour, what in ((False, "Under these"), (True, "Beside a neighbour")):
        own = shares[neighbour]
        print(f"{what}: from {min(own):.1f} to {max(own):.1f} %, on average {np.mean(own):.1f} %.")


CELLS = 12
"""Of a measurement that is made again: what Holm's correction is for."""


def reruns(repeat: int) -> None:
    """How often two measurements of one ratio are told apart: alone, and any of `CELLS` after Holm's correction."""
    generator, bound = np.random.default_rng(2), 1 - stats.STOPPED_TWICE_LEVEL
    print("| spread of processes, disturbance | told apart alone | any of a dozen |\n|:---|---:|---:|")
    alone, together = [], []
    for name, spread, disturbance, heavy in scenarios():
        apart = families = 0
        for _ in range(repeat):
            found = []
            for _ in range(CELLS):
                pair = [_stopped(generator, 1.1, spread, disturbance, heavy) for _ in range(2)]
                p = stats.same_mean(*(np.log(slow) - np.log(fast) for slow, fast in pair))
                assert p is not None
                found.append(p)
            apart += sum(p < bound for p in found)
            families += min(stats.holm(found)) < bound
        alone.append(100 * apart / (CELLS * repeat))
        together.append(100 * families / repeat)
        print(f"| {name} | {alone[-1]:.1f} % | {together[-1]:.1f} % |", flush=True)
    print(f"\nNominal {100 * bound:.0f} %.")
    for what, shares in (("Alone", alone), (f"Any of {CELLS}", together)):
        print(f"{what}: up to {max(shares):.1f} %, on average {np.mean(shares):.1f} %.")
