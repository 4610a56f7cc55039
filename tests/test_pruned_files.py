"""Pruned weights files: what they remember, and which histories are refused."""

import numpy as np
import pytest
import torch

from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.pruning.changes import Change
from kdbench.records import Preprocessing
from kdbench.steps import prune as steps
from kdbench.steps import spiral
from kdbench.steps.export import export
from kdbench.steps.lesson import Lesson
from kdbench.steps.prune import Samples
from kdbench.store import RunFolder, load_recipe
from kdbench.training import weights
from tests.prunable import IMAGE, ROW, SMALL, asked, samples, saved, small


def test_a_pruned_padding_shortcut_stays_constant_and_is_kept_in_the_file(tmp_path):
    source = saved(tmp_path / "whole.safetensors", "resnet-pad", small("resnet-pad"))
    out = tmp_path / "pruned.safetensors"
    steps.prune(source, out, asked(parameters=0.5), Samples(samples(IMAGE).numpy()))
    model, trained = weights.model_of(out)
    assert [change.kind for change in trained.changes] == ["shortcuts", "channels"]
    for name in trained.changes[0].options["layers"]:
        weight = model.get_submodule(name).weight
        assert not weight.requires_grad
        assert set(weight.unique().tolist()) <= {0.0, 1.0}
    assert model.stages[1][0].conv2.out_channels < 16


def test_macs_are_those_of_the_exported_file(tmp_path):
    for name in ("resnet-pad", "bert"):
        source = saved(tmp_path / f"{name}.safetensors", name, small(name))
        found = steps.prune(source, tmp_path / "pruned.safetensors", asked(), Samples(samples(SMALL[name][1]).numpy()))
        artifact = export(found.path, tmp_path / "pruned.onnx")
        assert artifact.macs == found.after.macs


def test_a_file_is_pruned_again_and_keeps_both_changes(tmp_path):
    first = saved(tmp_path / "0.safetensors", "resnet-pad", small("resnet-pad"))
    x = Samples(samples(IMAGE).numpy())
    second = steps.prune(first, tmp_path / "1.safetensors", asked(parameters=0.7), x)
    third = steps.prune(second.path, tmp_path / "2.safetensors", asked(parameters=0.7), x)
    kinds = [change.kind for change in weights.record(third.path).changes]
    assert kinds == ["shortcuts", "channels", "channels"]
    assert third.before.parameters == second.after.parameters
    assert third.after.parameters < 0.5 * second.before.parameters
    assert (tmp_path / "2.safetensors").stat().st_size < (tmp_path / "1.safetensors").stat().st_size


def test_a_turn_is_pruned_anew_where_it_is_judged_on_other_samples(tmp_path):
    source = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    fields = {"spiral.parameters": "0.5", "spiral.importance": "taylor", "spiral.round_to": "2"}

    def pruned(labels, seed):
        x, y = samples(ROW, 16, seed).numpy(), np.roll(np.arange(16) % 5, labels)
        lesson = Lesson(load_recipe("digits", fields), Dataset(x, y, x, y, tuple("abcde"), Preprocessing()), "")
        path = spiral.narrowed(RunFolder(tmp_path), "spiral-1", "", source, 0.8, {}, lesson)
        return weights.record(path).changes

    assert pruned(0, seed=0) != pruned(0, seed=1)
    assert pruned(0, seed=0) != pruned(1, seed=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            Change(kind="channels", options={"cuts": [{"removed": [[0, 31]], "of": [["stages.0.0", "linear.out"]]}]}),
            "stages.0.0 has 32 channels, of which these can't be removed",
        ),
        (
            Change(kind="channels", options={"cuts": [{"removed": [[40, 41]], "of": [["stages.0.0", "linear.out"]]}]}),
            "stages.0.0 has 32 channels",
        ),
        (
            Change(kind="channels", options={"cuts": [{"removed": [[0, 1]], "of": [["stages.9", "linear.out"]]}]}),
            "'stages.9'",
        ),
        (Change(kind="channels", options={"cuts": 3}), "'int' object"),
        (Change(kind="blocks", options={"blocks": ["stages.9"]}), "9"),
        (Change(kind="chanels"), "did you mean 'channels'"),
    ],
)
def test_a_history_that_does_not_fit_is_refused(change, reason, tmp_path):
    path = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    tensors, trained = weights.load(path)
    weights.save(path, tensors, trained.model_copy(update={"changes": (change,)}))
    with pytest.raises(UserError) as error:
        weights.model_of(path)
    assert reason in str(error.value)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not written by kdbench"):
        steps.prune(path, tmp_path / "out.safetensors", asked())
    with pytest.raises(UserError, match="is the input itself"):
        steps.prune(path, path, asked())
