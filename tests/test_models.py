"""Architectures: shapes, parameter counts of the literature, weights made by others, options that don't fit."""

import functools
import importlib

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from PIL import Image

from kdbench import slim
from kdbench.errors import UserError
from kdbench.models import MODELS, build
from kdbench.models.resnet import from_common_names
from kdbench.records import Preprocessing
from kdbench.steps.export import export
from kdbench.training import weights
from kdbench.training.seeds import deterministic
from tests.models import save

CIFAR = (3, 32, 32)

mobilenet_v2, shufflenet_v1, shufflenet_v2, imagenet_resnet = (
    importlib.import_module(f"kdbench.models.{name}")  # by name: the package has functions of these names
    for name in ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "imagenet_resnet")
)


def parameters(name, options, shape, classes):
    """How many the model has; it is built without memory for their numbers, as the largest have a hundred million."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(name, options, shape, classes).parameters())


# The published number, in millions with the digits that are given, beside the exact one.
PUBLISHED = [
    # He et al., 1512.03385, table 6: shortcuts without parameters, 10 classes
    ("resnet", {"depth": 20, "shortcut": "pad"}, CIFAR, 10, "0.27", 269_722),
    ("resnet", {"depth": 32, "shortcut": "pad"}, CIFAR, 10, "0.46", 464_154),
    ("resnet", {"depth": 44, "shortcut": "pad"}, CIFAR, 10, "0.66", 658_586),
    ("resnet", {"depth": 56, "shortcut": "pad"}, CIFAR, 10, "0.85", 853_018),
    ("resnet", {"depth": 110, "shortcut": "pad"}, CIFAR, 10, "1.7", 1_727_962),
    # Tian et al., 1910.10699, and the papers after it: 1×1 shortcuts, 100 classes
    ("resnet8x4", {}, CIFAR, 100, "1.2", 1_233_540),
    ("resnet32x4", {}, CIFAR, 100, "7.4", 7_433_860),
    ("wide_resnet", {"depth": 16, "width": 2}, CIFAR, 100, "0.70", 703_284),
    ("wide_resnet", {"depth": 40, "width": 2}, CIFAR, 100, "2.26", 2_255_156),
    ("vgg", {"depth": 8}, CIFAR, 100, "3.97", 3_965_028),
    ("vgg", {"depth": 13}, CIFAR, 100, "9.46", 9_462_180),
    ("mobilenet_v2", {"width": 0.5}, CIFAR, 100, "0.81", 812_548),
    ("shufflenet_v1", {}, CIFAR, 100, "0.95", 949_258),
    ("shufflenet_v2", {}, CIFAR, 100, "1.36", 1_355_528),
    # Zagoruyko & Komodakis, 1605.07146, table 4
    ("wide_resnet", {"depth": 40, "width": 1}, CIFAR, 10, "0.6", 563_930),
    ("wide_resnet", {"depth": 16, "width": 8}, CIFAR, 10, "11.0", 10_961_370),
    ("wide_resnet", {"depth": 28, "width": 10}, CIFAR, 10, "36.5", 36_479_194),
    # LeNet-300-100 on 28×28 pixels: 267K in Han et al., 1506.02626, table 1
    ("mlp", {"widths": [300, 100]}, (1, 28, 28), 10, "0.267", 266_610),
    # Kong et al., 1912.10211: Cnn10 on 64 mel bands and the 527 classes of AudioSet
    ("audio_cnn", {"widths": [64, 128, 256, 512]}, (1, 64, 100), 527, "5.2", 5_219_279),
    # torchvision's documentation, 1000 classes: exact numbers there
    ("mobilenet_v2", {}, CIFAR, 1000, "3.504872", 3_504_872),
    ("imagenet_resnet", {"depth": 18}, CIFAR, 1000, "11.689512", 11_689_512),
    ("imagenet_resnet", {"depth": 34}, CIFAR, 1000, "21.797672", 21_797_672),
    ("imagenet_resnet", {"depth": 50}, CIFAR, 1000, "25.557032", 25_557_032),
    ("imagenet_resnet", {"depth": 101}, CIFAR, 1000, "44.549160", 44_549_160),
]


@pytest.mark.parametrize(("name", "options", "shape", "classes", "millions", "exact"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, options, shape, classes, millions, exact):
    count = parameters(name, options, shape, classes)
    assert count == exact
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_default_resnet_is_resnet20_with_projections():
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert parameters("resnet", {}, CIFAR, 10) == 269_722 + projections


@pytest.mark.parametrize(
    ("layers", "width", "millions"),
    [(2, 128, "4.4"), (4, 256, "11.3"), (4, 512, "29.1"), (8, 512, "41.7"), (12, 768, "110.1")],
)
def test_berts_are_those_of_the_paper(layers, width, millions):
    # Turc et al., 1908.08962, table 1: tiny, mini, small, medium, base, with the heads of pretraining
    options = {"vocabulary": 30_522, "positions": 512, "layers": layers, "width": width, "heads": width // 64}
    count = parameters("bert", options, (128,), 2)
    segments, next_sentence = 2 * width, 2 * width + 2
    masked_tokens = width * width + width + 2 * width + 30_522
    assert f"{(count + segments + masked_tokens) / 1e6:.1f}" == millions
    if layers == 12:
        # bert-base-uncased, widely given without those heads
        assert count - next_sentence + segments == 109_482_240


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("embedding_bag", {"width": 8}, 50 * 8 + 8 * 2 + 2),
        ("text_cnn", {"embedding": 8, "width": 4}, 50 * 8 + (3 + 4 + 5) * 8 * 4 + 3 * 4 + 12 * 2 + 2),
        ("lstm", {"embedding": 8, "width": 6, "layers": 2}, 50 * 8 + 4 * 6 * (8 + 6 + 2) + 4 * 6 * (6 + 6 + 2) + 14),
        ("gru", {"embedding": 8, "width": 6}, 50 * 8 + 3 * 6 * (8 + 6 + 2) + 14),
    ],
)
def test_parameters_of_text_models_by_hand(name, options, exact):
    assert parameters(name, {"vocabulary": 50, **options}, (12,), 2) == exact


@pytest.mark.parametrize("name", ["bert", "lstm", "gru", "text_cnn", "embedding_bag"])
def test_padding_behind_a_text_changes_nothing(name):
    torch.manual_seed(0)
    model = build(name, {"vocabulary": 50}, (20,), 3).eval()
    short = torch.randint(1, 50, (4, 7))
    filled = torch.nn.functional.pad(short, (0, 13))
    with torch.no_grad():
        torch.testing.assert_close(model(filled), model(short))
        assert model(torch.zeros(1, 20, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("name", ["lstm", "gru", "text_cnn", "embedding_bag"])
def test_word_vectors_start_small_and_padding_without_any(name):
    torch.manual_seed(0)
    vectors = build(name, {"vocabulary": 50}, (20,), 3).embedding.weight.detach()
    assert 0.2 < vectors.abs().max() <= 0.25
    assert vectors.std() > 0.1
    assert not vectors[0].any() and vectors[1:].any(dim=1).all()


def test_shufflenet_v2_is_torchvisions_but_for_the_stem():
    # 1×1 instead of 3×3 for small images
    assert parameters("shufflenet_v2", {}, CIFAR, 1000) + 24 * 3 * (9 - 1) == 2_278_604


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_vgg_has_three_linear_layers_less_and_one_more(depth):
    model = build("vgg", {"depth": depth, "width": 2}, CIFAR, 10)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == depth - 3


@pytest.mark.parametrize("depth", [8, 14])
def test_the_shallow_resnets_have_as_many_layers_as_their_name_says(depth):
    model = build("resnet", {"depth": depth, "shortcut": "pad"}, CIFAR, 100)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth
    assert model(torch.zeros(2, *CIFAR)).shape == (2, 100)


def test_a_padded_shortcut_keeps_pixels_and_adds_zeros():
    shortcut = build("resnet", {"depth": 8, "shortcut": "pad"}, CIFAR, 10).stages[1][0].shortcut
    x = torch.randn(2, 16, 4, 4)
    padded = shortcut(x)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert padded.shape == (2, 32, 2, 2)
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


@pytest.mark.parametrize(
    ("depth", "file", "published"),
    [(20, "resnet20-12fca82f.th", 0.9173), (56, "resnet56-4bfd9763.th", 0.9339)],
)
def test_public_weights_load_and_are_as_right_as_published(shared_data, depth, file, published):
    model = build("resnet", {"depth": depth, "shortcut": "pad"}, CIFAR, 10).eval()
    saved = torch.load(shared_data / "weights" / file, map_location="cpu", weights_only=True)
    model.load_state_dict(from_common_names(saved["state_dict"]), strict=True)
    sheet = np.asarray(Image.open(shared_data / "cifar10" / "test.webp").convert("RGB"))
    tiles = sheet.reshape(100, 32, 100, 32, 3)[:10].transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(tiles / np.float32(255)) - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        predicted = torch.cat([model(batch).argmax(1) for batch in x.split(250)]).numpy()
    labels = np.load(shared_data / "cifar10" / "test-labels.npy")[:1000]
    assert abs(np.mean(predicted == labels) - published) < 0.02


def test_imagenet_resnets_have_torchvisions_keys():
    for depth, tensors in ((18, 122), (34, 218), (50, 320), (101, 626)):
        state = build("imagenet_resnet", {"depth": depth, "width": 2}, (3, 64, 64), 10).state_dict()
        assert len(state) == tensors
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {key for key in state if key.startswith(("conv1", "bn1", "fc", "layer2.0"))} == {
        "conv1.weight",
        *(f"bn1.{name}" for name in norm),
        *(f"layer2.0.conv{i}.weight" for i in (1, 2, 3)),
        *(f"layer2.0.bn{i}.{name}" for i in (1, 2, 3) for name in norm),
        "layer2.0.downsample.0.weight",
        *(f"layer2.0.downsample.1.{name}" for name in norm),
        "fc.weight",
        "fc.bias",
    }


PIXELS, MELS = (3, 16, 16), (1, 16, 20)
TINY = [
    ("resnet", {"widths": [4, 8], "blocks": [1, 1]}, PIXELS, "stages.1"),
    ("resnet", {"widths": [4, 8], "blocks": [1, 1], "shortcut": "pad"}, PIXELS, "stages.1"),
    ("resnet8x4", {"widths": [4, 8, 16], "stem": 2}, PIXELS, "stages.2"),
    ("resnet32x4", {"widths": [4, 8, 16], "stem": 2, "depth": 8}, PIXELS, "stages.2"),
    ("wide_resnet", {"depth": 10, "width": 1}, PIXELS, "stages.2"),
    ("vgg", {"depth": 8, "width": 2}, PIXELS, "stages.4"),
    ("mobilenet_v2", {"width": 0.125}, PIXELS, "stages.3"),
    ("shufflenet_v1", {"width": 48, "groups": 2}, PIXELS, "stages.2"),
    ("shufflenet_v2", {"widths": [4, 8, 16], "last": 16}, PIXELS, "stages.2"),
    ("imagenet_resnet", {"depth": 18, "width": 2}, (3, 32, 32), "layer4"),
    ("imagenet_resnet", {"depth": 50, "width": 2}, (3, 32, 32), "layer4"),
    ("bert", {"vocabulary": 20, "width": 8}, (9,), "stages.1"),
    ("lstm", {"vocabulary": 120, "embedding": 5, "width": 6, "layers": 2}, (9,), "stages.1"),
    ("gru", {"vocabulary": 120, "embedding": 5, "width": 6}, (9,), "stages.0"),
    ("text_cnn", {"vocabulary": 20, "embedding": 5, "width": 6}, (9,), "convolutions.2"),
    ("embedding_bag", {"vocabulary": 20, "width": 6}, (9,), "pool"),
    ("audio_cnn", {"widths": [2, 4, 8]}, MELS, "stages.2"),
    ("audio_gru", {"width": 6}, MELS, "stages.0"),
    ("mlp", {"widths": [6, 5]}, (7,), "stages.1"),
]
SHALLOW = [
    (mobilenet_v2, "STAGES", (((1, 16, 1), (6, 24, 1)), ((6, 32, 2),), ((6, 64, 1), (6, 96, 1)), ((6, 160, 1),))),
    (shufflenet_v1, "BLOCKS", (1, 2, 1)),
    (shufflenet_v2, "BLOCKS", (1, 2, 1)),
    (imagenet_resnet, "BLOCKS", {18: (1, 2, 1, 1), 50: (1, 2, 1, 1)}),
]
"""Fewer of equal blocks one after the other where there are many and no option says how many: an export takes as long
as the network is deep. Each kind of block is there."""


def export_untrained(name, options, shape, folder, stem="model"):
    """A model of four classes with random weights, its ONNX file, and the record of that."""
    torch.manual_seed(0)
    model = build(name, options, shape, 4).eval()
    trained = weights.Trained(
        model=name,
        options=options,
        input_shape=shape,
        input_dtype="int64" if "vocabulary" in options else "float32",
        classes=tuple("abcd"),
        preprocessing=Preprocessing(),
        fingerprint="",
        epoch=0,
    )
    source, out = (folder / f"{stem}.{suffix}" for suffix in ("safetensors", "onnx"))
    weights.save(source, model.state_dict(), trained)
    return model, out, export(source, out)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What `export_untrained` gives of a row of TINY, once."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def export_of(row):
        name, options, shape, _ = TINY[row]
        return export_untrained(name, options, shape, folder, str(row))

    with pytest.MonkeyPatch.context() as patch:
        for module, name, blocks in SHALLOW:
            patch.setattr(module, name, blocks)
        yield export_of


@pytest.mark.parametrize(("name", "options", "shape", "feature"), TINY)
def test_every_parameter_learns_in_deterministic_training(name, options, shape, feature):
    with deterministic(1):
        torch.manual_seed(0)
        model = build(name, options, shape, 4)
        x = torch.randint(1, 20, (8, *shape)) if "vocabulary" in options else torch.randn(8, *shape)
        torch.nn.functional.cross_entropy(model(x), torch.arange(8) % 4).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_every_model_is_exported_below():
    assert {name for name, *_ in TINY} == set(MODELS)


@pytest.mark.parametrize("row", range(len(TINY)), ids=[f"{name}-{feature}" for name, _, _, feature in TINY])
def test_every_model_exports_with_free_batch_and_a_named_feature(row, exported):
    _, options, shape, feature = TINY[row]
    model, path, artifact = exported(row)
    tokens = "vocabulary" in options
    assert artifact.inputs[0].shape == ("batch", *shape)
    seen = {}
    model.get_submodule(feature).register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        x = torch.randint(0, options["vocabulary"], (batch, *shape)) if tokens else torch.randn(batch, *shape)
        with torch.no_grad():
            expected = model(x)
        found = session.run(None, {"input": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
        assert seen["output"].shape[0] == batch
    assert expected.std() > 0


def test_an_export_that_onnxruntime_refuses_is_one_line(exported, tmp_path, monkeypatch, mistake):
    source = exported(0)[1].with_suffix(".safetensors")
    tensors = {"w": np.zeros((3, 3), np.float32)}
    product = helper.make_node("MatMul", ["input", "w"], ["y"])
    file = save(tmp_path / "made.onnx", [product], tensors, {"input": ["n", 5]}, {"y": ["n", 3]})
    monkeypatch.setattr("kdbench.steps.export.content_of", lambda model, samples: file.read_bytes())
    said = mistake(f"export {source} --out {tmp_path / 'out.onnx'}")
    assert "out.onnx: not written: onnxruntime can't run it" in said
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("name", "gates", "inputs"), [("lstm", 4, (5, 6)), ("gru", 3, (5,))])
def test_work_in_recurrent_nodes_is_counted(name, gates, inputs, exported, tmp_path):
    (row,) = (row for row, (model, *_) in enumerate(TINY) if model == name)
    artifact = slim(exported(row)[1], tmp_path / "slim.onnx")
    assert artifact.operators[name.upper()] == len(inputs)
    assert artifact.macs == 9 * gates * 6 * sum(width + 6 for width in inputs) + 6 * 4


def test_public_names_of_layers_become_ours():
    names = ["module.bn1.weight", "module.layer3.8.conv2.weight", "layer2.0.downsample.1.bias", "fc.bias"]
    assert list(from_common_names(dict.fromkeys(names, torch.zeros(1)))) == [
        "stem.1.weight",
        "stages.2.8.conv2.weight",
        "stages.1.0.shortcut.1.bias",
        "head.bias",
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnett", {}, "unknown model 'resnett': did you mean 'resnet'"),
        ("resnet", {"width": [1]}, "options: unknown key 'width': did you mean 'widths'"),
        ("resnet", {"classes": 2}, "options: unknown key 'classes'"),
        ("resnet", {"widths": "wide"}, "options.widths"),
        ("resnet", {"widths": [4, 8], "blocks": [1]}, "should be as many"),
        ("resnet", {"widths": [0], "blocks": [1]}, "1 or more"),
        ("resnet", {"shortcut": "padd"}, "options.shortcut: Input should be 'projection' or 'pad'"),
        ("resnet", {"depth": 21}, "depth 21 should be 6·n + 2"),
        ("resnet", {"depth": 2}, "depth 2 should be 6·n + 2"),
        ("resnet", {"depth": 8, "blocks": [1, 1, 1]}, "give one of them"),
        ("resnet", {"widths": [8, 4], "shortcut": "pad"}, "can only add channels"),
        ("resnet8x4", {"stemm": 3}, "did you mean 'stem'"),
        ("wide_resnet", {"depth": 20}, "depth 20 should be 6·n + 4"),
        ("vgg", {"depth": 12}, "options.depth: Input should be 8, 11, 13, 16 or 19"),
        ("mobilenet_v2", {"width": 0.01}, "leaves no channels"),
        ("shufflenet_v1", {"groups": 7}, "multiples of 4·groups"),
        ("shufflenet_v2", {"widths": [3, 4, 5]}, "even numbers"),
        ("imagenet_resnet", {"depth": 56}, "options.depth: Input should be 18, 34, 50 or 101"),
        ("lstm", {}, "options.vocabulary: Missing required argument"),
        ("gru", {"vocabulary": 0}, "options.vocabulary: Input should be greater than or equal to 1"),
        ("text_cnn", {"vocabulary": 9, "kernels": []}, "options.kernels"),
        ("bert", {"vocabulary": 9, "heads": 3}, "width 128 should be a multiple of heads, 3"),
        ("bert", {"vocabulary": 9, "positions": 1, "width": 8}, "positions 1 are fewer"),
        ("audio_cnn", {}, "(1, mels, frames), both 16 or more for 4 stages, not (3, 8, 8)"),
        ("audio_gru", {}, "(1, mels, frames), not (3, 8, 8)"),
        ("mlp", {"dropout": 1}, "options.dropout: Input should be less than 1"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(UserError, match=r"model|options") as error:
        build(name, options, (3, 8, 8), 10)
    assert message in str(error.value)
