"""What the end of an ONNX graph says of its outputs, and a class map put behind it."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from kdbench.errors import UserError
from kdbench.teachers.classes import ClassMap

if TYPE_CHECKING:
    import onnx

PASSED_OVER = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")
"""Operators that leave values as they are."""

EPSILON = 1e-30
"""Added to probabilities before the logarithm: float32 holds it, float16 would round it to 0."""


def last_activation(model: "onnx.ModelProto") -> Literal["softmax", "sigmoid"] | None:
    """The activation that the first output comes from."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in PASSED_OVER:
        node = makers.get(node.input[0])
    match node.op_type if node is not None else None:
        case "Softmax":
            return "softmax"
        case "Sigmoid":
            return "sigmoid"
    return None


def mapped(model: "onnx.ModelProto", classes: ClassMap, kind: str, where: str) -> "onnx.ModelProto":
    """The model with one output [N, known], the data's classes: probabilities are added up in each group.

    Logits of groups become log-probabilities, which differ from log Σ exp by a constant in each row. Raises UserError
    where the output isn't a matrix, and for groups of independent probabilities.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    given = model.graph.output[0]
    kinds = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
    tensor = given.type.tensor_type
    dtype = kinds.get(tensor.elem_type)
    if dtype is None or len(tensor.shape.dim) != 2:
        raise UserError(f"{where}: its output '{given.name}' is no float matrix [N, classes]: no class map fits it")
    if kind == "sigmoid" and not classes.single:
        raise UserError(f"{where}: probabilities that are independent can't be added up: map one class to each")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    prefix = "class_map"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    if classes.single:
        index = np.array([group[0] for group in classes.groups], dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(index, f"{prefix}.index"))
        graph.node.append(helper.make_node("Gather", [given.name, f"{prefix}.index"], [prefix], axis=1))
    else:
        matrix = np.zeros((classes.own, len(classes.known)), dtype)
        for column, group in enumerate(classes.groups):
            matrix[list(group), column] = 1
        graph.initializer.append(numpy_helper.from_array(matrix, f"{prefix}.matrix"))
        if kind == "softmax":
            graph.node.append(helper.make_node("MatMul", [given.name, f"{prefix}.matrix"], [prefix]))
        else:
            graph.initializer.append(numpy_helper.from_array(np.array(EPSILON, dtype), f"{prefix}.epsilon"))
            steps = [f"{prefix}.{step}" for step in ("softmax", "sum", "positive")]
            graph.node.extend(
                [
                    helper.make_node("Softmax", [given.name], [steps[0]], axis=1),
                    helper.make_node("MatMul", [steps[0], f"{prefix}.matrix"], [steps[1]]),
                    helper.make_node("Add", [steps[1], f"{prefix}.epsilon"], [steps[2]]),
                    helper.make_node("Log", [steps[2]], [prefix]),
                ]
            )
    batch = tensor.shape.dim[0].dim_value or tensor.shape.dim[0].dim_param or None
    output = helper.make_tensor_value_info(prefix, tensor.elem_type, [batch, len(classes.known)])
    del graph.output[:]
    graph.output.append(output)
    return result
