"""What commands print when they are done."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdbench.pipeline.bundling import Shipped
    from kdbench.pipeline.carding import Card
    from kdbench.pipeline.checking import Check
    from kdbench.pipeline.comparing import Compared
    from kdbench.pipeline.measuring import Report
    from kdbench.pipeline.packing import Packed
    from kdbench.pipeline.quantizing import Quantized
    from kdbench.pipeline.self_test import SelfTest
    from kdbench.pipeline.spiral import Spiralled
    from kdbench.records import Artifact
    from kdbench.records.gate import Gate
    from kdbench.steps.prune import Narrowed


def show_artifact(artifact: "Artifact", path: Path) -> None:
    """One line on the file that was written, its record's path, and every warning."""
    from kdbench.report.text import count, size
    from kdbench.store import sidecar

    parity = artifact.metrics.get("parity_largest_difference")
    facts = [f"{count(artifact.parameters)} parameters", size(artifact.size_bytes), artifact.precision]
    if artifact.macs is not None:
        facts.insert(1, f"{count(artifact.macs)} MACs")
    if parity is not None:
        other = artifact.parent if artifact.step in ("slim", "quantize", "convert") else "PyTorch"
        facts.append(f"outputs within {parity:.2g} of {other}'s")
    click.echo(f"{path}: {', '.join(facts)}\n{sidecar(path)}")
    for warning in artifact.warnings:
        warn(warning)


def show_quantized(found: "Quantized") -> None:
    """The candidates, the file of the one that was chosen, and what should be known of it."""
    from kdbench.proofs.rewritten import of_metrics
    from kdbench.report.budget import candidates_table, verdict
    from kdbench.report.terminal import print_table

    print_table(candidates_table(found.budget))
    for line in verdict(found.budget, of_metrics(found.artifact.metrics)):
        click.echo(line)
    show_artifact(found.artifact, found.file)
    for path in (found.record, *found.plots):
        click.echo(path)


def show_pruned(found: "Narrowed", layers: bool) -> None:
    """What the network was and is, by layer if asked, and what was left alone."""
    from kdbench.report.text import count

    rows = [
        ("parameters", found.before.parameters, found.after.parameters),
        ("MACs", found.before.macs, found.after.macs),
    ]
    what = {"macs": "MACs"}.get(found.target, found.target)
    click.echo(f"{found.path}: {100 * found.share:.3g} % of the {what} left")
    for name, before, after in rows:
        click.echo(f"{name:<11}{count(before):>9} → {count(after):<9}{after / max(before, 1):>8.3f}")
    if layers:
        width = max(map(len, found.before.layers), default=0)
        click.echo(f"\n{'layer':<{width}}{'parameters':>22}{'MACs':>22}")
        for name in dict.fromkeys((*found.before.layers, *found.after.layers)):
            was, left = (cost.layers.get(name, (0, 0)) for cost in (found.before, found.after))
            cells = (f"{count(old)} → {count(new)}" for old, new in zip(was, left, strict=True))
            click.echo(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    for sentence in found.remarks:
        remark(sentence)


def warn(sentence: str) -> None:
    """One line on what should be mended first."""
    click.secho(f"WARNING: {sentence}", fg="yellow", bold=True, err=True)


def remark(sentence: str) -> None:
    """One line on what a reader of the numbers should know."""
    click.secho(f"NOTE: {sentence}", fg="yellow", err=True)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """One line each, its name in front."""
    for name, words in facts:
        click.echo(f"{name:<8} {words}")


def show_check(found: "Check") -> None:
    """What was seen, what each step took, and what all of them will take."""
    from kdbench.progress import duration
    from kdbench.report.text import seconds

    show_facts(found.facts)
    click.echo(f"\n{'step':<28}{'here':>10}{'in a run':>14}")
    for name in dict.fromkeys((*found.steps_s, *found.estimate_s)):
        here, whole = found.steps_s.get(name), found.estimate_s.get(name)
        click.echo(f"{name:<28}{seconds(here):>10}{'' if whole is None else duration(whole):>14}")
    click.echo(f"{'kdbench run, estimated':<28}{'':>10}{duration(found.total_s):>14}")
    if found.spiral_s is not None:
        click.echo(f"{'kdbench spiral, estimated':<28}{'':>10}{duration(found.spiral_s):>14}")


def show_report(report: "Report") -> None:
    """The ladder, and where its files lie."""
    from kdbench.report.terminal import print_ladder

    print_ladder(report.ladder)
    click.echo(f"report   {report.report}")
    click.echo(f"page     {report.page}")
    for path in report.plots:
        if path.suffix == ".svg":
            click.echo(f"plot     {path} and .png")
    click.echo(f"table    {report.csv}")
    click.echo(f"results  {report.results}")
    if report.published:
        click.echo(f"published {report.published}")
    if report.returned:
        click.echo(f"bring back {report.returned}: `kdbench results add` takes it into results/")


def show_spiral(found: "Spiralled") -> None:
    """The ladder of what was accepted, all turns and what stopped them; then where the files lie, and the last one."""
    show_report(found.report)
    click.echo(f"turns    {found.turns}")
    show_artifact(found.best, found.file)


def show_packed(packed: "Packed") -> None:
    """What is in the file, how it will be measured, and what to do with it."""
    from kdbench.report.text import size

    samples = "no samples" if packed.samples is None else f"{packed.samples} samples"
    plan = "; ".join(f"{field} {_plain(value)}" for field, value in packed.run.plan if value)
    click.echo(f"{packed.path}: {size(packed.size_bytes)}, {len(packed.rungs)} rungs, {samples}")
    click.echo(f"rungs   {', '.join(packed.rungs)}\nplan    {plan}")
    click.echo(f"there   kdbench bench {packed.path.name}")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def show_bundle(shipped: "Shipped") -> None:
    """What the folder holds, and how its script is called."""
    from kdbench.report.text import size

    artifact, spec = shipped.bundled.artifact, shipped.bundled.input
    difference = artifact.metrics["parity_largest_difference"]
    kind = "generated" if shipped.bundled.generated else "real"
    same = f"scores within {difference:.2g}" if difference else "the same scores"
    click.echo(
        f"{shipped.folder}: {shipped.rung} as {artifact.file}, {size(artifact.size_bytes)}, {artifact.precision}, "
        f"takes {spec.dtype}; {same} on {shipped.bundled.samples} {kind} samples"
    )
    click.echo(f"try     python {shipped.folder}/predict.py SAMPLES.npy\ncard    {shipped.folder}/README.md")


def show_card(card: "Card") -> None:
    """The card itself, or what the folder holds that it lies in."""
    from kdbench.report.text import size

    if card.folder is None or card.carded is None:
        click.echo(card.text, nl=False)
        return
    artifact, check = card.carded.artifact, card.carded.check
    kind = "generated" if card.carded.generated else "real"
    same = f"the same outputs on {check.samples} {kind} samples" if check else "the file as it is"
    click.echo(f"{card.folder}: {card.rung} as {artifact.file}, {size(artifact.size_bytes)}; {same}")
    click.echo(f"card    {card.folder}/README.md")


def show_self_test(checks: "Sequence[SelfTest]") -> None:
    """A line for each comparison, and what speaks against this machine where one came out wrong."""
    from kdbench.report.text import percent

    for check in checks:
        if check.ratio is None:
            click.echo(f"WRONG  {check.cell}: {check.error}")
            continue
        expected = "no difference" if check.share == 0 else f"{percent(check.share)} slower"
        ratio = f"{check.ratio.value:.3f}× [{check.ratio.low:.3f}, {check.ratio.high:.3f}]"
        missed = "–" if check.smallest_difference is None else percent(check.smallest_difference)
        click.echo(
            f"{'right' if check.right else 'WRONG'}  {check.cell}: {expected} is {ratio} in {check.rounds} processes; "
            f"could have found {missed}"
        )
    if not all(check.right for check in checks):
        click.echo("Intervals hold 99 %: quiet the machine, or raise --budget, before you believe a comparison here.")


def show_comparison(compared: "Compared") -> None:
    """The table of methods, and where its files lie."""
    from kdbench.report.terminal import print_table

    print_table(compared.table)
    click.echo(f"\nreport      {compared.report}\ncomparison  {compared.comparison}")


def show_gate(gate: "Gate") -> None:
    """The verdict first, then what it rests on."""
    from kdbench.report.gate.tables import gate_lines, narrow_tables, verdict
    from kdbench.report.terminal import WIDTH, print_table

    click.secho(f"{verdict(gate)}\n", fg="green" if gate.passed else "red", bold=True)
    for table in narrow_tables(gate, WIDTH):
        print_table(table)
        click.echo()
    for line in gate_lines(gate):
        click.echo(line)
