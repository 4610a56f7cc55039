"""`kdbench spiral`: prune, distil, export and judge in turns, on small networks and real digits."""

import json
import shutil

import pytest

from kdbench import UserError, pipeline, results_add
from kdbench.pipeline import checking, turns
from kdbench.pipeline import spiral as spirals
from kdbench.pipeline.origins import subject_of
from kdbench.pipeline.racing import Raced
from kdbench.pipeline.rungs import LADDER, run_subjects
from kdbench.records.turns import SpiralRecord
from kdbench.stats import Interval
from kdbench.steps import prune
from kdbench.steps import spiral as steps
from kdbench.store import RunFolder, load_artifact, load_recipe, load_record, load_result
from kdbench.training import weights
from tests.conftest import FLAT, kdbench, overrides
from tests.test_training import StopError

SPIRAL = FLAT | {
    "data.held_out_samples": "200",
    "student.options": "{ widths = [32] }",
    "student.training.epochs": "4",
    "student.training.learning_rate": "0.1",
    "spiral.parameters": "0.4",
    "spiral.step": "0.4",
    "spiral.max_drop": "100",
    "spiral.round_to": "4",
    "spiral.training": "{ epochs = 2, learning_rate = 0.02 }",
}


def recipe(**fields):
    return load_recipe("digits", SPIRAL | fields)


def journal(folder):
    return SpiralRecord.model_validate_json((folder / spirals.JOURNAL).read_text())


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """A spiral that has reached its target."""
    folder = tmp_path_factory.mktemp("spiral")
    done = kdbench("spiral", "digits", *overrides(SPIRAL), "--out", "run", cwd=folder)
    (folder / "out.txt").write_text(done.stdout)
    return folder / "run"


def quick(subjects, *_):
    """In the place of the measurement of a turn."""
    return {subjects[-1].artifact.rung: Raced(Interval(1.5, 1.4, 1.6), None, (), None)}


@pytest.fixture
def again(reached, tmp_path, monkeypatch):
    """A copy of it, to be changed; neither its turns nor its ladder are measured once more."""
    monkeypatch.setattr(turns, "raced", quick)
    monkeypatch.setattr(spirals, "_measured", lambda *_: None)
    return shutil.copytree(reached, tmp_path / "run")


def test_each_turn_is_a_rung_with_its_parent_and_really_smaller(reached):
    found = journal(reached)
    assert found.limit == "target"
    assert found.best == "spiral-2"
    first, one, two = (load_artifact(reached / f"{rung}.artifact.json") for rung in ("student", "spiral-1", "spiral-2"))
    assert [(turn.parent, turn.refusal) for turn in found.turns] == [(0, None), (1, None)]
    for parent, artifact, turn in ((first, one, found.turns[0]), (one, two, found.turns[1])):
        assert (artifact.parent, artifact.parent_sha256, artifact.step) == (parent.rung, parent.sha256, "spiral")
        assert artifact.macs < parent.macs
        assert (turn.parameters, turn.macs, turn.size_bytes, turn.onnx_sha256) == (
            artifact.parameters,
            artifact.macs,
            artifact.size_bytes,
            artifact.sha256,
        )
        assert turn.share == artifact.parameters / first.parameters
        assert turn.speedup.low < turn.speedup.value < turn.speedup.high
    assert two.parameters <= 0.4 * first.parameters
    assert one.parameters <= 0.6 * first.parameters
    assert weights.record(reached / "spiral-2.safetensors").epoch == 2
    assert one.options["spiral"]["teachers"] == ["teacher", "student"]
    assert two.options["spiral"]["teachers"] == ["teacher", "spiral-1"]


def test_turns_are_judged_on_held_out_samples_and_the_ladder_on_the_test_split(reached):
    found = journal(reached)
    assert found.samples == 200
    results = json.loads((reached / "results.json").read_text())
    assert results["baseline"] == "student"
    assert [artifact["rung"] for artifact in results["artifacts"]] == ["teacher", "student", "spiral-1", "spiral-2"]
    _, arrays = load_result(reached / "results.json")
    assert len(arrays["labels"]) == 450
    report = (reached / "report.md").read_text()
    assert "| spiral-2 " in report
    assert "| as teacher % |" in report  # while the baseline is the student
    (published,) = results_add(reached, into=reached.parent / "results")
    assert load_record(published).spiral == found


def test_the_command_says_what_stopped_it_and_what_it_ended_with(reached):
    said = " ".join((reached.parent / "out.txt").read_text().split())
    assert "the target is reached; ended with spiral-2: " in said
    assert "× fewer parameters" in said
    assert "× as fast" in said
    table = (reached / "spiral.md").read_text()
    assert table.count("\n| spiral-") == 2
    assert "not on the test split" in table


def test_a_spiral_that_has_ended_is_kept_as_it_is_but_for_a_file_that_is_gone(reached, again, monkeypatch):
    (again / "spiral-2.onnx").unlink()
    spirals.spiral(recipe(), again)
    assert (again / "spiral-2.onnx").read_bytes() == (reached / "spiral-2.onnx").read_bytes()
    files = {path: path.read_bytes() for path in again.glob("spiral-*") if path.is_file()}
    monkeypatch.setattr(spirals, "one_turn", lambda *_: pytest.fail("made again"))
    found = spirals.spiral(recipe(), again)
    assert found.record.limit == "target"
    assert {path: path.read_bytes() for path in files} == files


def test_fewer_turns_than_the_journal_knows_are_all_that_there_were(again):
    found = spirals.spiral(recipe(**{"spiral.turns": "1"}), again).record
    assert (found.limit, found.best, [turn.number for turn in found.turns]) == ("turns", "spiral-1", [1])
    assert found.remarks[0].startswith("the most turns, 1, are over; ended with spiral-1: ")
    assert not list(again.glob("spiral-2.*"))


@pytest.mark.parametrize("moment", ["in training", "before the journal"])
def test_a_spiral_that_was_stopped_ends_with_the_same_bytes(reached, again, monkeypatch, moment):
    """In its second turn, of which nothing but a checkpoint, or all but the journal, is written."""
    whole = journal(reached)
    (again / spirals.JOURNAL).write_text(whole.model_copy(update={"turns": whole.turns[:1], "limit": None}).to_json())
    for path in again.glob("spiral-2*"):
        path.unlink()

    def stop(label, done, total):
        if moment == "in training" and label == "spiral-2" and 1 <= done < 2:
            raise StopError

    if moment == "before the journal":
        monkeypatch.setattr(spirals, "_kept", lambda *_: (_ for _ in ()).throw(StopError))
    with pytest.raises(StopError):
        spirals.spiral(recipe(), again, progress=stop)
    assert (again / "spiral-2.checkpoint.safetensors").exists() == (moment == "in training")
    monkeypatch.undo()
    found = spirals.spiral(recipe(), again).record  # with its measurement
    assert found.best == whole.best
    for name in ("spiral-2.safetensors", "spiral-2.onnx"):
        assert (again / name).read_bytes() == (reached / name).read_bytes()
    assert [turn.drop for turn in found.turns] == [turn.drop for turn in whole.turns]
    assert load_record(again / "results.json").spiral == found
    assert found.turns[1].duration_s >= RunFolder(again).duration_s("spiral-2") - 1e-3  # that before the stop too


def test_a_refused_turn_is_rolled_back_and_halved(again, monkeypatch):
    """The floor is such that the first turn's model misses it and a later one's does not."""
    drops = iter([0.5, 0.0, 0.0, 0.0, 0.0])
    judged = turns._judged

    def told(walk, artifact):
        found = judged(walk, artifact)
        return found | {"drop": found["drop"].model_copy(update={"value": next(drops)})}

    monkeypatch.setattr(turns, "_judged", told)
    said = []
    found = spirals.spiral(recipe(**{"spiral.max_drop": "1", "spiral.parameters": "0.7"}), again, say=said.append)
    first, second = found.record.turns[:2]
    assert (first.refusal, first.step, second.step, second.parent) == ("accuracy", 0.4, 0.2, 0)
    assert "1 points below" in first.said
    assert any(line.startswith("spiral-1 refused: more than 1 points below") for line in said)
    assert not list(again.glob("spiral-1.*")) + list(again.glob("spiral-1-*"))
    assert found.record.limit == "target"
    assert found.best.rung == found.record.best != "spiral-1"
    assert load_artifact(again / "spiral-2.artifact.json").parent == "student"
    assert "refused" in (again / "spiral.md").read_text()


def test_a_floor_that_no_step_keeps_ends_with_the_first_model(again, monkeypatch):
    judged = turns._judged

    def worse(walk, artifact):
        found = judged(walk, artifact)
        return found | {"drop": found["drop"].model_copy(update={"value": 0.3})}

    monkeypatch.setattr(turns, "_judged", worse)
    fields = {"spiral.max_drop": "1", "spiral.smallest_step": "0.15", "spiral.training.epochs": "1"}
    found = spirals.spiral(recipe(**fields), again)
    assert (found.record.limit, found.record.best) == ("accuracy", "student")
    assert found.best.rung == "student"
    assert found.record.remarks[0].startswith("the accuracy floor stopped it: no step of 20.0 % or more")
    assert not list(again.glob("spiral-*.onnx"))


def test_channels_that_were_refused_are_not_trained_again(again, monkeypatch):
    """Rounded to 16, a smaller step removes the same ones."""
    judged, trained = turns._judged, []

    def worse(walk, artifact):
        trained.append(artifact.rung)
        found = judged(walk, artifact)
        return found | {"drop": found["drop"].model_copy(update={"value": 0.3})}

    monkeypatch.setattr(turns, "_judged", worse)
    fields = {
        "spiral.round_to": "16",
        "spiral.max_drop": "1",
        "spiral.training.epochs": "1",
        "spiral.parameters": "0.6",
    }
    RunFolder(again).note_duration("spiral-2", "training", 1e6)  # of the spiral before
    (again / "spiral-2.metrics.jsonl").write_text('{"epoch": 1, "samples_per_s": 1e-3, "duration_s": 1e6}\n')
    found = spirals.spiral(recipe(**fields), again).record
    assert [turn.refusal for turn in found.turns] == ["accuracy", *["repeated"] * (len(found.turns) - 1)]
    assert found.turns[1].said == "the same channels as in turn 1, which was refused"
    assert trained == ["spiral-1"]
    assert found.turns[1].duration_s < 1e6
    assert found.limit == "accuracy"


def test_a_pruning_that_removed_nothing_stops_it_by_name(again, monkeypatch):
    def copied(source, out, *_, **__):
        shutil.copy(source, out)

    monkeypatch.setattr(prune, "prune", copied)
    monkeypatch.setattr(turns, "_taught", lambda *_: pytest.fail("trained in vain"))
    found = spirals.spiral(recipe(**{"spiral.importance": "l1"}), again).record
    assert (found.limit, found.best, len(found.turns)) == ("nothing", "student", 1)
    assert found.remarks[0].startswith("stopped: pruning removed nothing: MACs ")


def test_a_disk_that_is_full_while_it_prunes_is_no_refusal(again, monkeypatch):
    def full(path, *_):
        raise UserError(f"{path}: cannot be written: No space left on device")

    before = (again / spirals.JOURNAL).read_bytes()
    monkeypatch.setattr(weights, "save", full)
    with pytest.raises(UserError, match="No space left"):
        spirals.spiral(recipe(**{"spiral.step": "0.3"}), again)
    assert (again / spirals.JOURNAL).read_bytes() == before


def test_the_last_model_in_int8_stands_on_the_ladder_where_all_rungs_are_asked_for(again, monkeypatch):
    measured = []
    monkeypatch.setattr(spirals, "_measured", lambda walk, record, rungs: measured.append(rungs))
    spirals.spiral(recipe(**{"quantize.all_rungs": "true"}), again)
    light, int8 = (load_artifact(again / f"spiral-{end}.artifact.json") for end in ("slim", "int8"))
    best = load_artifact(again / "spiral-2.artifact.json")
    assert (light.parent, light.parent_sha256) == ("spiral-2", best.sha256)
    assert (int8.parent, int8.parent_sha256, int8.precision) == ("spiral-slim", light.sha256, "int8")
    assert measured[0][-3:] == ["spiral-2", "spiral-slim", "spiral-int8"]
    spirals.spiral(recipe(), again)
    assert "spiral-int8" not in measured[1]
    assert not (again / "spiral-int8.onnx").exists() and (again / "spiral-2.onnx").exists()


def test_sparse_learning_leaves_the_students_own_sparse_rung_alone(again):
    (again / "student-sparse.safetensors").write_bytes(b"of [sparsify]")
    fields = {"spiral.sparse": '{ kind = "l1", strength = 1e-4, epochs = 1 }', "spiral.turns": "2"}
    fields |= {"spiral.parameters": "0.6", "spiral.training.epochs": "1"}
    assert spirals.spiral(recipe(**fields), again).record.best == "spiral-1"
    assert (again / "student-sparse.safetensors").read_bytes() == b"of [sparsify]"
    assert weights.record(again / "spiral-0-sparse.safetensors").history[0]["loss.penalty"] > 0


def test_a_last_training_is_a_rung_of_its_own(again):
    fields = {"spiral.final": "{ epochs = 6, learning_rate = 0.05 }", "spiral.parameters": "0.6"}
    found = spirals.spiral(recipe(**fields), again).record
    assert found.final is not None
    if found.final.refusal:
        assert found.best == "spiral-1"
        assert not (again / "spiral-final.onnx").exists()
    else:
        assert found.best == "spiral-final"
        final = load_artifact(again / "spiral-final.artifact.json")
        assert (final.parent, final.parameters) == ("spiral-1", found.turns[0].parameters)
    assert not list(again.glob("spiral-2.*"))  # of the spiral before


def test_a_last_training_that_was_refused_is_not_done_again(again, monkeypatch):
    judged, trained = turns._judged, []

    def worse(walk, artifact):
        trained.append(artifact.rung)
        found = judged(walk, artifact)
        return found | {"drop": found["drop"].model_copy(update={"value": 0.9})}

    monkeypatch.setattr(turns, "_judged", worse)
    fields = {"spiral.final": "{ epochs = 1, learning_rate = 0.05 }"}
    first, second = (spirals.spiral(recipe(**fields), again).record for _ in range(2))
    assert (first.final.refusal, first.best) == ("accuracy", "spiral-2")
    assert second == first
    assert trained == ["spiral-final"]


def test_a_run_and_a_spiral_in_one_folder_measure_what_each_has_made(reached, tmp_path, monkeypatch):
    """Of other data: each trains the student anew, and leaves the other's rungs, which name the one before."""
    measured = []
    for module in (pipeline, spirals):
        monkeypatch.setattr(module, "measured_run", lambda _, subjects, *__, **___: measured.append(subjects))
    run = shutil.copytree(reached, tmp_path / "run")
    pipeline.run(recipe(**{"data.held_out_samples": "100"}), run)
    with pytest.raises(UserError, match=r"spiral-1\.onnx: made from another student .*: 'kdbench spiral' with"):
        run_subjects(RunFolder(run))
    assert subject_of(run, "student-slim").artifact.parent == "student"
    spirals.spiral(recipe(), run)
    with pytest.raises(UserError, match=r"teacher-int8\.onnx: made from another teacher .*: 'kdbench run' with"):
        run_subjects(RunFolder(run))
    rungs = [[subject.artifact.rung for subject in subjects] for subjects in measured]
    assert rungs == [[*LADDER], ["teacher", "student", "spiral-1", "spiral-2"]]


def test_the_teacher_itself_can_be_the_first_model(tmp_path, monkeypatch):
    monkeypatch.setattr(spirals, "_measured", lambda *_: None)
    fields = {"spiral.start": "teacher", "spiral.parameters": "0.7", "teacher.options": "{ widths = [32] }"}
    fields |= {"teacher.training": "{ epochs = 6, learning_rate = 0.1 }"}
    own = {"teacher.preprocessing": "{ scale = -0.0625, mean = [-0.5], std = [0.5] }"}
    found = spirals.spiral(recipe(**fields, **own), tmp_path / "run")
    assert found.record.first == "teacher"
    one = load_artifact(tmp_path / "run" / "spiral-1.artifact.json")
    assert one.parent == "teacher"
    assert one.preprocessing.scale == -0.0625
    assert not (tmp_path / "run" / "student.onnx").exists()
    # Far from chance, as one would not be that learns from other images than it is shown: here white is black.
    assert found.record.turns[0].score > 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.held_out_samples": "0"}, "spiral: turns are judged on held-out samples, and there are none"),
        ({"spiral.parameters": "1.0"}, "'spiral.parameters' should be less than 1"),
        ({"spiral.parameters": "0.01"}, "spiral.parameters: 0.01 can't be reached: 0.1"),
        ({"spiral.macs": "0.5"}, "with one of macs, parameters, size and latency"),
        ({"spiral.stepp": "0.5"}, "unknown key 'spiral.stepp': did you mean 'step'"),
        ({"spiral.smallest_step": "0.5"}, "'spiral.smallest_step' should be no larger than step, 0.4"),
        ({"spiral.backend": "cpv", "spiral.parameters": None, "spiral.latency": "0.5"}, "unknown backend 'cpv'"),
        ({"spiral.ignore": '["stages.7"]'}, "no submodule 'stages.7'"),
        (
            {"spiral.sparse": '{ kind = "batch_norm", epochs = 1 }'},
            "spiral.sparse.kind: this network has no batch norms: take group",
        ),
        ({"spiral.ignore": '["nosuch"]'}, "spiral.ignore: no submodule 'nosuch'"),
        ({"distill.mode": "mutual"}, "spiral: its turns learn from teachers that are trained already"),
    ],
)
def test_what_cannot_be_walked_is_refused_before_any_training(fields, message, tmp_path):
    fields = {field: value for field, value in (SPIRAL | fields).items() if value is not None}
    with pytest.raises(UserError) as error:
        spirals.spiral(load_recipe("digits", fields), tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_a_recipe_without_a_spiral_says_how_to_add_one(tmp_path):
    done = kdbench("spiral", "digits", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "kdbench: digits: no [spiral] in the recipe: add one, or --set spiral.macs=0.5\n"


def test_check_walks_a_turn_and_says_what_all_will_take():
    found = checking.check(recipe())
    assert "spiral-1" in found.steps_s
    assert found.spiral_s > 0
    assert spirals.turns_expected(recipe().spiral) == 2


def test_a_run_with_a_spiral_in_its_recipe_is_the_same_run():
    plain = {field: value for field, value in SPIRAL.items() if not field.startswith("spiral.")}
    with_it, without = recipe(), load_recipe("digits", plain)
    assert with_it.model_copy(update={"spiral": None}) == without
    assert steps.turn_training(recipe()).epochs == 2
    shorter = steps.turn_training(load_recipe("digits", plain | {"spiral.macs": "0.5"}))
    assert (shorter.epochs, shorter.learning_rate) == (1, 0.02)
