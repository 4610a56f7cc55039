"""Cards: what is known of a file, as people and Hugging Face read it, and inside the file itself."""

import re
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdbench import card
from kdbench.errors import UserError
from kdbench.onnxfile import embedded_of, inspect
from kdbench.report.judged import judged
from kdbench.report.text import points
from kdbench.stats import f1_interval, proportion
from kdbench.store import load_artifact, load_result, save_artifact, save_results
from tests.conftest import kdbench, save_mlp
from tests.rows import load_rows

EVIL = 'a | b\n---\n# <b>"x": [y](z) `q` \u2028\x85\u202e\ufffe'


def props(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def front(text):
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra 'hub'")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def elsewhere(tiny_run, tmp_path, **changes):
    """The run's results, as another machine would have measured them."""
    result, arrays = load_result(tiny_run / "results.json")
    machine = result.machine.model_copy(update={"name": "a-board", "cpu": "Board", "fingerprint": "0123456789ab"})
    arrays = {name: values * 3 if name.startswith("latencies.") else values for name, values in arrays.items()}
    other = result.model_copy(update={"machine": machine, **changes})
    (tmp_path / "board").mkdir()
    save_results(tmp_path / "board" / "results.json", other, arrays)
    return tmp_path / "board" / "results.json"


# --- the card ---------------------------------------------------------------------------------------------------------


def test_hugging_face_reads_the_front_matter(carded, tiny_run):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the extra 'hub'")
    read = hub.ModelCard((carded.folder / "README.md").read_text(encoding="utf-8"))
    data = read.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "onnx", "image-classification")
    assert {"int8", "distillation", "quantization"} <= set(data.tags)
    (found,) = data.eval_results
    (row,) = [row for row in load_rows(tiny_run) if row.rung == "student-int8"]
    assert isinstance(found, hub.EvalResult)
    assert (found.metric_type, found.metric_value, found.verified) == ("accuracy", row.accuracy, False)
    assert (found.task_type, found.dataset_type) == ("image-classification", "digits")
    assert (found.dataset_split, found.dataset_args["samples"]) == ("test", 450)
    assert (found.source_name, found.source_url) == ("kdbench bench", "https://example.org/results")
    assert read.text.lstrip().startswith("# digits: student-int8")


def test_the_card_has_every_number_and_flag_of_the_run(carded, tiny_run):
    text = (carded.folder / "README.md").read_text(encoding="utf-8")
    rows = {row.rung: row for row in load_rows(tiny_run)}
    row = rows["student-int8"]
    for flag in (*row.flags, *rows["teacher"].flags):
        assert f" {flag}".replace("[", r"\[").replace("]", r"\]").replace("_", r"\_") in text
    for rung in ("student-int8", "student-slim", "student", "teacher"):
        assert inspect(tiny_run / f"{rung}.onnx").sha256 in text
    assert inspect(carded.folder / "model.onnx").sha256 in text
    (line,) = [line for line in text.splitlines() if line.startswith("| student-int8 | student-slim | quantize")]
    assert points(row.parent_difference).replace("[", r"\[").replace("]", r"\]") in line
    assert re.search(r" \| \d+ s \| ", line)
    for heading in ("Intended use", "Metrics", "Measurements", "Training data", "Evaluation data", "How it was made",
                    "How to reproduce", "License"):  # fmt: skip
        assert f"\n## {heading}" in text
    machine = load_result(tiny_run / "results.json")[0].machine
    assert machine.cpu in text
    assert f"onnxruntime {machine.versions['onnxruntime']}" in text
    assert "student-alone" not in text
    assert str(tiny_run.parent) not in text


def test_a_spirals_card_says_how_it_is_made_and_not_every_channel(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    changes = [{"kind": "channels", "options": {"stages.0": list(range(400))}}]
    made = load_artifact(run / "student.artifact.json")
    made = made.model_copy(update={"step": "spiral", "options": {"changes": changes, "keep": 0.8}})
    save_artifact(run, made)
    result, arrays = load_result(run / "results.json")
    rungs = tuple(made if artifact.rung == "student" else artifact for artifact in result.artifacts)
    recipe = result.recipe.model_copy(update={"name": "mine"})
    save_results(run / "results.json", result.model_copy(update={"artifacts": rungs, "recipe": recipe}), arrays)
    text = card(f"{run}:student").text
    assert "Make it again: `kdbench spiral` with recipe mine" in text
    assert "changes 1 entries, keep 0.8" in text
    assert max(map(len, text.splitlines())) < 1000


def test_each_machine_has_a_table_of_its_own(carded, tiny_run, tmp_path):
    """Of the original's measurements, found through the parent of the file that a card belongs to."""
    board = elsewhere(tiny_run, tmp_path)
    text = card(carded.folder / "model.onnx", results=[tiny_run, board, tiny_run / "results.json"]).text
    first = load_result(tiny_run / "results.json")[0].machine
    sections = re.findall(r"^### (.*), \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert sections == [f"{first.name} ({first.fingerprint})", "a-board (0123456789ab)"]
    latencies = [line.split(" | ")[4] for line in text.splitlines() if line.startswith("| student-int8 | ")][:2]
    slow = {row.rung: row.latency_p50_s for row in load_rows(board)}["student-int8"]
    fast = {row.rung: row.latency_p50_s for row in load_rows(tiny_run)}["student-int8"]
    assert slow == pytest.approx(3 * fast)
    assert len(set(latencies)) == 2
    metrics = front(text)["model-index"][0]["results"][0]["metrics"]
    assert [metric["name"] for metric in metrics] == [f"Accuracy, cpu on {first.cpu}", "Accuracy, cpu on Board"]


def test_hub_names_of_data_and_teacher_stand_in_the_front_matter(tiny_run, tmp_path):
    recipe = load_result(tiny_run / "results.json")[0].recipe
    data = recipe.data.model_copy(
        update={"source": "huggingface", "options": {"name": "uoft-cs/cifar10", "test": "test[:450]", "revision": "0a"}}
    )
    teacher = recipe.teachers[0].model_copy(
        update={"source": "huggingface", "model": "google/vit-base", "options": {}, "weights": None}
    )
    hub = elsewhere(tiny_run, tmp_path, recipe=recipe.model_copy(update={"data": data, "teacher": teacher}))
    found = front(card(f"{tiny_run}:student", results=[hub]).text)
    assert "datasets" not in found  # the run's own recipe comes first
    (tmp_path / "m").mkdir()
    for suffix in (".onnx", ".artifact.json"):
        (tmp_path / "m" / f"student{suffix}").write_bytes((tiny_run / f"student{suffix}").read_bytes())
        (tmp_path / "m" / f"student-alone{suffix}").write_bytes((tiny_run / f"student-alone{suffix}").read_bytes())
    found = front(card(tmp_path / "m" / "student.onnx", results=[hub]).text)
    assert (found["datasets"], found["base_model"]) == (["uoft-cs/cifar10"], ["google/vit-base"])
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert (dataset["type"], dataset["split"], dataset["revision"]) == ("uoft-cs/cifar10", "test[:450]", "0a")
    assert "base_model" not in front(card(tmp_path / "m" / "student-alone.onnx", results=[hub]).text)


def test_hostile_names_stay_text(tmp_path):
    path = save_mlp(tmp_path / "m.onnx")
    artifact = inspect(path).model_copy(
        update={"rung": EVIL, "classes": (EVIL, "---", "# no"), "step": EVIL, "parent": EVIL, "warnings": (EVIL,),
                "options": {EVIL: EVIL}, "parent_sha256": EVIL}
    )  # fmt: skip
    save_artifact(tmp_path, artifact)
    text = card(path, out=tmp_path / "out").text
    assert len(re.findall(r"^---$", text, re.MULTILINE)) == 2
    assert front(text)["library_name"] == "onnx"
    body = text.split("---\n", 2)[2]
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.strip().splitlines()[0]]
    assert "<b>" not in re.sub(r"\\<", "", body)
    assert "\x85" not in text
    own = embedded_of(tmp_path / "out" / "model.onnx")
    assert own.classes == artifact.classes
    again = card(tmp_path / "out" / "model.onnx", out=tmp_path / "again").folder
    assert (again / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_hostile_names_in_results_stay_text_in_the_front_matter(tiny_run, tmp_path):
    result, _ = load_result(tiny_run / "results.json")
    machine = result.machine.model_copy(update={"cpu": EVIL})
    recipe = result.recipe.model_copy(update={"description": EVIL})
    other = elsewhere(tiny_run, tmp_path, machine=machine, recipe=recipe)
    text = card(f"{tiny_run}:student", results=[other]).text
    names = [metric["name"] for metric in front(text)["model-index"][0]["results"][0]["metrics"]]
    assert 'a | b --- # <b>"x": [y](z) `q`' in names[1]


def test_a_file_from_elsewhere_has_a_card_of_what_it_tells(small_model):
    text = card(small_model).text
    assert front(text) == {"library_name": "onnx", "tags": ["onnx", "onnxruntime", "kdbench", "fp32"]}
    assert "Says which of 3 classes" in text
    assert "what they go through before is not recorded" in text
    assert "No license is stated" in text


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_intervals_hold_what_they_should():
    """Wilson's by his formula; the bootstrap's of F1 beside it, which for one label that always holds is accuracy's."""
    found = proportion(9, 10)
    z, n, p = 1.959964, 10, 0.9
    middle, half = (p + z**2 / (2 * n)), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.9, (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)), rel=1e-5
    )
    assert proportion(10, 10).low < 1.0 == proportion(10, 10).high
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 3))
    answers = np.where(rng.random((400, 3)) < 0.2, 1 - labels, labels)
    micro = f1_interval(answers, labels)
    assert micro.low < micro.value < micro.high
    assert 0.02 < micro.high - micro.low < 0.1
    assert f1_interval(labels, labels).value == 1.0


def test_several_labels_are_judged_by_f1(tiny_run):
    result, _ = load_result(tiny_run / "results.json")
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    raw = {f"predictions.{e.raw}": labels for e in result.evaluations if e.raw is not None}
    found = judged(result, {"labels": labels, **raw}, "student")
    assert [(one.metric, one.value, one.samples) for one in found] == [("f1_micro", 1.0, 4), ("f1_macro", 1.0, 4)]
    assert judged(result, raw, "student") == []


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_named_and_leave_nothing(tiny_run, small_model, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    rows = ["batch", "n"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, rows)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "n.onnx")
    for source, options, said in (
        (tiny_run, {"out": tmp_path / "taken"}, "taken: exists already"),
        (f"{tiny_run}:studnt", {}, "unknown rung 'studnt': did you mean 'student'"),
        (tmp_path / "taken", {}, "not a run folder"),
        (tmp_path / "nowhere.onnx", {}, "no such file"),
        (small_model, {"license": "my own"}, "--license: should be an identifier"),
        (small_model, {"url": "ftp:x"}, "--url: should be an address"),
        (small_model, {"results": [tiny_run]}, "--results: nothing in .* is of this file"),
        (small_model, {"results": [tmp_path / "none.json"]}, "no such file"),
        (tmp_path / "n.onnx", {"out": tmp_path / "out"}, "--dim n="),
    ):
        with pytest.raises(UserError, match=said):
            card(source, **options)
    assert not (tmp_path / "out").exists()
    assert card(tmp_path / "n.onnx", out=tmp_path / "out", dims={"n": 3}).folder


def test_outputs_that_are_not_repeatable_are_refused(tmp_path):
    """Random numbers in a graph: nothing proves that it answers as before."""
    shape = numpy_helper.from_array(np.array([1, 3]), "shape")
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "r.onnx")
    with pytest.raises(UserError, match=r"from one session to the next.*--no-embed"):
        card(tmp_path / "r.onnx", out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.onnx"]
    assert card(tmp_path / "r.onnx", out=tmp_path / "out", embed_facts=False).folder


def test_what_card_prints(carded, tiny_run, tmp_path):
    done = kdbench("card", f"{tiny_run}:student-int8", "--license", "apache-2.0", "--out", "digits", cwd=tmp_path)
    assert "digits: student-int8 as model.onnx" in done.stdout
    assert "the same outputs on 128 real samples" in done.stdout
    assert (tmp_path / "digits" / "model.onnx").read_bytes() == (carded.folder / "model.onnx").read_bytes()
    assert kdbench("card", carded.folder / "model.onnx", cwd=tmp_path).stdout == card(carded.folder / "model.onnx").text
    wrong = kdbench("card", tmp_path / "digits" / "README.md", cwd=tmp_path, check=False)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
