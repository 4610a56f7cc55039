"""Whether the benchmark can be believed: each command measures a figure and prints it as Markdown, with its counts.

    python benchmarks/bench.py aa              a file against itself, once quiet and once beside a busy process
    python benchmarks/bench.py aa-simulated    the same on simulated processes
    python benchmarks/bench.py power           copies made slower by twice the smallest difference that was stated
    python benchmarks/bench.py coverage        intervals on simulated processes, drift and neighbours
    python benchmarks/bench.py reruns          two simulated measurements of one ratio, and whether they agree
    python benchmarks/bench.py loop            medians and overhead against a bare loop of session.run
    python benchmarks/bench.py start           the command line and a worker against bare interpreters

`MODEL.onnx...` after the command measures those; else three students of the zoo are exported, untrained, which needs
torch. `--repeat` sets how often: the defaults take up to twenty minutes each on a machine that does nothing else; the
simulated ones less.
"""

import argparse
import contextlib
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from simulations import PRECISION, aa_simulated, coverage, reruns

from kdbench import stats
from kdbench.backends.client import Worker
from kdbench.benchmark.cells import Cell, Subject, inputs, plan
from kdbench.benchmark.schedule import SLICE_RUNS, SLICE_S, Schedule, settings_of
from kdbench.machine import describe
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.self_test import SelfTest, against_itself
from kdbench.records import Bench

ZOO = {"digits": (1, 8, 8), "cifar10-resnet20": (3, 32, 32), "cifar10-mobilenetv2": (3, 32, 32)}
"""Recipes whose students are measured, and the shape of their samples."""
BATCHES = (1, 8)
ALL_OF_IT = 1e-6
"""A precision that is never reached: the whole budget is spent."""


@contextlib.contextmanager
def models(given: Sequence[Path]) -> Iterator[list[Path]]:
    """The given files, or students of the zoo with random weights."""
    if given:
        yield list(given)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield [_student(recipe, shape, Path(scratch)) for recipe, shape in ZOO.items()]


def _student(name: str, shape: tuple[int, ...], folder: Path) -> Path:
    import torch

    from kdbench.models import build
    from kdbench.steps.export import content_of
    from kdbench.store import load_recipe

    student = load_recipe(name).student
    torch.manual_seed(0)
    model = build(student.model, student.options, shape, 10).eval()
    path = folder / f"{name}.onnx"
    path.write_bytes(content_of(model, np.zeros((2, *shape), np.float32)))
    return path


@contextlib.contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """A process that computes without end, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _compared(path: Path, share: float, batch: int, budget_s: float, seed: int, precision: float) -> SelfTest:
    options = Bench(batches=(batch,), budget_s=budget_s, precision=precision)
    (found,) = against_itself(Subject(known_artifact(path), path), (share,), options, {}, seed)
    if found.ratio is None:
        raise SystemExit(f"{path}: {found.error}")
    return found


def aa(repeat: int, given: Sequence[Path], budget_s: float = 11.0) -> None:
    counts: dict[tuple[str, str], list[bool]] = {}
    with models(given) as paths:
        for number in range(repeat):
            path, batch = paths[number // 2 % len(paths)], BATCHES[number // 2 // len(paths) % len(BATCHES)]
            with _busy(number % 2 == 1):
                found = _compared(path, 0.0, batch, budget_s, number, PRECISION)
            assert found.ratio is not None
            key = f"{path.stem}, batch {batch}", "beside a busy process" if number % 2 else "quiet"
            counts.setdefault(key, []).append(not stats.no_difference(found.ratio))
    print("| a file against itself | machine | claim a difference |\n|:---|:---|---:|")
    for (cell, machine), claimed in sorted(counts.items()):
        print(f"| {cell} | {machine} | {sum(claimed)} of {len(claimed)} |")
    claims = sum(map(sum, counts.values()))
    print(f"\n{claims} of {repeat} claim a difference at 95 % (wanted: at most 9 of 100); {budget_s:g} s each.")


def power(repeat: int, given: Sequence[Path], long_s: float = 60.0, short_s: float = 30.0) -> None:
    print(f"| model | smallest difference at {long_s:g} s | at {short_s:g} s | made slower by | found |")
    print("|:---|---:|---:|---:|---:|")
    hits = tries = 0
    with models(given) as paths:
        for place, path in enumerate(paths):
            long, short = (_compared(path, 0.0, 1, budget_s, place, ALL_OF_IT) for budget_s in (long_s, short_s))
            assert long.smallest_difference is not None and short.smallest_difference is not None
            share, own = 2 * short.smallest_difference, range(place, repeat, len(paths))
            found = [_compared(path, share, 1, short_s, seed, ALL_OF_IT).ratio for seed in own]
            hit = sum(ratio is not None and ratio.high < 1 for ratio in found)
            hits, tries = hits + hit, tries + len(found)
            stated = f"{100 * long.smallest_difference:.2f} % | {100 * short.smallest_difference:.2f} %"
            print(f"| {path.stem} | {stated} | {100 * share:.2f} % | {hit} of {len(found)} |", flush=True)
    print(f"\n{hits} of {tries} found at 95 % (wanted: at least 26 of 30).")


BARE = """
import statistics, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {name: np.load(path) for name, path in zip(sys.argv[2::2], sys.argv[3::2])}
session.run(None, feed)
print("ready", flush=True)
for line in sys.stdin:
    latencies, end = [], time.perf_counter() + float(line)
    session.run(None, feed)
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        latencies.append(time.perf_counter() - start)
    print(statistics.median(latencies), flush=True)
"""


def loop(repeat: int, given: Sequence[Path], slices: int = 10, budget_s: float = 30.0) -> None:
    print("| model | batch | kdbench | bare loop | ratio |\n|:---|---:|---:|---:|---:|")
    with models(given) as paths:
        for path in paths:
            cell = _cell(path, 1)
            pairs = [_slices_of_both(cell, slices) for _ in range(repeat)]
            ours, bare = zip(*pairs, strict=True)
            ratio = stats.speedup(ours, bare)
            assert ratio is not None
            shown = f"{ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
            print(f"| {path.stem} | 1 | {1e3 * np.median(ours):.3f} ms | {1e3 * np.median(bare):.3f} ms | {shown} |")
        print(f"\n{repeat} processes of each, paired, {slices} slices in turns (wanted: within 2 %).\n")
        print("| model | batch | latency | precision | wall | timed | starting | rest |")
        print("|:---|---:|---:|---:|---:|---:|---:|---:|")
        for path in paths:
            for precision in (PRECISION, ALL_OF_IT):
                print(_overhead(path, budget_s, precision), flush=True)
    print(
        f"\nOf a comparison with itself in at most {budget_s:g} s, at the batch that comes nearest to 1 ms; shares ",
        end="",
    )
    print("of that budget (wanted: starting and rest together under 10 %).")


def _cell(path: Path, batch: int) -> Cell:
    (cell,) = plan([Subject(known_artifact(path), path)], Bench(batches=(batch,)))
    return cell


def _worker(cell: Cell) -> Worker:
    return Worker(cell.backend, cell.threads)


def _slices_of_both(cell: Cell, slices: int) -> tuple[float, float]:
    """The median of a worker's latencies and of a bare loop's, each in a fresh process; they take turns in slices."""
    feed = inputs(cell, None)
    with tempfile.TemporaryDirectory() as scratch, _worker(cell) as worker:
        arguments = [str(cell.subject.model)]
        for number, (name, values) in enumerate(feed.items()):
            np.save(Path(scratch, f"{number}.npy"), values)
            arguments += [name, str(Path(scratch, f"{number}.npy"))]
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert bare.stdin is not None and bare.stdout is not None
        try:
            worker.hello()
            worker.load(cell.subject.model)
            worker.feed("1", feed)
            bare.stdout.readline()
            ours: list[NDArray[np.float32]] = []
            theirs: list[float] = []
            for number in range(slices):
                for ask in (0, 1) if number % 2 else (1, 0):
                    if ask == 0:
                        ours.append(worker.slice("1", SLICE_S, 10**6)[0])
                    else:
                        bare.stdin.write(f"{SLICE_S}\n")
                        bare.stdin.flush()
                        theirs.append(float(bare.stdout.readline()))
        finally:
            bare.kill()
            bare.communicate()
    return float(np.median([np.median(part) for part in ours])), float(np.median(theirs))


def _latency_s(path: Path, batch: int) -> float:
    cell = _cell(path, batch)
    with _worker(cell) as worker:
        worker.load(path)
        worker.feed("1", inputs(cell, None))
        return float(np.median(worker.slice("1", SLICE_S, SLICE_RUNS)[0]))


def _overhead(path: Path, budget_s: float, precision: float) -> str:
    """A row on where the time of a whole measurement goes: seconds, and shares of its budget."""
    batch = min((1, 2, 4, 8, 16, 32), key=lambda batch: abs(np.log(_latency_s(path, batch) / 1e-3)))
    artifact = known_artifact(path)
    subjects = [Subject(artifact.model_copy(update={"rung": name}), path) for name in ("itself", "again")]
    options = Bench(batches=(batch,), precision=precision, budget_s=budget_s)
    cells = plan(subjects, options)
    schedule = Schedule(cells, settings_of(options, 0), lambda cell: inputs(cell, None), baseline="itself")
    start = time.monotonic()
    rounds = len(list(schedule.rounds()))
    wall_s = time.monotonic() - start
    measurements, arrays = schedule.records()
    timed_s, spans = 0.0, []
    for m in measurements:
        timed_s += float(arrays[f"latencies.{m.raw}"].sum(dtype=np.float64))
        _, first = np.unique(arrays[f"slices.{m.raw}"], return_index=True)
        begun = arrays[f"start_s.{m.raw}"]
        spans += list(zip(arrays[f"rounds.{m.raw}"][first], begun, begun + arrays[f"wall_s.{m.raw}"], strict=True))
    # A round's turns begin when its processes have started and are warm.
    turns_s = sum(
        max(end for r, _, end in spans if r == number) - min(begin for r, begin, _ in spans if r == number)
        for number in range(rounds)
    )
    latency_ms = 1e3 * float(np.median(np.concatenate([arrays[f"latencies.{m.raw}"] for m in measurements])))
    parts = (timed_s, wall_s - turns_s, turns_s - timed_s)
    shown = " | ".join(f"{part:.1f} s, {100 * part / budget_s:.1f} %" for part in parts)
    asked = f"{100 * precision:g} %" if precision == PRECISION else "all of the budget"
    return f"| {path.stem} | {batch} | {latency_ms:.2f} ms | {asked} | {wall_s:.1f} s, {rounds} rounds | {shown} |"


def start(repeat: int, given: Sequence[Path]) -> None:
    print("| what | seconds | against | seconds | ratio |\n|:---|---:|:---|---:|---:|")
    python = sys.executable
    helped = [python, "-m", "kdbench", "--help"], [python, "-c", "import click"]
    _paired_start("`kdbench --help`", "a bare interpreter importing click", repeat, *map(_ended, helped))
    bare = "import sys, onnxruntime as o; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    with models(given) as paths:
        for path in paths:
            _paired_start(
                f"a worker with {path.stem}",
                "a bare interpreter opening it",
                repeat,
                functools.partial(_worker_ready, _cell(path, 1)),
                _ended([python, "-c", bare, str(path)]),
            )
    print(
        "\nWanted: at most 5 times for the help, 2 times for a worker. Medians of processes in turns, 95 % intervals."
    )


def _ended(command: Sequence[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _worker_ready(cell: Cell) -> None:
    with _worker(cell) as worker:
        worker.load(cell.subject.model)


def _paired_start(name: str, other: str, repeat: int, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    taken: list[tuple[float, float]] = []
    for _ in range(repeat + 1):
        begun = time.monotonic()
        ours()
        between = time.monotonic()
        theirs()
        taken.append((between - begun, time.monotonic() - between))
    mine, bare = zip(*taken[1:], strict=True)  # the first one reads from the disk
    ratio = stats.speedup(mine, bare)
    assert ratio is not None
    shown = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    print(f"| {name} | {np.median(mine):.3f} | {other} | {np.median(bare):.3f} | {shown} |", flush=True)


SIMULATED: Mapping[str, tuple[Callable[[int], None], int]] = {
    "aa-simulated": (aa_simulated, 2000),
    "coverage": (coverage, 4000),
    "reruns": (reruns, 60),
}
REAL: Mapping[str, tuple[Callable[[int, Sequence[Path]], None], int]] = {
    "aa": (aa, 100),
    "power": (power, 30),
    "loop": (loop, 12),
    "start": (start, 15),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=[*SIMULATED, *REAL])
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL.onnx")
    parser.add_argument("--repeat", type=int)
    asked = parser.parse_intermixed_args()
    begun = time.monotonic()
    if asked.figure in SIMULATED:
        function, repeat = SIMULATED[asked.figure]
        function(asked.repeat or repeat)
    else:
        measure, repeat = REAL[asked.figure]
        measure(asked.repeat or repeat, asked.models)
    machine = describe()
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in ("numpy", "scipy", "onnxruntime"))
    print(f"\n{machine.cpu}, {machine.cores_logical} cores, {versions}; {time.monotonic() - begun:.0f} s.")


if __name__ == "__main__":
    main()
