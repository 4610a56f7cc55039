"""The report as Markdown."""

from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest

import jinja2

from kdbench.errors import printable
from kdbench.records import Comparison, ResultFile
from kdbench.report.claims import proofs_in
from kdbench.report.comparison import comparison_table
from kdbench.report.ladder_tables import details_table, ladder_tables, unmeasured
from kdbench.report.operators import slimming_lines
from kdbench.report.rows import Metric
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.table import Ladder
from kdbench.report.text import TextTable, count, mark, size
from kdbench.store import Arrays, load_recipe, zoo_recipes

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


def to_markdown(ladders: Sequence[Ladder], plots: Sequence[str | None] = (), heading: str = "#") -> str:
    """A section for each result file, its title led by `heading`; `plots` are the addresses of their images."""
    template = template_environment().from_string(
        files(__package__).joinpath("report.md.j2").read_text(encoding="utf-8")
    )
    sections = [
        {
            "result": ladder.result,
            "tables": [*ladder_tables(ladder), *scenario_tables(ladder)],
            "details": details_table(ladder),
            "slimmed": slimming_lines(ladder.result.artifacts),
            "unmeasured": [*unmeasured(ladder.rows), *unmeasured_loads(ladder)],
            "plot": plot,
            "judged": JUDGED[ladder.metric],
            "proven": any(proofs_in(evaluation) for evaluation in ladder.result.evaluations),
            "environments": {
                m.backend: m.versions for m in ladder.result.measurements if "@" in m.backend and m.versions
            },
            "int8_proven": _int8_proven(ladder.result),
            "optimized": any(row.optimize_s is not None for row in ladder.rows),
            "energy": _energy(ladder),
            "cold": any(row.cold_start_s is not None for row in ladder.rows),
            "again": again(ladder.result),
        }
        for ladder, plot in zip_longest(ladders, plots)
    ]
    return template.render(sections=sections, heading=heading).strip() + "\n"


def tables_to_markdown(ladder: Ladder) -> str:
    """Only the ladder's tables with their notes, as the README shows them."""
    template = template_environment().from_string(
        "{% from 'macros' import table %}"
        "{% for t in tables %}**{{ t.title }}**\n\n{{ table(t) }}\n{% endfor %}"
        "{% for line in unmeasured %}{{ line | cell }}\n{% endfor %}"
    )
    return template.render(tables=ladder_tables(ladder), unmeasured=unmeasured(ladder.rows)).strip()


def comparison_to_markdown(comparison: Comparison, arrays: Arrays) -> str:
    """The comparison of methods, and how it was made."""
    template = template_environment().from_string(
        files(__package__).joinpath("comparison.md.j2").read_text(encoding="utf-8")
    )
    table = comparison_table(comparison, arrays)
    return template.render(c=comparison, table_=table, recipe=comparison.recipe).strip() + "\n"


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


def again(result: ResultFile) -> str | None:
    """The command that runs a recipe of the zoo again, if it was run as it stands there."""
    recipe = result.recipe
    if recipe is None or recipe.name not in zoo_recipes() or load_recipe(recipe.name).to_json() != recipe.to_json():
        return None
    spiral = any(artifact.step == "spiral" for artifact in result.artifacts)
    return f"kdbench {'spiral' if spiral else 'run'} {recipe.name}"


def template_environment() -> jinja2.Environment:
    """For templates of Markdown, with its filters and the macro `table`."""
    macros = files(__package__).joinpath("macros.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(  # noqa: S701 — Markdown, not HTML: `cell` escapes what Markdown reads
        loader=jinja2.DictLoader({"macros": macros}),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "size": size, "count": count, "mark": mark, "rule": _rule}
    return environment


def _cell(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = printable(" ".join(str(text).split()))
    for sign in "\\`*_|<>[]":
        line = line.replace(sign, "\\" + sign)
    return line


def _rule(table: TextTable) -> str:
    """The line under a table's header: text to the left, numbers to the right."""
    return "|" + "|".join(":---" if column.left else "---:" for column in table.columns) + "|"
