"""The samples that a search for int8 is calibrated and judged on: whose labels, in which order, normalised how."""

import numpy as np
import pytest

from kdbench.data.pack import EvalPack, load_pack
from kdbench.data.preprocess import apply
from kdbench.errors import UserError
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.judged_data import pack_for
from kdbench.pipeline.quantizing import fastest_int8
from kdbench.records import Preprocessing, Quantize, TensorSpec
from kdbench.store import load_artifact, sidecar, write_npz
from tests.conftest import save_mlp
from tests.test_quantizing import answers
from tests.test_sensitivity import features, mlp


def test_arrays_to_train_on_are_data_and_their_test_split_only_reports(tmp_path):
    path = mlp(tmp_path / "model.onnx")
    x, x_test = features(60), features(20, seed=2)
    arrays = {"x_train": x, "y_train": answers(path, x), "x_test": x_test, "y_test": answers(path, x_test)}
    write_npz(tmp_path / "data.npz", arrays)
    pack = pack_for(tmp_path / "data.npz", {}, known_artifact(path), 30, seed=0)
    assert len(pack.x_calibration) == len(pack.y_calibration) == 30
    assert {row.tobytes() for row in pack.x_calibration} <= {row.tobytes() for row in x}
    np.testing.assert_array_equal(answers(path, pack.x_calibration), pack.y_calibration)


def test_labels_are_numbered_as_the_model_numbers_its_classes(tmp_path):
    artifact = known_artifact(save_mlp(tmp_path / "m.onnx")).model_copy(update={"classes": ("cat", "dog", "owl")})
    x = np.zeros((3, 4), np.float32)
    pack = EvalPack("p", x, np.array([0, 1, 2]), x, ("owl", "cat", "dog"), None, y_calibration=np.array([2, 2, 0]))
    found = pack_for(pack, {}, artifact, None, 0)
    assert [artifact.classes[label] for label in found.y_test] == ["owl", "cat", "dog"]
    assert [artifact.classes[label] for label in found.y_calibration] == ["dog", "dog", "owl"]
    with pytest.raises(UserError, match=r"its classes \(owl, cat, dog, …\) are not those of the model"):
        pack_for(pack, {}, artifact.model_copy(update={"classes": ("cat", "dog", "cow")}), None, 0)


def test_plain_arrays_are_normalised_where_it_is_asked_for(tmp_path):
    path = mlp(tmp_path / "model.onnx")
    way = Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,))
    x = np.random.default_rng(0).integers(0, 256, (200, 16), dtype=np.uint8)
    write_npz(tmp_path / "raw.npz", {"x_calibration": x, "y_calibration": answers(path, apply(x, way))})
    options = Quantize(target="x86-vnni", calibration="minmax")
    found = fastest_int8(path, None, tmp_path / "raw.npz", options, preprocessing=way, budget_s=0.1)
    assert found.budget.fp32 == 1.0
    assert load_artifact(sidecar(found.file)).preprocessing == way


@pytest.mark.parametrize("shape", [("n", 1), ("n",)])
def test_a_class_as_the_output_leaves_the_number_of_classes_open(tmp_path, shape):
    artifact = known_artifact(save_mlp(tmp_path / "m.onnx"))
    told = artifact.model_copy(update={"outputs": (TensorSpec(name="class", dtype="int64", shape=shape),)})
    x, y = np.zeros((3, 4), np.float32), np.array([0, 9, 4])
    pack = EvalPack("p", x, y, x, (), None, y_calibration=y)
    assert pack_for(pack, {}, told, None, 0).y_calibration.max() == 9
    with pytest.raises(UserError, match="label 9 is out of range: 0 to 2 allowed"):
        pack_for(pack, {}, artifact, None, 0)


def test_packs_keep_the_labels_of_their_calibration_samples(digits, tmp_path):
    from kdbench.data.pack import save_pack

    save_pack(tmp_path / "pack.npz", digits, 50, seed=3)
    pack = load_pack(tmp_path / "pack.npz")
    by_bytes = {sample.tobytes(): label for sample, label in zip(digits.x_train, digits.y_train, strict=True)}
    assert [by_bytes[sample.tobytes()] for sample in pack.x_calibration] == pack.y_calibration.tolist()
    with np.load(tmp_path / "pack.npz") as arrays:
        older = {name: arrays[name] for name in arrays.files if name != "y_calibration"}
    write_npz(tmp_path / "older.npz", older)
    assert load_pack(tmp_path / "older.npz").y_calibration is None
