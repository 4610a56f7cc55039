"""What is found in a path is what the source then reads."""

import io
import wave

import numpy as np
import pytest
from PIL import Image

from kdbench.data import load
from kdbench.data.detect import detect
from kdbench.errors import UserError
from kdbench.records import Data


def loaded(path):
    found = detect(path)
    return found, load(Data(source=found.source, options=found.options))


def png(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def recording(seconds=0.5, rate=16000):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-999, 999, int(seconds * rate), "<i2").tobytes())
    return buffer.getvalue()


def tree(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_images_in_class_folders_with_a_test_split(tmp_path):
    names = [f"{part}/{label}/{i}.png" for part in ("train", "val") for label in "ab" for i in range(3)]
    found, dataset = loaded(tree(tmp_path / "d", dict.fromkeys(names, png((40, 30), "L"))))
    assert (found.source, found.options["size_px"], found.options["color"]) == ("folders", 30, "grey")
    assert dataset.x_train.shape == (6, 1, 30, 30)


def test_images_without_a_test_split_get_one_and_large_ones_are_scaled(tmp_path):
    names = [f"{label}/{i}.png" for label in "ab" for i in range(10)]
    found, dataset = loaded(tree(tmp_path / "d", dict.fromkeys(names, png((500, 400)))))
    assert (found.options["size_px"], found.options["test_samples"]) == (224, 4)
    assert "4 of 20 files" in found.facts[-1]
    assert dataset.x_test.shape == (4, 3, 224, 224)


def test_a_broken_image_is_left_to_the_source(tmp_path):
    files = dict.fromkeys([f"{label}/{i}.png" for label in "ab" for i in range(10)], png((8, 8)))
    found = detect(tree(tmp_path / "d", {**files, "a/x.png": b"not an image"}))
    assert found.options["size_px"] == 8
    with pytest.raises(UserError, match=r"none of the 2 files looked at can be read"):
        detect(tree(tmp_path / "e", {"a/x.png": b"no", "b/x.png": b"no"}))


def test_recordings_named_by_label_and_speaker(tmp_path):
    names = [f"{label}_someone_{i}.wav" for label in range(2) for i in range(7)]
    found, dataset = loaded(tree(tmp_path / "d", dict.fromkeys(names, recording())))
    assert (found.source, found.options["sample_rate"], found.options["seconds"]) == ("audio", 16000, 0.5)
    assert "test_samples" not in found.options
    assert len(dataset.x_train) == 4


def test_recordings_in_class_folders(tmp_path):
    names = [f"{label}/{i}.wav" for label in ("no", "yes") for i in range(5)]
    found, dataset = loaded(tree(tmp_path / "d", dict.fromkeys(names, recording())))
    assert found.options["test_samples"] == 2
    assert dataset.classes == ("no", "yes")


def test_an_npz_by_itself_and_alone_in_its_folder(tmp_path):
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for path in (tmp_path / "mine.npz", tmp_path):
        assert loaded(path)[0].source == "arrays"


def test_tables_of_numbers_with_one_file_and_with_two(tmp_path):
    rows = "a,b,Class\n" + "".join(f"{i},{i / 2},{'xy'[i % 2]}\n" for i in range(10))
    found, dataset = loaded(tree(tmp_path, {"all.csv": rows}) / "all.csv")
    assert (found.source, found.options["label"], found.options["test_samples"]) == ("tables", "Class", 2)
    assert dataset.x_train.shape == (8, 2)
    found, dataset = loaded(tree(tmp_path / "two", {"train.csv": rows, "my-test.csv": rows}))
    assert "test_samples" not in found.options
    assert len(dataset.x_test) == 10


def test_tables_of_text(tmp_path):
    rows = "id,review,label\n" + "".join(f"{i},it is a very good film number {i},{i % 2}\n" for i in range(10))
    found, dataset = loaded(tree(tmp_path / "d", {"train.csv": rows, "dev.csv": rows}))
    assert (found.source, found.options["text"], found.options["length"]) == ("text", "review", 16)
    assert dataset.x_train.shape == (10, 16)
    with pytest.raises(UserError, match="text needs a test table"):
        detect(tmp_path / "d" / "train.csv")


def test_lines_and_arff_of_other_people(shared_data):
    found, dataset = loaded(shared_data / "sst2")
    assert (found.source, len(dataset.x_train), len(dataset.x_test)) == ("text", 6920, 1821)
    found = detect(shared_data / "fsdd" / "recordings.zip")
    assert (found.source, found.options["sample_rate"]) == ("audio", 8000)
    assert loaded(shared_data / "fashion-mnist")[0].source == "idx"


def test_a_mulan_set(shared_data, tmp_path):
    for name in ("emotions-train.arff", "emotions-test.arff", "emotions.xml"):
        (tmp_path / name).write_bytes((shared_data / "multilabel" / name).read_bytes())
    found, dataset = loaded(tmp_path)
    assert (found.source, dataset.task, len(dataset.classes)) == ("tables", "multi_label", 6)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.md": "hello"}, "no file that ends in"),
        ({"train.csv": "a,b\n1,2\n"}, "none of its columns"),
        ({}, "no file that ends in"),
    ],
)
def test_what_is_not_known_is_said(tmp_path, files, message):
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=message):
        detect(tree(tmp_path / "d", files))


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        detect(tmp_path / "nothing")
