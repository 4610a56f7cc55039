"""Why a model is slower than it could be, as far as is known: a condition on its profile, and what to try."""

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.proofs.layers import DYNAMIC, FLOAT_KERNELS, MOVERS, QUANTIZERS, RECURRENT, layers_of
from kdbench.proofs.profile import LARGER, Profile
from kdbench.proofs.widening import computes_in_less

if TYPE_CHECKING:
    import onnx

MUCH = 0.10
"""Share of the kernels' time above which moving numbers about is worth a word."""
IN_INT8 = 4
"""The `accuracy_level` from which on MatMulNBits multiplies in int8."""
IDLE = 0.30
"""Share of a run above which what is no work of the model's is worth a word."""

QOPERATORS = ("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Explanation:
    """`found` gives what `sentence` says, or None where the profile doesn't show it."""

    name: str
    found: Callable[[Profile], Mapping[str, object] | None]
    sentence: str


def explain(profile: Profile) -> list[str]:
    """One sentence for each known cause that the profile shows, the flag to try named."""
    causes = ((cause, cause.found(profile)) for cause in EXPLANATIONS)
    return [cause.sentence.format(**facts) for cause, facts in causes if facts is not None]


def _unfused_relu(profile: Profile) -> Mapping[str, object] | None:
    """Relu kernels between int8 that is symmetric about 0 in the file; what runs may be converted to uint8."""
    graph = profile.model.graph
    running = {kernel.name for kernel in profile.kernels if kernel.operator in ("Relu", "Clip")}
    makers = {output: node for node in graph.node for output in node.output}
    constants = _constants(graph)
    left = [
        node
        for node in graph.node
        if node.name in running
        and node.input[0] in makers
        and makers[node.input[0]].op_type == "DequantizeLinear"
        and any(_symmetric(user, constants) for user in graph.node if node.output[0] in user.input)
    ]
    return {"count": len(left), "operators": " and ".join(sorted({node.op_type for node in left}))} if left else None


def _symmetric(node: "onnx.NodeProto", constants: Mapping[str, np.ndarray]) -> bool:
    zero = constants.get(node.input[2]) if node.op_type == "QuantizeLinear" and len(node.input) > 2 else None
    return zero is not None and zero.dtype == np.int8 and not zero.any()


def _constants(graph: "onnx.GraphProto") -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and not tensor.dims
    }


def _qoperator(profile: Profile) -> Mapping[str, object] | None:
    found = [name for name in QOPERATORS if profile.artifact.operators.get(name)]
    if (
        not found
        or _is_dynamic(profile.artifact.operators)
        or platform.machine().lower() not in ("x86_64", "amd64", "i686")
    ):
        return None
    return {"operators": ", ".join(found), "out": profile.artifact.rung}


def _quantizers(profile: Profile) -> Mapping[str, object] | None:
    share = profile.time_share(QUANTIZERS + MOVERS)
    if profile.artifact.precision != "int8" or share <= MUCH:
        return None
    every = _all_asked(profile.artifact.options)
    tries = [] if every else ["quantize without --operator, so that neighbours stay in int8"]
    if profile.larger_latency_s is not None:
        tries.append("try a larger --batch")
    return {
        "share": share,
        "count": sum(kernel.operator in QUANTIZERS + MOVERS for kernel in profile.kernels),
        "tries": ", or ".join(tries) or "wider layers would have fewer of them for their work",
    }


def _ranges(profile: Profile) -> Mapping[str, object] | None:
    """Dynamic int8, whose kernels look at their inputs twice."""
    share = profile.time_share(DYNAMIC)
    if not _is_dynamic(profile.artifact.operators) or share <= MUCH:
        return None
    return {"count": sum(kernel.operator in DYNAMIC for kernel in profile.kernels), "share": share}


def _is_dynamic(operators: Mapping[str, int]) -> bool:
    return any(operators.get(name) for name in DYNAMIC)


def _casts(profile: Profile) -> Mapping[str, object] | None:
    share = profile.time_share(("Cast",))
    if profile.artifact.precision not in ("fp16", "bf16") or share <= MUCH:
        return None
    return {
        "share": share,
        "count": sum(kernel.operator == "Cast" for kernel in profile.kernels),
        "precision": profile.artifact.precision,
    }


def _weights_only(profile: Profile) -> Mapping[str, object] | None:
    stored = profile.artifact.precision in ("fp16", "bf16") and not computes_in_less(profile.model)
    return {"precision": profile.artifact.precision} if stored else None


def _unpacked(profile: Profile) -> Mapping[str, object] | None:
    """Products of int4 weights that are not made in int8."""
    products = [node for node in profile.model.graph.node if node.op_type == "MatMulNBits"]
    level = [a.i for node in products for a in node.attribute if a.name == "accuracy_level" and a.i >= IN_INT8]
    share = profile.time_share(("MatMulNBits",))
    return {"share": share} if products and not level and share > MUCH else None


def _movers(profile: Profile) -> Mapping[str, object] | None:
    share = profile.time_share(MOVERS)
    if profile.artifact.precision == "int8" or share <= MUCH:
        return None
    return {"share": share, "operators": _listed({k.operator for k in profile.kernels if k.operator in MOVERS})}


def _tiny(profile: Profile) -> Mapping[str, object] | None:
    if profile.larger_latency_s is None:
        return None
    larger = LARGER * profile.batch
    saved = 1 - (profile.larger_latency_s / larger) / (profile.latency_s / profile.batch)
    outside = profile.outside_share if profile.kernels else 0.0
    seen = [f"a sample costs {saved:.0%} less in a batch of {larger}"] if saved > IDLE else []
    seen += [f"at least {outside:.0%} of a run is spent outside kernels"] if outside > IDLE else []
    return {"batch": profile.batch, "seen": ", and ".join(seen)} if seen else None


def _float_left(profile: Profile) -> Mapping[str, object] | None:
    """Layers of an int8 model that run in float, by name, each with the reason where the file shows one."""
    if profile.artifact.precision != "int8":
        return None
    left = [kernel for kernel in profile.kernels if kernel.operator in (*FLOAT_KERNELS, *RECURRENT)]
    if not left:
        return None
    layers = layers_of(profile.model.graph)
    reasons: dict[str, list[str]] = {}
    for kernel in left:
        why = _why_float(layers.get(kernel.layer or ""), profile)
        reasons.setdefault(why, []).append(kernel.layer or kernel.name)
    told = "; ".join(f"{_listed(names)}: {why}" for why, names in reasons.items())
    return {"count": len(left), "told": told, "share": profile.time_share((*FLOAT_KERNELS, *RECURRENT))}


def _why_float(node: "onnx.NodeProto | None", profile: Profile) -> str:
    if node is None:
        return "why is not known"
    graph, options = profile.model.graph, profile.artifact.options
    dynamic = any(other.op_type in DYNAMIC for other in graph.node)
    if node.op_type in RECURRENT:
        static = "" if dynamic else "static "
        other = ", `kdbench convert --to dynamic` has one" if node.op_type == "LSTM" and not dynamic else ""
        return f"onnxruntime has no {static}int8 kernel for {node.op_type}{other}"
    constants = {tensor.name for tensor in graph.initializer}
    if dynamic and not constants & set(node.input[1:2]):
        return "multiplies two activations, which dynamic int8 leaves in float"
    if dynamic:
        return f"not converted in the file, `kdbench convert` it with --operator {node.op_type}, or without --keep"
    makers = {output: maker.op_type for maker in graph.node for output in maker.output}
    if any(makers.get(name) != "DequantizeLinear" for name in node.input[:2]):
        if node.name in options.get("left_in_float", ()):
            return "left in float to keep the accuracy, raise --max-drop"
        if node.name in options.get("exclude", ()):
            return "left in float by --exclude"
        if _all_asked(options):
            return "onnxruntime's quantizer leaves it out"
        return f"not quantized in the file, `kdbench quantize` it without --operator, or with --operator {node.op_type}"
    users = [user.op_type for user in graph.node if node.output[0] in user.input]
    others = [user for user in users if user != "QuantizeLinear"]
    if others:
        advice = "" if _all_asked(options) else ", quantize without --operator"
        return f"its output goes on in float to {_listed(others)}{advice}"
    return "why is not known"


def _all_asked(options: Mapping[str, Any]) -> bool:
    """Whether the file's record says that all operators and nodes were to be quantized; not of files without one."""
    return "operators" in options and not options["operators"] and not options.get("nodes")


def _listed(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    unique = list(dict.fromkeys(names))
    rest = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + rest


EXPLANATIONS = (
    Explanation(
        "unfused relu",
        _unfused_relu,
        "{count} {operators} between int8 run in float: activations that are symmetric about 0 keep a negative half "
        "that the convolution before can't cut off; try `kdbench quantize --activations uint8`",
    ),
    Explanation(
        "QOperator on x86",
        _qoperator,
        "the file is in QOperator format ({operators}), which runs up to 20 times slower than QDQ on x86; make it anew "
        "from the fp32 file with `kdbench quantize`, which writes QDQ",
    ),
    Explanation(
        "conversions",
        _quantizers,
        "{share:.0%} of the kernels' time goes into {count} conversions between float, int8 and memory layouts; "
        "{tries}",
    ),
    Explanation(
        "ranges",
        _ranges,
        "dynamic int8 looks for the range of its input in each run: {count} kernels do so, {share:.0%} of the kernels' "
        "time with their products; `kdbench quantize --calibration PACK` knows the ranges beforehand",
    ),
    Explanation(
        "casts",
        _casts,
        "{share:.0%} of the kernels' time goes into {count} casts between {precision} and float32: this provider has "
        "few {precision} kernels; take the fp32 file here, and this one where there are some, as on GPUs",
    ),
    Explanation(
        "stored in 16 bits",
        _weights_only,
        "its weights are stored in {precision} and computed with in float32: the file is smaller, not faster",
    ),
    Explanation(
        "int4 unpacked",
        _unpacked,
        "{share:.0%} of the kernels' time goes into products that make float of int4 weights in each run; try "
        "`kdbench convert --to int4 --activations int8`",
    ),
    Explanation(
        "transposes",
        _movers,
        "{share:.0%} of the kernels' time goes into moving numbers to another layout ({operators}); try "
        "`kdbench slim`, which removes transposes that undo each other",
    ),
    Explanation(
        "tiny batches",
        _tiny,
        "batch {batch} is little work for a run: {seen}; try a larger --batch",
    ),
    Explanation(
        "float in int8",
        _float_left,
        "of the int8 model's layers {count} run in float, {share:.0%} of the kernels' time ({told})",
    ),
)
