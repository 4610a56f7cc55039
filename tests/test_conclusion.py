"""What a ladder comes to, in words and as a table; and how to measure it again."""

import json

import numpy as np
import pytest

from kdbench.backends import pick_backend
from kdbench.data.sizes import combinations
from kdbench.quantization.targets import targeted
from kdbench.records import (
    BenchSettings,
    QuantizeSection,
    Recipe,
    ScenarioMeasurement,
    TensorSpec,
    from_json,
    parse,
    recipe_from_toml,
)
from kdbench.records.writing import recipe_to_toml
from kdbench.report.again import checksums, commands
from kdbench.report.conclusion import conclusion_table, sentences
from kdbench.report.listing import contents
from kdbench.report.table import ladder
from kdbench.store import load_recipe, zoo_recipes
from tests.test_page import ladder_of
from tests.test_report import cell, result
from tests.test_results import compared, saved


def told(**changes):
    """The conclusion, of the first batch alone."""
    return sentences(ladder_of(("teacher", "a", "b"), batches=(1,), **changes))


def test_the_conclusion_is_what_the_intervals_say():
    assert told()[0].startswith("b is the fastest rung without a proven loss of accuracy: 2.0")
    assert told()[1].startswith("No proven loss is not the same as none: the intervals leave room for a loss of ")
    assert told(failed=("b",))[0].startswith("a is the fastest")
    lost = ladder_of(("teacher", "a", "b"), batches=(1, 8))
    wrong = lost.arrays | {"predictions.cpu2": np.full(64, 9)}
    answers = sentences(ladder(lost.result, wrong))
    assert answers[0].startswith("a is the fastest rung without a proven loss of accuracy: ")  # b is faster, and wrong
    every = wrong | {"predictions.cpu1": np.full(64, 9)}
    (nothing,) = sentences(ladder(lost.result, every))
    assert nothing == (
        "None is the fastest rung without a proven loss of accuracy: each rung that is faster has a proven loss, "
        "or was not judged."
    )
    table = conclusion_table(ladder(lost.result, every))
    assert [[cell.text for cell in row[3:5]] for row in table.rows] == [["–", "–"]] * 2
    assert table.notes == ("each rung that is faster has a proven loss, or was not judged",)
    slow = {
        name: values * (1e3 if name in ("latencies.cpu1.1", "latencies.cpu1.2") else 1)
        for name, values in lost.arrays.items()
    }
    assert sentences(ladder(lost.result, slow))[0] == (
        "Of 2 settings, the fastest rung without a proven loss of accuracy is b in 1, none in 1."
    )
    silent = ladder_of(("teacher", "a", "b"), batches=(1,), inputs="generated")
    arrays = {name: values for name, values in silent.arrays.items() if not name.startswith(("labels", "predictions"))}
    unjudged = silent.result.model_copy(update={"evaluations": ()})
    assert sentences(ladder(unjudged, arrays))[1] == (
        "Whether it answers as well is not known: the answers were not compared here."
    )
    assert sentences(ladder_of(("teacher",), batches=(1,))) == []


def test_rungs_that_are_as_fast_are_named():
    one = ladder_of(("teacher", "a", "b"), batches=(1, 8))
    uneven = np.repeat([0.9, 1.1, 0.95, 1.05, 1.0], 3)  # by process
    alike = one.arrays | {f"latencies.cpu{n}.1": one.arrays[f"latencies.cpu{n}.2"] * uneven * 1.01 for n in (1, 8)}
    table = conclusion_table(ladder(one.result, alike))
    assert [[cell.text for cell in row if cell.value in ("a", "b")] for row in table.rows] == [["b", "a"], ["b", "a"]]


def test_the_command_to_measure_again_has_what_the_file_knows():
    settings = BenchSettings(
        seed=0, processes=5, precision=0.02, budget_s=30, slice_s=1, slice_runs=9, affinity=(0, 1, 2, 5),
        price_per_h=0.08, currency="$",
    )  # fmt: skip
    one = ladder_of(("teacher", "a b; rm"), batches=(1, 8)).result.model_copy(update={"settings": settings})
    odd = one.model_copy(
        update={"artifacts": (one.artifacts[0], one.artifacts[1].model_copy(update={"file": "a b;.onnx"}))}
    )
    (command,) = commands(odd)
    assert command == (
        "kdbench bench rung-0.onnx 'a b;.onnx' --baseline rung-0.onnx --backend cpu --batch 1 --batch 8 --threads 1 "
        "--budget 30 --precision 2% --affinity 0-2,5 --price '$0.08/h' --pack pack.npz"
    )
    sizes = [{"height": h, "width": w} for h in (96, 224) for w in (96, 224)]
    swept = tuple(cell("teacher", None, error="no", dims=dims) for dims in sizes)
    assert "--dim height=96,224 --dim width=96,224" in commands(one.model_copy(update={"measurements": swept}))[0]
    sweep = {"height,width": [96, 224], "length": [1, 2], "depth": [1]}
    joined = tuple(cell("teacher", None, error="no", dims=dims) for dims in combinations(sweep))
    (command,) = commands(one.model_copy(update={"measurements": joined}))
    assert "--dim height,width=96,224 --dim length=1,2 --dim depth=1 " in command


def test_the_command_to_measure_again_gives_what_was_given():
    one = ladder_of(("teacher", "student")).result
    tokens = TensorSpec(name="tokens", dtype="int64", shape=("n", 8), integers=(0, 29999))
    artifacts = tuple(artifact.model_copy(update={"file": "m.onnx", "inputs": (tokens,)}) for artifact in one.artifacts)
    usual = pick_backend("openvino").options(1)
    cells = tuple(
        cell(artifact.rung, None, error="no", backend=backend, provider_options={**usual, "NUM_STREAMS": "2"})
        for artifact in artifacts
        for backend in ("openvino", "nobody")
    )
    changed = {"artifacts": artifacts, "measurements": cells, "inputs": "generated"}
    (command,) = commands(one.model_copy(update=changed))
    assert command.startswith("kdbench bench teacher.onnx student.onnx --baseline teacher.onnx ")
    assert " --option openvino.NUM_STREAMS=2 --input tokens=0..29999 --budget " in command
    names = [line.split()[1] for line in checksums(one.model_copy(update=changed)).splitlines()]
    assert names == ["teacher.onnx", "student.onnx"]


def test_the_command_to_measure_scenarios_again_has_their_batches_and_sessions():
    fields = cell("teacher", None, error="no").model_dump()
    loads = [("single_stream", 1, 1), ("offline", 1, 8), ("offline", 2, 8)]
    found = tuple(
        ScenarioMeasurement(**fields | {"scenario": name, "sessions": sessions, "batch": batch})
        for name, sessions, batch in loads
    )
    (command,) = commands(result(measurements=(), scenarios=found))
    assert "--batch 8 --threads 1 --scenario single_stream --scenario offline --sessions 1 --sessions 2 " in command
    (command,) = commands(result(measurements=(), scenarios=found[:1]))
    assert "--batch 1 --threads 1 --scenario single_stream --budget 1 " in command


def test_a_file_is_shown_with_the_command_to_measure_it_again(tmp_path):
    recipe = load_recipe("digits", {"name": "mine"})
    for number, (changes, command) in enumerate((
        ({}, "kdbench bench teacher.onnx student.onnx --baseline teacher.onnx --backend cpu --batch 4 --threads 1 "
         "--budget 1 --pack pack.npz"),
        ({"name": "mine", "recipe": recipe}, "kdbench run mine.toml"),
    )):  # fmt: skip
        assert ("again", command) in contents(saved(tmp_path / str(number), **changes)).facts
    assert ("again", "kdbench distill x.toml --seeds 3 --baseline") in contents(compared(tmp_path / "methods")).facts


@pytest.mark.parametrize("name", sorted(zoo_recipes()))
def test_a_recipe_as_toml_is_read_as_the_same_recipe(name):
    recipe = load_recipe(name, {"description": "'a \"quoted\" \\ text'"})
    assert recipe_from_toml(recipe_to_toml(recipe), "x").to_json() == recipe.to_json()


def test_a_default_that_a_recipe_says_is_kept_where_a_target_would_fill_it_in():
    signed = {"quantize.target": "x86-signed"}
    for fields, activations in ((signed, "int8"), (signed | {"quantize.activations": "uint8"}, "uint8")):
        recipe = load_recipe("digits", fields)
        for read in (recipe_from_toml(recipe_to_toml(recipe), "x"), from_json(Recipe, recipe.to_json(), "x")):
            assert targeted(read.quantize.static).activations == activations
            assert read.to_json() == recipe.to_json()


def test_an_older_record_of_all_fields_says_no_defaults():
    """As files had it before what is said was told apart: null fields too, which a recipe can't say."""
    searched = QuantizeSection(max_drop=1.0, calibration="mse")
    older = {field.alias or name: getattr(searched, name) for name, field in QuantizeSection.model_fields.items()}
    read = parse(QuantizeSection, json.loads(json.dumps(older)), "quantize")
    assert read.model_fields_set == {"max_drop", "calibration"}
    assert read.static == searched.static
