"""The benchmark put to the test, and files of the machine that tell of a quota."""

import pytest

from kdbench import machine, stats
from kdbench.errors import UserError
from kdbench.pipeline.self_test import SelfTest, self_test
from kdbench.stats import Interval
from tests.test_sizes import save_tokens


def test_a_model_is_compared_with_itself_and_with_a_slower_copy(small_model):
    same, slower = self_test([small_model], batches=(2,), budget_s=2.0)
    assert same.cell == slower.cell == "small, cpu, 1 thread, batch 2"
    assert (same.share, slower.share) == (0.0, 0.05)
    for check in (same, slower):
        assert check.rounds >= 5
        assert check.ratio.low <= check.ratio.value <= check.ratio.high
        assert check.smallest_difference > 0
        assert check.error is None


def test_inputs_that_a_file_does_not_tell_are_given(tmp_path, monkeypatch, mistake):
    words = save_tokens(tmp_path / "words.onnx", words=5, length=None)
    given = {"inputs": {"tokens": "16:0..4"}, "budget_s": 0.1}
    assert [check.error for check in self_test([words], **given)] == [None, None]
    with pytest.raises(UserError, match=r"--input token: the model has no such input: did you mean 'tokens'\?"):
        self_test([words], inputs={"token": "16:0..4"})
    too_large = self_test([words], inputs={"tokens": "16:0..9"}, budget_s=0.1)
    assert "add --input tokens=0..4" in too_large[0].error
    monkeypatch.chdir(tmp_path)
    said = mistake("bench --self-test words.onnx --budget 0.1 --input tokens=16:9..3")
    assert "--input tokens=16:9..3: not a range of int64" in said


@pytest.mark.parametrize(
    ("share", "ratio", "right"),
    [
        (0.0, (0.99, 0.98, 1.01), True),
        (0.0, (0.98, 0.97, 0.99), False),
        (0.05, (0.95, 0.93, 0.97), True),
        (0.05, (0.97, 0.94, 1.01), False),  # not told from the file itself
        (0.05, (0.90, 0.88, 0.92), False),  # slower, but not by what it was made slower by
    ],
)
def test_what_comes_out_right(share, ratio, right):
    assert SelfTest("cell", share, Interval(*ratio), 5, 0.01).right is right
    assert not SelfTest("cell", share, None, 0, None, "crashed").right


def test_the_exit_status_tells_whether_all_came_out_right(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    said = typed("bench", "--self-test", "--budget", "1")
    lines = said.out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["generated,", "generated,"]
    assert "no difference is " in lines[0]
    assert "5.0 % slower is " in lines[1]
    assert said.status == any(line.startswith("WRONG") for line in lines)
    assert ("quiet the machine" in said.out) == bool(said.status)
    assert list(tmp_path.iterdir()) == []


def cgroup(root, said, files):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(said)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("said", "files", "seconds"),
    [
        ("0::/a/b\n", {"a/b/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_usec 1500000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"a/b/cpu.stat": "nr_periods 0\nthrottled_usec 0\n", "a/cpu.stat": "nr_periods 3\nthrottled_usec 70\n"},
            7e-5,
        ),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.stat": "nr_periods 5\nthrottled_time 2000000000\n"}, 2.0),
        ("4:cpu:/\n", {"cpu/cpu.stat": "nr_periods 0\nthrottled_time 0\n"}, None),
        ("0::/\n", {"cpu.stat": "usage_usec 5\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_quota_is_read_from_either_version_of_cgroups(tmp_path, said, files, seconds):
    assert machine.throttled_s(cgroup(tmp_path, said, files)) == seconds


def test_a_machine_without_cgroups_tells_of_no_quota(tmp_path):
    assert machine.throttled_s(tmp_path) is None


def test_intervals_of_the_self_test_are_wider_than_those_of_a_table():
    from kdbench.pipeline.self_test import LEVEL

    slow, fast = [1.0, 1.1, 1.05, 1.0, 1.02], [1.0] * 5
    assert stats.speedup(slow, fast, LEVEL).high > stats.speedup(slow, fast, stats.STOPPED_LEVEL).high
