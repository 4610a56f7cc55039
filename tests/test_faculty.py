"""Teachers at work in a training: answers that are kept, several teachers, and networks that learn from each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdbench import data
from kdbench.errors import UserError
from kdbench.pipeline import compare_methods, distill, prepared
from kdbench.pipeline.learning import taught
from kdbench.progress import silent, unsaid
from kdbench.steps import check as fitting
from kdbench.steps import teach, train
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, load_comparison, load_recipe
from kdbench.teachers import prepare
from kdbench.training import weights
from kdbench.training.teaching import Faculty
from tests.conftest import FLAT, TINY, kdbench, overrides
from tests.test_training import StopError, stop_at

VIEWS = TINY | {"data.augment": "{ shift_px = 1, mixup_alpha = 0.4, views = 2 }"}
SMALL = [
    "model = 'resnet'",
    "options = { widths = [4, 6], blocks = [1, 1] }",
    "training = { epochs = 2, learning_rate = 0.02 }",
]


@pytest.fixture(scope="module")
def teacher(dataset, tmp_path_factory):
    recipe = load_recipe("digits", VIEWS)
    return teach.teach(
        RunFolder(tmp_path_factory.mktemp("t")), "teacher", recipe.teachers[0], Lesson(recipe, dataset, "")
    )


def student(folder, recipe, dataset, teachers, *more):
    folder.mkdir(exist_ok=True)
    return train.distill(RunFolder(folder), "student", teachers, Lesson(recipe, dataset, "", *more))


@pytest.fixture
def asked(monkeypatch):
    """How many samples the teachers were asked for in batches of training or for the cache."""
    counts = []
    original = Faculty._seen

    def counted(self, member, samples, x):
        counts.append(len(x))
        return original(self, member, samples, x)

    monkeypatch.setattr(Faculty, "_seen", counted)
    return counts


def test_a_teacher_answers_each_view_once_whoever_learns_from_it(dataset, teacher, tmp_path, asked):
    recipe = load_recipe("digits", VIEWS | {"student.training.epochs": "5"})
    student(tmp_path, recipe, dataset, [teacher])
    views = 2 * len(dataset.x_train)
    assert views <= sum(asked) <= views + 2  # two samples more for the shapes
    asked.clear()
    warmer = load_recipe("digits", VIEWS | {"distill.temperature": "2"})
    student(tmp_path, warmer, dataset, [teacher])
    assert sum(asked) <= 2


def test_kept_answers_teach_what_given_ones_do(dataset, teacher, tmp_path):
    kept, given = (
        weights.load(student(tmp_path / name, load_recipe("digits", VIEWS | fields), dataset, [teacher]))
        for name, fields in (("kept", {}), ("given", {"distill.cache": "false"}))
    )
    assert (tmp_path / "kept" / "teacher.logits-0" / "view-1.npy").is_file()
    assert not (tmp_path / "given" / "teacher.logits-0").exists()
    for ours, theirs in zip(kept[1].history, given[1].history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)  # half precision


def test_a_stopped_training_with_kept_answers_ends_with_the_same_bytes(dataset, teacher, tmp_path):
    recipe = load_recipe("digits", VIEWS)
    whole = student(tmp_path / "whole", recipe, dataset, [teacher]).read_bytes()
    with pytest.raises(StopError):
        student(tmp_path / "parts", recipe, dataset, [teacher], stop_at(2))
    assert student(tmp_path / "parts", recipe, dataset, [teacher]).read_bytes() == whole


def test_answers_of_another_teacher_are_never_taken(dataset, teacher, tmp_path):
    recipe, said = load_recipe("digits", VIEWS), []
    student(tmp_path, recipe, dataset, [teacher])
    other = load_recipe("digits", VIEWS | {"teacher.training.epochs": "1"})
    second = teach.teach(RunFolder(tmp_path), "teacher", other.teachers[0], Lesson(other, dataset, ""))
    taught = student(tmp_path, recipe, dataset, [second], lambda *a: None, said.append)
    assert len(said) == 1
    assert "answered again" in said[0]
    fresh = student(tmp_path / "fresh", recipe, dataset, [second])
    assert taught.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"data.augment": "{ shift_px = 1 }"}, False),
        ({"data.augment": "{}"}, True),
        ({"distill.losses": '{ hint = { pairs = [["stages.0", "stages.0"]] } }'}, False),
    ],
)
def test_answers_are_kept_where_views_come_again_and_logits_are_enough(dataset, teacher, tmp_path, fields, kept):
    recipe = load_recipe("digits", VIEWS | {"student.training.epochs": "1"} | fields)
    student(tmp_path, recipe, dataset, [teacher])
    assert (tmp_path / "teacher.logits-0").exists() == kept


# --- several teachers -------------------------------------------------------------------------------------------------


def recipe_of(tmp_path, *teachers, losses="{ cross_entropy = 0.5, kd = 0.5 }", more=""):
    sections = "\n".join("[[teacher]]\n" + "\n".join(lines) for lines in teachers)
    path = tmp_path / "several.toml"
    path.write_text(
        f"""
name = "several"
[data]
source = "digits"
{sections}
[student]
model = "resnet"
options = {{ widths = [4, 6], blocks = [1, 1] }}
training = {{ epochs = 2, learning_rate = 0.02 }}
[distill]
losses = {losses}
{more}
[bench]
budget_s = 0.1
"""
    )
    return load_recipe(str(path))


def test_two_teachers_are_rungs_and_their_mean_is_what_is_taught(tmp_path, dataset):
    other = ["model = 'mlp'", "options = { widths = [32] }", "training = { epochs = 2, learning_rate = 0.02 }"]
    recipe = recipe_of(tmp_path, [*SMALL, "weight = 3.0"], other)
    artifacts = distill(recipe, tmp_path / "run")
    assert list(artifacts) == ["teacher-1", "teacher-2", "student"]
    assert artifacts["student"].parent == "teacher-1"
    run = RunFolder(tmp_path / "run")
    models = [weights.model_of(run.weights(name))[0] for name in recipe.teacher_names]
    x = dataset.x_train[:8]
    voices = [
        (name, run.weights(name), of.weight) for name, of in zip(recipe.teacher_names, recipe.teachers, strict=True)
    ]
    with train._at_work(voices, recipe) as members:
        faculty = Faculty(members, dataset.preprocessing, 10)
        seen = torch.from_numpy(train.apply(x, dataset.preprocessing))
        said = faculty.say(x, seen, np.arange(8))
    with torch.no_grad():
        torch.testing.assert_close(said.logits.detach(), 0.75 * models[0](seen) + 0.25 * models[1](seen))


def test_teachers_of_parts_of_the_classes_teach_what_they_know_and_are_no_rungs(tmp_path):
    """Each was trained on ten classes; five of them are taken as its own."""
    low = {str(digit): str(digit) for digit in range(5)}
    high = {str(digit): str(digit) for digit in range(5, 10)}
    plain = load_recipe("digits", TINY)
    whole = teach.teach(RunFolder(tmp_path), "whole", plain.teachers[0], Lesson(plain, data.load(plain.data), ""))
    sections = [
        [
            "model = 'resnet'",
            "options = { widths = [6, 12], blocks = [1, 1] }",
            f"weights = '{whole.name}'",
            f"class_map = {{ {', '.join(f'{own} = {meant!r}' for own, meant in part.items())} }}",
        ]
        for part in (low, high)
    ]
    recipe, said = recipe_of(tmp_path, *sections, losses="{ kd = 1.0 }"), []
    artifacts = distill(recipe, tmp_path / "run", say=said.append)
    assert list(artifacts) == ["student"]
    assert (artifacts["student"].parent, artifacts["student"].step) == (None, "distill")
    assert [sentence for sentence in said if sentence.startswith("no rung teacher-1: it knows a part")]
    history = weights.load(RunFolder(tmp_path / "run").weights("student"))[1].history
    assert 0 < history[-1]["loss"] < history[0]["loss"]


def test_a_teacher_that_the_recipe_has_no_more_is_no_rung_any_more(tmp_path):
    other = ["model = 'mlp'", "options = { widths = [8] }", "training = { epochs = 1, learning_rate = 0.02 }"]
    distill(recipe_of(tmp_path, other, other), tmp_path / "run")
    distill(recipe_of(tmp_path, other), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.onnx")) == ["student.onnx", "teacher.onnx"]


def test_whether_answers_were_kept_is_a_part_of_what_the_training_started_from(dataset, teacher, tmp_path):
    fields = VIEWS | {"student.training.epochs": "1"}
    kept = student(tmp_path, load_recipe("digits", fields), dataset, [teacher]).read_bytes()
    given = student(tmp_path, load_recipe("digits", fields | {"distill.cache": "false"}), dataset, [teacher])
    assert given.read_bytes() != kept


def test_features_of_several_teachers_are_refused(tmp_path, dataset):
    recipe = recipe_of(tmp_path, SMALL, SMALL, losses='{ hint = { pairs = [["stages.0", "stages.0"]] } }')
    with pytest.raises(UserError, match=r"distill.losses.hint: reads features of one teacher, and there are several"):
        fitting.check(recipe, dataset)
    parameters = recipe_of(tmp_path, SMALL, SMALL, losses="{ kd = 1.0, parameters = 1.0 }")
    with pytest.raises(UserError, match=r"distill.losses.parameters: reads parameters of one teacher, and there are"):
        fitting.check(parameters, dataset)
    started = recipe_of(tmp_path, SMALL, SMALL, more='start_from = { stem = "stem" }')
    with pytest.raises(UserError, match=r"distill.start_from: there are several teachers"):
        fitting.check(started, dataset)


def test_a_mistake_in_one_of_several_teachers_says_which(tmp_path, dataset):
    recipe = recipe_of(tmp_path, SMALL, ["model = 'resnet'"])
    with pytest.raises(UserError, match=r"^teacher.2.training: is missing"):  # whose rung is teacher-2
        fitting.check(recipe, dataset)


def test_classes_that_nobody_teaches_are_named(tmp_path, dataset):
    plain = load_recipe("digits", TINY)
    teach.teach(RunFolder(tmp_path), "whole", plain.teachers[0], Lesson(plain, dataset, ""))
    section = [*SMALL[:1], "options = { widths = [6, 12], blocks = [1, 1] }", "weights = 'whole.safetensors'"]
    recipe = recipe_of(tmp_path, [*section, "class_map = { 0 = '0', 1 = '1' }"], losses="{ kd = 1.0 }")
    fitting.check(recipe, dataset)
    with pytest.raises(UserError, match=r"no teacher knows 8 of the data's classes, such as '2'"):
        fitting.check(recipe, replace(dataset, y_train=None))


# --- mutual learning --------------------------------------------------------------------------------------------------

MUTUAL = TINY | {
    "student.training.epochs": "6",
    "distill.mode": "mutual",
    "distill.losses": "{ cross_entropy = 1.0, kd = 1.0 }",
}


def test_student_and_teacher_learn_from_each_other(dataset, tmp_path):
    recipe = load_recipe("digits", MUTUAL)
    fitting.check(recipe, dataset)
    ours, theirs = train.mutual(RunFolder(tmp_path), ("student", "teacher"), Lesson(recipe, dataset, ""))
    assert weights.load(ours)[1].options == {"widths": [4, 8], "blocks": [1, 1]}
    assert weights.load(theirs)[1].options == {"widths": [6, 12], "blocks": [1, 1]}
    x = torch.from_numpy(train.apply(dataset.x_test, dataset.preprocessing))
    for path in (ours, theirs):
        with torch.no_grad():
            right = (weights.model_of(path)[0](x).argmax(1).numpy() == dataset.y_test).mean()
        assert right > 0.6
    alone = load_recipe("digits", MUTUAL | {"distill.losses": "{ cross_entropy = 1.0 }"})
    (tmp_path / "alone").mkdir()
    apart, other = train.mutual(RunFolder(tmp_path / "alone"), ("student", "teacher"), Lesson(alone, dataset, ""))
    for together, alone_path in ((ours, apart), (theirs, other)):
        first, second = weights.load(together)[0], weights.load(alone_path)[0]
        assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_teacher_of_a_mutual_training_needs_none_of_its_own(dataset, tmp_path):
    recipe = load_recipe("digits", MUTUAL | {"student.training.epochs": "2"})
    untold = recipe.model_copy(update={"teacher": recipe.teachers[0].model_copy(update={"training": None})})
    fitting.check(untold, dataset)
    ends = []
    for name, chosen in (("told", recipe), ("untold", untold)):
        (tmp_path / name).mkdir()
        student, _ = train.mutual(RunFolder(tmp_path / name), ("student", "teacher"), Lesson(chosen, dataset, ""))
        ends.append(weights.load(student)[0])
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_stopped_mutual_training_ends_with_the_same_bytes(dataset, tmp_path):
    recipe = load_recipe("digits", MUTUAL | {"student.training.epochs": "3"})
    ends = []
    for name, stops in (("whole", ()), ("parts", (2,))):
        (tmp_path / name).mkdir()
        run = RunFolder(tmp_path / name)
        for stop in stops:
            with pytest.raises(StopError):
                train.mutual(run, ("student", "teacher"), Lesson(recipe, dataset, "", stop_at(stop)))
        ends.append(
            [path.read_bytes() for path in train.mutual(run, ("student", "teacher"), Lesson(recipe, dataset, ""))]
        )
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill.losses": '{ hint = { pairs = [["stages.0", "stages.0"]] } }'}, "mutual learning is by losses on"),
        ({"distill.start_from": '{ stem = "stem" }'}, "distill.start_from: in mutual learning the teacher has nothing"),
        ({"teacher.preprocessing": "{ mean = [0.5] }"}, "distill.mode: in mutual learning both see the same inputs"),
        ({"teacher.weights": "a.safetensors"}, "or your own: leave teacher.weights out"),
        ({"teacher.source": "timm"}, "or your own: leave teacher.source out"),
    ],
)
def test_what_mutual_learning_cannot_do_is_refused(dataset, fields, message):
    with pytest.raises(UserError, match=message):
        fitting.check(load_recipe("digits", MUTUAL | fields), dataset)


def test_mutual_learning_without_labels_has_nothing_to_judge_epochs_by(dataset, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    fields = {"distill.losses": "{ kd = 1.0 }", "data.held_out_samples": "50"}
    unlabelled = replace(dataset.with_held_out(50), y_train=None, y_held_out=None)
    recipe = load_recipe("digits", MUTUAL | fields)
    own = {"model": "own.py:net", "options": {}, "training": None}
    recipe = recipe.model_copy(update={"teacher": recipe.teachers[0].model_copy(update=own)}).placed(tmp_path)
    with pytest.raises(UserError, match=r"distill.mode: in mutual learning labels judge an epoch"):
        fitting.check(recipe, unlabelled)


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_methods_are_compared_over_seeds_and_kept(tmp_path):
    together = {"methods.together": '{ mode = "mutual", losses = { cross_entropy = 1.0, kd = 1.0 } }'}
    once = {"teacher.training.epochs": "1", "student.training.epochs": "1"}
    arguments = ["distill", "digits", *overrides(FLAT | together | once), "--seeds", "2", "--baseline", "--out", "run"]
    printed = kdbench(*arguments, cwd=tmp_path).stdout
    lines = [line for line in printed.splitlines() if line.startswith(("teacher", "alone", "distilled", "together"))]
    assert [line.split()[0] for line in lines] == ["teacher", "alone", "distilled", "together"]
    assert [line.replace("¹", "").replace("²", "").split()[1] for line in lines] == ["1", "2", "2", "2"]
    assert max(map(len, printed.splitlines())) <= 100
    students = {path: path.read_bytes() for path in (tmp_path / "run").rglob("student*.safetensors")}
    assert len(students) == len(set(students.values())) == 6
    assert kdbench(*arguments, cwd=tmp_path).stdout == printed
    assert {path: path.read_bytes() for path in students} == students
    assert sorted(path.name for path in (tmp_path / "run").glob("*.onnx")) == [
        "student-alone.onnx",
        "student.onnx",
        "teacher.onnx",
    ]


def test_last_and_best_epoch_are_judged_and_the_other_one_is_no_rung(tmp_path):
    recipe = load_recipe("digits", FLAT | {"data.held_out_samples": "100", "student.training.keep": "best"})
    found = compare_methods(recipe, tmp_path / "run")
    trials = load_comparison(found.comparison)[0].trials
    assert [(trial.method, trial.kept) for trial in trials] == [
        ("teacher", "last"),
        ("teacher", "best"),
        ("distilled", "best"),
        ("distilled", "last"),
    ]
    assert sorted(path.name for path in (tmp_path / "run").glob("*.onnx")) == ["student.onnx", "teacher.onnx"]
    assert "best %" in found.table.header


@pytest.mark.parametrize("name", ["alone", "distilled", "teacher", "teacher-2", "kd-best", "kd-last"])
def test_a_method_has_no_name_that_a_comparison_gives_to_something_else(name):
    with pytest.raises(UserError, match=rf"'methods' should be without the name '{name}'"):
        load_recipe("digits", TINY | {f"methods.{name}": "{ losses = { kd = 1.0 } }"})


def test_mutual_learning_leaves_the_teacher_of_other_methods_as_it_is(tmp_path):
    offline = {"methods.offline": "{ losses = { kd = 1.0 } }", "student.training.epochs": "1"}
    recipe = load_recipe("digits", MUTUAL | FLAT | offline)
    run = RunFolder(tmp_path / "run")
    compare_methods(recipe, run.path)
    assert weights.load(run.weights("teacher"))[1].epoch == recipe.teachers[0].training.epochs != 1
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")}
    compare_methods(recipe, run.path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_baseline_needs_labels(tmp_path):
    x = np.random.default_rng(0).random((40, 4), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x_train=x, x_test=x)
    (tmp_path / "own.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 2)\n"
    )
    (tmp_path / "r.toml").write_text(
        """
name = "r"
data = { source = "arrays", options = { path = "data.npz", labelled = false, classes = ["a", "b"] } }
teacher = { model = "own.py:net" }
student = { model = "mlp", training = { epochs = 1, learning_rate = 0.1 } }
distill = { losses = { kd = 1.0 } }
"""
    )
    done = kdbench("distill", "r.toml", "--baseline", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "a student without a teacher (--baseline) needs them" in done.stderr
    assert "agree %" in kdbench("distill", "r.toml", "--seeds", "2", cwd=tmp_path).stdout


def test_a_teacher_is_loaded_once_and_taught_from_that(dataset, tmp_path, monkeypatch):
    fields = {**TINY, "teacher.model": '"mlp"', "teacher.options": "{ widths = [8] }", "teacher.training.epochs": "1"}
    fields |= {"student.model": '"mlp"', "student.options": "{ widths = [4] }", "student.training.epochs": "1"}
    recipe, loads = load_recipe("digits", fields), []
    monkeypatch.setattr(teach, "prepare", lambda *given: (loads.append(given), prepare(*given))[1])
    distill(recipe, tmp_path / "whole")
    assert len(loads) == 1
    (tmp_path / "again").mkdir()
    ground = prepared(RunFolder(tmp_path / "again"), recipe, silent, unsaid)
    ground.teachers.clear()
    (alone,) = taught(ground)
    assert len(loads) == 3
    assert alone.read_bytes() == (tmp_path / "whole" / "teacher.safetensors").read_bytes()
