"""Static int8 of every classifier of given runs, as `kdbench quantize --data … --max-drop 0.5` with no other option.

    python benchmarks/int8.py RUN_DIR[=DATA]... [--out FOLDER] [--rungs teacher student] [--max-drop 0.5]

A row for each fp32 model of a run folder: what int8 loses on the test split, which had no part in the choice, with its
95 % interval; whether that is within the budget; the speed-up, paired, in batch 1 on one thread; how many layers stayed
in float. DATA is what `--data` takes, such as a recipe of the zoo, in whose folder of data this is to be started; by
default the run's own pack. A budget that already lies in FOLDER for the same file and bound is read, not made again.
About two minutes a model on two quiet cores, half of them for the timing.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench import UserError, fastest_int8
from kdbench.benchmark.cells import Subject
from kdbench.machine import describe, versions
from kdbench.pipeline.quantizing import POINT, RECORD
from kdbench.pipeline.rungs import run_subjects
from kdbench.records import Quantize, from_json, read_text
from kdbench.records.budget import Budget, Estimate
from kdbench.report.text import percent, three_digits
from kdbench.stats import ROUNDING
from kdbench.store import RunFolder

DERIVED = ("slim", "quantize")
"""Steps whose models are left out: the same function again, or in int8 already."""
COLUMNS = ("model", "test: drop, points", "held", "judged: fp32 %", "drop", "speed-up", "float", "int8 for")


@dataclass(frozen=True)
class Made:
    """What came of one model."""

    name: str
    budget: Budget | None
    error: str = ""


def models(folder: Path, rungs: Sequence[str]) -> Iterator[Subject]:
    """The fp32 models of a run folder."""
    for subject in run_subjects(RunFolder(folder)):
        known = subject.artifact
        if known.precision == "fp32" and known.step not in DERIVED and (not rungs or known.rung in rungs):
            yield subject


def made(subject: Subject, name: str, data: str, out: Path, max_drop: float) -> Made:
    file = out / f"{name}-int8.onnx"
    record = file.with_name(file.stem + RECORD)
    if record.is_file():
        known = from_json(Budget, read_text(record), str(record))
        if known.model_sha256 == subject.artifact.sha256 and known.max_drop == max_drop * POINT:
            return Made(name, known)
    try:
        options = Quantize.model_validate({"max_drop": max_drop, "for": "cpu"})
        return Made(name, fastest_int8(subject.model, file, data, options).budget)
    except UserError as error:
        return Made(name, None, str(error))


def points(drop: Estimate) -> str:
    low, value, high = (f"{100 * share:+.2f}".replace("-", "−") for share in (drop.low, drop.value, drop.high))
    return f"{value} [{low}, {high}]"


def row(found: Made) -> str:
    budget = found.budget
    if budget is None:
        return f"| {found.name} | none: {found.error.replace('|', '/')} |" + " |" * (len(COLUMNS) - 2)
    chosen = next(one for one in budget.candidates if one.name == budget.chosen)
    assert chosen.drop is not None
    speed = chosen.speedup
    tested = budget.test_drop
    assert budget.max_drop is not None
    held = "–" if tested is None else "yes" if tested.value <= budget.max_drop + ROUNDING else "NO"
    layers = len(chosen.left_in_float)
    cells = (
        found.name,
        "–" if tested is None else points(tested),
        held,
        percent(budget.fp32).replace(" %", ""),
        f"{100 * chosen.drop.value:+.2f}".replace("-", "−"),
        "–"
        if speed is None
        else f"{three_digits(speed.value)} [{three_digits(speed.low)}, {three_digits(speed.high)}]",
        str(layers),
        chosen.name,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR[=DATA]")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rungs", nargs="*", default=())
    parser.add_argument("--max-drop", type=float, default=0.5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-")))
        out.mkdir(parents=True, exist_ok=True)
        print(f"| {' | '.join(COLUMNS)} |\n|:--|--:|:--|--:|--:|--:|--:|:--|", flush=True)
        every = []
        for given in options.runs:
            folder, _, data = given.partition("=")
            for subject in models(Path(folder), options.rungs):
                name = f"{Path(folder).resolve().name}-{subject.artifact.rung}"
                source = data or str(RunFolder(Path(folder)).pack)
                every.append(made(subject, name, source, out, options.max_drop))
                print(row(every[-1]), flush=True)
    budgets = [one.budget for one in every if one.budget is not None]
    tested = [budget.test_drop.value for budget in budgets if budget.test_drop is not None]
    within = sum(drop <= options.max_drop * POINT + ROUNDING for drop in tested)
    machine = describe()
    used = ", ".join(f"{name} {versions()[name]}" for name in ("onnxruntime", "onnx", "numpy") if name in versions())
    print(
        f"\n{within} of {len(every)} lose at most {options.max_drop:g} points on the test split; {used}; {machine.cpu}."
    )


if __name__ == "__main__":
    main()
