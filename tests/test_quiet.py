"""Tools that print and log leave the process as it was: its streams and its logging."""

import logging
import sys
import threading

import numpy as np
import onnx
import onnxslim
import pytest
import torch

from kdbench.quantization.static import prepare
from kdbench.steps.export import content_of
from kdbench.steps.slim import by_onnxslim


def test_two_slimmings_at_a_time_leave_the_process_its_voice(small_model, monkeypatch):
    """Even where the first ends while the second is at work."""
    model, streams = onnx.load(small_model), (sys.stdout, sys.stderr)
    first_in, second_in, first_done = threading.Event(), threading.Event(), threading.Event()

    def slow(given):
        if not first_in.is_set():
            first_in.set()
            second_in.wait(0.2)  # in vain, where it waits for its turn
        else:
            second_in.set()
            assert first_done.wait(10)
        return given

    def first():
        by_onnxslim(model, small_model)
        first_done.set()

    monkeypatch.setattr(onnxslim, "slim", slow)
    threads = [threading.Thread(target=first), threading.Thread(target=by_onnxslim, args=(model, small_model))]
    threads[0].start()
    assert first_in.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert second_in.is_set()
    assert (sys.stdout, sys.stderr) == streams


@pytest.mark.parametrize(
    "work",
    [
        lambda path: by_onnxslim(onnx.load(path), path),
        lambda path: prepare(onnx.load(path), path),
        lambda path: content_of(torch.nn.Linear(2, 2), np.zeros((1, 2), np.float32)),
    ],
    ids=["slim", "quantize", "export"],
)
@pytest.mark.parametrize("disabled", [logging.WARNING, logging.CRITICAL])
def test_the_callers_logging_is_as_before(disabled, work, small_model):
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in exporters]
    try:
        for logger in exporters:
            logger.setLevel(logging.INFO)
        logging.disable(disabled)
        work(small_model)
        assert logging.root.manager.disable == disabled
        assert [logger.level for logger in exporters] == [logging.INFO] * 2
    finally:
        logging.disable(logging.NOTSET)
        for logger, level in zip(exporters, levels, strict=True):
            logger.setLevel(level)
