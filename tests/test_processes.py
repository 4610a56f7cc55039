"""One training in several processes: real ones, started by torchrun, that speak through gloo."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench import data
from kdbench.progress import is_main
from kdbench.steps import teach, train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe
from kdbench.training import processes, weights
from tests.conftest import TINY, overrides
from tests.hatched import environment

FIELDS = {
    **TINY,
    "teacher.model": '"mlp"',
    "teacher.options": "{ widths = [32] }",
    "teacher.training.learning_rate": "0.2",
    "student.model": '"mlp"',
    "student.options": "{ widths = [16] }",
    "student.training.optimizer": '"adamw"',
    "student.training.learning_rate": "0.01",
    "student.training.ema_decay": "0.9",
    "student.training.clip_norm": "1.0",
}
"""No layer that relates the samples of a batch, so that it makes no difference how many processes share it."""

TOLERANCE = 1e-5
"""Of weights up to 1: float32 sums of gradients in another order, over 66 steps (seen: 3e-8)."""


def torchrun(*arguments, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=environment(), **pipes) as started:
        try:
            out, err = started.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            started.terminate()  # killed, it would leave its processes behind
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, err)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder in which two processes have distilled, and what they said."""
    folder = tmp_path_factory.mktemp("together")
    return folder, torchrun("-m", "kdbench", "distill", "digits", *overrides(FIELDS), "--out", "two", cwd=folder)


def test_two_processes_train_as_one(together):
    folder, done = together
    assert done.returncode == 0, done.stderr
    recipe = load_recipe("digits", FIELDS)
    dataset, alone = data.load(recipe.data), RunFolder(folder / "one")
    alone.path.mkdir()
    teacher = teach.teach(alone, "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    student = train.distill(alone, "student", [teacher], Lesson(recipe, dataset, ""))
    for path in (teacher, student):
        (ours, one), (theirs, two) = weights.load(path), weights.load(folder / "two" / path.name)
        assert (one.processes, two.processes) == (1, 2)
        for name, tensor in ours.items():
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=TOLERANCE), name
        assert two.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], abs=TOLERANCE)
        assert two.history[-1]["loss"] < 0.8 * two.history[0]["loss"]


def test_the_main_process_alone_writes_and_prints(together):
    folder, done = together
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "two/teacher.onnx",
        "two/teacher.artifact.json",
        "two/student.onnx",
        "two/student.artifact.json",
    ]
    assert "Warning" not in done.stderr
    assert not list((folder / "two").glob(".kdbench-*"))
    assert len((folder / "two" / "student.metrics.jsonl").read_text().splitlines()) == 3
    options = json.loads((folder / "two" / "student.artifact.json").read_text())["options"]
    assert options["training"] == {"precision": "fp32", "processes": 2}


SCRIPT = """
import json
import os
from pathlib import Path
from unittest import mock

import torch
from torch import distributed, nn

from kdbench import data
from kdbench.errors import UserError
from kdbench.steps import teach, train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe
from kdbench.training.processes import agreed, joined, rank, sum_gradients
from tests import test_features
from tests.conftest import TINY
from tests.test_features import fitted
from tests.test_training import StopError, stop_at

fields = {"data.augment.views": "2", "data.held_out_samples": "100"}
recipe = load_recipe("digits", TINY | fields | {"student.training.patience_epochs": "1"})
found, calls = {}, []


def student(folder, recipe, *progress):
    Path(folder).mkdir(exist_ok=True)
    return train.train(RunFolder(Path(folder)), "student", Lesson(recipe, dataset, "", *progress))


def mistaken():
    if rank() == 1:
        raise UserError("data.options.path: no such file")


def tired(x):
    # A black box that answers once in the second process.
    calls.append(len(x))
    if rank() == 1 and len(calls) > 1:
        raise UserError("teacher: its worker has ended")
    return torch.zeros(len(x), 3)


def summed():
    # Each process has skipped a layer of its own, and both of them the last.
    layers = [nn.Linear(1, 1, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)]
    layers[rank()](torch.ones(1, rank() + 1)).sum().backward()
    weights = [layer.weight for layer in layers]
    with mock.patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as reduce:
        sum_gradients(weights, 0.5)
    assert reduce.call_count == 1  # of each step
    return [None if weight.grad is None else weight.grad.tolist() for weight in weights]


def drawn():
    # A network that each process draws by itself.
    model = small()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(rank())
    made.append(model)
    return model


def said(work):
    try:
        work()
    except UserError as error:
        return str(error)


def taught(folder, teacher, answers=None):
    place = RunFolder(Path(folder))
    place.path.mkdir(exist_ok=True)
    return train.distill(place, "student", [teacher], Lesson(recipe, dataset, ""), answers=answers)


with joined():
    found["summed"] = summed()
    small, made, test_features.network = test_features.network, [], drawn
    fitted(Path(), lambda x: torch.zeros(len(x), 3))
    found["drawn"] = [tensor.tolist() for tensor in made[0].state_dict().values()]
    test_features.network = small
    dataset = data.load(recipe.data)
    whole = student("whole", recipe)
    try:
        student("parts", recipe, stop_at(1))
    except StopError:
        found["stopped"] = True
    found["same"] = student("parts", recipe).read_bytes() == whole.read_bytes()
    found["agreed"] = said(lambda: agreed(mistaken))
    teacher = teach.teach(RunFolder(Path("whole")), "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    elsewhere = Path("elsewhere.safetensors") if rank() else teacher
    found["teacher"] = said(lambda: taught("lost", elsewhere))
    full = RunFolder(Path("script.py")) if rank() else None
    found["kept"] = said(lambda: taught("kept", teacher, full))
    found["black box"] = said(lambda: fitted(Path(f"apart-{rank()}"), tired))
    wild = load_recipe("digits", TINY | {"student.training.learning_rate": "1e30"})
    found["nan"] = said(lambda: student("nan", wild))
Path(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
os._exit(0)  # gloo's threads may abort an interpreter that takes itself down
"""


def test_processes_stop_go_on_and_fail_together(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun("script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["summed"] == [[[0.5]], [[0.5, 0.5]], None]
    assert first["stopped"]
    assert first["same"]
    assert first["agreed"] == "process 1 of 2: data.options.path: no such file"
    assert first["teacher"].startswith("process 1 of 2: cannot go on: ")
    assert "elsewhere.safetensors" in first["teacher"]
    assert first["kept"].startswith("process 1 of 2: script.py/teacher.logits-0: cannot be written to")
    assert first["black box"] == "process 1 of 2: teacher: its worker has ended"
    assert first["nan"].startswith("the loss is nan in epoch 1, batch ")


@given(st.integers(1, 200), st.integers(1, 5))
def test_the_parts_of_a_batch_are_the_batch(samples, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count", lambda: count)
        parts = []
        for rank in range(count):
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            parts.append(processes.part(np.arange(samples)))
    weight = sum(np.bincount(index, np.full(len(index), share / len(index)), samples) for index, share in parts)
    assert np.allclose(weight, 1 / samples)  # every sample counts the same, once
    assert all(len(index) >= min(2, samples) for index, _ in parts)


@pytest.mark.parametrize(("rank", "said"), [("0", "torchrun is for 'kdbench distill'"), ("1", "")])
def test_other_commands_are_not_for_torchrun(rank, said, tmp_path):
    launched = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "kdbench", "zoo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment() | launched)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)


def test_a_rank_without_a_launcher_is_no_reason_to_be_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert is_main()
