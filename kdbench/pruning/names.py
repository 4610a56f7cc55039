"""Names of weights and submodules, and which lie in which."""

from collections.abc import Iterable


def within(name: str, other: str) -> bool:
    """Whether a name is `other`, or of something in it."""
    return name == other or name.startswith(f"{other}.")


def places(names: Iterable[str]) -> set[str]:
    """The names, and those of all submodules that they lie in."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
