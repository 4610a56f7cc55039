"""A file of 16-bit floats as it would compute in float32: what its own rounding is told from."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def widened(model: "onnx.ModelProto") -> "onnx.ModelProto | None":
    """A copy with the same weights, all of its tensors float32; None where nothing in it computes in less.

    Weights that are only stored in less, and cast before they are used, are computed with in float32 as it is. None
    also for models with loops, branches or functions of their own, which are not looked into. 16-bit inputs stay, and
    are cast.
    """
    import onnx
    from onnx import AttributeProto, TensorProto
    from onnx.helper import make_node

    short = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    inner = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    if model.functions or any(a.type in inner for node in model.graph.node for a in node.attribute):
        return None
    if not computes_in_less(model):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tensor in graph.initializer:
        if tensor.data_type in short:
            tensor.CopyFrom(_widened(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in short:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in short:
                attribute.t.CopyFrom(_widened(attribute.t))
    casts = []
    for value in graph.input:
        if value.type.tensor_type.elem_type in short:
            wide = f"{value.name}.widened"
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == value.name:
                        node.input[place] = wide
            casts.append(make_node("Cast", [value.name], [wide], to=TensorProto.FLOAT))
    for value in graph.output:
        if value.type.tensor_type.elem_type in short:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return copy


def computes_in_less(model: "onnx.ModelProto") -> bool:
    """Whether a 16-bit float goes into anything but a cast, or is picked for one."""
    from onnx import TensorProto

    short = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer if tensor.data_type in short}
    names |= {value.name for value in graph.input if value.type.tensor_type.elem_type in short}
    for node in graph.node:
        if node.op_type == "Cast" and any(a.name == "to" and a.i in short for a in node.attribute):
            names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type != "Cast" and names & set(node.input):
            return True
    return False


def _widened(tensor: "onnx.TensorProto") -> "onnx.TensorProto":
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
