"""What slimming has done to a graph, as a table: operators before and after."""

from collections.abc import Iterable

from kdbench.records import Artifact
from kdbench.report.text import count, size

HEADER = ("operator", "before", "after")
NAME = 40
"""Letters of the longest operator's name that is printed whole."""
SHOWN = 5
"""Operators that a line names, those of which most came or went."""


def operator_table(artifact: Artifact) -> list[str]:
    """A line an operator with how many nodes of it there were and are, then nodes, parameters, size, and how far
    outputs moved; empty for a record that doesn't tell what was before."""
    before = artifact.options.get("operators_before")
    if before is None:
        return []
    after, metrics = artifact.operators, artifact.metrics
    rows = [(name, _number(before.get(name)), _number(after.get(name))) for name in sorted({**before, **after})]
    rows += [
        ("nodes", str(sum(before.values())), str(sum(after.values()))),
        ("parameters", count(metrics["parameters_before"]), count(artifact.parameters)),
        ("size", size(metrics["size_bytes_before"]), size(artifact.size_bytes)),
        ("largest difference of outputs", "", f"{metrics['parity_largest_difference']:.2g}"),
    ]
    return [f"{name[:NAME]:<{NAME}}{was:>12}{now:>12}".rstrip() for name, was, now in (HEADER, *rows)]


def _number(nodes: int | None) -> str:
    return str(nodes) if nodes else "–"


def slimming_lines(artifacts: Iterable[Artifact]) -> list[str]:
    """A line for each slimmed file: `student-slim: 31 → 22 nodes (BatchNormalization 9 → 0)`, and each remark on it."""
    lines = []
    for artifact in artifacts:
        before, after = artifact.options.get("operators_before"), artifact.operators
        if before is None:
            continue
        total, left = sum(before.values()), sum(after.values())
        changed = [name for name in sorted({**before, **after}) if before.get(name, 0) != after.get(name, 0)]
        changed.sort(key=lambda name: -abs(before.get(name, 0) - after.get(name, 0)))
        named = [f"{name[:NAME]} {before.get(name, 0)} → {after.get(name, 0)}" for name in changed[:SHOWN]]
        named += [f"{len(changed) - SHOWN} more operators"] if len(changed) > SHOWN else []
        told = f"{total} → {left} nodes ({', '.join(named)})" if changed else f"{left} nodes, none of which could go"
        lines += [f"{artifact.rung}: {'; '.join((told, *artifact.options.get('remarks', ())))}"]
    return lines
