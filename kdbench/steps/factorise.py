"""Low rank: a weights file whose layers are products of two smaller ones, where that is cheaper."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.errors import UserError, first_line
from kdbench.machine import versions
from kdbench.pruning.changes import Change
from kdbench.pruning.low_rank import Plan, plan
from kdbench.pruning.low_rank import factorise as factorise_model
from kdbench.records import Factorise, as_record
from kdbench.store import fingerprint, output_file, sha256
from kdbench.training import weights
from kdbench.training.seeds import deterministic


def factorise(
    source: str | Path,
    out: str | Path,
    options: Factorise | Mapping[str, Any],
    code: str | Path | None = None,
    field: str = "factorise",
) -> Plan:
    """Writes the weights file `source` to `out` with factorised layers; which ones, and why not the others.

    `code` is the folder of a user's own model, which is then run. Raises UserError, which names `field`, for an unknown
    layer, where no layer gets cheaper, and for a share of MACs that can't be reached.
    """
    source, out, options = Path(source), Path(out), as_record(Factorise, options, "options")
    model, trained = weights.model_of(source, None if code is None else Path(code))
    output_file(out, source)
    example = weights.example(trained)
    with deterministic(1):
        made = plan(model, example, options, field)
        factorise_model(model, made.ranks)
        try:
            model(example)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise UserError(
                f"{source}: can't run with factorised layers: {first_line(error, 160)}: "
                f"name those that are read otherwise in {field}.ignore"
            ) from None
    change = Change(kind="low_rank", options={"ranks": made.ranks})
    known = {"fingerprint": mark(source, options), "changes": (*trained.changes, change)}
    weights.save(out, model.state_dict(), trained.model_copy(update=known))
    return made


def mark(source: Path, options: Factorise) -> str:
    """The fingerprint of what `factorise` makes of a weights file."""
    asked = options.model_dump(include=set(Factorise.model_fields))
    facts = {"step": "factorise", "source": sha256(source.read_bytes()), "kdbench": __version__}
    return fingerprint(**facts, options=asked, versions=versions(("torch",)))
