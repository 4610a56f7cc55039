"""Rewritings of a graph by onnxruntime, and what may come out of any rewriting: a file for every machine.

Each takes a whole model, which it leaves as it is, and the path that errors name; it gives back that model where it
saves no node, and raises UserError where it can't do its work.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.backends import pick_backend
from kdbench.backends.client import Worker, WorkerError
from kdbench.errors import UserError, first_line
from kdbench.onnxfile import opset_of
from kdbench.onnxgraph import nodes_of
from kdbench.quantization.quiet import quietly

if TYPE_CHECKING:
    import onnx

NOT_WANTED = (
    "ConstantSharing",
    "MatMulAddFusion",
    "DoubleQDQPairsRemover",
    "QDQPropagationTransformer",
    "WeightBiasQuantization",
    "EnsureUniqueDQForNodeUnit",
)
"""Of onnxruntime's basic optimizations, which know no machine, those that are left to it at load time: the first two
rename constants and put products between reshapes without fewer nodes, the others are about quantized graphs, whose
pairs are where the quantizer wants them."""

ATTENTION = ("Attention", "MultiHeadAttention")

FUSED_DOMAIN = "com.microsoft"
"""Of the operators that only onnxruntime knows, and that transformer fusions bring."""


def by_onnxruntime(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """Constants folded, dead and useless nodes removed, batch norm, sums and products taken into convolutions.

    onnxruntime's basic level, saved by a worker. What it saves has been made to run on the CPU provider: where that
    can't compute in half precision, casts were put in, which is refused.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        given, made = Path(scratch, "given.onnx"), Path(scratch, "made.onnx")
        onnx.save(model, str(given))
        try:
            with Worker(pick_backend("cpu"), threads=1) as worker:
                worker.optimize(given, made, NOT_WANTED)
        except WorkerError as error:
            raise UserError(f"{path}: onnxruntime can't optimize it: {error}") from None
        found = onnx.load(str(made))
    casts, before = (sum(node.op_type == "Cast" for node in nodes_of(graph)) for graph in (found, model))
    if casts > before:
        raise UserError(f"{path}: onnxruntime put {casts - before} Cast nodes in, which this machine's CPU needs")
    return _tidied(found, model) if size_of(found) < size_of(model) else model


def by_transformers(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """Layer norms with their sums, GELUs with their biases, embeddings and attention as one operator each.

    onnxruntime.transformers' fusions for BERT, which fit other encoders too; most are operators of FUSED_DOMAIN. The
    attention mask stays as it is: their own default counts tokens, which only holds where padding is on the right.
    """
    with quietly():
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        options = FusionOptions("bert")
        options.use_raw_attention_mask()
        try:
            found = optimizer.optimize_by_fusion(copy_of(model), "bert", optimization_options=options).model
        except Exception as error:  # whatever a graph that it doesn't expect leads to
            raise UserError(f"{path}: onnxruntime.transformers fails on it: {first_line(error, 160)}") from None
    return _tidied(found, model) if size_of(found) < size_of(model) else model


def fused_operators(model: "onnx.ModelProto") -> dict[str, int]:
    """How many nodes of each fused operator there are, of those that there are any of."""
    with quietly():
        from onnxruntime.transformers.onnx_model_bert import BertOnnxModel

        found = BertOnnxModel(model).get_fused_operator_statistics()
    return {name: number for name, number in found.items() if number}


def copy_of(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def size_of(model: "onnx.ModelProto") -> int:
    """Nodes, without constants: a Constant is an initializer that is written otherwise."""
    return sum(node.op_type != "Constant" for node in nodes_of(model))


def unfit(model: "onnx.ModelProto", before: "onnx.ModelProto", domains: tuple[str, ...] = ()) -> str | None:
    """Why a rewritten model may not take the place of the one before; None where it may.

    Its new operators are those of the ONNX standard at its opset, or of these `domains`; its opset is not newer, its
    outputs have the same names and types, and it needs no other inputs.
    """
    import onnx

    known = {(_domain(node), node.op_type) for node in nodes_of(before)}
    known |= {(function.domain, function.name) for function in model.functions}
    versions = {_plain(entry.domain): entry.version for entry in model.opset_import}
    foreign = sorted(
        f"{domain or 'ai.onnx'}.{name}"
        for domain, name in {(_domain(node), node.op_type) for node in nodes_of(model)} - known
        if domain not in domains and not onnx.defs.has(name, versions.get(domain, 0), domain)
    )
    if foreign:
        return f"brings {', '.join(foreign)}, which the standard of opset {opset_of(model)} doesn't know"
    if opset_of(model) > opset_of(before):
        return f"raises the opset from {opset_of(before)} to {opset_of(model)}"
    if _kinds(model.graph.output) != _kinds(before.graph.output):
        return "has other outputs"
    given = {value.name: value.type.tensor_type.elem_type for value in before.graph.input}
    weights = {tensor.name for tensor in model.graph.initializer}
    if any(given.get(name) != kind for name, kind in _kinds(model.graph.input) if name not in weights):
        return "needs other inputs"
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        return f"is not a valid model any more: {first_line(error, 160)}"
    return None


def _kinds(values: Iterable["onnx.ValueInfoProto"]) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in values]


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _domain(node: "onnx.NodeProto") -> str:
    return _plain(node.domain)


def _tidied(model: "onnx.ModelProto", before: "onnx.ModelProto") -> "onnx.ModelProto":
    """The rewritten model with names, versions and outputs as `before`: onnxruntime writes down every domain that it
    knows, and shapes as it has inferred them."""
    from onnx import helper

    used = {_domain(node) for node in nodes_of(model)} | {_plain(entry.domain) for entry in before.opset_import}
    versions = {entry.domain: entry.version for entry in model.opset_import if _plain(entry.domain) in used}
    if FUSED_DOMAIN in used:
        versions.setdefault(FUSED_DOMAIN, 1)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
        setattr(model, field, getattr(before, field))
    model.graph.name = before.graph.name
    del model.graph.output[:]
    model.graph.output.extend(before.graph.output)
    return model
