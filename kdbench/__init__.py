"""Distil, slim and quantize classifiers, and prove on every backend what each step gains and costs.

What the command line offers, as functions: `kdbench.init`, `check`, `run`, `distill`, `compare_methods`, `prune`,
`sparsify`, `factorise`, `spiral`, `export`, `slim`, `quantize`, `fastest_int8`, `convert`, `prove`, `evaluate`,
`parity`, `bench`, `compare`, `self_test`, `profile`, `pack`, `bundle`, `card`, `load_results`, `results_add`,
`results_verify`, `results_rerun`. torch and onnxruntime are imported when a function needs them, not before; where
torch is missing, the functions that need it say so when they are called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdbench.errors import UserError
    from kdbench.evaluation import evaluate, parity
    from kdbench.pipeline import bench, compare_methods, distill, run
    from kdbench.pipeline.bundling import bundle
    from kdbench.pipeline.carding import card
    from kdbench.pipeline.checking import check
    from kdbench.pipeline.gate import compare
    from kdbench.pipeline.packing import pack
    from kdbench.pipeline.proving import prove
    from kdbench.pipeline.quantizing import fastest_int8
    from kdbench.pipeline.rerunning import results_rerun
    from kdbench.pipeline.self_test import self_test
    from kdbench.pipeline.spiral import spiral
    from kdbench.pipeline.starting import init
    from kdbench.proofs.profile import profile
    from kdbench.report.frames import load_results
    from kdbench.report.verifying import results_verify
    from kdbench.steps.convert import convert
    from kdbench.steps.export import export
    from kdbench.steps.factorise import factorise
    from kdbench.steps.prune import prune
    from kdbench.steps.quantize import quantize
    from kdbench.steps.slim import slim
    from kdbench.steps.sparsify import sparsify
    from kdbench.store import results_add

_HOMES = {
    "UserError": "errors",
    "bench": "pipeline",
    "bundle": "pipeline.bundling",
    "card": "pipeline.carding",
    "check": "pipeline.checking",
    "compare": "pipeline.gate",
    "compare_methods": "pipeline",
    "convert": "steps.convert",
    "distill": "pipeline",
    "evaluate": "evaluation",
    "export": "steps.export",
    "factorise": "steps.factorise",
    "fastest_int8": "pipeline.quantizing",
    "init": "pipeline.starting",
    "load_results": "report.frames",
    "pack": "pipeline.packing",
    "parity": "evaluation",
    "profile": "proofs.profile",
    "prove": "pipeline.proving",
    "prune": "steps.prune",
    "quantize": "steps.quantize",
    "results_add": "store",
    "results_rerun": "pipeline.rerunning",
    "results_verify": "report.verifying",
    "run": "pipeline",
    "self_test": "pipeline.self_test",
    "slim": "steps.slim",
    "sparsify": "steps.sparsify",
    "spiral": "pipeline.spiral",
}

__all__ = [
    "UserError",
    "bench",
    "bundle",
    "card",
    "check",
    "compare",
    "compare_methods",
    "convert",
    "distill",
    "evaluate",
    "export",
    "factorise",
    "fastest_int8",
    "init",
    "load_results",
    "pack",
    "parity",
    "profile",
    "prove",
    "prune",
    "quantize",
    "results_add",
    "results_rerun",
    "results_verify",
    "run",
    "self_test",
    "slim",
    "sparsify",
    "spiral",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    try:
        return getattr(import_module(f"kdbench.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        learning = import_module("kdbench.pipeline.learning")
        if error.name not in learning.TRAINING.split():
            raise

    def untaught(*given: Any, **options: Any) -> Any:
        learning.needs_torch()
        return getattr(import_module(f"kdbench.{_HOMES[name]}"), name)(*given, **options)

    return untaught


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
