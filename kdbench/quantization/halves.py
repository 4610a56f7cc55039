"""16-bit floats: fp16 by onnxruntime's converter, bf16 by casts."""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.backends import pick_backend
from kdbench.backends.client import PATIENCE_S, Worker
from kdbench.data.generated import in_batches
from kdbench.onnxfile import inputs_of, opset_of
from kdbench.proofs.rewritten import showing
from kdbench.proofs.rounding import OPERANDS
from kdbench.proofs.widening import EXACT, widened
from kdbench.quantization.quiet import quietly
from kdbench.records import Convert
from kdbench.store import Arrays

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""Of fp16."""

INPUT_CAST = "graph_input_cast"
"""How onnxruntime's converter begins the names of casts of inputs."""

IN_BF16: Mapping[str, int] = {"MatMul": 13, "Gemm": 13}
"""Layers with kernels for bf16 operands in onnxruntime's CUDA provider, by the opset from which on. Its convolutions
and recurrent nodes have none; its CPU provider has none at all, and refuses to load them."""

TABLES = {"Gather": 0}
"""Operators that pick from a weight, and which of their inputs it is."""


def fp16(model: "onnx.ModelProto", options: Convert, left: Collection[str]) -> "onnx.ModelProto":
    """Weights and tensors between nodes as fp16, inputs and outputs float32; nodes named in `left` stay in float32.

    Finite weights beyond ±65504 are clamped.
    """
    with quietly():
        from onnxruntime.quantization.onnx_model import ONNXModel
        from onnxruntime.transformers.float16 import convert_float_to_float16

        converted = ONNXModel(
            convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=list(left))
        )
        _without_detours(converted.model.graph)
        converted.topological_sort()
    found: onnx.ModelProto = converted.model
    return found


def _without_detours(graph: "onnx.GraphProto") -> None:
    """Takes away the way by fp16 between two nodes that stay in float32: the converter casts around each of them.

    And casts of one tensor that it has made for several of them.
    """
    from onnx import TensorProto

    detours = {
        node.output[0]: node.input[0]
        for node in graph.node
        if (node.op_type == "Cast" and node.name.endswith("_cast_to_fp16_node")) or node.name.startswith(INPUT_CAST)
    }
    made: set[str] = set()
    for node in list(graph.node):
        if node.name.endswith("_cast_to_fp32_node"):
            if node.output[0] in made:
                graph.node.remove(node)
                continue
            made.add(node.output[0])
        back = node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)
        if back and node.input[0] in detours:
            node.input[0] = detours[node.input[0]]
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if node.output and node.output[0] in detours.keys() - used]:
        graph.node.remove(node)


def overflowing(before: "onnx.ModelProto", after: "onnx.ModelProto", feed: Arrays, batch: int) -> list[str]:
    """Nodes of a model `before` whose fp16 results leave its range on these samples, and those that read them.

    Told from `after`, the fp16 file, as float32 that is rounded to fp16; nothing is told of tensors that are infinite
    by another's doing. Raises WorkerError where it can't run.
    """
    from onnx import TensorProto
    from onnx.helper import make_node

    rounded = widened(after, rounding=True)
    if rounded is None:
        return []
    exact = [
        node.input[0]
        for node in rounded.graph.node
        if node.input and node.input[0].endswith(EXACT) and any(a.i == TensorProto.FLOAT16 for a in node.attribute)
    ]
    sizes = {name: f"{name}.size" for name in exact}
    for name, largest in sizes.items():  # single numbers, and not all that the model holds, leave the worker
        rounded.graph.node.append(make_node("Abs", [name], [f"{name}.abs"]))
        rounded.graph.node.append(make_node("ReduceMax", [f"{name}.abs"], [largest], keepdims=0))
    over: set[str] = set()
    with (
        tempfile.TemporaryDirectory(prefix="kdbench-") as scratch,
        Worker(pick_backend("cpu"), 1, PATIENCE_S) as worker,
    ):
        path = Path(scratch, "rounded.onnx")
        path.write_bytes(showing(rounded, list(sizes.values())).SerializeToString())
        worker.load(path, plain=True)
        for part in in_batches(inputs_of(before), feed, batch):
            found = worker.predict(part)
            over |= {name.removesuffix(EXACT) for name in exact if LARGEST < float(found[sizes[name]]) < np.inf}
    ends = {f"{INPUT_CAST}_{number}": value.name for number, value in enumerate(before.graph.input)}
    ends |= {f"graph_output_cast_{number}": value.name for number, value in enumerate(before.graph.output)}
    over = {ends.get(name, name) for name in over}
    return [node.name for node in before.graph.node if over & {*node.input, *node.output}]


def without_fp16(node: "onnx.NodeProto", opset: int) -> bool:
    """Whether the operator takes no fp16: by the standard, or as onnxruntime's converter knows."""
    import onnx

    with quietly():
        from onnxruntime.transformers.float16 import ALWAYS_FLOAT_INPUTS, DEFAULT_OP_BLOCK_LIST
    if node.op_type in DEFAULT_OP_BLOCK_LIST:
        return True
    if node.op_type in ALWAYS_FLOAT_INPUTS or not onnx.defs.has(node.op_type, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    kinds = [set(allowed.get(each.type_str, [each.type_str])) for each in schema.inputs]
    return any("tensor(float)" in kind and "tensor(float16)" not in kind for kind in kinds)


def clamped(before: "onnx.ModelProto", after: "onnx.ModelProto") -> dict[str, int]:
    """Weights that became fp16 and had values out of its range: how many, by name."""
    from onnx import TensorProto, numpy_helper

    halves = {tensor.name for tensor in after.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    found = {}
    for tensor in before.graph.initializer:
        if tensor.name in halves and tensor.data_type == TensorProto.FLOAT:
            size = np.abs(numpy_helper.to_array(tensor))
            found[tensor.name] = int(np.sum(np.isfinite(size) & (size > LARGEST)))
    return {name: count for name, count in found.items() if count}


def bf16(model: "onnx.ModelProto", options: Convert, left: Collection[str]) -> "onnx.ModelProto":
    """Weights of layers and tables as bf16, rounded to the nearest; nodes named in `left` keep theirs.

    They are cast to float32 where they are used, so that every provider computes as before. With bf16 activations the
    layers of `IN_BF16` get bf16 operands and answer in bf16.
    """
    import onnx
    from onnx import TensorProto
    from onnx.helper import make_node

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, opset = copy.graph, opset_of(copy)
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    stored = {
        node.input[place] for node in graph.node if node.name not in left for place in weight_places(node, weights)
    }
    nodes: list[onnx.NodeProto] = []
    short = {name: name for name in stored}
    """Tensors in bf16, by the name of the float32 ones."""
    made: set[str] = set()

    def cast(name: str, result: str, kind: int) -> str:
        if result not in made:
            nodes.append(make_node("Cast", [name], [result], name=f"{result}.cast", to=kind))
            made.add(result)
        return result

    for node in graph.node:
        result, computes = node.output[0], opset >= IN_BF16.get(node.op_type, opset + 1) and node.input[1] in stored
        if options.activations == "bf16" and computes and node.name not in left:
            for place, name in enumerate(node.input):
                if name and name not in short:
                    short[name] = cast(name, f"{name}.bf16", TensorProto.BFLOAT16)
                node.input[place] = short.get(name, "")
            node.output[0] = short[result] = f"{result}.rounded"
            nodes.append(node)
            cast(short[result], result, TensorProto.FLOAT)
        elif node.op_type in TABLES and node.input[0] in stored:
            node.output[0] = short[result] = f"{result}.picked"
            nodes.append(node)
            cast(short[result], result, TensorProto.FLOAT)
        else:
            for place, name in enumerate(node.input):
                if name in stored:
                    node.input[place] = cast(name, f"{name}.widened", TensorProto.FLOAT)
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    for name in stored:
        weights[name].CopyFrom(_as_bf16(weights[name]))
    return copy


def weight_places(node: "onnx.NodeProto", weights: Collection[str]) -> tuple[int, ...]:
    """Inputs of a node that are weights which bf16 may hold."""
    places = (TABLES[node.op_type],) if node.op_type in TABLES else OPERANDS.get(node.op_type, ())
    return tuple(place for place in places if place < len(node.input) and node.input[place] in weights)


def _as_bf16(tensor: "onnx.TensorProto") -> "onnx.TensorProto":
    import ml_dtypes
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), tensor.name)
