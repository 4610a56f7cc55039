"""A disk that fills up while a measurement is written down: what was measured is not lost without a word."""

import resource
from contextlib import contextmanager

import pytest

from kdbench import bench, store
from kdbench.errors import UserError
from kdbench.pipeline import measuring
from kdbench.store import publish, save_results
from tests.conftest import save_mlp
from tests.rows import load_rows
from tests.test_report import MACHINE, arrays, result

PARTIAL, WHOLE = "results.partial.json", "results.json"


@contextmanager
def restored():
    """Files may have any size again in the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill():
    """As a disk that has no room left for what is written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures without proofs; the error that this ends with, and the files that it leaves."""
    monkeypatch.setattr(measuring, "describe", lambda: MACHINE)
    monkeypatch.setattr(measuring, "judged", lambda *_: ([], {}))

    def measure(progress=lambda *_: None):
        with restored(), pytest.raises(UserError) as error:
            bench([save_mlp(tmp_path / "x.onnx")], budget_s=0.1, out=tmp_path / "out", progress=progress)
        return str(error.value), sorted(path.name for path in tmp_path.glob("out/*") if path.name != ".lock")

    return measure


def test_rounds_that_were_written_before_are_kept_and_named(tmp_path, measured):
    def progress(*_):
        if (tmp_path / "out" / PARTIAL).is_file():
            fill()

    said, left = measured(progress)
    assert "results.partial." in said
    assert (
        "cannot be written: File too large; what was measured before, 1 of each cell's rounds, is kept: 'kdbench report"
        in said
    )
    assert len(left) == 2
    assert PARTIAL in left
    (row,) = load_rows(tmp_path / "out" / PARTIAL)
    assert row.latency_p50_s > 0
    assert row.rounds == 1


def test_a_disk_that_is_full_from_the_beginning_is_left_as_it_was(tmp_path, measured):
    said, _ = measured(lambda *_: fill())
    assert "cannot be written: File too large; nothing of this measurement could be kept: make room" in said
    assert not (tmp_path / "out").exists()


def test_results_without_room_for_a_report_are_whole(tmp_path, measured, monkeypatch):
    def full(*arguments):
        fill()
        return save(*arguments)

    save = measuring.save_report
    monkeypatch.setattr(measuring, "save_report", full)
    said, left = measured()
    assert f"the measurement is whole: 'kdbench report {tmp_path / 'out' / WHOLE}' shows it" in said
    assert WHOLE in left
    assert not any(name.startswith(("report", ".kdbench")) for name in left)
    assert load_rows(tmp_path / "out")[0].rounds == 5


def test_raw_values_whose_record_has_no_room_do_not_stay(tmp_path, monkeypatch):
    def full(path, content):
        if path.suffix == ".json":
            raise UserError(f"{path}: cannot be written: No space left on device")
        write(path, content)

    save_results(tmp_path / WHOLE, result(), arrays())
    (tmp_path / "results" / "here").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    write = store.write_atomic
    monkeypatch.setattr(store.results, "write_atomic", full)
    for values in (arrays(), arrays(speed=3.0)):  # those that lie there already, and others
        with pytest.raises(UserError, match="No space left"):
            save_results(tmp_path / WHOLE, result(), values)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="No space left"):
        publish(tmp_path / WHOLE, tmp_path / "results")
    assert sorted(tmp_path.rglob("*")) == before
    assert load_rows(tmp_path)[1].speedup == pytest.approx(2)
