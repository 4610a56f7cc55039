"""The front matter of a model card: the YAML that Hugging Face reads."""

import json
import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import printable
from kdbench.records import IMPORTED, Artifact, Measured, Recipe, Teacher, TensorSpec

TAGS = {
    "distill": "distillation",
    "spiral": "distillation",
    "prune": "pruning",
    "sparsify": "sparsity",
    "factorise": "low-rank",
    "quantize": "quantization",
}
"""Of steps."""

TAUGHT = ("distill", "spiral", "prune", "sparsify", "factorise")
"""Steps in which a teacher may have taught."""

BY_SOURCE = {
    "audio": "audio-classification",
    "digits": "image-classification",
    "folders": "image-classification",
    "idx": "image-classification",
    "tables": "tabular-classification",
    "text": "text-classification",
}
"""Hugging Face's name of the task, by the source of the data."""

METRICS = {"accuracy": ("accuracy", "Accuracy"), "f1_micro": ("f1", "F1 (micro)"), "f1_macro": ("f1", "F1 (macro)")}
"""Hugging Face's name of a metric, and a prettier one."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Of a model or data set: with its owner; without one it can't be told from a folder."""

# What YAML doesn't take as it is, though JSON does.
_UNSAFE = re.compile(r"[\ufeff\ufffe\uffff]")


def front_matter(
    artifact: Artifact,
    spec: TensorSpec,
    *,
    title: str,
    steps: Collection[str],
    license: str | None,
    recipe: Recipe | None,
    named: str | None,
    metrics: Sequence[Measured],
    samples_sha256: str | None = None,
    source: str | None = None,
) -> str:
    """YAML, in the part of it that JSON is too; what isn't known is left out.

    `steps` made the artifact, its own and those before; `named` is the recipe's name where no more is known of it;
    `samples_sha256` names the evaluation samples, `source` is the
    address where the metrics are published.
    """
    tag = _pipeline_tag(artifact, spec, recipe)
    data, teachers = hub_dataset(recipe), hub_teachers(recipe) if _of_a_teacher(artifact, steps) else []
    tags = ["onnx", "onnxruntime", "kdbench", artifact.precision, *(TAGS[step] for step in TAGS if step in steps)]
    fields: dict[str, Any] = {
        "license": license and license.lower(),
        "library_name": "onnx",
        "pipeline_tag": tag,
        "tags": list(dict.fromkeys(tags)),
        "datasets": [data] if data else None,
        "base_model": teachers or None,
        "metrics": list(dict.fromkeys(METRICS[one.metric][0] for one in metrics)) or None,
        "model-index": _index(title, tag, recipe, named, metrics, samples_sha256, source) if metrics else None,
    }
    return "\n".join(f"{name}: {_yaml(value)}" for name, value in fields.items() if value is not None)


def hub_dataset(recipe: Recipe | None) -> str | None:
    """The name of the data set on Hugging Face's hub, where the recipe has it from there."""
    name = recipe.data.options.get("name") if recipe and recipe.data.source == "huggingface" else None
    return name if isinstance(name, str) and _on_the_hub(name) else None


def hub_teachers(recipe: Recipe | None) -> list[str]:
    """Those of the recipe's teachers whose weights are from the hub, by their names there."""
    names = [_name_of(teacher) for teacher in recipe.teachers] if recipe else []
    return list(dict.fromkeys(name for name in names if name))


def _name_of(teacher: Teacher) -> str | None:
    if teacher.weights is not None or not teacher.options.get("pretrained", True):
        return None
    model = teacher.model.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if teacher.source == "timm" and "/" not in model and "." in model:
        return f"timm/{model}"
    return model if teacher.source in ("huggingface", "timm") and _on_the_hub(model) else None


def _on_the_hub(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _of_a_teacher(artifact: Artifact, steps: Collection[str]) -> bool:
    """Whether the artifact is a teacher, or one has taught it."""
    return artifact.rung.startswith("teacher") or any(step in TAUGHT for step in steps)


def _index(
    title: str,
    tag: str | None,
    recipe: Recipe | None,
    named: str | None,
    metrics: Sequence[Measured],
    samples_sha256: str | None,
    source: str | None,
) -> list[dict[str, Any]]:
    """Hugging Face's `model-index`: one entry, with the metric through each backend of each machine."""
    hub = hub_dataset(recipe)
    dataset: dict[str, Any] = {"type": hub or (recipe.data.source if recipe else "unknown")}
    dataset["name"] = hub or named or "unknown"
    if recipe:
        options, split = recipe.data.options, str(recipe.data.split)
        if hub:
            split = str(options.get("test", "test")) if split == "test" else split
            dataset |= {key: options[key] for key in ("config", "revision") if isinstance(options.get(key), str)}
        dataset["split"] = split
    if samples_sha256:
        dataset["args"] = {"samples": metrics[0].samples, "pack_sha256": samples_sha256}
    entry: dict[str, Any] = {
        "task": {"type": tag or "other", "name": (tag or "classification").replace("-", " ").capitalize()},
        "dataset": dataset,
        "metrics": [
            {
                "type": METRICS[one.metric][0],
                "value": one.value,
                "name": f"{METRICS[one.metric][1]}, {one.backend} on {one.cpu}",
                **({"args": {"interval_95": [one.low, one.high]}} if one.low is not None else {}),
                "verified": False,
            }
            for one in metrics
        ],
    }
    if source:
        entry["source"] = {"name": "kdbench bench", "url": source}
    return [{"name": title, "results": [entry]}]


def _pipeline_tag(artifact: Artifact, spec: TensorSpec, recipe: Recipe | None) -> str | None:
    """Hugging Face's name of the task, where data or input tell it, as that of models made here does."""
    if artifact.step in (None, IMPORTED) and recipe is None:
        return None
    if recipe and recipe.data.source in BY_SOURCE:
        return BY_SOURCE[recipe.data.source]
    pixels = artifact.preprocessing is not None and math.isclose(artifact.preprocessing.scale, 1 / 255, rel_tol=1e-3)
    match len(spec.shape), spec.dtype:
        case 4, "uint8":
            return "image-classification"
        case 4, "float32" | "float16" if pixels:
            return "image-classification"
        case 2, "int32" | "int64":
            return "text-classification"
        case 2, "float32":
            return "tabular-classification"
        case _:
            return None


def _yaml(value: Any) -> str:
    """JSON, which YAML reads as the same: lists of records over several lines, none of which ends the front matter."""
    nested = isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value)
    text = json.dumps(_cleaned(value), ensure_ascii=False, indent=2 if nested else None)
    text = _UNSAFE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)
    return textwrap.indent(text, "  ").lstrip() if nested else text


def _cleaned(value: Any) -> Any:
    """The same without signs that terminals obey."""
    if isinstance(value, str):
        return printable(" ".join(value.split()))
    if isinstance(value, Mapping):
        return {key: _cleaned(inner) for key, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value
