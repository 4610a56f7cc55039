"""A spiral's targets, teachers and ends: what can't be reached is refused at once, and what stopped it is said."""

import shutil
import sys
from dataclasses import replace

import pytest

from kdbench import UserError, pipeline
from kdbench.pipeline import checking, turns
from kdbench.pipeline import spiral as spirals
from kdbench.pipeline.learning import prepared
from kdbench.pipeline.racing import Raced, raced
from kdbench.progress import silent, unsaid
from kdbench.pruning import structured
from kdbench.pruning.targets import cost
from kdbench.records import Prune
from kdbench.records.turns import SpiralRecord, TurnRecord
from kdbench.report.spiral import ended
from kdbench.search.spiral import Bounds, Outcome, spiral
from kdbench.stats import Interval
from kdbench.steps import prune, train
from kdbench.steps import spiral as steps
from kdbench.store import RunFolder, load_artifact, load_recipe
from tests.prunable import SMALL, samples, small
from tests.test_spiral import SPIRAL, quick

WALKED = {field: value for field, value in SPIRAL.items() if field != "spiral.parameters"} | {
    "spiral.training": "{ epochs = 1, learning_rate = 0.02 }"
}


def recipe(**fields):
    return load_recipe("digits", WALKED | fields)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run with teacher and student, before any turn."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    pipeline.distill(recipe(), folder)
    return folder


@pytest.fixture
def run(taught, tmp_path, monkeypatch):
    """A copy of it; neither the turns nor the ladder of what becomes of it are measured."""
    monkeypatch.setattr(turns, "raced", quick)
    monkeypatch.setattr(spirals, "_measured", lambda *_: None)
    return shutil.copytree(taught, tmp_path / "run")


def looks(monkeypatch, share):
    """The narrowest network takes such a share of the latency."""
    seen = iter([1.0, share])
    monkeypatch.setattr(steps, "beside_the_first", lambda *_: lambda model: next(seen))


# --- until what -------------------------------------------------------------------------------------------------------


def test_it_walks_to_a_latency(run, monkeypatch):
    looks(monkeypatch, 0.1)
    times(monkeypatch, Raced(Interval(2.25, 2.2, 2.3), None, (), None))
    found = spirals.spiral(recipe(**{"spiral.latency": "0.6"}), run).record
    assert (found.limit, found.best, [turn.share for turn in found.turns]) == ("target", "spiral-1", [1 / 2.25])
    assert found.remarks[0].startswith("the target is reached; ended with spiral-1: ")
    assert found.remarks[0].endswith(", 2.25 × as fast")


def times(monkeypatch, found):
    """A turn is timed so."""
    monkeypatch.setattr(turns, "raced", lambda subjects, *_: {subjects[-1].artifact.rung: found})


def test_a_latency_is_measured_beside_the_first_model(run, monkeypatch):
    looks(monkeypatch, 0.01)
    monkeypatch.setattr(turns, "raced", raced)
    found = spirals.spiral(recipe(**{"spiral.latency": "0.05", "spiral.turns": "1"}), run).record
    (turn,) = found.turns
    assert turn.share == pytest.approx(1 / turn.speedup.value)
    assert "speed-up" in (run / "spiral.md").read_text()


def test_what_speaks_against_a_turns_times_stands_below_the_table(run, monkeypatch):
    busy = "something else kept the machine busy"
    times(monkeypatch, Raced(Interval(1.25, 1.2, 1.3), None, (), None, (busy,)))
    fields = {"spiral.turns": "1", "spiral.final": "{ epochs = 1, learning_rate = 0.02 }"}
    found = spirals.spiral(recipe(**fields), run).record
    assert found.turns[0].doubts == found.final.doubts == (busy,)
    assert busy in (run / "spiral.md").read_text()


@pytest.mark.parametrize("error", [None, "cpu: out of memory"])
def test_a_turn_that_cannot_be_timed_says_why_and_is_taken(run, monkeypatch, error):
    def fails(subjects, *_):
        if error:
            raise UserError(error)
        return {subjects[-1].artifact.rung: Raced(None, None, (), None)}

    monkeypatch.setattr(turns, "raced", fails)
    (turn,) = spirals.spiral(recipe(**{"spiral.turns": "1"}), run).record.turns
    assert (turn.speedup, turn.refusal) == (None, None)
    why = f"spiral-1 on cpu: {error or 'too few rounds were measured'}"
    assert turn.doubts == (f"not timed: {why}",)
    table = (run / "spiral.md").read_text()
    assert why in table
    assert "speed-up" not in table
    looks(monkeypatch, 0.01)
    with pytest.raises(UserError, match=f"^{why}$"):  # which the target can't do without
        spirals.spiral(recipe(**{"spiral.turns": "1", "spiral.latency": "0.05"}), run)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((0.9, 0.85, 0.95), "spiral-1 is not faster than student on cpu, for all that it has lost"),
        ((1.3, 0.96, 1.76), "whether spiral-1 is faster than student on cpu can't be told: 1.30× [0.96, 1.76]"),
    ],
)
def test_fewer_weights_that_are_not_proven_faster_say_so(run, monkeypatch, ratio, said):
    times(monkeypatch, Raced(Interval(*ratio), None, (), None))
    found = spirals.spiral(recipe(**{"spiral.turns": "1"}), run).record
    assert found.remarks[1] == f"{said}: 'kdbench profile' tells what takes its time there"
    assert said in (run / "spiral.md").read_text().replace("\\", "")


def test_options_of_other_backends_do_not_keep_a_turn_from_being_timed(run, monkeypatch):
    monkeypatch.setattr(turns, "raced", raced)
    fields = {"bench.backends": '["cpu", "openvino"]', "bench.options": "{ openvino = { num_streams = 1 } }"}
    (turn,) = spirals.spiral(recipe(**fields, **{"spiral.turns": "1"}), run).record.turns
    assert turn.speedup is not None


def test_an_unknown_place_for_the_turns_is_refused_before_any_training(tmp_path):
    for walk in (lambda chosen: spirals.spiral(chosen, tmp_path / "run"), checking.check):
        with pytest.raises(UserError, match="unknown backend 'cpuu': did you mean 'cpu'"):
            walk(recipe(**{"spiral.backend": "cpuu"}))
    for fields in ({"quantize.for": "cpuu"}, {"prune.macs": "0.9", "prune.backend": "cpuu@/a/python"}):
        with pytest.raises(UserError, match="unknown backend 'cpuu': did you mean 'cpu'"):
            pipeline.run(recipe(**fields), tmp_path / "run")
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_the_path_of_the_turns_interpreter_is_no_part_of_the_results(run, monkeypatch):
    monkeypatch.undo()  # the ladder is measured

    def broken(subjects, *rest):
        """The first model can't be timed."""
        bad = run / "bad.onnx"
        bad.write_bytes(b"no model")
        return raced([replace(subjects[0], model=bad), *subjects[1:]], *rest)

    monkeypatch.setattr(turns, "raced", broken)
    place = f"cpu@{sys.executable}"
    found = spirals.spiral(recipe(**{"spiral.backend": place, "spiral.turns": "1"}), run).record
    assert found.turns[0].doubts[0].startswith("not timed: spiral-1 on cpu@")
    for name in ("results.json", "spiral.md", "report.md"):
        assert sys.executable not in (run / name).read_text()


def test_it_walks_to_a_size(run):
    found = spirals.spiral(recipe(**{"spiral.size": "0.7"}), run).record
    assert found.limit == "target"
    sizes = [load_artifact(run / f"{rung}.artifact.json").size_bytes for rung in ("student", found.best)]
    assert (run / f"{found.best}.onnx").stat().st_size == sizes[1] <= 0.7 * sizes[0]
    assert found.turns[-1].share == sizes[1] / sizes[0]
    assert [turn.share > 0.7 for turn in found.turns] == [*[True] * (len(found.turns) - 1), False]
    assert "to 0.7 of the size" in (run / "spiral.md").read_text()


def test_a_size_out_of_reach_is_refused_before_any_training(tmp_path):
    with pytest.raises(UserError, match=r"^spiral\.size: 0\.05 can't be reached: 0\.\d+ is the closest") as error:
        spirals.spiral(recipe(**{"spiral.size": "0.05"}), tmp_path / "run")
    closest = float(str(error.value).split("reached: ")[1].split()[0])
    assert closest > 0.15  # 4 of 32 channels have an eighth of the parameters, and the file is more than these
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_a_latency_out_of_reach_is_refused_before_any_training(monkeypatch, tmp_path):
    looks(monkeypatch, 0.4)
    with pytest.raises(UserError, match=r"^spiral\.latency: 0\.3 can't be reached: 0\.400 is the closest"):
        spirals.spiral(recipe(**{"spiral.latency": "0.3"}), tmp_path / "run")
    assert not list(tmp_path.glob("run/*.safetensors"))


@pytest.mark.parametrize("section", ["prune", "spiral"])
def test_nothing_is_measured_where_training_has_begun_nor_in_a_second_process(section, taught, monkeypatch, tmp_path):
    for module in (prune, steps):
        monkeypatch.setattr(module, "beside_the_first", lambda *_: lambda _: measured.append(1) or len(measured))

    def looked(folder, **fields):
        measured.clear()
        prepared(RunFolder(folder), recipe(**{f"{section}.latency": "0.6"} | fields), silent, unsaid)
        return len(measured)

    measured = []
    with pytest.raises(UserError, match=rf"^{section}\.latency: 0\.6 can't be reached: .* it is as slow"):
        looked(tmp_path)
    assert measured == [1, 1]
    assert looked(shutil.copytree(taught, tmp_path / "run")) == 0
    if section == "spiral":  # a size is exact, whatever the machine does
        with pytest.raises(UserError, match=r"^spiral\.size: 0\.001 can't be reached"):
            prepared(RunFolder(tmp_path / "run"), recipe(**{"spiral.size": "0.001"}), silent, unsaid)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert looked(tmp_path) == 0
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown backend 'gpuu'"):
        looked(tmp_path / "run", **{f"{section}.backend": "gpuu"})


@pytest.mark.parametrize(
    ("name", "blocks", "round_to"),
    [("vgg", False, 4), ("resnet", True, 4), ("resnet", True, 16), ("resnet-pad", False, 4)],  # of 16, blocks alone go
)
def test_one_look_at_the_narrowest_network_tells_what_the_search_would(name, blocks, round_to):
    x = samples(SMALL[name][1])
    options = Prune(latency=0.001, round_to=round_to, blocks=blocks)
    refusals, looked = [], []

    def macs(model):
        looked.append(model)
        return float(cost(model, x).macs)

    for refuse in (structured.prune, structured.check):
        looked.clear()
        with pytest.raises(structured.UnreachableError, match=r"0\.\d+ is the closest") as error:
            refuse(small(name), options, x, measure=macs)
        refusals.append(str(error.value))
    assert refusals[0] == refusals[1]
    assert len(looked) == 2


def test_a_network_that_gets_no_faster_is_not_told_that_it_cannot_be_pruned():
    with pytest.raises(
        structured.UnreachableError, match=r"latency: 0\.5 can't be reached: .* it is as slow: take macs"
    ):
        structured.check(small("mlp"), Prune(latency=0.5), samples(SMALL["mlp"][1]), lambda model: 1.0)


@pytest.mark.parametrize("refuse", [structured.prune, structured.check])
def test_where_nothing_can_go_it_is_the_rounding_that_is_blamed_and_not_the_latency(refuse):
    seen = iter([1.0, 0.98])  # of the very same network
    options = Prune(latency=0.5, round_to=32)  # which no layer is wider than
    with pytest.raises(structured.UnreachableError, match="no layer of this network can be pruned: lower round_to"):
        refuse(small("mlp"), options, samples(SMALL["mlp"][1]), measure=lambda _: next(seen))


# --- who teaches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teachers", "names"), [("previous", ["student"]), ("original", ["teacher"]), ("both", ["teacher", "student"])]
)
def test_turns_are_taught_by_those_that_are_named(teachers, names, run, monkeypatch):
    by, refine = {}, train.refine

    def noted(folder, rung, start, given, *rest, **options):
        by[rung] = [*given]
        return refine(folder, rung, start, given, *rest, **options)

    monkeypatch.setattr(train, "refine", noted)
    fields = {"spiral.parameters": "0.3", "spiral.turns": "1", "spiral.teachers": teachers}
    assert spirals.spiral(recipe(**fields), run).record.best == "spiral-1"
    assert by["spiral-1"] == names
    assert load_artifact(run / "spiral-1.artifact.json").options["spiral"]["teachers"] == names


# --- what stopped it --------------------------------------------------------------------------------------------------


def test_a_step_that_became_too_small_says_by_what():
    why = "pruning macs: 0.9 can't be reached: 0.950 is the closest"
    turns_made = []

    def make(plan):
        turn = TurnRecord(number=plan.number, parent=0, step=plan.step, keep=plan.keep, refusal="unreachable", said=why)
        turns_made.append(turn)
        return Outcome(refusal="unreachable")

    found = spiral(make, Bounds(goal=0.5, max_drop=0.1, step=0.2, smallest_step=0.1, turns=9))
    assert (found.limit, found.best, len(turns_made)) == ("step", 0, 2)
    record = SpiralRecord(
        fingerprint="", first="student", metric="accuracy", score=0.9, samples=200, max_drop=10.0, macs=100,
        parameters=100, size_bytes=100, turns=tuple(turns_made), limit=found.limit, best="student",
    )  # fmt: skip
    assert ended(record) == f"the step became too small: {why}; ended with student, the first model"
