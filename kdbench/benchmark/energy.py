"""Energy of the CPU's packages by RAPL, as Linux tells it: of all that runs on them, idle power included."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A counter of µJ that starts again at 0 when it has passed its range."""

    name: str
    counter: Path
    range_uj: int


def packages(root: Path = Path("/")) -> tuple[Package, ...]:
    """Those of this machine, all or none: most systems let root alone read them, and a part would be misleading.

    Parts of a package (core, uncore, dram) and the whole board (psys) are told beside it, and left out.
    """
    found = []
    try:
        for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            if name.startswith("package"):
                range_uj = int((folder / "max_energy_range_uj").read_text())
                found.append(Package(name, folder / "energy_uj", range_uj))
    except (OSError, ValueError):
        return ()
    return tuple(found) if read_uj(found) else ()


def read_uj(counters: Sequence[Package]) -> list[int] | None:
    """What each counter shows; None where there is none, or one that can't be read."""
    try:
        return [int(package.counter.read_text()) for package in counters] or None
    except (OSError, ValueError):
        return None


def spent_j(counters: Sequence[Package], before: list[int] | None, after: list[int] | None) -> float | None:
    """Joules between two readings, in which no counter may have come around twice; None without both."""
    if before is None or after is None:
        return None
    spent = (
        end - start if end >= start else end - start + package.range_uj
        for package, start, end in zip(counters, before, after, strict=True)
    )
    return sum(spent) / 1e6
