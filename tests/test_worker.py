"""Real worker processes: what they answer, and what is said of one that fails."""

import itertools
import json
import os
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from kdbench.backends import BACKENDS, pick_backend
from kdbench.backends.available import why_unavailable
from kdbench.backends.client import SLICE_FACTS, WORKER, Worker, WorkerError
from kdbench.errors import UserError
from tests.hatched import environment

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def available():
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(why_unavailable(name) is not None, reason=str(why_unavailable(name)))
        )
        for name, backend in BACKENDS.items()
        if backend.runner == "ort" and not backend.platforms
    ]


def fake(tmp_path, **behaviour):
    path = tmp_path / "fake.json"
    path.write_text(json.dumps(behaviour))
    return path


@pytest.mark.parametrize("name", available())
def test_a_backend_answers_as_numpy_does(name, small_model):
    import onnx
    from onnx import numpy_helper

    w = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(small_model).graph.initializer}
    expected = np.maximum(X @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    with Worker(pick_backend(name), threads=1) as worker:
        assert "onnxruntime" in worker.hello()
        assert worker.load(small_model, explain=True) > 0
        placement = worker.explain()
        assert set(placement) == {pick_backend(name).provider}
        assert sum(placement[pick_backend(name).provider].values()) == 3
        first_run_s, peak = worker.feed("5", {"x": X})
        assert first_run_s > 0
        assert peak > 10_000_000
        latencies, _ = worker.slice("5", seconds=5, runs=20)
        assert latencies.shape == (20,)
        assert (latencies > 0).all()
        np.testing.assert_allclose(worker.predict({"x": X})["logits"], expected, rtol=1e-5, atol=1e-6)


def test_a_slice_ends_with_its_time(tmp_path):
    with Worker(pick_backend("fake"), 1) as worker:
        worker.load(fake(tmp_path, latency_s=0.05))
        worker.feed("1", {"x": X[:1]})
        assert 2 <= len(worker.slice("1", seconds=0.12, runs=1000)[0]) <= 3


def test_the_first_run_of_a_slice_is_not_counted(tmp_path):
    with Worker(pick_backend("fake"), 1) as worker:
        worker.load(fake(tmp_path, latencies_s=[0.0, 1.0]))
        worker.feed("1", {"x": X[:1]})
        latencies, _ = worker.slice("1", seconds=5, runs=10)
        assert len(latencies) == 10
        assert latencies.max() < 0.9


def test_a_worker_tells_its_cpus_and_what_a_slice_used(small_model):
    with Worker(pick_backend("cpu"), 1) as worker:
        said, _ = worker.ask("hello")
        worker.load(small_model)
        worker.feed("5", {"x": X})
        used, _ = worker.ask("slice", slot="5", seconds=0.3, runs=10**6)
    if hasattr(os, "sched_getaffinity"):
        assert said["affinity"] == sorted(os.sched_getaffinity(0))
    assert 0.3 <= used["wall_s"] < 10
    assert 0 < used["cpu_s"] <= 1.2 * used["wall_s"]  # one thread


@pytest.fixture
def server(monkeypatch):
    """The worker's server in this process, on a clock that runs push on by 0.1 s and every look at it by 0.001 s."""
    spec = spec_from_file_location("worker_main", WORKER / "__main__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    now = itertools.count()
    state = SimpleNamespace(run_s=0.0)

    def run():
        state.run_s += 0.1

    clock = SimpleNamespace(perf_counter=lambda: state.run_s + 0.001 * next(now), process_time=lambda: state.run_s / 2)
    monkeypatch.setattr(module, "time", clock)
    made = module.Server(SimpleNamespace())
    made.feeds["1"] = run
    return made


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_run_is_made_longer_by_a_share_of_its_own_time(server, share):
    _, arrays = server.slice({"slot": "1", "seconds": 10, "runs": 20, "slower": share}, {})
    assert arrays["latencies_s"].shape == (20,)
    assert arrays["latencies_s"] == pytest.approx(0.101 * (1 + share), abs=0.0011)


def test_a_slice_tells_what_the_machine_did_meanwhile(server):
    facts, _ = server.slice({"slot": "1", "seconds": 10, "runs": 9}, {})
    assert set(facts) == set(SLICE_FACTS)
    assert facts["wall_s"] == pytest.approx(10 * 0.1, abs=0.05)  # one run more than those that count
    assert facts["cpu_s"] == pytest.approx(facts["wall_s"] / 2, abs=0.05)


def test_the_share_of_others_is_what_is_neither_idle_nor_ours(server, monkeypatch):
    between = type(server).slice.__globals__["_between"]
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = {"wall_s": 1, "cpu_s": 2, "busy_s": 10}
    found = between(before, {"wall_s": 3, "cpu_s": 3, "busy_s": 15, "clock_hz": 2e9})
    assert found == {"wall_s": 2, "cpu_s": 1, "others_share": 0.5, "clock_hz": 2e9}
    assert between({"wall_s": 1, "cpu_s": 2}, {"wall_s": 3, "cpu_s": 3})["others_share"] is None


def test_a_refusal_leaves_the_worker_usable(small_model):
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(small_model)
        with pytest.raises(WorkerError, match="x") as error:
            worker.predict({"y": X})
        assert error.value.alive
        assert worker.predict({"x": X})["logits"].shape == (5, 3)


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"noise")
    with Worker(pick_backend("cpu"), 1) as worker, pytest.raises(WorkerError, match=r"bad\.onnx|protobuf"):
        worker.load(tmp_path / "bad.onnx")


def test_a_crash_names_signal_and_last_words(tmp_path):
    with Worker(pick_backend("fake"), 1) as worker:
        worker.load(fake(tmp_path, crash_at_batch=5))
        with pytest.raises(WorkerError, match=r"crashed during 'feed' \(killed by signal 6\): fake: about to crash"):
            worker.feed("5", {"x": X})


def test_a_hang_is_noticed_and_killed(tmp_path):
    with Worker(pick_backend("fake"), 1, patience_s=0.5) as worker:
        worker.patience_s = 30
        worker.load(fake(tmp_path, hang_at_batch=5))
        worker.patience_s = 0.5
        with pytest.raises(WorkerError, match="hung: no answer to 'feed' within 2 s; killed"):
            worker.ask("feed", {"x": X}, extra_s=1.0, slot="5")


def test_unknown_and_missing_backends_are_named(monkeypatch):
    with pytest.raises(UserError, match="unknown backend 'cup': did you mean 'cpu'"):
        pick_backend("cup")
    with pytest.raises(UserError) as error:
        pick_backend("zzz")
    assert "fake" not in str(error.value)


def test_large_inputs_pass_the_pipe(tmp_path):
    with Worker(pick_backend("fake"), 1) as worker:
        worker.load(fake(tmp_path))
        assert worker.predict({"x": np.zeros((200, 300, 300), np.float32)})["logits"].shape == (200, 2)


def test_a_worker_ends_with_its_parent_also_in_the_middle_of_a_run(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from kdbench.backends import pick_backend\n"
        "from kdbench.backends.client import Worker; import numpy as np\n"
        "worker = Worker(pick_backend('fake'), 1); worker.load(Path(sys.argv[1]))\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.feed('5', {'x': np.zeros((5, 4), np.float32)})"
    )
    model = fake(tmp_path, hang_at_batch=5)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(model)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid)
