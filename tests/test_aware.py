"""Quantization-aware training: what is trained is what onnxruntime runs, and it goes on where it was stopped."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from kdbench import data, quantize
from kdbench.data.pack import load_pack, save_pack
from kdbench.errors import UserError
from kdbench.evaluation import answer, evaluate
from kdbench.onnxfile import known_artifact, load_model
from kdbench.pipeline.aware import aware as aware_rung
from kdbench.pipeline.learning import Ground
from kdbench.progress import silent
from kdbench.proofs.rewritten import of_metrics
from kdbench.records import Quantize, QuantizeSection, Training, parse
from kdbench.steps import check as fitting
from kdbench.steps import train
from kdbench.steps.aware import at_end, check, quantize_aware, train_aware
from kdbench.steps.export import export
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_artifact, load_recipe, save_artifact
from kdbench.training.fake_quantization import simulated
from tests.conftest import FLAT, TINY, kdbench, overrides
from tests.rows import load_rows
from tests.test_training import StopError

AWARE = TINY | {"quantize.aware": "true", "quantize.training": "{ epochs = 2, learning_rate = 0.01 }"}


@pytest.fixture(scope="module")
def dataset():
    return data.load(load_recipe("digits", TINY).data)


def trained_in(folder, run, dataset, fields=AWARE, progress=silent):
    """The weights file of a training in int8 of the student of a finished run."""
    files = [run / "student.safetensors", run / "student-slim.onnx", run / "student-int8.onnx"]
    recipe = load_recipe("digits", fields)
    teachers = {"teacher": run / "teacher.safetensors"}
    lesson = Lesson(recipe, dataset, "", progress)
    return train_aware(RunFolder(folder), "qat", *files, teachers, lesson)


def written_in(folder, run, weights):
    pack = load_pack(run / "pack.npz")
    return quantize_aware(
        weights, run / "student-slim.onnx", run / "student-int8.onnx", folder / "qat.onnx", pack, "qat", {}
    )


@pytest.fixture(scope="module")
def aware(tiny_run, dataset, tmp_path_factory):
    """The folder of a finished training in int8, and the file's record."""
    folder = tmp_path_factory.mktemp("aware")
    return folder, written_in(folder, tiny_run, trained_in(folder, tiny_run, dataset))


# --- simulated as it runs ---------------------------------------------------------------------------------------------


def test_what_is_trained_answers_as_onnxruntime_does_on_test_samples(aware, tiny_run):
    folder, artifact = aware
    samples = load_pack(tiny_run / "pack.npz").test_inputs(artifact.inputs, artifact.preprocessing)
    graph = simulated(load_model(tiny_run / "student-int8.onnx"), load_model(tiny_run / "student-slim.onnx"), "int8")
    from kdbench.training import weights

    graph.load_state_dict(weights.load(folder / "qat.safetensors")[0])
    with torch.no_grad():
        ours = graph(torch.from_numpy(samples["input"])).numpy()
    theirs = answer(folder / "qat.onnx", samples, 32).outputs["logits"]
    step = graph.steps[graph.numbers["logits_scale"]].item()
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.99
    assert np.abs(ours - theirs).max() <= 3 * step
    assert artifact.metrics["simulation_agreement"] >= 0.95  # of 64 samples
    assert artifact.warnings == ()
    assert not np.array_equal(theirs, answer(tiny_run / "student-int8.onnx", samples, 32).outputs["logits"])


def test_what_was_judged_and_timed_of_the_static_file_is_not_said_of_the_trained_one(aware, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    static = load_artifact(run / "student-int8.artifact.json")
    stays = "its Einsum nodes stay in float, as onnxruntime can't quantize them: “sum”"
    said = ("on the 360 test samples the drop is 2 points, more than the budget", stays, "int8 does not win on cpu")
    options = {**static.options, "max_drop": 0.5, "for": "cpu"}
    save_artifact(run, static.model_copy(update={"warnings": said, "options": options}))
    made = written_in(tmp_path, run, aware[0] / "qat.safetensors")
    assert made.warnings == (stays,)
    assert "max_drop" not in made.options
    assert made.options["for"] == "cpu"


def test_conversions_stand_where_the_static_files_do_and_the_same_kernels_run(aware, tiny_run):
    folder, _ = aware
    static, ours = (onnx.load(path) for path in (tiny_run / "student-int8.onnx", folder / "qat.onnx"))
    assert list(ours.graph.node) == list(static.graph.node)
    kinds = [[(t.name, t.data_type, tuple(t.dims)) for t in model.graph.initializer] for model in (static, ours)]
    assert kinds[0] == kinds[1]
    zeros = [
        {t.name: t.SerializeToString() for t in model.graph.initializer if t.name.endswith("zero_point")}
        for model in (static, ours)
    ]
    assert zeros[0] == zeros[1]
    samples = {"input": np.zeros((2, 1, 8, 8), np.float32)}
    kernels = [
        answer(path, samples, 2).optimized_operators for path in (tiny_run / "student-int8.onnx", folder / "qat.onnx")
    ]
    assert kernels[0] == kernels[1]
    assert kernels[1]["QLinearConv"] == 6
    assert "Conv" not in kernels[1]


def test_every_weight_of_a_network_learns(tiny_run):
    graph = simulated(load_model(tiny_run / "student-int8.onnx"), load_model(tiny_run / "student-slim.onnx"), "int8")
    x = torch.from_numpy(load_pack(tiny_run / "pack.npz").x_test[:32].astype(np.float32) / 16)
    torch.nn.functional.cross_entropy(graph(x), torch.arange(32) % 10).backward()
    kinds = [weight.kind for weight in graph.plan.weights]
    assert kinds.count("int8") == 7
    assert kinds.count("int32") == 7
    for value in graph.parameters():
        assert value.grad is not None
        assert value.grad.abs().sum() > 0


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_stopped_training_ends_with_the_same_bytes(aware, tiny_run, dataset, tmp_path):
    def stop(label, done, total):
        if done >= 1.2:
            raise StopError

    with pytest.raises(StopError):
        trained_in(tmp_path, tiny_run, dataset, progress=stop)
    assert (tmp_path / "qat.checkpoint.safetensors").is_file()
    again = trained_in(tmp_path, tiny_run, dataset)
    assert again.read_bytes() == (aware[0] / "qat.safetensors").read_bytes()
    assert written_in(tmp_path, tiny_run, again).sha256 == aware[1].sha256


def test_losses_on_features_go_on_from_the_students_own_layers(tiny_run, dataset, tmp_path):
    fields = AWARE | {
        "distill.losses": '{ kd = 1.0, attention = { weight = 10.0, pairs = [["stages.1", "stages.1"]] } }'
    }
    path = trained_in(tmp_path, tiny_run, dataset, fields)
    from kdbench.training import weights

    assert all(0 < epoch["loss.attention"] < 10 for epoch in weights.record(path).history)


def test_losses_are_those_of_the_students_last_epoch():
    recipe = load_recipe(
        "digits",
        {
            "student.training.epochs": "10",
            "distill.losses": "{ kd = { weight = { start = 1.0, end = 0.5, epochs = 4 }, temperature = 2.0 }, "
            "cross_entropy = { weight = 1.0, until_epoch = 3 }, dist = { weight = 2.0, from_epoch = 8 } }",
        },
    )
    left = at_end(recipe.distill.losses, 10)
    assert {name: (loss.weight.start, loss.from_epoch) for name, loss in left.items()} == {
        "kd": (0.5, 1),
        "dist": (2.0, 1),
    }
    assert left["kd"].model_extra == {"temperature": 2.0}
    with pytest.raises(UserError, match=r"quantize.aware: no loss is left at the end"):
        at_end({"cross_entropy": recipe.distill.losses["cross_entropy"]}, 10)


def test_training_recovers_what_static_int8_loses(dataset, tmp_path):
    fields = FLAT | {
        "student.options": "{ widths = [16] }",
        "student.training.epochs": "15",
        "student.training.learning_rate": "0.1",
        "quantize.aware": "true",
        "quantize.training": "{ epochs = 3, learning_rate = 0.05 }",
    }
    recipe = load_recipe("digits", fields)
    save_pack(tmp_path / "pack.npz", dataset, 64, 0)
    pack = load_pack(tmp_path / "pack.npz")
    student = train.train(RunFolder(tmp_path), "student", Lesson(recipe, dataset, ""))
    floating, static, ours = (tmp_path / f"{name}.onnx" for name in ("floating", "static", "ours"))
    export(student, floating, pack)
    odd = pack.x_calibration.astype(np.float32)
    odd[0] *= 100  # a broken sensor: the ranges of everything become a hundred times too wide
    quantize(floating, static, replace(pack, x_calibration=odd))
    files = (student, floating, static)
    weights = train_aware(RunFolder(tmp_path), "qat", *files, {"teacher": student}, Lesson(recipe, dataset, ""))
    quantize_aware(weights, floating, static, ours, pack, "qat", {})
    accuracies = [evaluate(path, pack).accuracy for path in (floating, static, ours)]
    assert accuracies[1] < accuracies[0] - 0.2
    assert accuracies[2] > accuracies[0] - 0.05


# --- in a recipe ------------------------------------------------------------------------------------------------------


def test_the_ladder_has_both_rungs_and_their_paired_difference(tmp_path):
    fields = FLAT | {"quantize.aware": "true", "quantize.training": "{ epochs = 1, learning_rate = 0.01 }"}
    done = kdbench("run", "digits", *overrides(fields), "--out", "run", cwd=tmp_path)
    rows = {row.rung: row for row in load_rows(tmp_path / "run")}
    assert list(rows)[-2:] == ["student-int8", "student-qat-int8"]
    static, ours = rows["student-int8"], rows["student-qat-int8"]
    assert ours.parent == "student-int8"
    assert ours.parent_diff == pytest.approx(ours.accuracy - static.accuracy)
    assert ours.parent_diff_low <= ours.parent_diff <= ours.parent_diff_high
    assert ours.int8_share == static.int8_share == 1.0
    said = [flag for flag in ours.flags if "against student-int8" in flag]
    assert len(said) == 1
    assert "points against student-int8" in done.stdout.replace("\n", " ")
    record = known_artifact(tmp_path / "run" / "student-qat-int8.onnx")
    assert record.options["aware"] is True
    assert record.options["training"]["epochs"] == 1
    static = known_artifact(tmp_path / "run" / "student-int8.onnx")
    assert of_metrics(record.metrics).keys() == of_metrics(static.metrics).keys() != set()


def test_a_recipe_that_asks_for_it_no_more_loses_the_rung(tmp_path):
    for name in ("student-qat-int8.onnx", "student-qat-int8.artifact.json", "student-int8.onnx"):
        (tmp_path / name).touch()
    ground = Ground(RunFolder(tmp_path), load_recipe("digits"), None, "", silent, print)
    assert aware_rung(ground, {}, "student-slim", "student-int8") is None
    assert [path.name for path in tmp_path.iterdir()] == ["student-int8.onnx"]


def test_without_the_int8_rung_that_missed_its_budget_there_is_none_to_train(tmp_path):
    for name in ("student-qat-int8.onnx", "student-qat-int8.artifact.json", "student-slim.onnx"):
        (tmp_path / name).touch()
    said = []
    ground = Ground(RunFolder(tmp_path), load_recipe("digits", AWARE), None, "", silent, said.append)
    assert aware_rung(ground, {}, "student-slim", "student-int8") is None
    assert [path.name for path in tmp_path.iterdir()] == ["student-slim.onnx"]
    assert said == ["no rung student-qat-int8: there is no student-int8 that it could start from"]


def test_nothing_changes_for_a_recipe_that_asks_for_none():
    section = load_recipe("digits").quantize
    assert not section.aware
    assert section.static.model_dump() == Quantize().model_dump()
    chosen = parse(QuantizeSection, {"aware": True, "symmetric": False}, "recipe").static
    assert type(chosen) is Quantize
    assert chosen.model_fields_set == {"symmetric"}  # so that a target fills in all other fields


def test_without_a_training_it_is_a_tenth_of_the_students():
    student = Training(epochs=60, learning_rate=0.1, optimizer="adamw", schedule="one_cycle", batch_size=32)
    chosen = QuantizeSection(aware=True).training_after(student)
    assert (chosen.epochs, chosen.optimizer, chosen.batch_size, chosen.schedule) == (6, "adamw", 32, "cosine")
    assert chosen.learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"training": {"epochs": 1, "learning_rate": 0.1}}, "'training' should be left out where aware is not true"),
        (
            {"aware": True, "training": {"epochs": 1, "learning_rate": 0.1, "precision": "bf16"}},
            "'training' should be in fp32",
        ),
        ({"awar": True}, "unknown key 'awar': did you mean 'aware'"),
    ],
)
def test_sections_that_mean_nothing_are_refused(section, message):
    with pytest.raises(UserError, match=message):
        parse(QuantizeSection, section, "recipe")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"quantize.training": "{ epochs = 1, learning_rate = 0.1, keep = 'best' }"},
            "quantize.training.keep: epochs are judged on held-out samples, and there are none",
        ),
        (
            {"distill.losses": "{ kd = { weight = 1.0, until_epoch = 1 } }"},
            "quantize.aware: no loss is left at the end",
        ),
        ({"quantize.format": "'qoperator'"}, "quantize.aware: trains int8 weights in format 'qdq', not int8 in 'qop"),
        ({"quantize.weights": "'uint8'"}, "quantize.aware: trains int8 weights in format 'qdq', not uint8 in 'qdq'"),
    ],
)
def test_mistakes_are_found_before_training(fields, message, dataset):
    recipe = load_recipe("digits", AWARE | fields)
    with pytest.raises(UserError, match=message):
        check(recipe, dataset)
        fitting.check(recipe, dataset)


def test_recurrent_students_are_refused_before_training(dataset):
    frames = replace(dataset, x_train=dataset.x_train.astype(np.float32), x_test=dataset.x_test.astype(np.float32))
    fields = AWARE | {"student.model": "audio_gru", "student.options": "{ width = 4 }"}
    with pytest.raises(
        UserError, match=r"quantize.aware: static int8 leaves the recurrent layers of audio_gru in float"
    ):
        check(load_recipe("digits", fields), frames)
