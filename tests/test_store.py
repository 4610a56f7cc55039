"""Writes are whole or absent, archives are safe to read, results fit their raw values."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kdbench import archive, store
from kdbench.errors import UserError
from kdbench.pipeline.judged_data import is_pack
from kdbench.records import RawFile, TensorSpec, recipe_from_toml, sealed
from tests.hatched import environment
from tests.test_report import arrays, artifact, cell, result


def unsealed(path):
    """The text of a result file or comparison as it was before there were seals."""
    return json.dumps({**json.loads(path.read_text()), "schema": 1, "seal": ""}, indent=1)


def test_equal_arrays_give_equal_bytes():
    arrays = {"a": np.arange(5), "b": np.ones((2, 2))}
    first = archive.npz_bytes(arrays)
    time.sleep(2.1)  # a zip's clock ticks every two seconds
    assert archive.npz_bytes(arrays) == first


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_damaged_archives_are_user_errors(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    for read in (store.read_npz, store.npz_names):
        with pytest.raises(UserError, match=r"x\.npz: "):
            read(path)


def test_data_are_told_from_a_pack_by_the_names_of_their_arrays(tmp_path):
    """Whatever they hold: none of its 16 MiB is read for that."""
    samples = np.zeros((2048, 2048), np.float32)
    store.write_npz(tmp_path / "data.npz", {"x_train": samples, "y_train": np.zeros(2048)})
    store.write_npz(tmp_path / "pack.npz", {"x_calibration": samples})
    tracemalloc.start()
    try:
        found = [is_pack(tmp_path / name) for name in ("data.npz", "pack.npz", "none.npz")]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [False, True, False]
    assert peak < 2**20


def test_an_archive_with_flipped_bytes_is_a_user_error(tmp_path):
    good = archive.npz_bytes({"a": np.random.default_rng(0).random(500), "b": np.arange(300)})
    path = tmp_path / "x.npz"
    for start in range(30, len(good) - 60, 97):
        content = bytearray(good)
        content[start : start + 60] = bytes(255 - byte for byte in content[start : start + 60])
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npz: "):
            store.read_npz(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", a=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(UserError, match="not a readable"):
        store.read_npz(tmp_path / "evil.npz")


@pytest.mark.parametrize("name", ["model.onnx", "v1.2-unproven.onnx", "a b.onnx"])
def test_a_file_that_is_being_made_is_called_what_it_will_be(tmp_path, name):
    for kind in ("", "-unproven"):
        assert store.whole_name(store.part_of(tmp_path / name, kind)) == tmp_path / name
    assert store.whole_name(tmp_path / name) == tmp_path / name


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    code = (
        "import sys; from pathlib import Path; from kdbench.store import write_atomic\n"
        "while True: write_atomic(Path(sys.argv[1]), b'x' * 50_000_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment())
    sizes = set()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        sizes.add(path.stat().st_size)
    writer.kill()
    writer.wait()
    sizes.add(path.stat().st_size)
    assert sizes <= {3, 50_000_000}
    (tmp_path / "teacher.logits-0").mkdir()
    (tmp_path / "teacher.logits-0" / f".kdbench-view-0.npy.{writer.pid}.part").touch()
    with store.RunFolder(tmp_path).lock():
        assert not list(tmp_path.rglob(".kdbench-*.part"))


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(UserError, match="aaa: cannot be written: File name too long"):
        store.write_atomic(tmp_path / ("a" * 300), b"x")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with (
        store.RunFolder(tmp_path).lock(),
        pytest.raises(UserError, match="another kdbench is at work"),
        store.RunFolder(tmp_path).lock(),
    ):
        pass


def test_a_folder_in_which_nothing_comes_to_lie_is_removed_again(tmp_path):
    for kept, folder in ((False, tmp_path / "new"), (True, tmp_path)):
        with pytest.raises(UserError, match="refused"), store.RunFolder(folder).lock():
            raise UserError("refused")
        assert folder.exists() is kept
    with store.RunFolder(tmp_path / "new").lock():
        (tmp_path / "new" / "made").touch()
    assert (tmp_path / "new" / "made").exists()


@pytest.mark.parametrize("path", ["/dev/null/out", "/proc/out"])
def test_a_folder_that_cannot_be_written_is_named(path):
    with pytest.raises(UserError, match=f"{path}: cannot be written to"):
        store.prepare_folder(Path(path))


def test_what_killed_makers_of_folders_left_is_cleared(tmp_path):
    left = tmp_path / ".kdbench-shipped.999999999.part"
    left.mkdir()
    (left / "model.onnx").touch()
    with store.RunFolder(tmp_path).lock():
        assert not left.exists()


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), store.new_folder(tmp_path / "new") as made:
        (made / "file").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with store.new_folder(tmp_path / name) as made:
            (made / "file").touch()
            assert not (tmp_path / name / "file").exists()
        assert (tmp_path / name / "file").exists()
    with pytest.raises(UserError, match="new: exists already"), store.new_folder(tmp_path / "new"):
        pass


def test_interrupted_results_are_not_published(tiny_run, tmp_path):
    result, arrays = store.load_result(tiny_run / "results.json")
    store.save_results(tmp_path / "results.json", result.model_copy(update={"complete": False}), arrays)
    with pytest.raises(UserError, match="was interrupted"):
        store.publish(tmp_path / "results.json", tmp_path / "results")


def test_a_folder_of_runs_has_of_each_what_the_run_itself_has(tmp_path):
    for name, speed in (("results.json", 2.0), ("results.partial.json", 3.0)):
        (tmp_path / "run").mkdir(exist_ok=True)
        store.save_results(tmp_path / "run" / name, result(), arrays(speed))
    assert store.find_results(tmp_path) == store.find_results(tmp_path / "run") == [tmp_path / "run" / "results.json"]
    store.remove_results(tmp_path / "run" / "results.json")
    assert store.find_results(tmp_path) == [tmp_path / "run" / "results.partial.json"]


def test_published_results_are_never_overwritten(tiny_run, tmp_path):
    first = store.publish(tiny_run / "results.json", tmp_path)
    assert store.publish(tiny_run / "results.json", tmp_path) == first
    result, arrays = store.load_result(tiny_run / "results.json")
    assert first.parent.name == result.machine.name
    (tmp_path / "again").mkdir()
    store.save_results(tmp_path / "again" / "results.json", result, arrays | {"latencies.0": arrays["latencies.0"] * 2})
    second = store.publish(tmp_path / "again" / "results.json", tmp_path)
    assert second.name == first.name.replace(".json", "-2.json")
    for path in (first, second):
        assert set(store.load_result(path)[1]) == set(arrays)


PLACES = ("/home/someone", "~/someone", "C:\\\\Users\\\\someone", "file:///home/someone")


def test_no_absolute_path_is_published(tmp_path):
    text = f"""
        name = "mine"
        description = "either/or, as /home/page has it"
        data = {{ source = "arrays", options = {{ path = "{PLACES[0]}/some where/x.npz", classes = ["/", "b"] }} }}
        student = {{ model = "mine.py:net", training = {{ epochs = 1, learning_rate = 1.0 }} }}
        distill = {{ losses = {{ kd = 1.0 }} }}
        bench = {{ options = {{ openvino = {{ cache_dir = "{PLACES[1]}/cache" }} }} }}
        [[teacher]]
        model = "{PLACES[2]}\\\\net.onnx"
        [[teacher]]
        model = "{PLACES[3]}/net.onnx"
    """
    failed = cell("student", None, error="student: [Errno 2] '/home/someone/deep/net.so' and/or https://a.b/c/d")
    passed = {"load_config": '{"CPU":{"CACHE_DIR":"/home/someone/cache"}}', "device_id": "0"}
    made = result(
        recipe=recipe_from_toml(text, "mine"),
        artifacts=(artifact("teacher", options={"weights": "/home/someone/a.pth"}), artifact("student", "teacher")),
        measurements=(cell("teacher", "0", provider_options=passed), failed),
    )
    store.save_results(tmp_path / "results.json", made, arrays())
    path = store.publish(tmp_path / "results.json", tmp_path / "results")
    assert "someone" not in path.read_text()
    found, _ = store.load_result(path)
    assert found.recipe.description == "either/or, as /home/page has it"
    assert found.recipe.data.options == {"path": "x.npz", "classes": ["/", "b"]}
    assert [teacher.model for teacher in found.recipe.teachers] == ["net.onnx", "net.onnx"]
    assert found.measurements[1].error == "student: [Errno 2] 'net.so' and/or https://a.b/c/d"
    assert json.loads(found.measurements[0].provider_options["load_config"]) == {"CPU": {"CACHE_DIR": "cache"}}
    assert "someone" in (tmp_path / "results.json").read_text()  # at home it may stay


def test_names_inside_an_onnx_file_are_no_paths(tmp_path):
    """PyTorch's older exporter calls nodes and tensors `/layer1/conv1/Conv` and the like."""
    spec = TensorSpec(name="/in/x", dtype="float32", shape=("/in/N", 3))
    options = {"exclude": ["/layer1/conv1/Conv", "/layer2/conv1/Conv"], "nodes": ["/fc/Gemm"], "weights": "/home/a.pth"}
    teacher = artifact("teacher", inputs=(spec,), outputs=(spec,), options=options)
    measurements = (cell("teacher", "0", dims={"/in/N": 4}), cell("student", "1"))
    made = result(artifacts=(teacher, artifact("student", "teacher")), measurements=measurements)
    store.save_results(tmp_path / "results.json", made, arrays())
    found, _ = store.load_result(store.publish(tmp_path / "results.json", tmp_path / "results"))
    assert found.artifacts[0] == teacher.model_copy(update={"options": options | {"weights": "a.pth"}})
    assert found.measurements == made.measurements


def test_what_has_no_path_is_published_as_it_is(tiny_run, tmp_path):
    found, _ = store.load_result(store.publish(tiny_run / "results.json", tmp_path))
    measured, _ = store.load_result(tiny_run / "results.json")
    assert found.model_copy(update={"raw": measured.raw, "seal": measured.seal}) == measured


def test_results_with_other_raw_values_are_refused(tiny_run, tmp_path):
    path = store.publish(tiny_run / "results.json", tmp_path)
    raw = path.with_suffix(".npz")
    arrays = store.read_npz(raw)
    arrays["latencies.0"] = arrays["latencies.0"] / 2
    raw.write_bytes(archive.npz_bytes(arrays))
    with pytest.raises(UserError, match="sha256 differs"):
        store.load_result(path)


def test_artifacts_cannot_point_outside_their_folder(tiny_run, tmp_path):
    text = (tiny_run / "student.artifact.json").read_text().replace('"student.onnx"', '"../student.onnx"')
    (tmp_path / "student.artifact.json").write_text(text)
    with pytest.raises(UserError, match="plain name"):
        store.load_artifact(tmp_path / "student.artifact.json")


@pytest.mark.parametrize("name", ["", "..", "a\0b"])
def test_raw_values_with_no_possible_name_are_named(name, tmp_path):
    made = result(raw=RawFile(file=name, sha256="0" * 64))
    (tmp_path / "x.json").write_text(sealed(made).to_json())
    with pytest.raises(UserError, match=r"x\.json: its raw values '.*' cannot be read: ") as error:
        store.load_result(tmp_path / "x.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", ["latencies.1", "rounds.1", "predictions.1"])
def test_a_cell_without_all_of_its_raw_values_is_named(lost, tmp_path):
    kept = {name: values for name, values in arrays().items() if name != lost}
    store.save_results(tmp_path / "x.json", result(), kept)
    with pytest.raises(UserError, match="a cell of 'student' has no artifact or no raw values"):
        store.load_result(tmp_path / "x.json")


def test_the_zoo_is_found():
    assert "digits" in store.zoo_recipes()
    with pytest.raises(UserError, match="did you mean 'digits'"):
        store.load_recipe("digist")


def test_read_only_file_names_the_path(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="a folder: give --out a file name"):
        store.output_file(tmp_path / "folder")
    with pytest.raises(UserError, match="is the input itself"):
        store.output_file(tmp_path / "a.onnx", tmp_path / "a.onnx")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/stdout", "/dev/nothing"):
        with pytest.raises(UserError, match=f"{path}: a device or a pipe, which a file would replace: give --json a"):
            store.output_file(path, option="--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_a_result_file_whose_cells_point_nowhere_is_named(tiny_run, tmp_path):
    path = store.publish(tiny_run / "results.json", tmp_path)
    whole = unsealed(path)
    for edit in (
        ('"rung": "student",\n   "artifact_sha256"', '"rung": "nobody",\n   "artifact_sha256"'),
        ('"raw": "1"', '"raw": "77"'),
    ):
        assert edit[0] in whole
        path.write_text(whole.replace(*edit))
        with pytest.raises(UserError, match="was it edited"):
            store.load_result(path)
