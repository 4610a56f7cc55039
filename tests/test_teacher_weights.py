"""Weights of teachers: state_dicts however they were saved, and files that are none, or would run code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kdbench import data, export
from kdbench.pruning.changes import Change
from kdbench.records import Preprocessing, Prune
from kdbench.steps.prune import prune
from kdbench.steps.teach import at_work
from kdbench.teachers import state
from kdbench.training import weights
from tests.test_teachers import SMALL, TRAINING, made, network, refused


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("model_state_dict",), ("state_dict", "model")])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_is_found_however_it_was_wrapped(nested, prefix, tmp_path):
    tensors = network().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    for key in nested:
        wrapped = {"epoch": 3, key: wrapped}
    torch.save(wrapped, tmp_path / "model.pth")
    found = state.read(tmp_path / "model.pth")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_teacher_is_what_its_weights_file_says(digits, tmp_path):
    model = network(seed=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.th")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.th", "a.safetensors"):
        path = made(SMALL + f'weights = "{name}"\n', tmp_path, digits)
        assert weights.load(path)[1].epoch == 0
        with at_work(path, tmp_path) as teaching:
            x = torch.rand(3, 1, 8, 8)
            torch.testing.assert_close(teaching.observe(x).logits, model(x))


def test_weights_that_do_not_fit_are_counted_and_named(digits, tmp_path):
    tensors = network().state_dict()
    del tensors["stages.0.0.conv1.weight"]
    tensors |= {f"extra.{number}": torch.zeros(1) for number in range(5)}
    tensors["stem.0.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(tensors, tmp_path / "a.pth")
    said = refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)
    assert "a.pth: does not fit the model: 1 tensor missing (stages.0.0.conv1.weight), 5 tensors unexpected " in said
    assert (
        "(extra.0, extra.1, extra.2, …), 1 tensor of another shape (stem.0.weight); (4, 3, 3, 3) for (4, 1, 3, 3)"
        in said
    )
    assert "give teacher.options as it was trained with" in said
    torch.save({k: v for k, v in network().state_dict().items() if "head" not in k}, tmp_path / "a.pth")
    said = refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)
    assert "2 tensors missing (head.weight, head.bias): only the head's: set teacher.new_head = true and give" in said


@pytest.fixture
def pruned(digits, tmp_path):
    """The weights file of a network with half of its parameters, and the history of that."""
    safetensors.torch.save_file(network(seed=3).state_dict(), tmp_path / "whole.safetensors")
    whole = made(SMALL + 'weights = "whole.safetensors"\n', tmp_path, digits)
    prune(whole, tmp_path / "pruned.safetensors", Prune(parameters=0.6, round_to=2))
    return tmp_path / "pruned.safetensors"


def test_a_pruned_weights_file_can_teach(pruned, digits, tmp_path):
    """Its history is done again, and goes on into the teacher's own file, from which the ONNX file is made."""
    path = made(SMALL + 'weights = "pruned.safetensors"\n', tmp_path, digits)
    expected, record = weights.model_of(pruned)
    assert record.changes and weights.record(path).changes == record.changes
    assert sum(p.numel() for p in expected.parameters()) < 0.7 * sum(p.numel() for p in network().parameters())
    x = torch.rand(3, 1, 8, 8)
    with at_work(path, tmp_path) as teaching:
        torch.testing.assert_close(teaching.observe(x).logits, expected(x))
    exported = export(path, tmp_path / "pruned.onnx")
    assert exported.parameters < 0.7 * sum(p.numel() for p in network().parameters())


def test_a_pruned_teacher_gets_a_new_head_and_is_trained(pruned, digits, tmp_path):
    few = replace(
        digits,
        classes=digits.classes[:4],
        **{f"{kind}_{part}": getattr(digits, f"{kind}_{part}")[getattr(digits, f"y_{part}") < 4]
           for kind in "xy" for part in ("train", "test")},
    )  # fmt: skip
    path = made(SMALL + TRAINING + 'weights = "pruned.safetensors"\nnew_head = true\n', tmp_path, few)
    model, record = weights.model_of(path)
    assert record.changes == weights.record(pruned).changes
    assert record.epoch == 1
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_a_history_that_does_not_fit_is_named(pruned, digits, tmp_path):
    other = 'model = "resnet"\noptions = { widths = [4, 8], blocks = [2, 1] }\n'
    said = refused(other + 'weights = "pruned.safetensors"\n', tmp_path, digits)
    assert said.startswith(f"{pruned}: does not fit")
    mlp_ = 'model = "mlp"\noptions = { widths = [8] }\n'
    said = refused(mlp_ + 'weights = "pruned.safetensors"\n', tmp_path, digits)
    assert "pruned.safetensors: does not fit teacher.model and its options: 'channels' can't be done again" in said
    tensors, record = weights.load(pruned)
    for lie in ('{"changes": 3}', "[]", '{"changes": [{"kind": 3}]}', "{"):
        safetensors.torch.save_file(tensors, pruned, {"kdbench": lie})
        assert "pruned.safetensors: metadata" in refused(SMALL + 'weights = "pruned.safetensors"\n', tmp_path, digits)
    evil = record.model_copy(update={"changes": (Change(kind="exec", options={"code": "1"}),)})
    weights.save(pruned, tensors, evil)
    assert "unknown change of a network 'exec'" in refused(SMALL + 'weights = "pruned.safetensors"\n', tmp_path, digits)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_could_run_code_is_refused_and_not_run(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Payload()}, "evil.pth")
    torch.save(network(), "whole.pth")
    for name in ("evil.pth", "whole.pth"):
        said = refused(SMALL + f'weights = "{name}"\n', tmp_path, digits)
        assert "a pickle that is not plain weights: refused" in said
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable torch file"),
        (b"hello", "not a readable torch file"),
        (b"PK\x03\x04 and no more", "not a readable torch file"),
        (None, "no file 'a.pth' beside the recipe or in the working directory"),
        ([1, 2], "holds no state_dict: save model.state_dict()"),
        ({"epoch": 3}, "holds no state_dict"),
        ({"state_dict": {}}, "holds no state_dict"),
    ],
)
def test_files_that_hold_no_weights_are_named(content, message, digits, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "a.pth")
    assert message in refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)


def test_a_cut_off_file_of_either_format_is_named(digits, tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    safetensors.torch.save_file(network().state_dict(), tmp_path / "a.safetensors")
    for name, message in (("a.pth", "not a readable torch file"), ("a.safetensors", "not a readable safetensors")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-900])
        assert message in refused(SMALL + f'weights = "{name}"\n', tmp_path, digits)


def test_public_weights_in_the_naming_of_their_authors(shared_data, tmp_path):
    rows = np.load(shared_data / "cifar10" / "test-labels.npy")[:200].astype(np.int64)
    from PIL import Image

    sheet = np.asarray(Image.open(shared_data / "cifar10" / "test.webp").convert("RGB"))[: 2 * 32]
    images = sheet.reshape(2, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(200, 3, 32, 32)
    names = tuple(str(number) for number in range(10))
    dataset = data.Dataset(images, rows, images, rows, names, Preprocessing(scale=1 / 255))
    path = made(
        'model = "resnet"\noptions = { depth = 20, shortcut = "pad" }\n'
        f'weights = "{shared_data / "weights" / "resnet20-12fca82f.th"}"\n'
        f"preprocessing = {{ scale = {1 / 255}, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}\n",
        tmp_path,
        dataset,
    )
    with at_work(path, tmp_path) as teaching, torch.no_grad():
        theirs = teaching.sees(images, torch.zeros(1), dataset.preprocessing)
        assert np.mean(teaching.observe(theirs).logits.argmax(1).numpy() == rows) > 0.88
