"""What a card puts inside the ONNX file itself, and that the file computes what it did."""

import json

import onnx
import pytest
from onnx import helper

from kdbench import bundle, card, evaluate
from kdbench.onnxfile import embedded_of, inspect, known_artifact
from kdbench.records import Embedded, Measured, Origin, Preprocessing, embedded_in
from kdbench.store import load_artifact, load_result, sidecar
from tests.conftest import save_mlp
from tests.rows import load_rows
from tests.test_card import EVIL, props


def test_the_file_says_what_it_is_how_good_and_where_it_comes_from(carded, tiny_run):
    model = carded.folder / "model.onnx"
    own = props(model)
    before = load_artifact(tiny_run / "student-int8.artifact.json")
    assert own["kdbench.task"] == "classification"
    assert json.loads(own["kdbench.classes"]) == list("0123456789")
    assert Preprocessing.model_validate_json(own["kdbench.preprocessing"]) == before.preprocessing
    assert own["kdbench.parent_sha256"] == before.sha256
    assert (own["kdbench.step"], own["kdbench.recipe"], own["kdbench.license"]) == ("card", "digits", "apache-2.0")
    lineage = [(one["rung"], one["sha256"]) for one in json.loads(own["kdbench.lineage"])]
    rungs = ("student-int8", "student-slim", "student", "teacher")
    assert lineage == [(rung, inspect(tiny_run / f"{rung}.onnx").sha256) for rung in rungs]
    (metric,) = json.loads(own["kdbench.metrics"])
    (row,) = [row for row in load_rows(tiny_run) if row.rung == "student-int8"]
    assert metric["value"] == row.accuracy
    assert metric["low"] < row.accuracy < metric["high"]
    assert (metric["samples"], metric["backend"]) == (450, "cpu")
    assert metric["machine"] == load_result(tiny_run / "results.json")[0].machine.name
    assert str(tiny_run.parent) not in repr(own)


def test_only_the_metadata_is_new_and_the_record_names_the_parent(carded, tiny_run):
    model = carded.folder / "model.onnx"
    written, before = onnx.load(model), onnx.load(tiny_run / "student-int8.onnx")
    del written.metadata_props[:]
    assert written == before
    record = load_artifact(sidecar(model))
    parent = load_artifact(tiny_run / "student-int8.artifact.json")
    assert (record.step, record.parent, record.parent_sha256) == ("card", "student-int8", parent.sha256)
    assert record.sha256 == inspect(model).sha256 != parent.sha256
    assert record.metrics["parity_largest_difference"] == 0
    assert (record.parameters, record.macs, record.preprocessing) == (
        parent.parameters,
        parent.macs,
        parent.preprocessing,
    )


def test_a_second_card_changes_no_byte_with_its_record_alone_or_with_the_results(carded, tiny_run, tmp_path):
    first = (carded.folder / "model.onnx").read_bytes()
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(first)
    for number, (source, options) in enumerate(
        [(carded.folder / "model.onnx", {}), (carded.folder / "model.onnx", {"results": [tiny_run]}), (alone, {})]
    ):
        again = card(source, out=tmp_path / str(number), **options).folder
        assert (again / "model.onnx").read_bytes() == first
        record = load_artifact(again / "model.artifact.json")
        assert record.parent_sha256 == inspect(tiny_run / "student-int8.onnx").sha256
    assert (tmp_path / "1" / "model.artifact.json").read_bytes() == (carded.folder / "model.artifact.json").read_bytes()


def test_a_file_without_its_record_is_evaluated_by_what_it_says_of_itself(carded, tiny_run, tmp_path):
    """Its classes, and the preprocessing of its samples where those that are given are prepared otherwise."""
    path = tmp_path / "alone.onnx"
    path.write_bytes((carded.folder / "model.onnx").read_bytes())
    known = known_artifact(path)
    assert known.classes == tuple("0123456789")
    assert known.preprocessing == load_artifact(tiny_run / "student-int8.artifact.json").preprocessing
    assert evaluate(path, tiny_run / "pack.npz") == evaluate(tiny_run / "student-int8.onnx", tiny_run / "pack.npz")
    text = card(path).text
    assert "That is what the file says of itself" in text
    assert f"| Accuracy | {100 * embedded_of(path).metrics[0].value:.2f} |" in text


def test_no_embed_leaves_the_file_alone(tiny_run, tmp_path):
    folder = card(f"{tiny_run}:student", out=tmp_path / "out", embed_facts=False).folder
    assert (folder / "model.onnx").read_bytes() == (tiny_run / "student.onnx").read_bytes()
    record, before = load_artifact(folder / "model.artifact.json"), load_artifact(tiny_run / "student.artifact.json")
    assert record == before.model_copy(update={"file": "model.onnx"})


def test_bundles_speak_the_same_language(carded, tiny_run, tmp_path):
    shipped = bundle(tiny_run, tmp_path / "out", rung="student-int8", license="mit").folder / "model.onnx"
    ours, theirs = props(shipped), props(carded.folder / "model.onnx")
    alike = ("classes", "task", "lineage", "metrics", "recipe", "recipe_sha256", "parent", "parent_sha256", "version")
    assert [ours[f"kdbench.{name}"] for name in alike] == [theirs[f"kdbench.{name}"] for name in alike]
    assert (ours["kdbench.step"], ours["kdbench.probabilities"]) == ("bundle", "probabilities")
    text = card(shipped, results=[tiny_run]).text
    assert "Measured was student-int8, which this file was made of by `bundle`" in text
    assert "nothing has to be done to them before" in text


def test_what_others_wrote_into_a_file_and_its_external_data_stay(tmp_path):
    model = onnx.load(save_mlp(tmp_path / "m.onnx"))
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key="kdbench.rung", value="of a newer kdbench")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    folder = card(tmp_path / "m.onnx", out=tmp_path / "out").folder
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "model.artifact.json", "model.onnx", "weights.bin",
    }  # fmt: skip
    own = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert own["author"] == "somebody"
    assert "kdbench.rung" not in own
    assert load_artifact(folder / "model.artifact.json").parent_sha256 == inspect(tmp_path / "m.onnx").sha256


@pytest.mark.parametrize(
    "lie",
    [
        {"kdbench.classes": "{"},
        {"kdbench.classes": "[" * 100_000},
        {"kdbench.task": "nonsense", "kdbench.version": "1"},
        {"kdbench.preprocessing": '{"std": [0]}', "kdbench.version": "1", "kdbench.task": "classification"},
        {"kdbench.metrics": '[{"value": NaN}]', "kdbench.version": "1", "kdbench.task": "classification"},
    ],
)
def test_metadata_that_does_not_fit_is_as_if_there_were_none(lie, tmp_path):
    path = save_mlp(tmp_path / "m.onnx")
    plain = inspect(path)
    model = onnx.load(path)
    helper.set_model_props(model, lie)
    onnx.save(model, path)
    assert embedded_in(lie) is None
    assert inspect(path).model_copy(update={"sha256": plain.sha256, "size_bytes": plain.size_bytes}) == plain


def test_names_of_classes_that_the_outputs_cannot_mean_are_not_believed(tmp_path):
    path = save_mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, Embedded(version="1", task="classification", classes=("a", "b")).to_props())
    onnx.save(model, path)
    assert inspect(path).classes == ()


def test_a_file_that_claims_another_parent_is_not_taken_at_its_word(carded, tiny_run, tmp_path):
    path = save_mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, props(carded.folder / "model.onnx"))
    onnx.save(model, path)
    text = card(path, results=[tiny_run]).text
    assert "so it says itself" in text
    assert "its outputs are the same" in card(carded.folder / "model.onnx", results=[tiny_run]).text


def test_what_is_written_is_read_back_as_it_was():
    metric = Measured(
        metric="accuracy", value=0.1 + 0.2, low=None, high=0.5, samples=3, backend="cpu", threads=1, machine="m",
        cpu=EVIL, date="2026-01-02",
    )  # fmt: skip
    facts = Embedded(
        version="1", task="multi_label", classes=(EVIL, "ä"), lineage=(Origin(rung=EVIL, sha256="x"),),
        metrics=(metric,), license="mit", preprocessing=Preprocessing(mean=(0.5,)),
    )  # fmt: skip
    assert embedded_in(facts.to_props()) == facts
    assert embedded_in(facts.to_props() | {"kdbench.newer": "key", "other": "x"}) == facts
    assert embedded_in({"other": "x"}) is None
