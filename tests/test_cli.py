"""The command line as a user meets it: help, mistakes, and what is printed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kdbench.cli import COMMANDS
from kdbench.store import write_npz
from tests.conftest import FLAT, kdbench, overrides, save_mlp
from tests.hatched import environment

BLOCKED = """
import contextlib, io, json, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in {blocked} else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from kdbench.cli import main
for arguments in {calls}:
    sys.argv, status = ["kdbench", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ending:
            status = ending.code or 0
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


def run_blocked(*calls, blocked=("torch", "onnxruntime")):
    """Calls of the command line one after the other in one process, in which some packages can't be imported; for each
    its status, and what it printed."""
    code = BLOCKED.format(blocked=set(blocked), calls=[[*map(str, arguments)] for arguments in calls])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    printed = map(json.loads, done.stdout.splitlines())
    return [subprocess.CompletedProcess(arguments, *said) for arguments, said in zip(calls, printed, strict=True)]


@pytest.fixture(scope="module")
def helped():
    calls = [["--help"], *[[command, "--help"] for command in COMMANDS]]
    return dict(zip(["kdbench", *COMMANDS], run_blocked(*calls), strict=True))


@pytest.mark.parametrize("command", ["kdbench", *COMMANDS])
def test_help_needs_neither_torch_nor_onnxruntime_and_teaches_by_example(command, helped):
    done = helped[command]
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert f"kdbench {'run' if command == 'kdbench' else command}" in done.stdout.split("Usage:", 1)[1]
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_onnx_wing_works_without_torch(tmp_path, small_model):
    calls = (
        ["slim", small_model, "--out", tmp_path / "slim.onnx"],
        ["quantize", small_model, "--out", tmp_path / "int8.onnx"],
        ["evaluate", tmp_path / "int8.onnx", "--against", small_model],
        ["bench", small_model, tmp_path / "int8.onnx", "--budget", "0.1", "--out", tmp_path / "bench"],
        ["report", tmp_path / "bench", "--format", "csv"],
        ["backends"],
        ["zoo"],
    )
    for done in run_blocked(*calls, blocked=("torch",)):
        assert done.returncode == 0, done.stderr


def test_training_without_torch_names_the_extra(tmp_path):
    (done,) = run_blocked(["run", "digits", "--out", tmp_path / "run"], blocked=("torch",))
    assert done.returncode == 2
    assert "training needs torch, which is not installed: pip install torch onnxscript" in done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a sound model, packs that are wrong in one way each, and broken files."""
    folder = tmp_path_factory.mktemp("place")
    save_mlp(folder / "good.onnx")
    save_mlp(folder / "fixed.onnx", batch=1)
    (folder / "empty.onnx").touch()
    (folder / "text.onnx").write_text("hello")
    (folder / "text.zip").write_text("hello")
    (folder / "cut.onnx").write_bytes((folder / "good.onnx").read_bytes()[:150])
    (folder / "folder.onnx").mkdir()
    x = np.zeros((6, 4), np.float32)
    write_npz(folder / "good.npz", {"x_test": x, "y_test": np.arange(6) % 3, "x_calibration": x + 1})
    write_npz(folder / "labels.npz", {"x_test": x, "y_test": np.arange(6)})
    write_npz(folder / "shape.npz", {"x_test": x[:, :3], "y_test": np.arange(6) % 3, "x_calibration": x[:, :3]})
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    (folder / "bad.toml").write_text("name = [")
    (folder / "cut.json").write_text('{"schema": 1, "kdbe')
    (folder / "newer.json").write_text('{"schema": 3, "kdbench": "9.9"}')
    (folder / "file").touch()
    return folder


MISTAKES = {
    "run digts": "unknown recipe 'digts': did you mean 'digits'?",
    "run nowhere.toml": "nowhere.toml: no such file",
    "run bad.toml": "bad.toml: not valid TOML",
    "run digits --set distil.temperature=2": "unknown key 'distil': did you mean 'distill'?",
    "run digits --set distill.temperature=hot": "'distill.temperature' should be a valid number",
    "run digits --set distill.temperature": "should read NAME=VALUE",
    "run digits --set teacher.model=resent": "unknown model 'resent': did you mean 'resnet'?",
    "run digits --set distill.losses.kdd=1": "unknown loss 'kdd': did you mean 'kd'?",
    "run digits --set data.source=digit": "unknown data source 'digit': did you mean 'digits'?",
    "run digits --set data.options.test_samples=9999": "data.options.test_samples",
    "run digits --set data.options.test_smaples=9": "unknown key 'test_smaples': did you mean 'test_samples'?",
    "run digits --set teacher.training.batch_size=1": "'teacher.training.batch_size' should be greater than",
    "run digits --out file/below": "file/below: cannot be written to",
    "distill digits --out /proc/x": "/proc/x: cannot be written to",
    "bench": "Missing argument",
    "bench good.onnx --backend cuba": "unknown backend 'cuba'",
    "bench good.onnx --option openvino": "'openvino' should read NAME=VALUE",
    "bench good.onnx --option precision=f32": "'precision=f32' should read BACKEND.NAME=VALUE",
    "bench good.onnx --option openvino.precision=f32": "options of 'openvino', none of the backends asked for: cpu",
    "bench good.onnx --option cpu.threds=2": "backend cpu: unknown option 'threds': known: precision",
    "bench good.onnx --backend cpu:bf16": "backend cpu: unknown precision 'bf16': known: fp32",
    "run digits --set bench.options.cpu.precision=[1]": "backend cpu: unknown precision '[1]'",
    "run digits --set bench.options.cpu=1": "'bench.options.cpu' should be an object",
    "bench good.onnx --batch 0": "'--batch': 0 is not in the range",
    "bench good.onnx --threads -1": "'--threads'",
    "bench good.onnx --budget 0": "'--budget'",
    "bench good.onnx --budget inf": "'budget_s' should be a finite number",
    "bench good.onnx --affinity 0,99999": "--affinity: CPU 99999 is not among those that kdbench may run on",
    "bench good.onnx --precision 5": "'5' should be a share between 0 and 1, such as 2% or 0.02",
    "bench good.onnx --precision 0%": "'0%' should be a share",
    "bench good.onnx --self-test --pack good.npz": "--self-test has no use for --pack",
    "bench nowhere.onnx --self-test": "nowhere.onnx: no such file",
    "bench folder.onnx --self-test": "folder.onnx: a folder, not an ONNX file",
    "bench good.onnx --batch 999999999": "too many: choose a smaller --batch",
    "bench good.onnx --dim x=3": "--dim x: the model has no such dimension",
    "bench good.onnx --dim batch=0": "should be a size of 1 or more",
    "bench fixed.onnx --batch 8": "fixed has a fixed batch of 1: use --batch 1",
    "bench empty.onnx": "empty.onnx: an empty file",
    "bench text.onnx": "text.onnx: not an ONNX model",
    "bench cut.onnx": "cut.onnx: not a",
    "bench nowhere.onnx": "nowhere.onnx: no such file",
    "bench folder.onnx": "folder.onnx: not a run folder",
    "bench good.onnx folder.onnx": "folder.onnx: a folder, not an ONNX file",
    "bench good.onnx --pack labels.npz": "labels.npz: y_test: label 5 is out of range: 0 to 2 allowed",
    "bench good.onnx --out file": "file: cannot be written to",
    "bench good.onnx --baseline text.onnx": "text.onnx: not an ONNX model",
    "slim text.onnx --out x.onnx": "text.onnx: not an ONNX model",
    "slim good.onnx": "Missing option '--out'",
    "slim good.onnx --out good.onnx": "good.onnx: is the input itself",
    "slim good.onnx --out folder.onnx": "folder.onnx: a folder: give --out a file name",
    "quantize good.onnx --out x.onnx --calibration shape.npz": "has samples of shape (3,)",
    "quantize good.onnx --out x.onnx --calibration labels.npz": "no array 'x_calibration' in it",
    "quantize good.onnx --out x.onnx --calibration cut.npz": "cut.npz: not a readable .npz archive",
    "quantize good.onnx --out x.onnx --method max": "'max' is not one of",
    "quantize good.onnx --out x.onnx --calibration good.npz": "all 6 calibration samples are the same",
    "quantize good.onnx --out x.onnx --percentile 101": "'percentile' should be less than or equal to 100",
    "quantize good.onnx --out x.onnx --exclude fc9": "good.onnx: has no node 'fc9' once it is slimmed",
    "quantize good.onnx --out x.onnx --operator Conf": "good.onnx: has no operator 'Conf'",
    "quantize good.onnx --out x.onnx --for cuba": "unknown backend 'cuba'",
    "evaluate good.onnx": "nothing to evaluate on: give a PACK, or --against OTHER.onnx",
    "evaluate good.onnx labels.npz": "label 5 is out of range",
    "evaluate good.onnx good.npz --backend fkae": "unknown backend 'fkae'",
    "export nowhere.safetensors --out x.onnx": "nowhere.safetensors: no such file",
    "export good.onnx --out x.onnx": "good.onnx: not a readable safetensors file",
    "bench text.zip": "text.zip: not a sound archive, or cut off",
    "bench nowhere.kdbench.zip": "nowhere.kdbench.zip: no such file",
    "pack folder.onnx": "folder.onnx: not a run folder",
    "pack nowhere": "nowhere: not a run folder",
    "pack good.onnx": "good.onnx: not a run folder",
    "bundle good.onnx": "Missing option '--out'",
    "bundle good.onnx --out folder.onnx/x --license ?": "--license: should be an identifier",
    "bundle good.onnx --out file/x": "file: cannot be written to",
    "bundle text.onnx --out x": "text.onnx: not an ONNX model",
    "bundle good.onnx --out x --pack shape.npz": "has samples of shape (3,)",
    "report text.zip": "text.zip: not a sound archive, or cut off",
    "report cut.json": "cut.json: not valid JSON",
    "report newer.json": "newer.json: written by a newer kdbench, 9.9 (schema 3",
    "report nowhere": "nowhere: no such file or folder",
    "report folder.onnx": "folder.onnx: no result files in it",
    "frobnicate": "unknown command 'frobnicate'",
    "bench good.onnx --bathc 3": "No such option",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(command, place, monkeypatch, mistake):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert MISTAKES[command] in mistake(command)
    written = [
        p for p in sorted(place.rglob("*")) if p not in before and p.name not in (".lock", "bench", "runs", "digits")
    ]
    assert written == []


DROPPED = """
import os, signal, sys, time, weakref
import kdbench.store

class Thing:
    pass

def strike(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)

def recipes():
    thing = Thing()
    reference = weakref.ref(thing, strike)
    del thing
    time.sleep(30)

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves ignore it
kdbench.store.zoo_recipes = recipes
sys.argv = ["kdbench", "zoo"]
from kdbench.cli import main
main()
"""


def test_ctrl_c_is_not_lost_where_python_drops_it():
    done = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, env=environment(), timeout=20
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_what_bench_prints(tmp_path):
    for name, scale in (("teacher", 1.0), ("student", 2.0)):
        save_mlp(tmp_path / f"{name}.onnx", scale=scale)
    done = kdbench(
        "bench", "teacher.onnx", "student.onnx", "--batch", "1", "--batch", "8", "--budget", "0.5", cwd=tmp_path
    )
    assert "cpu, 1 thread, batch 1, against teacher" in done.stdout
    assert "cpu, 1 thread, batch 8, against teacher" in done.stdout
    assert "━" not in done.stderr  # no bar where there is no terminal
    assert max(map(len, done.stdout.splitlines())) <= 100
    for name in ("report.md", "report.csv", "results.json"):
        assert (tmp_path / "bench" / name).is_file()
        assert name in done.stdout


def test_an_unavailable_or_failing_cell_does_not_stop_the_others(tmp_path):
    save_mlp(tmp_path / "free.onnx")
    save_mlp(tmp_path / "fixed.onnx", batch=1, scale=2.0)
    kdbench("bench", "free.onnx", "fixed.onnx", "--batch", "1", "--batch", "4", "--budget", "0.5", cwd=tmp_path)
    from tests.rows import load_rows

    errors = {(row.rung, row.batch): row.error for row in load_rows(tmp_path / "bench")}
    assert errors[("free", 1)] is errors[("free", 4)] is errors[("fixed", 1)] is None
    assert "fixed batch of 1" in errors[("fixed", 4)]


def test_models_of_equal_names_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_mlp(tmp_path / folder / "model.onnx", scale=len(folder) + ord(folder))
    done = kdbench("bench", "a/model.onnx", "b/model.onnx", "--budget", "0.1", cwd=tmp_path)
    assert "a-model" in done.stdout
    assert "b-model" in done.stdout


def test_a_baseline_that_is_not_among_the_models_joins_them(tmp_path):
    save_mlp(tmp_path / "teacher.onnx")
    save_mlp(tmp_path / "student.onnx", scale=2.0)
    done = kdbench("bench", "student.onnx", "--baseline", "teacher.onnx", "--budget", "0.1", cwd=tmp_path)
    assert "against teacher" in done.stdout


def test_generated_calibration_is_said_loudly(tmp_path, small_model):
    done = kdbench("quantize", small_model, "--no-prove", "--out", tmp_path / "int8.onnx", cwd=tmp_path)
    assert "WARNING: calibrated on generated inputs" in done.stderr
    shown = kdbench("bench", small_model, tmp_path / "int8.onnx", "--budget", "0.1", cwd=tmp_path)
    assert "calibrated on generated inputs" in shown.stdout
    again = kdbench("quantize", tmp_path / "int8.onnx", "--out", tmp_path / "x.onnx", cwd=tmp_path, check=False)
    assert "is quantized already" in again.stderr


def test_evaluate_prints_accuracy_and_parity(tiny_run, tmp_path):
    done = kdbench(
        "evaluate",
        tiny_run / "student-int8.onnx",
        tiny_run / "pack.npz",
        "--against",
        tiny_run / "student.onnx",
        cwd=tmp_path,
    )
    assert "of 450) on cpu" in done.stdout
    assert "on 450 evaluation samples" in done.stdout


def test_distill_leaves_weights_models_and_records(tmp_path):
    kdbench("distill", "digits", *overrides(FLAT), cwd=tmp_path)
    for rung in ("teacher", "student"):
        for suffix in (".onnx", ".safetensors", ".artifact.json"):
            assert (tmp_path / "runs" / "digits" / f"{rung}{suffix}").is_file()
    weights = tmp_path / "runs" / "digits" / "student.safetensors"
    kdbench("export", weights, "--out", "again.onnx", cwd=tmp_path)
    assert (tmp_path / "again.onnx").read_bytes() == weights.with_suffix(".onnx").read_bytes()


def test_publish_and_report_of_published_results(tiny_run, tmp_path):
    models, pack = [tiny_run / f"{rung}.onnx" for rung in ("teacher", "student-int8")], tiny_run / "pack.npz"
    kdbench("bench", *models, "--pack", pack, "--budget", "0.1", "--publish", cwd=tmp_path)
    (published,) = (tmp_path / "results").glob("*/*.json")
    done = kdbench("report", "results", "--format", "csv", cwd=tmp_path)
    assert done.stdout.count("\n") == 3
    kdbench("report", published, "--out", "page", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "report.md", "report.html", "report.csv", "accuracy-latency.svg", "accuracy-latency.png", "accuracy-size.svg",
        "accuracy-size.png", "latency-distribution.svg", "latency-distribution.png",
    }  # fmt: skip


def test_what_should_be_known_of_the_data_is_said(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 255, (40, 8, 8)).astype(np.uint8), np.repeat([0, 1], [35, 5])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[30:], y_test=y[30:])
    fields = FLAT | {"data.source": "arrays", "data.options": "{ path = 'mine.npz' }", "data.calibration_samples": "8"}
    fields.pop("data.options.test_samples")
    done = kdbench("distill", "digits", *overrides(fields), cwd=tmp_path)
    assert "NOTE: unbalanced classes: 35 training samples of '0', 5 of '1'" in done.stderr
    assert "NOTE: 10 of 10 test samples" in done.stderr
