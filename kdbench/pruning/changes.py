"""What was done to the structure of a network since it was built, in the order in which it was done.

A weights file holds this history as plain data, and the network is built again by doing it again: nothing is pickled.
To add a kind: a function that does it in place, and its line in CHANGES.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from kdbench.errors import UserError, first_line, pick
from kdbench.pruning import blocks, channels, shortcuts
from kdbench.records import Record


class Change(Record):
    kind: str
    options: dict[str, Any] = {}  # noqa: RUF012 — pydantic copies defaults
    """All that it takes to do it again to the same network: plain values, names of submodules, indices."""


CHANGES: dict[str, Callable[[nn.Module, Tensor, dict[str, Any]], None]] = {
    "blocks": blocks.redo,
    "channels": channels.redo,
    "shortcuts": shortcuts.redo,
}
"""By kind: given the network, one batch that it can take, and the options of the change."""


def replay(model: nn.Module, changes: Sequence[Change], example: Tensor, field: str) -> nn.Module:
    """The model with all changes done to it, in place; raises UserError that names `field` where one can't be."""
    for change in changes:
        do = pick(CHANGES, change.kind, "change of a network")
        try:
            do(model, example, change.options)
        except (RuntimeError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
            raise UserError(f"{field}: '{change.kind}' can't be done again: {first_line(error, 160)}") from None
    return model
