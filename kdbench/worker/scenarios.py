"""Load on sessions as MLPerf's loadgen makes it: single stream, multi stream, server, offline.

loadgen decides when a query comes, takes the latencies, and says whether its run is valid; here queries meet sessions.
Its logs go to a folder of the caller's.
"""

import importlib
import importlib.metadata
import json
import math
import queue
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Any]

NAMES = {
    "single_stream": "SingleStream",
    "multi_stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
SAMPLE = re.compile(rb'"name":"Sample","cat":"default","ph":"b".*?"query_seq":(\d+),.*?"complete_ns":(\d+)')
"""Of loadgen's trace: a sample's query, and the nanoseconds from when that was due to when the sample was done."""


def version() -> str:
    """Of loadgen; raises RuntimeError with the command that installs it where it is missing."""
    _loadgen()
    return importlib.metadata.version("mlcommons-loadgen")


def _loadgen() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise RuntimeError(
            f"loadgen is not in the environment of {sys.executable} ({error}): pip install mlcommons-loadgen"
        ) from None


def measure(settings: dict[str, Any], runs: Sequence[Run], samples: Arrays) -> tuple[dict[str, Any], Arrays]:
    """One run of loadgen: what it says of it, and the latencies of all queries in seconds, in the order of issue.

    `runs` has one function a session. `settings`: `scenario`, `queries` (of the offline scenario: samples),
    `samples_per_query`, `rate_per_s` and `bound_s` of the server scenario, `most_waiting` (queries under way at which a
    server's run is given up), `batch` (samples that are run at once at most), `filled` (whether fewer are filled up to
    it), `shared` (inputs that are the same for all samples), `seeds` (three), `folder` (of the logs), `trace` (whether
    latencies are wanted: none else).
    """
    lg = _loadgen()
    for run in runs:  # warm before the first query comes, alone and as a batch
        run(_inputs(samples, [0], settings))
        run(_inputs(samples, [0] * settings["batch"], settings))
    failed: list[Exception] = []

    def answer(run: Run, queries: Sequence[Any]) -> None:
        # After a failure the rest is answered without being run, for loadgen waits until all are.
        if not failed:
            try:
                run(_inputs(samples, [query.index for query in queries], settings))
            except Exception as error:
                failed.append(error)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0) for query in queries])

    issue, stop = _serve(answer, runs, settings)
    count = next(len(values) for name, values in samples.items() if name not in settings["shared"])
    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
    folder = Path(settings["folder"])
    try:
        # A file audit.config in the working directory would change the settings: one in the folder can't be there.
        logs = _logs(lg, folder, settings["trace"])
        lg.StartTestWithLogSettings(sut, qsl, _test(lg, settings), logs, str(folder / "audit.config"))
    finally:
        stop()
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    if failed:
        raise failed[0]
    return _facts(folder / "mlperf_log_detail.txt", settings["scenario"]), {"latencies_s": _latencies(folder)}


def _serve(
    answer: Callable[[Run, Sequence[Any]], None], runs: Sequence[Run], settings: dict[str, Any]
) -> tuple[Callable[[list[Any]], None], Callable[[], None]]:
    """What loadgen calls with a query's samples, and what ends the threads behind it.

    Where the next query waits for the last one, a single session answers at once: no thread stands in between.
    Otherwise each session has a thread of its own; in the server scenario it takes as many queued samples as `batch`.
    """
    batch: int = settings["batch"]
    server = settings["scenario"] == "server"
    if len(runs) == 1 and not server:

        def at_once(queries: list[Any]) -> None:
            for start in range(0, len(queries), batch):
                answer(runs[0], queries[start : start + batch])

        return at_once, lambda: None

    waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()

    def enqueue(queries: list[Any]) -> None:
        part = min(batch, math.ceil(len(queries) / len(runs)))
        for start in range(0, len(queries), part):
            waiting.put(queries[start : start + part])

    def work(run: Run) -> None:
        while (queries := waiting.get()) is not None:
            while server and len(queries) < batch:
                try:
                    more = waiting.get_nowait()
                except queue.Empty:
                    break
                queries = queries + (more or [])
            answer(run, queries)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()

    def stop() -> None:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()

    return enqueue, stop


def _inputs(samples: Arrays, places: list[int], settings: dict[str, Any]) -> Arrays:
    """The samples at `places` as one batch; a single one without a copy."""
    if settings["filled"]:
        places = places + places[-1:] * (settings["batch"] - len(places))
    chosen = slice(places[0], places[0] + 1) if len(places) == 1 else places
    return {name: values if name in settings["shared"] else values[chosen] for name, values in samples.items()}


def _test(lg: Any, settings: dict[str, Any]) -> Any:
    test = lg.TestSettings()
    test.scenario = getattr(lg.TestScenario, NAMES[settings["scenario"]])
    test.mode = lg.TestMode.PerformanceOnly
    test.min_duration_ms = 0  # the number of queries alone decides how long a run is
    test.min_query_count = settings["queries"]
    test.qsl_rng_seed, test.sample_index_rng_seed, test.schedule_rng_seed = settings["seeds"]
    test.single_stream_target_latency_percentile = 0.90
    test.multi_stream_target_latency_percentile = 0.99
    test.multi_stream_samples_per_query = settings["samples_per_query"]
    if settings["scenario"] == "server":
        test.server_target_qps = settings["rate_per_s"]
        test.server_target_latency_ns = round(settings["bound_s"] * 1e9)
        test.server_target_latency_percentile = 0.99
        test.server_max_async_queries = settings["most_waiting"]
    return test


def _logs(lg: Any, folder: Path, trace: bool) -> Any:
    """Into the folder, nothing to standard output; the trace has the latencies."""
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = trace
    return logs


def _latencies(folder: Path) -> np.ndarray:
    """Of each query, in seconds: until the last of its samples is done."""
    found = np.asarray(SAMPLE.findall((folder / "mlperf_log_trace.json").read_bytes()), dtype=np.int64)
    found = found.reshape(-1, 2)
    latencies = np.zeros(found[:, 0].max(initial=-1) + 1, dtype=np.int64)
    np.maximum.at(latencies, found[:, 0], found[:, 1])
    return latencies * 1e-9


def _facts(log: Path, scenario: str) -> dict[str, Any]:
    """What loadgen's detailed log, one JSON object a line, says of the run.

    `estimate_s` is its early-stopping estimate of the scenario's percentile, which the server scenario has none of:
    there, `percentile_s` is the plain percentile, and `over_bound` the number of queries above the bound.
    """
    said: dict[str, Any] = {}
    errors: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        if not line.startswith(":::MLLOG"):
            continue
        entry = json.loads(line.removeprefix(":::MLLOG"))
        said[entry["key"]] = entry["value"]
        if entry["metadata"]["is_error"]:
            errors.append(str(entry["value"]))
    met = bool(said["early_stopping_met"])
    estimate = said.get({"single_stream": "early_stopping_latency_ss"}.get(scenario, "early_stopping_latency_ms"))
    reasons = [said.get("result_invalid_reason", ""), "" if met else said["early_stopping_result"], *errors]
    return {
        "valid": said["result_validity"] == "VALID",
        "reasons": [" ".join(reason.replace(" * ", " ").split()) for reason in reasons if reason.strip()],
        "queries": said["result_query_count"],
        "estimate_s": estimate * 1e-9 if met and estimate else None,
        "percentile_s": said["result_99.00_percentile_latency_ns"] * 1e-9 if scenario == "server" else None,
        "over_bound": said.get("result_overlatency_query_count"),
        "scheduled_per_s": said.get("result_scheduled_samples_per_sec"),
        "completed_per_s": said.get("result_samples_per_second", said.get("result_completed_samples_per_sec")),
    }
