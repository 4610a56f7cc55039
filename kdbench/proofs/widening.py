"""A file of 16-bit floats as it would compute in float32, and as float32 that has the same numbers as it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


EXACT = ".exact"
"""How the names of tensors end that are about to be rounded."""

SHORT = (10, 16)
"""FLOAT16 and BFLOAT16, as ONNX counts element types."""


def widened(model: "onnx.ModelProto", rounding: bool = False) -> "onnx.ModelProto | None":
    """A copy with the same weights, all of its tensors float32; None where nothing in it computes in less.

    With `rounding`, what each node answers in 16 bits is rounded to them, and out of their range where it would be: the
    file's own numbers, on a provider that would compute them in float32, or not at all.

    Weights that are only stored in less, and cast before they are used, are computed with in float32 as it is. None
    also for models with loops, branches or functions of their own, which are not looked into. 16-bit inputs stay, and
    are cast.
    """
    import onnx
    from onnx import AttributeProto, TensorProto
    from onnx.helper import make_node

    inner = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    if model.functions or any(a.type in inner for node in model.graph.node for a in node.attribute):
        return None
    if not computes_in_less(model):
        return None
    kinds = _kinds(model) if rounding else {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tensor in graph.initializer:
        if tensor.data_type in SHORT:
            tensor.CopyFrom(_widened(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in SHORT:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in SHORT:
                attribute.t.CopyFrom(_widened(attribute.t))
    nodes = []
    for value in graph.input:
        if value.type.tensor_type.elem_type in SHORT:
            wide = f"{value.name}.widened"
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == value.name:
                        node.input[place] = wide
            nodes.append(make_node("Cast", [value.name], [wide], to=TensorProto.FLOAT))
    for value in graph.output:
        if value.type.tensor_type.elem_type in SHORT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        nodes.append(own := onnx.NodeProto.FromString(node.SerializeToString()))
        for place, name in enumerate(node.output):
            if kinds.get(name) in SHORT:
                own.output[place] = f"{name}{EXACT}"
                nodes.append(make_node("Cast", [f"{name}{EXACT}"], [f"{name}.short"], to=kinds[name]))
                nodes.append(make_node("Cast", [f"{name}.short"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return copy


def computes_in_less(model: "onnx.ModelProto") -> bool:
    """Whether a 16-bit float goes into anything but a cast, or is picked for one."""
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer if tensor.data_type in SHORT}
    names |= {value.name for value in graph.input if value.type.tensor_type.elem_type in SHORT}
    for node in graph.node:
        short = node.op_type == "Cast" and any(a.name == "to" and a.i in SHORT for a in node.attribute)
        picks = node.op_type == "Gather" and node.input[0] in names
        if short or picks:
            names.add(node.output[0])
        elif node.op_type != "Cast" and names & set(node.input):
            return True
    return False


def _kinds(model: "onnx.ModelProto") -> dict[str, int]:
    """Element types of tensors that nodes make, as far as they can be inferred."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        graph = model.graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


def _widened(tensor: "onnx.TensorProto") -> "onnx.TensorProto":
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
