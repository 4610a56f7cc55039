"""Teachers of torchvision, timm and transformers, from files and folders alone."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import data
from kdbench.data.pack import save_pack
from kdbench.errors import UserError
from kdbench.evaluation import answer
from kdbench.records import Data, Preprocessing
from kdbench.steps import check as fitting
from kdbench.steps.export import export
from kdbench.steps.teach import at_work
from kdbench.training import weights
from tests.test_teachers import OWN, RECIPE, TRAINING, made, recipe, refused, table


@pytest.mark.parametrize("package", ["torchvision", "timm", "transformers"])
def test_an_absent_package_says_what_to_install(package, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    source = {"transformers": "huggingface"}.get(package, package)
    said = refused(f'source = "{source}"\nmodel = "x"\n', tmp_path, digits)
    assert said == f"teacher.source needs {package}, and {package} is not installed: pip install {package}"


def imported(package):
    """The package, or a skip with the reason: built for another torch it is there, but of no use."""
    try:
        return __import__(package)
    except Exception as error:
        pytest.skip(f"{package} can't be imported here: {type(error).__name__}: {error}")


@pytest.mark.filterwarnings("ignore")
def test_torchvision_with_weights_of_a_file_and_with_a_new_head(digits, tmp_path):
    models = imported("torchvision").models
    fields = 'source = "torchvision"\nmodel = "squeezenet1_1"\nweights = "a.pth"\noptions = { image_size_px = 32 }\n'
    ours = models.get_model("squeezenet1_1", num_classes=10).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in ours.state_dict().items()}}, tmp_path / "a.pth")
    with at_work(made(fields, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        assert x.shape == (2, 3, 8, 8)
        scaled = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(teaching.observe(x).logits, ours(scaled))
    other = models.get_model("squeezenet1_1", num_classes=3)
    torch.save(other.state_dict(), tmp_path / "a.pth")
    assert "teacher: answers 3 classes" in refused(fields, tmp_path, digits)
    path = made(fields + "new_head = true\n" + TRAINING, tmp_path, digits)
    assert weights.model_of(path)[0](x).shape == (2, 10)
    said = refused('source = "torchvision"\nmodel = "resnet81"\n', tmp_path, digits)
    assert said == "teacher.model: torchvision has no 'resnet81': did you mean 'resnet18'?"


def test_a_model_of_torchvision_that_normalises_its_inputs_itself_is_refused(digits, tmp_path, monkeypatch):
    network = nn.Flatten()
    network.transform_input = False  # as inception_v3 and googlenet have it, unless torchvision loads their weights
    models = SimpleNamespace(
        list_models=lambda module: ["googlenet"],
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=None),
        get_model=lambda name, weights: network,
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    said = refused('source = "torchvision"\nmodel = "googlenet"\n', tmp_path, digits)
    assert said.startswith("teacher.model: 'googlenet' cannot be loaded: it normalises its inputs itself")


@pytest.mark.filterwarnings("ignore")
def test_timm_from_a_local_folder(digits, tmp_path):
    timm = imported("timm")
    ours = timm.create_model("resnet10t", num_classes=10).eval()
    timm.models.save_for_hf(ours, str(tmp_path / "local"), safe_serialization=True)
    fields = 'source = "timm"\nmodel = "local"\noptions = { image_size_px = 32 }\n'
    with at_work(made(fields, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        scaled = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(teaching.observe(x).logits, ours(scaled))
    assert "cannot be loaded" in refused(fields.replace("local", "resnet10tt"), tmp_path, digits)


@pytest.fixture
def transformers():
    found = imported("transformers")
    found.logging.disable_progress_bar()
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_vision_model_of_transformers_in_a_local_folder(transformers, digits, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=12, **sizes)
    ours = transformers.ViTForImageClassification(config).eval()
    ours.save_pretrained(tmp_path / "vit")
    seen = {"do_normalize": True, "image_mean": [0.5], "image_std": [0.25]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(seen))
    fields = 'source = "huggingface"\nmodel = "vit"\n'
    assert "teacher: answers 12 classes (LABEL_0, LABEL_1, LABEL_2, …), the data has 10" in refused(
        fields, tmp_path, digits
    )
    mapping = f"class_map = {table({f'LABEL_{n}': str(n) for n in range(10)})}\n"
    with at_work(made(fields + mapping, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        np.testing.assert_allclose(x, (digits.x_test[:2] / 16 - 0.5) / 0.25, rtol=1e-6)
        torch.testing.assert_close(teaching.observe(x).logits, ours(pixel_values=x).logits[:, :10])
    path = made(fields + "new_head = true\n" + TRAINING, tmp_path, digits)
    assert weights.load(path)[1].preprocessing == Preprocessing(scale=1 / 16, mean=(0.5,), std=(0.25,))
    assert weights.model_of(path)[0](x).shape == (2, 10)
    transformers.ViTModel(config).save_pretrained(tmp_path / "headless")
    said = refused(fields.replace("vit", "headless"), tmp_path, digits)
    assert "'headless' has no trained weights for" in said
    assert "set teacher.new_head = true" in said


WORDS = ["[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "[PAD]"]
"""The token that fills up is not the first one."""


def save_tokenizer(transformers, folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    unknown = {"unk_token": "[UNK]"}
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, **unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    filling = {"pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **unknown, **filling).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_text_model_of_transformers_and_a_student_on_its_tokens(transformers, tmp_path):
    folder = tmp_path / "bert"
    save_tokenizer(transformers, folder)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, pad_token_id=7, id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1},
    )  # fmt: skip
    ours = transformers.BertForSequenceClassification(config).eval()
    ours.save_pretrained(folder)
    (tmp_path / "train.txt").write_text("pos a good movie\nneg bad\n" * 8)
    text = RECIPE.replace('source = "digits"', f'source = "text"\noptions = {{ {text_options(tmp_path, folder)} }}')
    text = text.replace("{ widths = [4], blocks = [1] }", "{ vocabulary = 8 }").replace("resnet", "embedding_bag")
    teacher = 'source = "huggingface"\nmodel = "bert"\n'
    read = recipe(teacher, tmp_path, text)
    dataset = data.load(read.data)
    assert dataset.x_train[:2].tolist() == [[1, 6, 3, 7, 2, 0], [1, 4, 2, 0, 0, 0]]
    assert dataset.classes == ("neg", "pos")
    fitting.check(read, dataset)
    path = made(teacher, tmp_path, dataset)
    ids = torch.tensor([[1, 6, 3, 0, 2, 7], [1, 4, 2, 7, 7, 7]])
    expected = ours(input_ids=ids, attention_mask=(ids != 7).long()).logits.flip(1)
    with at_work(path, tmp_path) as teaching:
        torch.testing.assert_close(teaching.observe(torch.from_numpy(dataset.x_train[:2])).logits, expected)
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content
    folder.rename(tmp_path / "elsewhere")  # what was loaded once is built again without its files
    save_pack(tmp_path / "pack.npz", dataset, 8, 0)
    export(path, tmp_path / "teacher.onnx", tmp_path / "pack.npz")
    (tmp_path / "elsewhere").rename(folder)
    (found,) = answer(tmp_path / "teacher.onnx", {"input": dataset.x_train[:2]}, 2).outputs.values()
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    beyond = replace(dataset, x_test=dataset.x_test + 2)
    said = refused(teacher, tmp_path, beyond, text.replace("vocabulary = 8", "vocabulary = 99"))
    assert said.startswith("teacher: bert knows 8 token ids, but the data has ids up to 9: let data.options.tokenizer")
    long = replace(dataset, **{f"x_{part}": np.tile(getattr(dataset, f"x_{part}"), 3) for part in ("train", "test")})
    assert "teacher: bert can't take samples of shape (18,)" in refused(teacher, tmp_path, long, text)
    assert "teacher.preprocessing: the data's samples are token ids" in refused(teacher + OWN, tmp_path, dataset, text)


def text_options(place, folder):
    file = place / "train.txt"
    return f'train = "{file}", test = "{file}", tokenizer = "{folder}", length = 6'


def test_tokenizers_that_cannot_be_used_are_named(transformers, tmp_path):
    save_tokenizer(transformers, tmp_path)
    (tmp_path / "train.txt").write_text("a b\n")

    def said(**options):
        given = {"train": tmp_path / "train.txt", "test": tmp_path / "train.txt", "tokenizer": tmp_path, **options}
        with pytest.raises(UserError) as caught:
            data.load(Data(source="text", options={key: str(value) for key, value in given.items()} | options))
        return str(caught.value)

    assert "leaves no token of a text" in said(length=2)
    assert "no such file: data.options.tokenizer should be a tokenizer.json" in said(tokenizer=tmp_path / "none")
    (tmp_path / "bad.json").write_text("{}")
    assert "bad.json: not a tokenizer" in said(tokenizer=tmp_path / "bad.json")
    content = (tmp_path / "tokenizer.json").read_text().replace("[PAD]", "[FILL]")
    (tmp_path / "other.json").write_text(content)
    (tmp_path / "tokenizer_config.json").unlink()
    assert "other.json: says of no token that it fills up" in said(tokenizer=tmp_path / "other.json")
