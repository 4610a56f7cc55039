"""Other precisions than static int8: what of a graph each of them can hold, and how the graph is rewritten."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError, first_line, nearest
from kdbench.onnxfile import opset_of
from kdbench.proofs.layers import WEIGHT_INPUT
from kdbench.quantization.halves import TABLES, bf16, clamped, fp16, weight_places, without_fp16
from kdbench.quantization.integers import dynamic_int8, int4_weights
from kdbench.quantization.preparing import at_opset, name_nodes, own_copy
from kdbench.records import Convert

if TYPE_CHECKING:
    import onnx

    Weights = Mapping[str, onnx.TensorProto]
    Takes = Callable[[onnx.NodeProto, Weights, Convert, int], bool]


@dataclass(frozen=True)
class Format:
    """A precision that a model can be converted to."""

    name: str
    """As it is called where `--to` is too short."""
    takes: "Takes"
    """Whether a node can be converted, given the model's float weights by name, and its opset."""
    rewrite: "Callable[[onnx.ModelProto, Convert, Collection[str]], onnx.ModelProto]"
    """The converted model; the named nodes are left as they are."""
    opset: Callable[[Convert], int]
    """The oldest that it can be written in."""
    what: str
    """That it takes, for who has nothing of the kind."""
    only_when_named: tuple[str, ...] = ()
    """Operators that it takes, but seldom to advantage."""
    activations: tuple[str, ...] = ("float",)
    every_operator: bool = False
    """Whether it takes light nodes too, so that those which stay in float are worth listing."""
    remarks: "Callable[[onnx.ModelProto, onnx.ModelProto], tuple[str, ...]]" = lambda before, after: ()
    """What is to be said of a model before and after."""


@dataclass(frozen=True)
class Converted:
    """A model in another precision."""

    model: "onnx.ModelProto"
    left: dict[str, int]
    """Operators that stayed in float, and how many of each: of integers those that multiply or hold tables."""
    warnings: tuple[str, ...]
    notes: dict[str, object]
    """What was changed besides."""
    before: "onnx.ModelProto"
    """What was converted, with a name for each node."""


def _constant(node: "onnx.NodeProto", place: int, weights: Collection[str]) -> bool:
    return len(node.input) > place and node.input[place] in weights


def _plain_gemm(node: "onnx.NodeProto") -> bool:
    """Whether it is a product and a sum, without factors and with its data as it comes."""
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(usual.get(a.name) in (None, a.f if a.name in ("alpha", "beta") else a.i) for a in node.attribute)


def _takes_dynamic(node: "onnx.NodeProto", weights: "Weights", options: Convert, opset: int) -> bool:
    match node.op_type:
        case "MatMul" | "Conv" | "Attention":
            return _constant(node, 1, weights)
        case "Gemm":
            return _constant(node, 1, weights) and _plain_gemm(node)
        case "LSTM":  # onnxruntime's quantizer drops the layout, which would be another model
            batch_first = any(a.name == "layout" and a.i for a in node.attribute)
            return _constant(node, 1, weights) and _constant(node, 2, weights) and not batch_first
        case "Gather":
            return _constant(node, 0, weights)
        case "EmbedLayerNormalization":
            return _constant(node, 2, weights)
    return False


def _takes_int4(node: "onnx.NodeProto", weights: "Weights", options: Convert, opset: int) -> bool:
    match node.op_type:
        case "MatMul":
            return _constant(node, 1, weights) and len(weights[node.input[1]].dims) == 2
        case "Gemm":
            return _constant(node, 1, weights) and _plain_gemm(node)
        case "Gather":
            return options.form == "operator" and _constant(node, 0, weights) and len(weights[node.input[0]].dims) == 2
    return False


def _clamped(before: "onnx.ModelProto", after: "onnx.ModelProto") -> tuple[str, ...]:
    over = clamped(before, after)
    if not over:
        return ()
    names = ", ".join(f"{count} of “{name}”" for name, count in list(over.items())[:3])
    return (f"values beyond ±65504, the range of fp16, were clamped: {names}: --keep the nodes that have them",)


FORMATS: Mapping[str, Format] = {
    "dynamic": Format(
        "dynamic int8",
        _takes_dynamic,
        dynamic_int8,
        lambda options: 13,
        "MatMul, Gemm, LSTM, Gather and Attention with constant weights, and Conv where --operator names it",
        only_when_named=("Conv",),
    ),
    "fp16": Format(
        "fp16",
        lambda node, weights, options, opset: bool(weights) and not without_fp16(node, opset),
        fp16,
        lambda options: 7,
        "weights in float32",
        every_operator=True,
        remarks=_clamped,
    ),
    "bf16": Format(
        "bf16",
        lambda node, weights, options, opset: bool(weight_places(node, weights)),
        bf16,
        lambda options: 13,
        "constant float32 weights of layers and of Gather",
        activations=("float", "bf16"),
    ),
    "int4": Format(
        "int4",
        _takes_int4,
        int4_weights,
        # onnxruntime's quantizer says 21 of a file with 4-bit tensors, whatever it was: so it has to be.
        lambda options: 21,
        "MatMul, Gemm and (not in the qdq form) Gather with constant weights of two axes",
        activations=("float", "int8"),
    ),
}
"""By the name that `--to` takes. To add one, add a row."""


def converted(model: "onnx.ModelProto", options: Convert, path: Path) -> Converted:
    """The model in the precision that is asked for.

    Raises UserError for names that the model doesn't have, and where nothing can be converted.
    """
    row = FORMATS[options.to]
    if options.activations not in row.activations:
        others = next(name for name, other in FORMATS.items() if options.activations in other.activations)
        raise UserError(
            f"--activations {options.activations}: is for --to {others}: {options.to} has "
            f"{' or '.join(row.activations)}"
        )
    model, notes = at_opset(model, row.opset(options), path, options.to)
    model = _prepared(model)
    chosen, unable = _chosen(model, options, row, path)
    if not chosen:
        kinds = ", ".join(sorted({node.op_type for node in model.graph.node})[:8])
        raise UserError(
            f"{path}: nothing in it can be converted to {options.to} (operators: {kinds}): it takes {row.what}"
        )
    left = [node.name for node in model.graph.node if node.name not in chosen]
    model = _with_own_floats(model, options.keep, chosen)
    try:
        found = row.rewrite(model, options, left)
    except UserError:
        raise
    except Exception as error:  # the converters raise what they like
        raise UserError(
            f"{path}: onnxruntime can't convert it to {options.to}: {first_line(error, 200)}: name the operators that "
            "may be converted by --operator, or those that may not by --keep"
        ) from None
    weights = _float_weights(model)
    floats = Counter(
        node.op_type
        for node in model.graph.node
        if node.name in left
        and (
            row.every_operator
            or node.op_type in WEIGHT_INPUT
            or (node.op_type in TABLES and _constant(node, TABLES[node.op_type], weights))
        )
    )
    return Converted(found, dict(sorted(floats.items())), (*unable, *row.remarks(model, found)), notes, model)


def _chosen(model: "onnx.ModelProto", options: Convert, row: Format, path: Path) -> tuple[set[str], list[str]]:
    """Names of the nodes to convert; and warnings of what was named and can't be, or would have been worth it."""
    nodes = model.graph.node
    present, names = {node.op_type for node in nodes}, {node.name for node in nodes}
    for operator in options.operators:
        if operator not in present:
            raise UserError(f"{path}: has no operator '{operator}': {nearest(operator, present)}")
    for name in options.keep:
        if name not in present | names:
            raise UserError(f"{path}: has no node or operator '{name}': {nearest(name, present | names)}")
    weights, opset = _float_weights(model), opset_of(model)
    able = {node.name for node in nodes if row.takes(node, weights, options, opset)}
    kept = {node.name for node in nodes if node.name in options.keep or node.op_type in options.keep}
    wanted = {
        node.name
        for node in nodes
        if (node.op_type in options.operators if options.operators else node.op_type not in row.only_when_named)
    }
    unable = {
        node.op_type
        for node in nodes
        if node.name in wanted - able - kept and (node.op_type in options.operators or _loses(node, weights))
    }
    said = [f"its {kind} layers stay in float: {row.name} can't hold them" for kind in sorted(unable)]
    spared = sorted({node.op_type for node in nodes} & set(row.only_when_named) - set(options.operators))
    if not options.operators:
        said += [
            f"its {kind} layers stay in float: `kdbench quantize` makes them faster than {row.name} does; name them by "
            f"--operator {kind} all the same"
            for kind in spared
        ]
    return able & wanted - kept, said


def _with_own_floats(model: "onnx.ModelProto", keep: Collection[str], chosen: Collection[str]) -> "onnx.ModelProto":
    """The model whose nodes to `keep`, by name or operator, have copies of the weights that `chosen` ones change."""
    weights = _float_weights(model)
    taken = {name for node in model.graph.node if node.name in chosen for name in node.input}
    own: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in keep and node.op_type not in keep:
            continue
        for place, name in enumerate(node.input):
            if name in weights and name in taken:
                if name not in own:
                    own[name] = own_copy(model, weights[name])
                node.input[place] = own[name]
    return model


def _float_weights(model: "onnx.ModelProto") -> "dict[str, onnx.TensorProto]":
    from onnx import TensorProto

    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _loses(node: "onnx.NodeProto", weights: Collection[str]) -> bool:
    """Whether a layer with constant weights is passed over, of which the user should know."""
    return node.op_type in WEIGHT_INPUT and _constant(node, WEIGHT_INPUT[node.op_type], weights)


def _prepared(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy whose constants are initializers, and each of whose nodes has a name of its own."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    nodes = []
    for node in copy.graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is None:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
