"""What graphs need before another precision is made of them: an opset that knows it, and names."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import UserError, first_line
from kdbench.onnxfile import opset_of

if TYPE_CHECKING:
    import onnx


def at_opset(model: "onnx.ModelProto", least: int, path: Path, need: str) -> tuple["onnx.ModelProto", dict[str, Any]]:
    """The model at the opset `least`, or at its own newer one; and what is to be recorded of that.

    Raises UserError that begins with `path` and what it needs that for where it can't be converted.
    """
    from onnx import version_converter

    opset = opset_of(model)
    if opset >= least:
        return model, {}
    try:
        return version_converter.convert_version(model, least), {"opset_from": opset}
    except Exception as error:  # a C++ exception, of no class of its own
        raise UserError(
            f"{path}: {need} needs opset {least}, and it can't be converted from {opset} ({first_line(error, 100)}): "
            f"export it with opset {least} or newer"
        ) from None


def own_copy(model: "onnx.ModelProto", tensor: "onnx.TensorProto") -> str:
    """Adds a copy of an initializer, in place, under a name that nothing has yet; that name."""
    graph = model.graph
    taken = {value.name for value in (*graph.initializer, *graph.input)}
    taken |= {name for node in graph.node for name in node.output}
    added = graph.initializer.add()
    added.CopyFrom(tensor)
    name = next(name for number in count(1) if (name := f"{tensor.name}.{number}") not in taken)
    added.name = name
    return name


def name_nodes(model: "onnx.ModelProto") -> None:
    """Gives a name to each node that has none, or that of another one: quantizers know nodes by name."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{number}"
        taken.add(node.name)
