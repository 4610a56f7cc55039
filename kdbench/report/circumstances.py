"""How and where something was measured, in words: shared by the writers that say it."""

from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any

import jinja2

from kdbench.records import Comparison, Machine, ResultFile
from kdbench.report.claims import proofs_in
from kdbench.report.rows import Metric
from kdbench.report.table import Ladder
from kdbench.report.text import size

JUDGED: dict[Metric, str] = {
    "accuracy": (
        "Accuracy is measured through the backend that is timed;\nits difference, in points,\nhas Bonett and Price's "
        "interval for paired proportions, and McNemar's exact test a p-value."
    ),
    "f1": (
        "F1 is measured through the backend that is timed; a\nlabel holds above logit 0, or above 0.5 where all "
        "outputs lie from 0 to 1. The difference of micro F1, in points, has a\npercentile interval of 2000 paired "
        "bootstrap samples, with one disagreement added each way."
    ),
    "agreement": (
        "The evaluation samples have no labels: agreement with\nthe baseline's answers through the same backend takes "
        "the place of accuracy."
    ),
}
"""How what stands beside the speed was measured."""


def how_measured(ladder: Ladder) -> list[str]:
    """Paragraphs of plain text, with line breaks where they are of no account."""
    return _paragraphs(
        "measured.txt.j2",
        r=ladder.result,
        judged=JUDGED[ladder.metric],
        proven=any(proofs_in(evaluation) for evaluation in ladder.result.evaluations),
        int8_proven=_int8_proven(ladder.result),
        optimized=any(row.optimize_s is not None for row in ladder.rows),
        cold=any(row.cold_start_s is not None for row in ladder.rows),
    )


def how_compared(comparison: Comparison, escaped: Callable[[str], str] = str) -> list[str]:
    """The same of students by method; names are `escaped`."""
    recipe = comparison.recipe
    return _paragraphs("compared.txt.j2", recipe=recipe, model=escaped(recipe.student.model))


def _paragraphs(template: str, **facts: Any) -> list[str]:
    environment = jinja2.Environment(  # noqa: S701 — plain text, which its reader escapes
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = files(__package__).joinpath(template).read_text(encoding="utf-8")
    text = environment.from_string(source).render(facts)
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def circumstances(ladder: Ladder) -> list[tuple[str, str]]:
    """What could change the numbers, by name: date, machine, versions, settings."""
    result = ladder.result
    facts = [("date", result.date), *_machine(result.machine)]
    environments = {m.backend: m.versions for m in result.measurements if "@" in m.backend and m.versions}
    facts += [(f"under {backend}", listed(versions)) for backend, versions in environments.items()]
    if result.settings.affinity:
        facts.append(("pinned to CPUs", _commas(result.settings.affinity)))
    if energy := _energy(ladder):
        facts.append(("energy", energy))
    return [*facts, ("seed, budget", f"{result.settings.seed}, {result.settings.budget_s} s")]


def circumstances_of(comparison: Comparison) -> list[tuple[str, str]]:
    """Of students by method, whose speed nobody measured."""
    m = comparison.machine
    return [
        ("date", comparison.date),
        ("machine", f"{m.cpu}, {m.cores_logical} logical cores, {m.os}"),
        ("versions", listed(m.versions)),
        ("kdbench", comparison.kdbench),
    ]


def _machine(m: Machine) -> list[tuple[str, str]]:
    return [
        ("machine", f"{m.cpu}, {m.cores_logical} logical cores, {size(m.memory_bytes)}, {m.os}"),
        ("CPU features", _commas(m.features)),
        ("governor", m.governor or "not readable"),
        ("Python", m.python),
        ("versions", listed(m.versions)),
    ]


def listed(versions: Mapping[str, str]) -> str:
    return _commas(f"{name} {version}" for name, version in versions.items())


def _commas(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _int8_proven(result: ResultFile) -> bool:
    """Whether an int8 file was compared with its weights in float; older files have none that was."""
    int8 = {artifact.rung for artifact in result.artifacts if artifact.precision == "int8"}
    return any(proof.bands for e in result.evaluations for proof in e.proofs if e.rung in int8)


def _energy(ladder: Ladder) -> str | None:
    """Where energy was read; None in files from before that was tried."""
    names, told = ladder.result.energy, any(row.energy_j is not None for row in ladder.rows)
    if names is None:
        return None
    if not names and not told:
        return "not readable"
    read = f"RAPL, {', '.join(names)}; for GPUs NVML's beside it" if names else "NVML, the GPU alone"
    return f"{read}; of all that ran there, idle power not subtracted"
