"""Pruning by ratios: what goes of which layer is said by name."""

import pytest
import torch

from kdbench.errors import UserError
from kdbench.pruning import structured
from kdbench.pruning.graph import follow
from kdbench.pruning.importance import unit_scores
from kdbench.records import Prune, parse
from kdbench.training import weights
from tests.prunable import IMAGE, plain, samples, saved, small


def ratios(found=None, /, **options):
    return Prune(**({"round_to": 2, "ratios": found} | options))


def test_the_named_layer_loses_its_share_the_least_important_first_and_no_other_does():
    model, x = plain(), samples(IMAGE)
    found = structured.prune(model, ratios({"0": 0.5}), x)
    assert (found.model[0].out_channels, found.model[3].out_channels) == (4, 8)
    assert found.share == 12 / 16  # of the channels
    scores = unit_scores("group", model, follow(model, x).groups)["0"]
    kept = sorted(scores.argsort()[4:].tolist())
    assert torch.equal(found.model[0].weight, model[0].weight[kept])


def test_a_module_names_all_of_its_layers_and_a_longer_name_counts_more():
    found = structured.prune(small("resnet"), ratios({"stages.0": 0.5, "stages.0.1.conv1": 0.25}), samples(IMAGE))
    first, second = found.model.stages
    assert [block.conv1.out_channels for block in (*first, *second)] == [4, 6, 16, 16]
    # What is added up loses the same channels: all outputs of the stage, and those of the stem before it.
    assert {found.model.stem[0].out_channels, first[0].conv2.out_channels, first[1].conv2.out_channels} == {4}
    assert second[1].conv2.out_channels == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages.00": 0.5}, r"prune.ratios: no submodule 'stages\.00': did you mean 'stages\.0"),
        ({"head": 0.5}, "prune.ratios: 'head' has no channels that can go: leave it out"),
        (
            {"stages.0": 0.5, "stem.0": 0.25},
            r"'stages\.0' and 'stem\.0' share .* 'stem\.0', .*: give both the same share",
        ),
        ({"stages.0.0.conv1": 0.1}, r"nothing would go: 'stages\.0\.0\.conv1': .* rounded to a multiple of 2"),
    ],
)
def test_what_cannot_go_is_refused_before_any_training(given, message):
    with pytest.raises(UserError, match=message):
        structured.check(small("resnet"), ratios(given, importance="taylor"), samples(IMAGE))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": 0.5}, "or with ratios alone"),
        ({"scope": "layer"}, "without blocks and scope"),
        ({"blocks": True}, "without blocks and scope"),
        ({"ratios": {"stages.0": 1.0}}, "'ratios.stages.0' should be less than 1"),
    ],
)
def test_ratios_take_the_place_of_a_target(given, message):
    with pytest.raises(UserError, match=message):
        parse(Prune, {"ratios": {"stages.0": 0.5}} | given, "prune")


def test_the_command_says_what_is_left_and_which_layer_kept_all(typed, tmp_path):
    source = saved(tmp_path / "whole.safetensors", "mlp", small("mlp"))
    out = tmp_path / "pruned.safetensors"
    said = typed("prune", source, "--ratio", "stages.0=25%", "--ratio", "stages.1=0.2", "--out", out)
    assert (said.status, said.out.splitlines()[0]) == (0, f"{out}: 83.3 % of the channels left")
    assert "left as it is: 'stages.1.0': it keeps all of its channels, rounded to a multiple of 8" in said.err
    pruned, _ = weights.model_of(out)
    assert (pruned.stages[0][0].out_features, pruned.stages[1][0].out_features) == (24, 16)
    wrong = typed("prune", source, "--ratio", "stages.0=30", "--out", tmp_path / "no.safetensors")
    assert (wrong.status, "'30' should be a share between 0 and 1" in wrong.err) == (2, True)
