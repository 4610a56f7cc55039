"""onnxruntime's tools without what they do to a process besides: log, and change its logging and its path."""

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

TRANSFORMERS = "onnxruntime.transformers"

ALONE = threading.RLock()
"""Held by the thread that changes the process's streams, logging, path or modules: two that overlap would each restore
what the other has changed."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is printed or logged meanwhile; logging and `sys.path` are afterwards as before. Threads take turns.

    `matmul_nbits_quantizer` configures the root logger when it is imported, and `onnxruntime.transformers` puts a
    folder with modules of common names on the path.
    """
    with ALONE:
        handlers, level, path = logging.root.handlers[:], logging.root.level, sys.path[:]
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.ERROR))
        if TRANSFORMERS in sys.modules:  # its modules find each other there, also those that are imported later
            sys.path.extend(sys.modules[TRANSFORMERS].__path__)
        try:
            sink = io.StringIO()
            with (
                contextlib.redirect_stdout(sink),
                contextlib.redirect_stderr(sink),
                warnings.catch_warnings(action="ignore"),
            ):
                yield
        finally:
            logging.disable(disabled)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            sys.path[:] = path


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """What is imported meanwhile finds no torch, unless it is loaded already.

    `onnxruntime.tools`, which `quant_pre_process` takes its symbolic shapes from, loads torch where it is installed,
    for a function that exports from it: 200 MB and seconds that nothing here needs.
    """
    with ALONE:
        if "torch" in sys.modules:
            yield
            return
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            import onnxruntime.tools  # noqa: F401 — quant_pre_process imports it only when it is called

            yield
        finally:
            del sys.modules["torch"]
