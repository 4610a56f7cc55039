"""Sources of data: what is in the files is in the arrays, and every mistake in a file is named."""

import gzip
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdbench import data
from kdbench.data import idx, pixels
from kdbench.data.dataset import Dataset
from kdbench.data.remarks import remarks, repeats
from kdbench.errors import UserError
from kdbench.records import Augment, Data


def load(source: str, **options: object) -> Dataset:
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return data.load(Data(source=source, options=plain))


def message(source: str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_loading_every_source_leaves_torch_alone():
    code = "import sys, kdbench.data; assert not {'torch', 'datasets', 'tokenizers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- arrays without labels, and with several --------------------------------------------------------------------------


def test_arrays_without_labels_say_so_and_keep_the_rest(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:9], y_test=np.arange(9) % 3)
    assert "no array 'y_train'" in message("arrays", path=tmp_path / "x.npz")
    found = load("arrays", path=tmp_path / "x.npz", labelled=False)
    assert found.y_train is None
    assert found.classes == ("0", "1", "2")
    with pytest.raises(UserError, match="no labels: training a teacher needs them"):
        found.train_labels("training a teacher")
    cut = found.with_validation(10)
    assert (len(cut.x_train), len(cut.x_test), cut.y_test) == (30, 10, None)
    np.savez(tmp_path / "none.npz", x_train=x, x_test=x)
    assert "name them in data.options.classes" in message("arrays", path=tmp_path / "none.npz", labelled=False)
    assert load("arrays", path=tmp_path / "none.npz", labelled=False, classes=["a", "b"]).y_test is None


def test_arrays_of_token_ids_and_several_labels(tmp_path):
    x, y = np.arange(40).reshape(10, 4), np.eye(10, 5, dtype=int)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    found = load("arrays", path=tmp_path / "x.npz")
    assert (found.task, found.preprocessing, len(found.classes)) == ("multi_label", None, 5)
    cut = found.with_validation(4)
    assert cut.y_train.shape == (6, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([cut.x_train, cut.x_test])[:, 0]), x[:, 0])


def test_splits_that_differ_in_shape_are_named(tmp_path):
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "x.npz", x_train=np.zeros((4, 3, 8, 8)), y_train=y, x_test=np.zeros((4, 1, 8, 8)), y_test=y)
    assert "x_test: samples of shape (1, 8, 8)" in message("arrays", path=tmp_path / "x.npz")


# --- idx --------------------------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_folder(folder: Path, zipped: bool = False) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        images, labels = generator.integers(0, 256, (count, 5, 6)), np.arange(count) % 3
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            suffix = ".gz" if zipped else ""
            write(folder / f"{part}-{name}-ubyte{suffix}", gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_with_and_without_gzip(tmp_path, zipped):
    found = load("idx", path=idx_folder(tmp_path, zipped))
    assert (found.x_train.shape, found.x_test.shape) == ((30, 1, 5, 6), (10, 1, 5, 6))
    assert found.y_train.tolist() == [i % 3 for i in range(30)]
    np.testing.assert_array_equal(found.x_train[:, 0], np.random.default_rng(0).integers(0, 256, (30, 5, 6)))


def test_idx_files_that_are_missing_or_cut_off_are_named(tmp_path):
    assert "no file 'train-images" in message("idx", path=tmp_path)
    assert "no such folder" in message("idx", path=tmp_path / "none")
    folder = idx_folder(tmp_path)
    whole = (folder / "t10k-images-idx3-ubyte").read_bytes()
    write(folder / "t10k-images-idx3-ubyte", whole[:-1])
    assert f"{len(whole) - 1} bytes, but its header promises {len(whole)}" in message("idx", path=folder)
    # numpy can't even hold this one, though it has no elements.
    write(folder / "t10k-images-idx3-ubyte", b"\0\0\x08\x04" + b"\0" * 4 + b"\xff" * 12)
    assert "none is 0" in message("idx", path=folder)
    write(folder / "t10k-images-idx3-ubyte", b"PNG!")
    assert "not an idx file" in message("idx", path=folder)


@given(st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: b"\0\0\x08" + tail))
def test_any_bytes_are_an_idx_array_or_a_user_error(content):
    for form in (content, gzip.compress(content), gzip.compress(content)[:-3]):
        try:
            assert isinstance(idx.parse(form, "any.idx"), np.ndarray)
        except UserError as error:
            assert str(error).startswith("any.idx:")


def test_fashion_mnist_is_complete(shared_data):
    found = load("idx", path=shared_data / "fashion-mnist")
    assert (found.x_train.shape, found.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(found.y_train).tolist() == [6000] * 10
    assert found.preprocessing.mean == pytest.approx((0.2860,), abs=1e-4)
    assert remarks(found) == ()


# --- folders ----------------------------------------------------------------------------------------------------------


def png(pixels_: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_).save(file, "PNG")
    return file.getvalue()


def image_folder(folder: Path, parts: tuple[str, ...] = ("train/", "test/")) -> Path:
    generator = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            for number in range(6):
                write(folder / f"{part}{name}/{number}.png", png(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
    return folder


def test_images_in_class_folders(tmp_path):
    found = load("folders", path=image_folder(tmp_path), size_px=8)
    assert found.classes == ("cat", "dog")
    assert (found.x_train.shape, found.x_test.shape) == ((12, 3, 8, 8), (12, 3, 8, 8))
    first = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(found.x_train[0], first.transpose(2, 0, 1))
    assert found.y_test.tolist() == [0] * 6 + [1] * 6
    assert load("folders", path=tmp_path, size_px=4, color="grey").x_train.shape == (12, 1, 4, 4)


def test_one_folder_is_split_by_class_and_a_zip_is_a_folder(tmp_path):
    folder = image_folder(tmp_path / "pets", ("",))
    assert "data.options.test_samples: no test split" in message("folders", path=folder, size_px=8)
    found = load("folders", path=folder, size_px=8, test_samples=4)
    assert (np.bincount(found.y_train).tolist(), np.bincount(found.y_test).tolist()) == ([4, 4], [2, 2])
    assert repeats(found) is None
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    zipped = load("folders", path=tmp_path / "pets.zip", size_px=8, test_samples=4)
    np.testing.assert_array_equal(zipped.x_test, found.x_test)


def test_the_longer_side_is_cropped_and_the_shorter_scaled(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    found = pixels.decode(png(wide), 4, "rgb", "wide.png")
    assert (found == 200).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_grey_of_16_bits_keeps_its_shades(dtype):
    """As X-rays and depth maps come."""
    deep = np.array([[0, 65535], [257 * 100, 257 * 200 + 128]])
    file = io.BytesIO()
    Image.fromarray(deep.astype(dtype)).save(file, "TIFF")
    for color, channels in (("grey", 1), ("rgb", 3)):
        found = pixels.decode(file.getvalue(), 2, color, "deep.tif")
        assert found.tolist() == [[[0, 255], [100, 200]]] * channels


def test_a_broken_image_is_named_or_skipped_with_a_remark(tmp_path):
    folder = image_folder(tmp_path)
    broken = folder / "train/dog/3.png"
    write(broken, broken.read_bytes()[:60])
    assert "'train/dog/3.png': not a readable image" in message("folders", path=folder, size_px=8)
    found = load("folders", path=folder, size_px=8, skip_broken=True)
    assert (len(found.x_train), found.y_train.tolist()) == (11, [0] * 6 + [1] * 5)
    assert found.remarks == ("broken images skipped: 1, such as train/dog/3.png",)


def test_folders_that_fit_no_layout_are_named(tmp_path):
    assert "no such file or folder" in message("folders", path=tmp_path / "none", size_px=8)
    assert "no file that ends in" in message("folders", path=tmp_path, size_px=8)
    folder = image_folder(tmp_path / "a")
    write(folder / "test/bird/1.png", png(np.zeros((8, 8, 3), np.uint8)))
    assert "no training sample is labelled 'bird'" in message("folders", path=folder, size_px=8)
    write(tmp_path / "b/1.png", b"")
    assert "'1.png' lies in no class folder" in message("folders", path=tmp_path / "b", size_px=8)
    assert "unknown key 'size': did you mean 'size_px'" in message("folders", path=folder, size=8)
    write(tmp_path / "c.zip", b"PK\x03\x04 cut off")
    assert "not a readable .zip" in message("folders", path=tmp_path / "c.zip", size_px=8)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_are_an_image_or_a_user_error(content, cut):
    whole = png(np.zeros((8, 8, 3), np.uint8))
    for form in (content, whole[:cut] + content, whole[:cut] + content + whole[cut + len(content) :]):
        try:
            assert pixels.decode(form, 8, "rgb", "any.png").shape == (3, 8, 8)
        except UserError as error:
            assert str(error).startswith("any.png:")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Unpacks one of the shared CIFAR sets to an `.npz`."""

    def unpacked(shared: Path, name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        subprocess.run([sys.executable, shared / "unpack.py", name, folder], check=True)
        return folder / f"{name}.npz"

    return unpacked


def test_cifar10_has_its_published_channel_means(shared_data, cifar, tmp_path):
    found = load("arrays", path=cifar(shared_data, "cifar10"))
    assert (found.x_train.shape, found.x_test.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert found.preprocessing.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert found.preprocessing.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    for row in range(60):
        part = "train" if row < 40 else "test"
        image = found.x_test[row].transpose(1, 2, 0)
        write(tmp_path / f"{part}/{found.y_test[row]}/{row:02d}.png", png(image))
    folder = load("folders", path=tmp_path, size_px=32)
    assert folder.classes == tuple("0123456789")
    np.testing.assert_array_equal(
        {image.tobytes() for image in folder.x_train}, {image.tobytes() for image in found.x_test[:40]}
    )


def test_cifar100_has_ten_test_images_in_its_training_set(shared_data, cifar):
    found = load("arrays", path=cifar(shared_data, "cifar100"))
    assert remarks(found) == ("10 of 10000 test samples also stand in the training set",)


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_hub_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs datasets: pip install datasets" in message("huggingface", name="mnist")


@pytest.mark.filterwarnings("ignore")
def test_a_hub_data_set_in_a_local_folder(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets (extra 'data') is not installed")
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(12)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
            "row": datasets.List(datasets.Value("float32")),
        }
    )
    columns = {"image": images, "label": [0, 1] * 6, "text": ["a b"] * 12, "row": [[1.0, 2.0]] * 12}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features=features)}).save_to_disk(tmp_path)
    assert "no split 'test'" in message("huggingface", name=tmp_path)
    found = load("huggingface", name=tmp_path, test_samples=4, size_px=8)
    assert (found.x_train.shape, found.x_test.shape) == ((8, 3, 8, 8), (4, 3, 8, 8))
    assert (found.classes, np.bincount(found.y_test).tolist()) == (("cat", "dog"), [2, 2])
    assert {x.tobytes() for x in found.x_train} < {np.asarray(i).transpose(2, 0, 1).tobytes() for i in images}
    assert load("huggingface", name=tmp_path, test_samples=4, sample="text", length=3).x_train[0].tolist() == [2, 3, 0]
    assert load("huggingface", name=tmp_path, test_samples=4, sample="row").x_train.tolist() == [[1, 2]] * 8
    assert "did you mean 'image'" in message("huggingface", name=tmp_path, test_samples=4, sample="imgae")


# --- remarks ----------------------------------------------------------------------------------------------------------


def test_imbalance_and_repeats_are_said_and_only_where_there_are_any(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(20, 1)
    y = np.array([0] * 16 + [1] * 4)
    path = tmp_path / "x.npz"
    np.savez(path, x_train=x, y_train=y, x_test=np.array([[3.0], [99.0]], np.float32), y_test=y[:2])
    found = load("arrays", path=path, classes=["many", "few"])
    assert remarks(found) == (
        "unbalanced classes: 16 training samples of 'many', 4 of 'few'",
        "1 of 2 test samples also stands in the training set",
    )
    np.savez(path, x_train=x, y_train=np.array([0] * 15 + [1] * 5), x_test=x[:2] + 50, y_test=y[:2])
    assert remarks(load("arrays", path=path)) == ()


def test_augmentation_is_refused_for_what_is_no_image(tmp_path):
    path = write(tmp_path / "train.txt", "1 a good film\n0 a bad film\n")
    options = {"train": str(path), "test": str(path)}
    with pytest.raises(UserError, match="leave the section out"):
        data.load(Data(source="text", options=options, augment=Augment(shift_px=1)))
