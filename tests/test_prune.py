"""`kdbench prune` and the rung `student-pruned`: the student without some of its channels, taught again."""

import json
import re
import shutil

import pytest
import torch
from torch.nn import Linear

from kdbench import pipeline
from kdbench.errors import UserError
from kdbench.pipeline.rungs import compressed
from kdbench.progress import silent, unsaid
from kdbench.records import Training
from kdbench.steps import latency, prune, train
from kdbench.steps.lesson import Lesson
from kdbench.steps.teach import teach
from kdbench.store import RunFolder, load_artifact, load_recipe
from kdbench.training import weights
from tests.conftest import FLAT, TINY, kdbench, overrides
from tests.prunable import ROW, SMALL, saved, small
from tests.test_training import StopError, stop_at

PRUNE = FLAT | {
    "student.options": "{ widths = [32] }",
    "prune.parameters": "0.5",
    "prune.round_to": "4",
    "prune.sparse": '{ kind = "group", strength = 1e-3, epochs = 1 }',
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    kdbench("run", "digits", *overrides(PRUNE), "--out", "run", cwd=folder)
    return folder / "run"


def test_the_pruned_student_stands_between_the_student_and_its_slim_file(run):
    artifacts = {
        name: load_artifact(run / f"{name}.artifact.json") for name in ("student", "student-pruned", "student-slim")
    }
    student, pruned, slim = artifacts.values()
    assert (pruned.parent, pruned.parent_sha256, pruned.step) == ("student", student.sha256, "prune")
    assert slim.parent == "student-pruned"
    assert pruned.parameters <= 0.5 * student.parameters
    assert pruned.macs < 0.6 * student.macs
    report = (run / "report.md").read_text()
    assert report.index("| student ") < report.index("| student-pruned ") < report.index("| student-slim ")


def test_the_history_survives_training(run):
    start, end = (weights.record(run / f"{name}.safetensors") for name in ("student-pruned-start", "student-pruned"))
    assert [change.kind for change in end.changes] == ["channels"]
    assert end.changes == start.changes
    assert len(end.history) == end.epoch == 2  # half of three epochs
    assert weights.record(run / "student-pruned-sparse.safetensors").history[0]["loss.penalty"] > 0


def test_a_second_run_keeps_all_and_one_without_prune_forgets_the_rung(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    files = {path: path.read_bytes() for path in again.glob("student*.*") if path.suffix in (".onnx", ".safetensors")}
    pipeline.distill(load_recipe("digits", PRUNE), again)
    assert {path: path.read_bytes() for path in files} == files
    without = {field: value for field, value in PRUNE.items() if not field.startswith("prune.")}
    recipe = load_recipe("digits", without)
    pipeline.distill(recipe, again)
    compressed(RunFolder(again), recipe.quantize, None, silent, unsaid)
    assert not (again / "student-pruned.artifact.json").exists()
    assert load_artifact(again / "student-slim.artifact.json").parent == "student"


def test_a_recipe_that_cannot_be_pruned_so_is_refused_before_any_training(tmp_path):
    for field, value, message in (
        ("prune.macs", "0.01", "prune.macs: 0.01 can't be reached"),
        ("prune.ignore", '["stages.7"]', "prune.ignore: no submodule 'stages.7': did you mean"),
        ("prune.importance", "magnitude", "'prune.importance' should be 'l1'"),
    ):
        fields = {**TINY, "prune.macs": "0.9", "prune.round_to": "2", field: value}
        done = kdbench("run", "digits", *overrides(fields), "--out", "run", cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list(tmp_path.glob("run/*.safetensors"))


def test_sparse_learning_that_would_draw_nothing_is_refused_before_any_training(dataset):
    recipe = load_recipe("digits", PRUNE | {"prune.sparse": '{ kind = "batch_norm", epochs = 1 }'})
    with pytest.raises(UserError, match=r"^prune\.sparse\.kind: this network has no batch norms: take group$"):
        prune.check(recipe, dataset)


@pytest.fixture(scope="module")
def padded(dataset, tmp_path_factory):
    """A trained student whose shortcuts pad, its teacher, and their recipe."""
    options = {
        "student.options": '{ widths = [4, 8], blocks = [1, 1], shortcut = "pad" }',
        "student.training.epochs": "1",
    }
    recipe = load_recipe("digits", TINY | options | {"prune.macs": "0.7", "prune.round_to": "2"})
    folder = RunFolder(tmp_path_factory.mktemp("padded"))
    teacher = teach(folder, "teacher", recipe.teachers[0], Lesson(recipe, dataset, ""))
    return recipe, teacher, train.distill(folder, "student", [teacher], Lesson(recipe, dataset, ""))


def test_rewritten_shortcuts_are_not_trained_and_a_stopped_training_ends_with_the_same_bytes(padded, dataset, tmp_path):
    recipe, teacher, student = padded
    start = prune.prune(student, tmp_path / "start.safetensors", recipe.prune, prune.training_samples(recipe, dataset))
    training = Training(epochs=2, learning_rate=0.1)

    def refined(folder, progress=lambda *_: None):
        run = RunFolder(tmp_path / folder)
        run.path.mkdir(exist_ok=True)
        lesson = Lesson(recipe, dataset, "", progress)
        return train.refine(run, "student-pruned", start.path, {"teacher": teacher}, lesson, training=training)

    whole = refined("whole")
    before, after = (weights.load(path)[0] for path in (start.path, whole))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "stages.1.0.shortcut.weight" not in moved
    assert {"stem.0.weight", "stages.1.0.conv1.weight"} <= moved

    with pytest.raises(StopError):
        refined("parts", stop_at(1))
    assert refined("parts").read_bytes() == whole.read_bytes()


def test_a_latency_is_measured_beside_the_whole_network(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "BUDGET_S", 0.1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 512), torch.nn.Linear(512, 5)).eval()
    share = latency.beside_the_first(tmp_path, torch.zeros(4, 1, 8, 8), "cpu")
    assert share(model) == 1.0
    assert 0.1 < share(model) < 10
    with pytest.raises(UserError, match="unknown backend 'gpuu'"):
        latency.beside_the_first(tmp_path, torch.zeros(4, 1, 8, 8), "gpuu")


def test_the_command_prunes_to_a_measured_latency_or_says_the_closest(typed, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "BUDGET_S", 0.1)
    monkeypatch.setitem(SMALL, "mlp", ({"widths": [1024, 1024]}, ROW))  # half of each, at least, stays
    source = saved(tmp_path / "wide.safetensors", "mlp", small("mlp"))
    out = tmp_path / "pruned.safetensors"
    asked = ("prune", source, "--round-to", "512", "--scope", "layer", "--latency")  # there is but one way to do it
    said = typed(*asked, "0.7", "--out", out)
    assert said.status == 0, said.err
    left = re.search(r"pruned\.safetensors: ([\d.]+) % of the latency left\n", said.out)
    assert float(left[1]) <= 70
    widths = [module.out_features for module in weights.model_of(out)[0].modules() if isinstance(module, Linear)]
    assert widths[:2] == [512, 512]
    refused = typed(*asked, "0.01", "--out", tmp_path / "no.safetensors")
    assert refused.status == 2
    assert re.match(r"kdbench: prune\.latency: 0\.01 can't be reached: 0\.\d+ is the closest", refused.err)
    assert not (tmp_path / "no.safetensors").exists()


def test_a_latency_in_a_recipe_is_measured_under_the_options_of_its_backend(run, monkeypatch, dataset):
    asked = []

    def measured(scratch, x, backend, options, seed):
        asked.append((backend, latency.own_options(backend, options)))
        return lambda model: float(sum(parameter.numel() for parameter in model.parameters()))

    monkeypatch.setattr(prune, "beside_the_first", measured)
    fields = {"prune.backend": "openvino", "bench.backends": '["cpu", "openvino"]'}
    fields |= {"bench.options": '{ openvino = { precision = "bf16" }, cpu = {} }'}
    fields |= {"prune.latency": "1e-9", "student.options": "{ widths = [32] }", "prune.round_to": "4"}
    recipe = load_recipe("digits", FLAT | fields)
    with pytest.raises(UserError, match=r"^prune\.latency: 1e-09 can't be reached"):
        prune.check(recipe, dataset)
    assert asked == [("openvino", {"openvino": {"precision": "bf16"}})]
    source, held = run / "student.safetensors", prune.training_samples(recipe, dataset)
    marks = [prune.mark(source, recipe.prune, 0, held, {"openvino": {"precision": one}}) for one in ("bf16", "fp32")]
    assert marks[0] != marks[1]


def test_samples_need_not_fill_their_last_batch(run, tmp_path):
    options = {"parameters": 0.5, "round_to": 4, "importance": "taylor", "samples": 70}
    assert prune.prune(run / "student.safetensors", tmp_path / "x.safetensors", options, run / "pack.npz").share <= 0.5


def test_layers_that_keep_all_channels_are_named_in_a_run_too(run, dataset, tmp_path):
    fields = {name: value for name, value in PRUNE.items() if name not in ("prune.parameters", "prune.sparse")}
    fields |= {"prune.ratios": '{ "stages.0" = 0.5, "stages.1" = 0.01 }', "student.options": "{ widths = [32, 16] }"}
    said = []
    pipeline.distill(load_recipe("digits", fields), tmp_path / "run", say=said.append)
    assert any(re.match(r"student-pruned: left as it is: 'stages\.1[^']*': ", sentence) for sentence in said), said


def test_the_command_prints_what_the_network_was_and_is(run, tmp_path):
    done = kdbench(
        "prune",
        run / "student.safetensors",
        "--parameters",
        "50%",
        "--round-to",
        "4",
        "--importance",
        "taylor",
        "--pack",
        run / "pack.npz",
        "--layers",
        "--out",
        "pruned.safetensors",
        cwd=tmp_path,
    )
    assert re.search(r"^parameters +[\d.]+ k → [\d.]+( k)? +0\.\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^stages\.0\.0 ", done.stdout, re.MULTILINE)
    kdbench("export", "pruned.safetensors", "--out", "pruned.onnx", cwd=tmp_path)
    artifact = json.loads((tmp_path / "pruned.artifact.json").read_text())
    assert artifact["parameters"] <= 0.5 * load_artifact(run / "student.artifact.json").parameters
    aimless = kdbench("prune", run / "student.safetensors", "--out", "no.safetensors", cwd=tmp_path, check=False)
    said = "with one of macs, parameters and latency: the share of it to keep; or with ratios alone"
    assert aimless.stderr == f"kdbench: prune: should be {said}\n"
    refused = kdbench(
        "prune", run / "student.safetensors", "--macs", "0.001", "--out", "no.safetensors", cwd=tmp_path, check=False
    )
    assert refused.returncode == 2
    assert "is the closest" in refused.stderr
    assert not (tmp_path / "no.safetensors").exists()
