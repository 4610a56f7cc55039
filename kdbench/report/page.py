"""The report as one self-contained page: tables to sort and filter, plots with values on hover, no network."""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from typing import Any

import jinja2

from kdbench import __version__
from kdbench.errors import printable
from kdbench.records import Comparison, ResultFile
from kdbench.report.again import checksums, commands, comparing, recipe_file, recipe_text
from kdbench.report.backends_view import backend_tables
from kdbench.report.circumstances import circumstances, circumstances_of, how_compared, how_measured
from kdbench.report.comparison import comparison_table
from kdbench.report.conclusion import conclusion_table, sentences
from kdbench.report.ladder_tables import details_table, ladder_tables, unmeasured
from kdbench.report.methods_view import Compared, methods_table
from kdbench.report.operators import slimming_lines
from kdbench.report.page_tables import Block, block
from kdbench.report.plots import Plot, hover_svg, of_ladder
from kdbench.report.scaling_view import scaling_tables
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.spiral import turns_table
from kdbench.report.table import Ladder, titles
from kdbench.report.text import TextTable
from kdbench.store import Arrays

FILTERS = {
    "measurement": "Measurement",
    "rung": "Rung",
    "backend": "Backend",
    "batch": "Batch",
    "threads": "Threads",
    "dims": "Sizes",
    "scenario": "Scenario",
}
"""What rows are chosen by, from columns of these keys and what their tables have in common; and how it is called."""


@dataclass(frozen=True)
class Drawing:
    svg: str
    width: str
    """At which its letters are as large as those of the others."""


@dataclass(frozen=True)
class Part:
    """What stands under one heading."""

    id: str
    name: str
    paragraphs: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    lines: Sequence[str] = ()
    plots: Sequence[Drawing] = ()
    facts: Sequence[tuple[str, str]] = ()
    codes: Sequence[str] = ()
    folded: Sequence[tuple[str, str]] = ()
    """Texts that are shown when their name is clicked."""


@dataclass(frozen=True)
class Section:
    """A result file or a comparison."""

    id: str
    name: str
    more: str
    warnings: Sequence[str]
    conclusion: Sequence[str]
    parts: Sequence[Part]


def to_page(
    ladders: Sequence[Ladder],
    comparisons: Sequence[Compared] = (),
    plots: Sequence[Plot] = (),
) -> str:
    """A section for each result file, with those of the `plots` that are its own, and for each comparison.

    Equal input gives an equal page.
    """
    numbers = count(1)
    several = len(ladders) + len(comparisons) > 1
    sections = [
        _ladder_section(f"m{at}", name, ladder, of_ladder(plots, at), numbers, several)
        for at, (name, ladder) in enumerate(zip(titles(ladders), ladders, strict=True), 1)
    ]
    sections += [
        _comparison_section(f"c{at}", *comparison, numbers, several) for at, comparison in enumerate(comparisons, 1)
    ]
    across = _across(ladders, comparisons, numbers)
    sections = [*([across] if across else []), *sections]
    style, script = (_beside(f"page.{kind}") for kind in ("css", "js"))
    return (
        _environment()
        .from_string(_beside("page.html.j2"))
        .render(
            sections=sections,
            **_head(sections, [*(ladder.result for ladder in ladders), *(made for made, _ in comparisons)]),
            filters=FILTERS,
            version=__version__,
            style=style,
            script=script,
            policy=_policy(script),
        )
    )


def _beside(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is loaded, and no script runs but ours: whatever a result file holds."""
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _environment() -> jinja2.Environment:
    """For HTML: everything is escaped, and signs that would be obeyed are shown as what they are."""
    return jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def _head(sections: Sequence[Section], records: Sequence[ResultFile | Comparison]) -> dict[str, Any]:
    """Title, what stands below it, and the contents."""
    if len(records) == 1:
        description = records[0].recipe.description if records[0].recipe else ""
        parts = [{"id": part.id, "name": part.name, "more": ""} for part in sections[0].parts]
        return {
            "title": sections[0].name,
            "subtitle": [line for line in (description, sections[0].more) if line],
            "contents": parts,
            "contents_with_more": False,
        }
    machines = len({(record.machine.name, record.machine.hardware) for record in records})
    days = sorted(record.date[:10] for record in records)
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return {
        "title": f"{len(records)} measurements on {machines} machine{'s' if machines > 1 else ''}",
        "subtitle": [f"{span}. Ratios are formed within a measurement only."],
        "contents": [{"id": section.id, "name": section.name, "more": section.more} for section in sections],
        "contents_with_more": True,
    }


def _ladder_section(
    id: str, name: str, ladder: Ladder, plots: Sequence[Plot], numbers: Iterator[int], several: bool
) -> Section:
    result = ladder.result
    warnings = []
    if not result.complete:
        warnings.append("Interrupted: the cells below are those that were measured.")
    if result.inputs == "generated":
        warnings.append("Measured on generated inputs: there is no accuracy.")
    concluded = conclusion_table(ladder)
    first = [*([concluded] if concluded else []), *ladder_tables(ladder), *scenario_tables(ladder)]
    views = []
    if len({row.backend for row in ladder.rows if not row.error}) > 1:
        views += backend_tables([ladder], "latency")
    if len({row.threads for row in ladder.rows}) > 1 or len({row.batch for row in ladder.rows}) > 2:
        views += scaling_tables(ladder)

    def blocks(tables: Sequence[TextTable]) -> list[Block]:
        common = {"measurement": f"{result.name}, {result.machine.name}, {result.date[:10]}"} if several else {}
        return [block(table, f"t{next(numbers)}", common) for table in tables]

    parts = [
        Part(
            f"{id}-ladder",
            "Under load" if result.scenarios else "Ladder",
            blocks=blocks(first),
            lines=[*unmeasured(ladder.rows), *unmeasured_loads(ladder)],
        ),
        Part(
            f"{id}-spiral",
            "The spiral",
            blocks=blocks([turns_table(result.spiral)] if result.spiral else []),
            lines=[f"{remark}." for remark in result.spiral.remarks] if result.spiral else (),
        ),
        Part(f"{id}-plots", "Plots", plots=[_drawing(plot) for plot in plots]),
        Part(f"{id}-views", "Backends, batches and threads", blocks=blocks(views)),
        Part(
            f"{id}-details",
            "Details",
            blocks=blocks([details_table(ladder)] if ladder.rows else []),
            lines=slimming_lines(result.artifacts),
        ),
        Part(f"{id}-method", "How this was measured", how_measured(ladder)),
        Part(f"{id}-machine", "Machine and versions", facts=circumstances(ladder)),
        Part(
            f"{id}-again",
            "How to measure it again",
            codes=commands(result),
            folded=[*_recipe(result), ("sha256 of the files, as sha256sum --check reads it", checksums(result))],
        ),
    ]
    return Section(
        id,
        name,
        f"Measured {_when(result.date)} with kdbench {result.kdbench}, against {result.baseline}",
        warnings,
        sentences(ladder),
        [part for part in parts if _has_something(part)],
    )


def _recipe(made: ResultFile | Comparison) -> list[tuple[str, str]]:
    """Its file's name and text, where it has to be written first."""
    text = recipe_text(made)
    return [] if text is None else [(recipe_file(made), text)]


def _across(ladders: Sequence[Ladder], comparisons: Sequence[Compared], numbers: Iterator[int]) -> Section | None:
    """What stands side by side of several files, where anything does."""
    names = [(ladder.result.name, ladder.result.baseline) for ladder in ladders]
    alike = [ladder for ladder, name in zip(ladders, names, strict=True) if names.count(name) > 1]
    tables = backend_tables(alike, "latency") if alike else []
    if len(comparisons) > 1:
        tables.append(methods_table(comparisons))
    if not tables:
        return None
    blocks = [block(table, f"t{next(numbers)}", {}) for table in tables]
    part = Part("across-tables", "Measurements", blocks=blocks)
    return Section("across", "Side by side", "Each number from its own file; no ratio between files", (), (), [part])


def _drawing(plot: Plot) -> Drawing:
    svg = hover_svg(plot)
    drawn = re.search(r"max-width: ([\d.]+pt)", svg)
    return Drawing(svg, drawn[1] if drawn else "100%")


def _has_something(part: Part) -> bool:
    return bool(part.paragraphs or part.blocks or part.lines or part.plots or part.facts or part.codes)


def _when(date: str) -> str:
    """`2026-11-21 10:00 UTC`."""
    return f"{date[:10]} {date[11:16]} UTC" if date.endswith("+00:00") else date


def _comparison_section(
    id: str, comparison: Comparison, arrays: Arrays, numbers: Iterator[int], several: bool
) -> Section:
    common = {"measurement": f"{comparison.name}, {comparison.machine.name}, {comparison.date[:10]}"} if several else {}
    table = block(comparison_table(comparison, arrays), f"t{next(numbers)}", common)
    return Section(
        id,
        f"{comparison.name}: students by method",
        f"Trained {_when(comparison.date)} with kdbench {comparison.kdbench}",
        (),
        (),
        [
            Part(f"{id}-methods", "Methods", blocks=[table]),
            Part(f"{id}-method", "How this was made", how_compared(comparison)),
            Part(f"{id}-machine", "Machine and versions", facts=circumstances_of(comparison)),
            Part(
                f"{id}-again",
                "How to make it again",
                codes=[comparing(comparison)],
                folded=_recipe(comparison),
            ),
        ],
    )
