"""Optimizers, schedules and what else a training may ask for: each does what its paper or torch says, and resumes."""

import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import data
from kdbench.errors import UserError
from kdbench.models import build
from kdbench.records import Data, Loss, Recipe, Training, parse
from kdbench.steps import check as fitting
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_recipe, zoo_recipes
from kdbench.training import metrics, optimizer, weights
from kdbench.training.optimizer import learning_rate
from tests.conftest import REPOSITORY, TINY
from tests.test_training import StopError, stop_at

TIMES = ("samples_per_s", "duration_s")
"""Of the metrics of an epoch: those that no two trainings have in common."""
MLP = TINY | {
    "student.model": '"mlp"',
    "student.options": "{ widths = [16] }",
    "student.training.epochs": "4",
    "data.held_out_samples": "200",
}


def recipe_with(base=MLP, **fields):
    return load_recipe("digits", base | {f"student.training.{name}": value for name, value in fields.items()})


@pytest.fixture(scope="module")
def dataset():
    return data.load(recipe_with().data)


def trained(folder, recipe, dataset, progress=None):
    folder.mkdir(exist_ok=True)
    more = (progress,) if progress else ()
    return train.train(RunFolder(folder), "student", Lesson(recipe, dataset, "", *more))


def stepped_by_hand(kind, training, batches, **options):
    """The parameters of a linear model after plain steps of a torch optimizer, and after ours."""
    ends = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        made = optimizer.make(training, model) if ours else kind(model.parameters(), **options)
        for x in batches:
            made.zero_grad()
            model(x).square().mean().backward()
            made.step()
        ends.append(model.weight.detach().clone())
    return ends


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.999)}),
    ],
)
def test_an_optimizer_is_torchs(name, kind, options):
    training = Training(epochs=1, learning_rate=0.1, optimizer=name, momentum=0.8, weight_decay=0.1)
    plain, ours = stepped_by_hand(kind, training, torch.randn(5, 8, 4), lr=0.1, weight_decay=0.1, **options)
    assert torch.equal(plain, ours)


def test_norms_and_biases_may_be_spared_weight_decay():
    model = build("resnet", {"widths": [4], "blocks": [1]}, (1, 8, 8), 10)
    training = Training(epochs=1, learning_rate=0.1, momentum=0, weight_decay=0.5, decay_norms=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = optimizer.make(training, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1
        assert torch.allclose(parameter, before[name] * (1.0 if spared else 0.95)), name


def test_one_cycle_is_torchs():
    training = Training(epochs=2, learning_rate=0.4, schedule="one_cycle", warmup_share=0.3, momentum=0.95)
    for name in ("sgd", "adamw"):
        ours, theirs = (
            optimizer.make(training.model_copy(update={"optimizer": name}), nn.Linear(1, 1)) for _ in range(2)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.4, total_steps=50)
        for step in range(50):
            optimizer.set_step(ours, step, 50, training)
            for field in {"lr", "momentum", "betas"} & ours.param_groups[0].keys():
                assert ours.param_groups[0][field] == pytest.approx(theirs.param_groups[0][field], abs=1e-12), step
            theirs.step()
            schedule.step()


@pytest.mark.parametrize(("share", "steps"), [(0.0, 10), (0.1, 10), (0.2, 1), (0.9, 3)])
def test_one_cycle_of_few_steps_has_a_learning_rate(share, steps):
    training = Training(epochs=1, learning_rate=1.0, schedule="one_cycle", warmup_share=share)
    rates = [learning_rate(step, steps, training) for step in range(steps)]
    assert all(0 < rate <= 1.0 for rate in rates)


def test_the_step_schedule_falls_after_its_epochs():
    training = Training(
        epochs=10, learning_rate=1.0, schedule="step", step_epochs=(4, 8), step_factor=0.5, warmup_share=0.1
    )
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:40] == [1.0] * 31
    assert rates[40:80] == [0.5] * 40
    assert rates[80:] == [0.25] * 20


def test_a_constant_schedule_stays_after_the_warm_up():
    training = Training(epochs=1, learning_rate=1.0, schedule="constant", warmup_share=0.5)
    assert [learning_rate(step, 4, training) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "step"}, r"'step_epochs' should be epochs after which the learning rate falls, such as \[10, 20"),
        ({"step_epochs": [2]}, r"'step_epochs' should be left out where schedule is not 'step', not \[2\]"),
        ({"schedule": "step", "step_epochs": [9]}, "'step_epochs' should be epochs before the last one, 4"),
        ({"ema_decay": 1.0}, "'ema_decay' should be less than 1"),
        ({"clip_norm": 0}, "'clip_norm' should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        parse(Training, {"epochs": 4, "learning_rate": 0.1} | fields, "here")


@pytest.mark.parametrize(("field", "value"), [("patience_epochs", "2"), ("keep", '"best"')])
def test_judging_epochs_needs_held_out_samples(field, value):
    recipe = recipe_with(**{field: value})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"held_out_samples": 0})})
    with pytest.raises(UserError, match=f"student.training.{field}: .* set data.held_out_samples"):
        fitting.check(recipe, data.load(recipe.data))


def test_the_documentation_names_every_option_and_its_recipe_holds():
    text = (REPOSITORY / "docs" / "training.md").read_text()
    assert [name for name in Training.model_fields if f"`{name}`" not in text] == []
    block, *_ = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    shown = tomllib.loads(block)
    plain = tomllib.loads(zoo_recipes()["digits"].read_text())
    student = plain["student"] | {"training": shown["student"]["training"]}
    recipe = parse(Recipe, plain | {"threads": shown["threads"], "data": shown["data"], "student": student}, "docs")
    fitting.check(recipe, data.load(recipe.data))


def test_held_out_samples_are_no_training_samples():
    whole = data.load(Data(source="digits"))
    cut = data.load(Data(source="digits", held_out_samples=100))
    assert len(cut.x_held_out) == len(cut.y_held_out) == 100
    assert np.bincount(cut.y_held_out).min() >= 8
    again = np.concatenate([cut.x_train, cut.x_held_out]).reshape(len(whole.x_train), -1)
    assert sorted(map(bytes, again)) == sorted(map(bytes, whole.x_train.reshape(len(whole.x_train), -1)))
    with pytest.raises(UserError, match=r"data.held_out_samples: 99999 of"):
        data.load(Data(source="digits", held_out_samples=99999))


RESUMED = {
    "adam": {"optimizer": '"adam"', "learning_rate": "0.01"},
    "adamw": {
        "optimizer": '"adamw"',
        "learning_rate": "0.01",
        "decay_norms": "false",
        "schedule": '"step"',
        "step_epochs": "[2]",
    },
    "one cycle, clipped": {"schedule": '"one_cycle"', "clip_norm": "0.5"},
    "average, best": {"ema_decay": "0.9", "keep": '"best"', "learning_rate": "0.5"},
    "early stop": {"patience_epochs": "1", "learning_rate": "3.0", "warmup_share": "0", "epochs": "8"},
    "bf16": {"precision": '"bf16"', "optimizer": '"adam"', "learning_rate": "0.01"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_training_of_any_kind_ends_with_the_same_files(name, dataset, tmp_path):
    convolutions = name in ("bf16", "average, best")  # have norms, and layouts
    base = TINY | {"data.held_out_samples": "200"} if convolutions else MLP
    recipe = recipe_with(base, **RESUMED[name])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(whole, recipe, dataset)
    for epoch in (1, 2):
        try:
            trained(parts, recipe, dataset, stop_at(epoch))
        except StopError:
            continue
        assert name == "early stop"
    trained(parts, recipe, dataset)
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert files == [
        "student-last.safetensors" if "best" in name else "student-best.safetensors",
        "student.safetensors",
    ]
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
    lines = [
        [json.loads(line) for line in (folder / "student.metrics.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    untimed = [[{k: v for k, v in line.items() if k not in TIMES} for line in entries] for entries in lines]
    assert untimed[0] == untimed[1]
    assert all(line["samples_per_s"] > 0 for line in lines[1])


def test_the_average_of_the_weights_is_what_is_kept(dataset, tmp_path):
    """Recomputed from the weights after every step, which one batch an epoch leaves in the checkpoints."""
    fields = {"ema_decay": "0.7", "batch_size": "5000", "learning_rate": "0.5", "epochs": "3"}
    recipe = recipe_with(TINY, **fields)
    steps = []
    for epoch in (1, 2):
        with pytest.raises(StopError):
            trained(tmp_path, recipe, dataset, stop_at(epoch))
        steps.append(weights.load(RunFolder(tmp_path).checkpoint("student"))[0])
    for name in ("head.weight", "stem.1.running_mean"):
        expected = 0.7 * steps[0][f"model.{name}"] + 0.3 * steps[1][f"model.{name}"]
        assert torch.allclose(steps[1][f"average.module.{name}"], expected, atol=1e-6), name
    end = weights.load(trained(tmp_path, recipe, dataset))[0]
    assert not torch.allclose(end["head.weight"], steps[1]["model.head.weight"], atol=1e-4)


def test_gradients_are_clipped_to_a_norm(dataset, tmp_path):
    fields = {"batch_size": "5000", "epochs": "1", "momentum": "0", "weight_decay": "0", "warmup_share": "0"}
    recipe = recipe_with(learning_rate="1.0", clip_norm="0.01", **fields)
    before = train.initial(recipe.student, dataset, recipe.seed, "student", recipe.folder).state_dict()
    after = weights.load(trained(tmp_path, recipe, dataset))[0]
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_training_stops_early_and_both_epochs_are_kept(dataset, tmp_path):
    recipe = recipe_with(epochs="30", patience_epochs="2", learning_rate="0.3", keep='"best"')
    best, record = weights.load(trained(tmp_path, recipe, dataset))
    scores = [entry["held_out"] for entry in record.history]
    assert len(scores) < 30
    assert record.kept == "best"
    assert record.epoch == 1 + int(np.argmax(scores)) == len(scores) - 2
    last, its_record = weights.load(RunFolder(tmp_path).weights_of_epoch("student", "last"))
    assert (its_record.kept, its_record.epoch) == ("last", len(scores))
    for tensors, score in ((best, max(scores)), (last, scores[-1])):
        model = train.initial(recipe.student, dataset, 0, "student", recipe.folder).eval()
        model.load_state_dict(tensors)
        x = torch.from_numpy(train.apply(dataset.x_held_out, dataset.preprocessing))
        with torch.no_grad():
            said = model(x).argmax(dim=1).numpy()
        assert float(np.mean(said == dataset.y_held_out)) == pytest.approx(score)


def test_without_held_out_samples_there_is_one_file(tmp_path):
    recipe = recipe_with(TINY, epochs="1")
    trained(tmp_path, recipe, data.load(recipe.data))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["student.safetensors"]


@pytest.mark.parametrize(
    ("logits", "target", "task", "expected"),
    [
        ([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 1], "classification", 2 / 3),
        ([[1.0, -1.0], [1.0, 1.0]], [[1, 1], [1, 0]], "multi_label", 2 * 2 / (3 + 3)),
        ([[-1.0, -1.0]], [[0, 0]], "multi_label", 1.0),
    ],
)
def test_an_epoch_is_judged_by_accuracy_or_f1(logits, target, task, expected):
    assert metrics.judge(torch.tensor(logits), torch.tensor(target), task) == pytest.approx(expected)


def test_without_labels_an_epoch_is_judged_by_agreement_with_the_teacher(dataset, tmp_path):
    recipe = recipe_with(epochs="2")
    teacher = trained(tmp_path, recipe, dataset)
    alike = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"losses": {"kd": Loss()}})})
    ours = replace(dataset, y_held_out=None)
    student = train.distill(RunFolder(tmp_path), "distilled", [teacher], Lesson(alike, ours, ""))
    judged, x = weights.load(student)[1].history[-1]["held_out"], dataset.x_held_out
    with torch.no_grad():
        said = [
            weights.model_of(path)[0](torch.from_numpy(train.apply(x, dataset.preprocessing))).argmax(dim=1)
            for path in (teacher, student)
        ]
    assert float((said[0] == said[1]).double().mean()) == pytest.approx(judged)
    assert judged < 1


def test_metrics_of_a_damaged_file_are_written_again(dataset, tmp_path):
    recipe = recipe_with(epochs="2")
    with pytest.raises(StopError):
        trained(tmp_path, recipe, dataset, stop_at(1))
    path = RunFolder(tmp_path).metrics("student")
    path.write_text('{"epoch": 1, "lo')
    trained(tmp_path, recipe, dataset)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["epoch"] == 1
    assert not first.keys() & set(TIMES)
    assert second.keys() == {
        "epoch",
        "loss",
        "loss.cross_entropy",
        "learning_rate",
        "held_out",
        *TIMES,
        "precision",
    }


def test_tensorboard_shows_every_epoch_once(dataset, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_with(epochs="3")
    with pytest.raises(StopError):
        trained(tmp_path, recipe, dataset, stop_at(2))
    path = trained(tmp_path, recipe, dataset)
    curves = EventAccumulator(str(RunFolder(tmp_path).tensorboard("student")))
    curves.Reload()
    events = curves.Scalars("held_out")
    assert [event.step for event in events] == [1, 2, 3]
    assert events[-1].value == pytest.approx(weights.load(path)[1].history[-1]["held_out"])


def test_bf16_is_another_training_and_its_file_is_plain(dataset, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        recipe = recipe_with(TINY, precision=f'"{precision}"', epochs="2")
        tensors, record = weights.load(trained(tmp_path / precision, recipe, dataset))
        found[precision] = tensors
        assert record.precision == precision
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in tensors.values())
    assert not torch.equal(found["fp32"]["head.weight"], found["bf16"]["head.weight"])
    assert torch.allclose(found["fp32"]["head.weight"], found["bf16"]["head.weight"], atol=0.1)


@pytest.mark.parametrize(("speedup", "chosen"), [(1.2, "bf16"), (1.1, "fp32")])
def test_a_measurement_chooses_the_precision_and_changes_nothing_else(speedup, chosen, dataset, tmp_path, monkeypatch):
    """The clock is ours: each timed step of fp32 takes `speedup` times as long as one of bf16."""
    plain = recipe_with(TINY, precision=f'"{chosen}"', epochs="2")
    expected = weights.load(trained(tmp_path / "plain", plain, dataset))[0]
    ticks = iter(np.cumsum([0, speedup, 0, 1.0] * 5).tolist())
    monkeypatch.setattr("kdbench.training.precision.now", lambda: next(ticks))
    measured = recipe_with(TINY, precision='"auto"', epochs="2")
    tensors, record = weights.load(trained(tmp_path / "auto", measured, dataset))
    assert record.precision == chosen
    assert record.bf16_speedup == pytest.approx(speedup)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


def test_a_resumed_training_keeps_its_measured_precision(dataset, tmp_path, monkeypatch):
    recipe = recipe_with(TINY, precision='"auto"', epochs="2")
    ticks = iter(np.cumsum([0, 2.0, 0, 1.0] * 5).tolist())
    monkeypatch.setattr("kdbench.training.precision.now", lambda: next(ticks))
    with pytest.raises(StopError):
        trained(tmp_path, recipe, dataset, stop_at(1))
    record = weights.load(trained(tmp_path, recipe, dataset))[1]  # measuring again would run out of ticks
    assert (record.precision, record.bf16_speedup) == ("bf16", pytest.approx(2.0))
