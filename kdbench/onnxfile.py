"""Reading an ONNX file that anybody made: is it sound, and what is in it?"""

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import UserError, first_line
from kdbench.onnxgraph import IN_BLOCKS, count_macs, count_parameters
from kdbench.records import PREFIX, Artifact, Embedded, Precision, TensorSpec, embedded_in
from kdbench.store import load_artifact, sha256, sha256_of_file, sidecar

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

MAX_IR = 13
MAX_OPSET = 26
"""The newest that onnxruntime 1.31 reads; newer ones of onnx itself can be written."""

MOST_BYTES = 2**31 - 2**20
"""Of one model, which protobuf limits to 2 GiB."""

QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)


def load_model(path: Path) -> "onnx.ModelProto":
    """The whole model, external data included; raises UserError for everything that is not a sound ONNX file, or more
    than one file can hold."""
    return _checked(_read(path), path, whole=True)


def graph_of(path: Path) -> "onnx.ModelProto":
    """The model without its external data, whose places it names; raises UserError where some of it is missing."""
    return _read(path)


def _read(path: Path) -> "onnx.ModelProto":
    """The model without its external data, all of which is there."""
    import onnx
    from google.protobuf.message import DecodeError

    if any("\udc80" <= sign <= "\udcff" for sign in str(path)):
        raise UserError(f"{str(path)!a}: its name is not valid UTF-8: rename it")
    if path.is_dir():
        raise UserError(f"{path}: a folder, not an ONNX file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path}: an empty file, not an ONNX model")
    try:
        model = onnx.load_from_string(content)
    except (DecodeError, ValueError):
        raise UserError(f"{path}: not an ONNX model, or cut off: export or copy it again") from None
    if not model.graph.node or not model.opset_import:
        raise UserError(f"{path}: not an ONNX model, or cut off: it has no graph")
    for location in external_files(model):
        file = path.parent / location
        if "*" in location:  # onnxruntime's mark of an address in memory
            raise UserError(f"{path}: its external data '{location}' is no file: export the model again")
        try:
            inside, there = file.resolve().is_relative_to(path.parent.resolve()), file.is_file()
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no file is named as its external data: {first_line(error, 80)}") from None
        if not inside:
            raise UserError(f"{path}: its external data '{location}' leads outside its folder")
        if not there:
            raise UserError(f"{path}: its external data '{location}' is missing: put it beside the model")
    return model


def _checked(model: "onnx.ModelProto", path: Path, whole: bool) -> "onnx.ModelProto":
    """The model with its external data, checked; without them where they are too many, if it need not be `whole`."""
    import onnx

    try:
        size = path.stat().st_size + sum(_length(tensor, path) for tensor in _external(model))
        if whole and size > MOST_BYTES:
            raise UserError(f"{path}: {size / 2**30:.1f} GiB don't fit into one ONNX file, which ends at 2 GiB")
        if size <= MOST_BYTES:
            onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model if size <= MOST_BYTES else str(path))
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a valid ONNX model: {first_line(error, 160)}") from None
    return model


def external_files(model: "onnx.ModelProto") -> set[str]:
    """Where the model's external tensors say that they lie, wherever in it they are."""
    return {entry.value for tensor in _external(model) for entry in tensor.external_data if entry.key == "location"}


def _external(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    return (part for part in _parts(model) if part.DESCRIPTOR.name == "TensorProto" and part.external_data)


def _length(tensor: "onnx.TensorProto", path: Path) -> int:
    """Bytes of an external tensor of the model at `path`; where it doesn't say, it lies to its file's end."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in said:
        return int(said["length"])
    return (path.parent / said["location"]).stat().st_size - int(said.get("offset", 0)) if "location" in said else 0


def holds_compiled_parts(path: Path) -> bool:
    """Whether a provider has compiled a part of the model elsewhere: what runs is then not told by the file."""
    nodes = (message for message in _parts(_read(path)) if message.DESCRIPTOR.name == "NodeProto")
    return any(node.op_type == "EPContext" for node in nodes)


_PARTS = ("GraphProto", "FunctionProto", "TrainingInfoProto", "NodeProto", "AttributeProto", "SparseTensorProto",
          "TensorProto")  # fmt: skip


def _parts(message: "Message") -> "Iterator[Any]":
    """Graphs, nodes, attributes and tensors within a message, at any depth."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.name in _PARTS:
            for part in (value,) if isinstance(value, Message) else value:
                yield part
                yield from _parts(part)


def external_data(path: Path) -> set[str]:
    """The files, seen from the model's folder, that hold tensors of an ONNX file; all of them are there, inside it."""
    return external_files(_read(path))


def inspect(path: Path, rung: str | None = None, **lineage: Any) -> Artifact:
    """The record of an ONNX file, read from the file itself; `lineage` fills the fields that the file can't tell.

    What a card or a bundle has written into it is told by the file: see `Embedded`. Of a file with more external data
    than can be loaded as one model, multiply-accumulates may be unknown: shapes may be among the data.
    """
    model = _read(path)
    files = [path, *(path.parent / location for location in sorted(external_files(model)))]
    hashes = [sha256_of_file(file) for file in files]
    model = _checked(model, path, whole=False)
    operators = Counter(node.op_type for node in model.graph.node)
    fields: dict[str, Any] = {
        "rung": rung or path.stem,
        "file": path.name,
        "sha256": hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()),
        "size_bytes": sum(file.stat().st_size for file in files),
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "precision": _precision(model, operators),
        "inputs": inputs_of(model),
        "outputs": tuple(_spec(value) for value in model.graph.output),
        "opset": opset_of(model),
        "ir_version": model.ir_version,
        "operators": dict(sorted(operators.items())),
    }
    return Artifact(**(fields | _told(model, fields["outputs"]) | lineage))


def embedded_of(path: Path) -> Embedded | None:
    """What a card or a bundle has written into the file's metadata; None where neither has."""
    return embedded_in(_props(_read(path)))


def with_metadata(model: "onnx.ModelProto", facts: Embedded | None) -> bytes:
    """The file's bytes with `facts` in its metadata, in the place of earlier ones; equal for equal models and facts.

    What others have written into the metadata stays.
    """
    import onnx

    written = onnx.ModelProto()
    written.CopyFrom(model)
    others = {key: value for key, value in _props(model).items() if not key.startswith(PREFIX)}
    onnx.helper.set_model_props(written, dict(sorted((others | (facts.to_props() if facts else {})).items())))
    return bytes(written.SerializeToString(deterministic=True))


def _props(model: "onnx.ModelProto") -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _told(model: "onnx.ModelProto", outputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Fields of the record that stand in the model's metadata; no classes that its outputs can't mean."""
    facts = embedded_in(_props(model))
    if facts is None:
        return {}
    width = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    return facts.model_dump(include={"task", "step", "parent", "parent_sha256"}) | {
        "classes": facts.classes if not isinstance(width, int) or width == len(facts.classes) else (),
        "preprocessing": facts.preprocessing,
    }


def opset_of(model: "onnx.ModelProto") -> int:
    """Version of the standard operators; 0 for a model that uses none of them."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def inputs_of(model: "onnx.ModelProto") -> tuple[TensorSpec, ...]:
    """The inputs that have to be fed."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in initializers)


def known_artifact(path: Path) -> Artifact:
    """The record beside the file, if it is that file's; else what the file itself tells."""
    found = inspect(path)
    beside = sidecar(path)
    if beside.is_file():
        recorded = load_artifact(beside)
        if recorded.sha256 == found.sha256:
            return recorded
    return found


def _precision(model: "onnx.ModelProto", operators: Counter[str]) -> Precision:
    from onnx import TensorProto

    sizes = Counter[int]()
    for tensor in model.graph.initializer:
        sizes[tensor.data_type] += prod(tensor.dims)
    bits = {
        next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
        for node in model.graph.node
        if node.op_type in IN_BLOCKS
    }
    if 4 in bits or sizes[TensorProto.INT4] or sizes[TensorProto.UINT4]:
        return "int4"
    if bits or any(operators[name] for name in QUANTIZED):
        return "int8"
    floats: dict[Precision, int] = {
        "fp32": sizes[TensorProto.FLOAT], "fp16": sizes[TensorProto.FLOAT16], "bf16": sizes[TensorProto.BFLOAT16]
    }  # fmt: skip
    return max(floats, key=lambda precision: floats[precision])


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except (KeyError, TypeError):
        dtype = "object"
    shape = tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param or None for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def operators_of(path: Path) -> dict[str, int]:
    """How often each operator stands in the graph of a file that a runtime has written."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph  # the weights may lie beside another file
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def portable(model: "onnx.ModelProto") -> bytes:
    """The file's bytes without a trace of the machine that made it: equal weights give equal bytes.

    torch's exporter writes stack traces with absolute paths into the nodes' metadata.
    """
    model.ir_version = min(model.ir_version, MAX_IR)
    described = [
        model,
        model.graph,
        *model.functions,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
        *(n for f in model.functions for n in f.node),
    ]
    for item in described:
        item.doc_string = ""
        del item.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))
