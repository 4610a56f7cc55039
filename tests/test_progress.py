"""What is said of long work where there is no terminal."""

import pytest

from kdbench import progress
from kdbench.progress import bars, duration, lines


class Clock:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


@pytest.fixture
def told():
    """What is said of steps `(after how many seconds, label, done, total)`."""

    def tell(*steps):
        said, clock = [], Clock()
        update = lines(said.append, clock)
        for after_s, label, done, total in steps:
            clock.s += after_s
            update(label, done, total)
        return said

    return tell


def test_short_work_is_silent(told):
    assert told((0, "teacher", 0, 10), (29, "teacher", 9, 10), (0.5, "teacher", 10, 10)) == []


def test_long_work_is_told_of_every_thirty_seconds_with_the_time_left(told):
    steps = [(0, "student", 0, 1000), *((1, "student", second, 1000) for second in range(1, 1000))]
    said = told(*steps)
    assert said[:2] == ["student: 3 %, 16 min left", "student: 6 %, 16 min left"]
    assert said[-1] == "student: 99 %, 10 s left"
    assert len(said) == 33


def test_all_labels_together_take_turns(told):
    said = told((0, "a", 0, 4), (31, "a", 1, 4), (5, "b", 0, 2), (20, "b", 1, 2), (10, "b", 1, 2))
    assert said == ["a: 25 %, 93 s left", "b: 50 %, 30 s left"]


def test_work_that_goes_on_is_judged_by_what_was_done_now(told):
    # From epoch 50 on, 10 epochs a minute; then the next training of the same label, from the start.
    steps = [(0, "student", 50, 100), (60, "student", 60, 100), (0, "student", 0, 100), (60, "student", 10, 100)]
    assert told(*steps) == ["student: 60 %, 4 min left", "student: 10 %, 9 min left"]


def test_without_a_first_step_no_time_is_promised(told):
    assert told((0, "bench", 0, 5), (40, "bench", 0, 5)) == ["bench: 0 %"]


@pytest.mark.parametrize(("rank", "lines_said"), [(None, 1), ("0", 1), ("1", 0)])
def test_the_main_process_alone_prints_them(rank, lines_said, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, rank) if rank else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    with bars() as update:
        update("teacher", 1, 4)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "teacher: 25 %\n" * lines_said


def test_a_bar_whose_label_comes_back_has_the_time_left_of_the_new_work(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr("rich.console.monotonic", clock)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    with bars() as update:
        for done in (0, 10, 0, 1, 2, 3, 4):
            update("calibrate", done, 10)
            clock.s += 5
    assert "0:00:30" in capsys.readouterr().err  # six steps of five seconds


def test_durations_are_rough():
    assert [duration(value) for value in (0.2, 12, 240, 9000, 90000)] == ["1 s", "12 s", "4 min", "2.5 h", "25 h"]
