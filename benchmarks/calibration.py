"""Time and peak memory of calibration that streams, against onnxruntime's own.

    python benchmarks/calibration.py [--model FILE.onnx] [--pack PACK.npz] [--batch 32] [--samples 512 4096]

Each row is a fresh process: kdbench's with its worker (peak memory: the sum of both peaks) at every number of samples,
and onnxruntime's entropy and percentile calibrators as `quantize_static` calls them, at the first. The rows of `search`
are the whole of `kdbench quantize --data … --max-drop 0.5`, which parts the samples into some for ranges and others to
judge by (peak memory: of all processes that live at the same time). Without files: the ResNet-20 of the zoo for 32 × 32
images with random weights, and images of noise, of which neither time nor memory depends. Prints a Markdown table, the
bounds, and whether histograms equal those of all activations kept. About three minutes on two quiet cores.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peer import cpu_s, peak_bytes

from kdbench.data.pack import EvalPack, load_pack
from kdbench.onnxfile import known_artifact, load_model
from kdbench.quantization.calibration import float_tensors, observe, watched
from kdbench.quantization.histograms import range_of
from kdbench.records import Preprocessing, Quantize, parse
from kdbench.steps.quantize import calibration_batches, observed_of

METHODS = ("minmax", "entropy", "percentile", "mse")
THEIRS = ("entropy", "percentile")
SEARCH = "search"
MAX_DROP = "0.5"
RACE_S = 5.0
"""To time the candidates of a search."""
MOST_GROWTH = 1.2
"""Of the peak memory, from the first number of samples to the last."""
MOST_SHARE = 0.5
"""Of onnxruntime's time and peak memory."""
KEPT = 64
"""Samples whose activations are all kept, to compare histograms on."""

Arrays = dict[str, Any]


def resnet20(path: Path) -> None:
    """Writes the network with random weights, prepared as `kdbench quantize` does."""
    import torch

    from kdbench.models import build
    from kdbench.steps.export import content_of

    torch.manual_seed(0)
    model = build("resnet", {"depth": 20}, (3, 32, 32), 10)
    with torch.no_grad():
        for _ in range(8):  # normalisation learns what comes in
            model(torch.randn(64, 3, 32, 32))
    path.write_bytes(content_of(model.eval(), np.zeros((2, 3, 32, 32), np.float32)))


def prepared(model: Path, path: Path) -> Path:
    import onnx

    from kdbench.quantization.static import prepare
    from kdbench.steps.slim import slimmed_graph

    onnx.save(prepare(slimmed_graph(load_model(model), model), model)[0], path)
    return path


def pack_of(options: argparse.Namespace, samples: int) -> EvalPack:
    """So many calibration samples, as often as needed."""
    if options.pack:
        given = load_pack(options.pack)
        assert given.x_calibration is not None
        chosen = given.x_calibration[np.arange(samples) % len(given.x_calibration)]
        return EvalPack("calibration", None, None, chosen, (), given.preprocessing)
    spec = known_artifact(options.prepared).inputs[0]
    shape = [size if isinstance(size, int) else 32 for size in spec.shape[1:]]
    noise = np.random.default_rng(0).integers(0, 256, (samples, *shape), dtype=np.uint8)
    return EvalPack("noise", None, None, noise, (), Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,)))


# --- one measurement, in a process of its own -------------------------------------------------------------------------


@contextlib.contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Looks every 50 ms."""
    done = threading.Event()

    def often() -> None:
        while not done.wait(0.05):
            look()

    thread = threading.Thread(target=often)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ours(options: argparse.Namespace, method: str, samples: int) -> dict[str, float]:
    pack = pack_of(options, samples)
    parent = known_artifact(options.prepared)
    asked = parse(Quantize, {"calibration": method}, "method")
    children: dict[int, tuple[int, float]] = {}  # peak memory and CPU seconds of each

    def look() -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                earlier = children.get(child.pid, (0, 0.0))[0]  # one that has ended tells no more
                children[child.pid] = peak_bytes(child.pid) or earlier, sum(child.cpu_times()[:2])

    with looking(look):
        start, start_cpu_s = time.perf_counter(), time.process_time()
        observed_of(load_model(options.prepared), parent, options.prepared, pack, asked).ranges(asked)
        seconds = time.perf_counter() - start
    used = [(peak_bytes(), time.process_time() - start_cpu_s), *children.values()]
    return {"seconds": seconds, "bytes": sum(size for size, _ in used), "cpu_s": sum(cpu_s for _, cpu_s in used)}


def search(options: argparse.Namespace, max_drop: str, samples: int) -> dict[str, float]:
    from peers import peak_of_all  # which, as the search, imports what other rows are to be measured without

    from kdbench import fastest_int8

    pack = pack_of(options, samples)
    asked = parse(Quantize, {"max_drop": float(max_drop), "for": "cpu"}, "options")
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as scratch, looking(lambda: peaks.append(peak_of_all(os.getpid()))):
        start, start_cpu_s = time.perf_counter(), cpu_s()
        fastest_int8(options.prepared, Path(scratch, "int8.onnx"), pack, asked, samples=samples, budget_s=RACE_S)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": max(*peaks, peak_bytes()), "cpu_s": cpu_s() - start_cpu_s}


def theirs(options: argparse.Namespace, method: str, samples: int) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    pack = pack_of(options, samples)
    batches = calibration_batches(known_artifact(options.prepared), pack)()

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Arrays | None:
            return next(batches, None)

    methods = {"entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        start, start_cpu_s = time.perf_counter(), time.process_time()
        calibrator = create_calibrator(
            options.prepared,
            [*{*QLinearOpsRegistry, *QDQRegistry}],
            augmented_model_path=str(Path(scratch, "augmented.onnx")),
            calibrate_method=methods[method],
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "bytes": peak_bytes(),
        "cpu_s": time.process_time() - start_cpu_s,
    }


WHO = {"kdbench": ours, SEARCH: search, "onnxruntime": theirs}


# --- all of them ------------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace, who: str, method: str, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", who, method, str(samples), "--prepared", str(options.prepared)]
    command += ["--pack", str(options.pack)] if options.pack else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    figures = f"{found['seconds']:.2f} | {found['cpu_s']:.2f} | {found['bytes'] / 2**20:.0f}"
    print(f"| {who} | {method} | {samples} | {figures} |", flush=True)
    return found


def equal_histograms(options: argparse.Namespace) -> bool:
    """Whether those of streamed samples equal numpy's of all activations kept."""
    import onnxruntime as ort

    pack = pack_of(options, KEPT)
    batches = calibration_batches(known_artifact(options.prepared), pack)
    model = load_model(options.prepared)
    names = list(float_tensors(model))
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(watched(model, names).SerializeToString(), settings)
    outputs = [output.name for output in session.get_outputs()]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed in batches():
        for name, values in (dict(zip(outputs, session.run(None, feed), strict=True)) | feed).items():
            kept[name].append(values.ravel())
    percentile = Quantize(calibration="percentile")
    for name, found in observe(options.prepared, batches).histograms.items():
        values = np.concatenate(kept[name]).astype(np.float64)
        low, high = range_of(found, percentile)
        share = percentile.percentile / 100
        exact = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], method="inverted_cdf")
        same = np.array_equal(found.counts, np.histogram(values, bins=found.edges)[0])
        if not same or max(abs(low - exact[0]), abs(high - exact[1])) > found.width:
            print(f"{name}: other counts, or a percentile more than a bin away")
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--samples", type=int, nargs=2, default=(512, 4096))
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        who, method, samples = options.one
        print(json.dumps(WHO[who](options, method, int(samples))))
        return
    few, many = options.samples
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or Path(scratch, "model.onnx")
        if not options.model:
            resnet20(model)
        options.prepared = prepared(model, Path(scratch, "prepared.onnx"))
        print("| | method | samples | seconds | CPU seconds | peak MiB |\n|:--|:--|--:|--:|--:|--:|")
        own = {(method, n): measured(options, "kdbench", method, n) for n in (few, many) for method in METHODS}
        whole = [measured(options, SEARCH, MAX_DROP, n) for n in (few, many)]
        other = {method: measured(options, "onnxruntime", method, few) for method in THEIRS}
        equal = equal_histograms(options)
    print(f"\n| bound | found |\n|:--|--:|\n| histograms as of all activations kept, {KEPT} samples | {equal} |")
    growth = whole[1]["bytes"] / whole[0]["bytes"]
    print(f"| {SEARCH}: memory of {many} samples at most {MOST_GROWTH} × that of {few} | {growth:.2f} |")
    for method in THEIRS:
        growth = own[method, many]["bytes"] / own[method, few]["bytes"]
        time_share = own[method, few]["seconds"] / other[method]["seconds"]
        cpu_share = own[method, few]["cpu_s"] / other[method]["cpu_s"]
        memory_share = own[method, few]["bytes"] / other[method]["bytes"]
        print(f"| {method}: memory of {many} samples at most {MOST_GROWTH} × that of {few} | {growth:.2f} |")
        print(
            f"| {method}: at most {MOST_SHARE} of onnxruntime's time | {time_share:.2f} (CPU time: {cpu_share:.2f}) |"
        )
        print(f"| {method}: at most {MOST_SHARE} of onnxruntime's peak memory | {memory_share:.2f} |")


if __name__ == "__main__":
    main()
