"""The comparison of methods against figures worked out by hand."""

import numpy as np
import pytest

from kdbench.cli import cli
from kdbench.errors import UserError
from kdbench.machine import describe
from kdbench.records import Comparison, RawFile, Trial
from kdbench.report.comparison import comparison_table, method_rows
from kdbench.report.markdown import comparison_to_markdown
from kdbench.store import load_comparison, load_recipe, save_results
from tests.test_store import unsealed

LABELS = np.zeros(100, dtype=np.int32)


def answers(right):
    """Predictions of which the first `right` of 100 are right."""
    return np.where(np.arange(100) < right, 0, 1).astype(np.int32)


def compared(right):
    """A comparison of methods with the given numbers of right answers, one a seed."""
    trials, arrays = [], {"labels": LABELS}
    for method, kept, counts in right:
        for seed, count in enumerate(counts):
            raw = str(len(trials))
            arrays[f"predictions.{raw}"] = answers(count)
            trials.append(Trial(method=method, seed=seed, kept=kept, artifact_sha256="0", parameters=1, raw=raw))
    recipe = load_recipe("digits", {"methods.dkd.losses": "{ dkd = 2.0 }"})
    record = Comparison(
        kdbench="0", date="2026-01-01", name="x", machine=describe(), recipe=recipe, trials=tuple(trials),
        raw=RawFile(file="", sha256=""),
    )  # fmt: skip
    return record, arrays


FULL = [
    ("teacher", "last", [95]),
    ("alone", "last", [84, 86, 85]),
    ("alone", "best", [85, 86, 87]),
    ("distilled", "last", [89, 90, 91]),
    ("distilled", "best", [90, 90, 92]),
    ("dkd", "last", [86, 84, 85]),
    ("dkd", "best", [86, 86, 86]),
]


def test_rows_by_hand():
    teacher, alone, distilled, dkd = method_rows(*compared(FULL))
    assert (teacher.last.value, teacher.last.std, teacher.agreement, teacher.gain) == (0.95, None, None, None)
    assert (alone.last.value, alone.last.std) == (pytest.approx(0.85), pytest.approx(0.01))
    assert (alone.gain, alone.gap_closed) == (None, None)
    assert distilled.best.value == pytest.approx(272 / 300)
    # Differences by seed: 5, 4, 6 points; t(0.975, 2) = 4.302653, deviation 1 point.
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert (distilled.gain, distilled.gain_interval.low, distilled.gain_interval.high) == pytest.approx(
        (0.05, 0.05 - half, 0.05 + half)
    )
    assert distilled.gap_closed == pytest.approx(0.5)
    # Right where the teacher is right and wrong where it is wrong: the two differ on 6, 5 and 4 samples.
    assert distilled.agreement.value == pytest.approx(0.95)
    assert dkd.gain == pytest.approx(0)


def test_what_the_table_says():
    table = comparison_table(*compared(FULL))
    assert table.header == ("method", "seeds", "acc. %", "best %", "gain, points", "gap closed", "agree %")
    assert table.lines[0] == ("teacher", "1", "95.00", "–", "–", "–", "–")
    assert table.lines[1][:4] == ("alone", "3", "85.0 ± 1.0", "86.0 ± 1.0")
    assert table.lines[2][0] == "distilled ¹"
    assert table.lines[2][4:6] == ("+5.0 [2.5, 7.5]", "50 %")
    assert table.lines[3][4] == "0.0 [−5.0, 5.0]"
    assert table.notes == ("0.1 cross_entropy + 0.9 kd, temperature 4", "2 dkd, temperature 4")
    assert all(sum(map(len, row)) + 3 * len(row) <= 100 for row in (table.header, *table.lines))


def test_one_seed_has_a_gain_without_an_interval_and_no_best_without_held_out_samples():
    table = comparison_table(
        *compared([("teacher", "last", [95]), ("alone", "last", [85]), ("distilled", "last", [90])])
    )
    assert table.lines[2] == ("distilled ¹", "1", "90.00", "+5.00", "50 %", "95.00")


def test_no_share_of_a_gap_that_is_not_there():
    rows = method_rows(*compared([("teacher", "last", [85]), ("alone", "last", [86]), ("distilled", "last", [90])]))
    assert rows[2].gap_closed is None


def test_without_a_teacher_that_is_a_rung_there_is_no_agreement_and_no_gap():
    alone, distilled = method_rows(*compared([row for row in FULL[:4] if row[0] != "teacher"]))
    assert alone.agreement is distilled.agreement is distilled.gap_closed is None
    assert distilled.gain == pytest.approx(0.05)


def test_without_a_baseline_there_is_no_gain():
    table = comparison_table(*compared([("teacher", "last", [95]), ("distilled", "last", [90, 91])]))
    assert table.lines[1][3:5] == ("–", "–")


def test_a_comparison_is_read_back_as_it_was_written(tmp_path):
    record, arrays = compared(FULL)
    save_results(tmp_path / "comparison.json", record, arrays)
    assert comparison_table(*load_comparison(tmp_path / "comparison.json")) == comparison_table(record, arrays)


def test_a_comparison_is_rendered_again_and_damage_to_it_is_named(tmp_path, capsys):
    path = tmp_path / "comparison.json"
    record, arrays = compared(FULL)
    record = save_results(path, record, arrays)
    cli(["report", str(path)], standalone_mode=False)
    assert capsys.readouterr().out == comparison_to_markdown(record, arrays)
    cli(["report", str(tmp_path)], standalone_mode=False)
    assert capsys.readouterr().out == comparison_to_markdown(record, arrays)

    def said(*arguments):
        with pytest.raises(UserError) as caught:
            cli(["report", *map(str, arguments)], standalone_mode=False)
        return str(caught.value)

    assert said(path, "--view", "ladder") == f"{path}: a comparison of methods: show it by itself, or by --view methods"
    refusal = f"{tmp_path}: no result files in it, but a comparison of methods: show it by --view methods"
    assert said(tmp_path, "--view", "ladder") == refusal
    whole = path.read_text()
    path.write_text(whole[:300])
    assert f"{path}: not valid JSON" in said(path)
    path.write_text(whole.replace('"raw": "0"', '"raw": "99"'))
    assert f"{path}: edited after it was written: sealed as {record.seal[:12]}…" in said(path)
    path.write_text(unsealed(path))
    assert f"{path}: seed 0 of 'teacher' has no raw values: was it edited?" in said(path)
    path.write_text(whole)
    raw = tmp_path / record.raw.file
    raw.write_bytes(raw.read_bytes()[:200])
    assert f"{raw}: not a readable .npz archive" in said(path)


def test_of_several_labels_a_sample_it_is_f1_and_without_labels_agreement():
    record, arrays = compared(FULL)
    both = {name: np.stack([values, 1 - values], axis=1) for name, values in arrays.items()}
    table = comparison_table(record, both)
    assert table.header[2:5] == ("F1 µ %", "best %", "F1 macro %")
    assert table.lines[0][2] == "95.00"
    del arrays["labels"]
    table = comparison_table(record, arrays)
    assert table.header[2:] == ("agree %", "best %", "gain, points", "gap closed")
    assert table.lines[0][2] == "100.00"
    assert table.lines[2][2] == "95.0 ± 1.0"
