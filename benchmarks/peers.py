"""Each model through kdbench's, onnxruntime's own and Olive's static quantization, all in one run.

    python benchmarks/peers.py MODEL.onnx=PACK.npz... [--olive PYTHON] [--methods minmax percentile] [--samples 512]

All contenders calibrate on the first SAMPLES calibration samples of the pack, in batches of 32 and each in a fresh
process (`peer.py`): kdbench as by `--calibration`; onnxruntime's `quantize_static` as it is by default, and with the
types and scales that kdbench writes for x86; Olive's OnnxStaticQuantization, under PYTHON, an interpreter that has it.
`--max-drop 0.5` is kdbench's search for the fastest file within half a point: it parts all calibration samples of the
pack into some for ranges and others to judge by, and its time holds the trials and the timing of its candidates.

Then kdbench's benchmark judges all files on the pack's test samples, against fp32 and paired by sample, and times them
in turns, batch 1, one thread: the median latency (ms), and the paired ratio of fp32's to it. Peak memory (MiB) is that
of all processes of a contender together, imports included; seconds are without imports. Prints a Markdown table of each
model, and on stderr what each contender took and left, CPU time and bytes too. Some ten minutes a model on two quiet
cores.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peer import peak_bytes

from kdbench import bench
from kdbench.data.pack import PackMeta, load_pack
from kdbench.machine import describe
from kdbench.onnxfile import known_artifact
from kdbench.report.rows import Row
from kdbench.report.text import three_digits
from kdbench.store import save_artifact

LOOK_S = 0.05
MAX_DROP = "0.5"
COLUMNS = ("", "ranges", "acc. %", "to fp32, points", "ms", "speed-up", "MiB", "s")


@dataclass(frozen=True)
class Contender:
    who: str
    method: str
    python: str

    @property
    def shown(self) -> str:
        names = {"olive": "Olive", "onnxruntime-u8s8": "… u8s8", "budget": "--max-drop"}
        return names.get(self.who, self.who)


@dataclass(frozen=True)
class Made:
    """What a contender did; `file` is not there where it failed."""

    contender: Contender
    file: Path
    facts: dict[str, Any]
    error: str = ""


def contenders(methods: Sequence[str], olive: str | None) -> list[Contender]:
    own = [Contender("kdbench", method, sys.executable) for method in methods]
    own.append(Contender("budget", MAX_DROP, sys.executable))
    theirs = [Contender(who, m, sys.executable) for who in ("onnxruntime", "onnxruntime-u8s8") for m in methods]
    return [*own, *theirs, *(Contender("olive", method, olive or "") for method in methods)]


def made(contender: Contender, model: Path, samples: Path, out: Path) -> Made:
    """Quantizes in a fresh process, whose memory and that of its children is watched.

    It works in the folder of `out`, as some of them leave files where they are started.
    """
    if not contender.python:
        return Made(contender, out, {}, "not measured: give --olive PATH/python of an environment with olive-ai")
    peer = str(Path(__file__).resolve().with_name("peer.py"))
    command = [contender.python, peer, contender.who, contender.method, str(model.resolve()), str(samples), str(out)]
    peaks = [0]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(command, cwd=out.parent, stdout=said, stderr=wrong, text=True)
        while process.poll() is None:
            peaks.append(peak_of_all(process.pid))
            time.sleep(LOOK_S)
        said.seek(0)
        wrong.seek(0)
        lines, errors = said.read().splitlines(), wrong.read().splitlines()
    if process.returncode or not lines:
        return Made(contender, out, {}, f"failed: {errors[-1] if errors else process.returncode}")
    facts = json.loads(lines[-1])
    return Made(contender, out, facts | {"bytes": max(*peaks, facts["bytes"]), "file_bytes": out.stat().st_size})


def peak_of_all(pid: int) -> int:
    """Of a process and its children that live now, the sum of each one's peak memory so far."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        command = parent.cmdline()
        # A child that has not begun its own program yet shares its parent's memory.
        own = [child.pid for child in parent.children(recursive=True) if child.cmdline() not in ([], command)]
        return sum(map(peak_bytes, (pid, *own)))
    return 0


def calibration_files(model: Path, pack: Path, samples: int, folder: Path) -> tuple[Path, Path]:
    """The first calibration samples as a pack, and as the model takes them."""
    given = load_pack(pack)
    assert given.x_calibration is not None, f"{pack}: no calibration samples in it"
    few = replace(given, x_calibration=given.x_calibration[:samples], y_calibration=None)
    known = known_artifact(model)
    meta = PackMeta(task=given.task, classes=given.classes, preprocessing=given.preprocessing)
    own, plain = folder / "few.npz", folder / "inputs.npz"
    np.savez(own, x_calibration=few.x_calibration, meta=np.frombuffer(meta.to_json().encode(), dtype=np.uint8))
    np.savez(plain, **few.calibration_inputs(known.inputs, known.preprocessing))
    return own, plain


def points(share: float) -> str:
    """A difference of shares in points."""
    decimals = 2 if abs(share) < 0.09995 else 1
    return f"{100 * share:+.{decimals}f}".replace("-", "−")


def interval(
    value: float | None, low: float | None, high: float | None, shown: Callable[[float], str] = three_digits
) -> str:
    if value is None or low is None or high is None:
        return "–"
    return f"{shown(value)} [{shown(low)}, {shown(high)}]"


def milliseconds(found: Row) -> str:
    return "–" if found.latency_p50_s is None else f"{1000 * found.latency_p50_s:#.3g}"


def row(one: Made, found: Row | None) -> str:
    method = one.contender.method if one.contender.who != "budget" else "several"
    if found is None:
        cells = [one.contender.shown, method, "–", *[""] * (len(COLUMNS) - 3)]
        return f"| {' | '.join(cells)} |"
    cells = [
        one.contender.shown,
        method,
        "–" if found.accuracy is None else f"{100 * found.accuracy:.2f}",
        interval(found.accuracy_diff, found.accuracy_diff_low, found.accuracy_diff_high, points),
        milliseconds(found),
        interval(found.speedup, found.speedup_low, found.speedup_high),
        f"{one.facts['bytes'] / 2**20:.0f}",
        three_digits(one.facts["seconds"]),
    ]
    return f"| {' | '.join(cells)} |"


def compared(model: Path, pack: Path, options: argparse.Namespace) -> list[Made]:
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        folder = Path(scratch)
        own, plain = calibration_files(model, pack, options.samples, folder)
        sources = {"kdbench": own, "budget": pack.resolve()}
        every = []
        for number, one in enumerate(contenders(options.methods, options.olive)):
            out = folder / f"{number}-{one.who}-{one.method}.onnx"
            every.append(made(one, model, sources.get(one.who, plain), out))
            print(f"{model.name}: {one.who}, {one.method}: {every[-1].facts or every[-1].error}", file=sys.stderr)
        able = [one for one in every if not one.error]
        preprocessing = known_artifact(model).preprocessing
        for one in able:  # others leave no record, without which the pack's preprocessing would be taken for theirs
            record = known_artifact(one.file).model_copy(update={"preprocessing": preprocessing})
            save_artifact(folder, record)
        files = [model, *(one.file for one in able)]
        report = bench(files, baseline=model, pack=pack, budget_s=options.budget, out=folder / "bench")
        fp32, *rows = report.ladder.rows
    by_file = {one.file: found for one, found in zip(able, rows, strict=True)}
    known = load_pack(pack)
    judged = 0 if known.x_test is None else len(known.x_test)
    accuracy = "–" if fp32.accuracy is None else f"{100 * fp32.accuracy:.2f} %"
    print(f"\n**{model.stem}**: fp32 {accuracy} of {judged:,} test samples, {milliseconds(fp32)} ms\n")
    print(f"| {' | '.join(COLUMNS)} |\n|:--|:--|{'--:|' * (len(COLUMNS) - 2)}")
    for one in every:
        print(row(one, by_file.get(one.file)), flush=True)
    for one in every:
        if one.error:
            print(f"\n{one.contender.shown}, {one.contender.method}: {one.error}")
    return every


def absolute(path: str) -> str:
    """With links as they are: that of a virtual environment says where its packages lie."""
    return str(Path(path).absolute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx=PACK.npz")
    parser.add_argument(
        "--olive", metavar="PYTHON", type=absolute, help="an interpreter that has olive-ai and onnxruntime"
    )
    parser.add_argument("--methods", nargs="+", default=["minmax", "percentile"])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--budget", type=float, default=90.0, help="seconds to time all files of a model")
    options = parser.parse_args()
    used: dict[str, dict[str, str]] = {}
    for given in options.models:
        model, _, pack = given.partition("=")
        for one in compared(Path(model), Path(pack), options):
            if one.facts:
                used["Olive" if one.contender.who == "olive" else "kdbench, onnxruntime"] = one.facts["versions"]
    print()
    for who, found in used.items():
        print(f"{who}: {', '.join(f'{name} {number}' for name, number in found.items())}. ", end="")
    print(f"{describe().cpu}.")


if __name__ == "__main__":
    main()
