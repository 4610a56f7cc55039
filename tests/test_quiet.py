"""Tools that print and log leave the process as it was: its streams and its logging."""

import sys
import threading

import onnx
import onnxslim

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
