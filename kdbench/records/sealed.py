"""Records that go from hand to hand: each carries the sha256 of its own content."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from kdbench.errors import UserError
from kdbench.records.base import Versioned

RESULTS_SCHEMA = 2
"""It is the version of the files of results and comparisons, counted apart from that of other files:

1. The first.
2. A seal; the machine's fingerprint and its GPUs.
"""
SEALED_SINCE = 2

SHOWN = 12
"""Hexadecimal digits of a hash, in messages."""


class Sealed(Versioned):
    schema_version: Annotated[int, Field(alias="schema", ge=1)] = RESULTS_SCHEMA
    """Of the format: see its history."""
    seal: str = ""
    """sha256 of all other fields as JSON without spaces, keys sorted, signs beyond ASCII escaped; empty in files of
    schema 1. It tells an accident or an edit, not a forgery."""

    @classmethod
    def check_seal(cls, data: Mapping[str, Any], where: str) -> None:
        """Raises UserError for content that is not what was sealed, and where a seal should be and is none."""
        seal, schema = data.get("seal", ""), data.get("schema", 1)
        if not seal:
            if isinstance(schema, int) and schema < SEALED_SINCE:
                return
            raise UserError(f"{where}: has lost its seal: was it edited? Restore it, or measure again")
        found = seal_of(data)
        if seal != found:
            raise UserError(
                f"{where}: edited after it was written: sealed as {str(seal)[:SHOWN]}…, its content is "
                f"{found[:SHOWN]}…: restore it, or measure again"
            )


S = TypeVar("S", bound=Sealed)


def seal_of(data: Mapping[str, Any]) -> str:
    """The seal that a file of this content should have: of its values, whatever their order and spacing."""
    content = {name: value for name, value in data.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(record: S) -> S:
    """The record as it is written: in the newest schema, with a seal."""
    record = record.model_copy(update={"schema_version": RESULTS_SCHEMA, "seal": ""})
    return record.model_copy(update={"seal": seal_of(json.loads(record.to_json()))})
