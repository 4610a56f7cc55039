"""The gate over two measurements in files: what is compared and how, what fails, and what it says."""

import numpy as np
import pytest

from kdbench import compare
from kdbench.errors import UserError
from kdbench.records import BenchSettings
from kdbench.records.gate import Check, Gate
from kdbench.report.gate.tables import gate_lines, gate_table, gate_to_markdown, narrow_tables, verdict
from kdbench.report.terminal import WIDTH, print_table
from kdbench.store import save_results
from tests.test_report import MACHINE, artifact, cell, evaluation, result

RIGHT = np.zeros(1000, dtype=np.int32)


def answers(wrong, start=0):
    """Of which so many are not right, from `start` on."""
    found = RIGHT.copy()
    found[start : start + wrong] = 1
    return found


def saved(path, latency_s=None, predictions=None, labels=RIGHT, noise=0.005, processes=8, seed=0, **changes):
    """A measurement in a file: each rung's median latencies, spread by chance, and its answers."""
    latency_s, predictions = latency_s or {"teacher": 1e-3, "student": 5e-4}, predictions or {}
    generator = np.random.default_rng(seed)
    arrays, measurements, evaluations = {}, [], []
    for raw, (rung, value) in enumerate(latency_s.items()):
        medians = value * np.exp(generator.normal(0, noise, processes))
        arrays[f"latencies.{raw}"] = np.repeat(medians, 12)
        arrays[f"rounds.{raw}"] = arrays[f"slices.{raw}"] = np.repeat(np.arange(processes, dtype=np.uint16), 12)
        measurements.append(cell(rung, str(raw), rounds=processes))
        if rung in predictions:
            arrays[f"predictions.{raw}"] = predictions[rung]
            evaluations.append(evaluation(rung, str(raw)))
    if predictions and labels is not None:
        arrays["labels"] = labels
    fields = {
        "artifacts": tuple(artifact(rung) for rung in latency_s),
        "measurements": tuple(measurements),
        "evaluations": tuple(evaluations),
        "settings": BenchSettings(seed=0, processes=5, precision=0.02, budget_s=30, slice_s=1, slice_runs=9),
    }
    path.parent.mkdir(exist_ok=True)
    save_results(path, result(**(fields | changes)), arrays)
    return path


def speeds(gate):
    return {check.rung: check.outcome for check in gate.checks if check.quantity == "speed"}


def test_what_strikes_the_machine_between_two_jobs_cancels_in_ratios_to_the_same_baseline(tmp_path):
    old = saved(tmp_path / "old.json")
    slow = saved(tmp_path / "slow.json", {"teacher": 1.3e-3, "student": 6.5e-4}, seed=1)  # a machine slower by 30 %
    gate = compare(old, slow)
    (check,) = gate.checks
    assert gate.passed
    assert (check.rung, check.outcome) == ("student", "within")
    assert check.change == pytest.approx(0, abs=0.02)
    assert check.new / check.old == pytest.approx(1.3, abs=0.02)  # latencies are shown as they were measured
    assert "by its speed-up against teacher, the same file in both" in check.notes[0]
    other = (artifact("teacher", sha256="retrained"), artifact("student"))
    apart = compare(old, saved(tmp_path / "apart.json", {"teacher": 1e-3, "student": 6.5e-4}, artifacts=other))
    assert speeds(apart) == {"teacher": "within", "student": "beyond"}
    assert all("the machine may have changed meanwhile" in check.notes[0] for check in apart.checks)


def test_changes_of_two_files_are_welchs(tmp_path):
    from scipy import stats

    alone = {"student": 1e-3}
    old, new = saved(tmp_path / "old.json", alone, noise=0.1), saved(tmp_path / "new.json", alone, noise=0.1, seed=1)
    (check,) = compare(old, new).checks
    logs = [np.log(1e-3) + np.random.default_rng(seed).normal(0, 0.1, 8) for seed in (1, 0)]
    limits = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.96)  # rounds ended at a narrow interval
    assert (check.low, check.high) == pytest.approx(tuple(np.expm1(limits)), rel=1e-6)
    assert check.outcome == "can't tell"
    assert "processes on either side would tell, there were 8: bench both again with --precision" in check.settle


@pytest.mark.parametrize(
    ("old", "new", "outcome"), [(10, 10, "within"), (10, 60, "beyond"), (10, 14, "can't tell"), (60, 10, "within")]
)
def test_answers_to_the_same_samples_are_paired(old, new, outcome, tmp_path):
    both = [
        saved(tmp_path / f"{name}.json", None, {"student": answers(wrong)})
        for name, wrong in (("old", old), ("new", new))
    ]
    check = next(check for check in compare(*both).checks if check.quantity == "accuracy")
    assert (check.old, check.new) == (1 - old / 1000, 1 - new / 1000)
    assert check.change == pytest.approx((old - new) / 1000)
    assert (check.outcome, check.seen) == (outcome, 1000)
    assert ("evaluation samples would tell, there were 1000" in check.settle) == (outcome == "can't tell")


def test_answers_to_other_samples_are_not_paired_and_that_is_said(tmp_path):
    old = saved(tmp_path / "old.json", None, {"student": answers(100)})
    labels = RIGHT[:800].copy()
    new = saved(tmp_path / "new.json", None, {"student": answers(80)[:800]}, labels=labels)
    check = next(check for check in compare(old, new).checks if check.quantity == "accuracy")
    assert (check.old, check.new, check.outcome) == (0.9, 0.9, "can't tell")
    assert "judged on other samples than before" in check.notes[0]
    paired = compare(old, saved(tmp_path / "same.json", None, {"student": answers(100)}), max_drop=1)
    assert next(check for check in paired.checks if check.quantity == "accuracy").outcome == "within"


def test_without_labels_as_many_answers_as_changed_may_be_wrong(tmp_path):
    def files(name, wrong):
        pack = {"labels": None, "inputs_sha256": "pack"}
        return saved(tmp_path / f"{name}.json", None, {"student": answers(wrong)}, **pack)

    old = files("old", 10)
    same, other = (compare(old, files(name, wrong)).checks[-1] for name, wrong in (("same", 10), ("other", 40)))
    assert (same.quantity, same.new, same.outcome) == ("agreement", 1.0, "within")
    assert (other.new, other.outcome) == (0.97, "can't tell")
    bounded = compare(old, files("few", 12), max_drop=1).checks[-1]  # 0.2 %, of which the upper limit is 0.7 %
    assert (bounded.outcome, bounded.high) == ("within", pytest.approx(0.0072, abs=1e-4))
    assert "another bound would" in other.settle


def test_answers_that_no_longer_can_be_compared_are_no_silence(tmp_path):
    old = saved(tmp_path / "old.json", None, {"student": RIGHT})
    none = saved(tmp_path / "none.json", seed=1)
    unlabelled = saved(tmp_path / "unlabelled.json", None, {"student": RIGHT}, labels=None, seed=2)
    several = saved(tmp_path / "several.json", None, {"student": RIGHT[:, None]}, labels=RIGHT[:, None], seed=3)
    for new, why in ((none, "NEW has no answers"), (unlabelled, "not judged on the same"), (several, "not judged on")):
        check = compare(old, new).checks[-1]
        assert (check.quantity, check.outcome, check.change) == ("accuracy", "can't tell", None)
        assert check.settle.startswith(why)
        assert not compare(old, new, strict=True).passed
    assert [check.quantity for check in compare(none, old).checks] == ["speed"]


def test_outputs_that_are_no_classes_are_no_silence(tmp_path):
    regressions = {"evaluations": (evaluation("teacher", None), evaluation("student", None))}
    old, new = (saved(tmp_path / f"{name}.json", seed=seed, **regressions) for seed, name in enumerate(("old", "new")))
    check = compare(old, new).checks[-1]
    assert (check.quantity, check.outcome, check.change) == ("accuracy", "can't tell", None)
    assert check.settle.startswith("OLD's outputs are no classes")
    assert not compare(old, new, strict=True).passed
    check = compare(saved(tmp_path / "classes.json", None, {"student": RIGHT}), new).checks[-1]
    assert check.settle.startswith("NEW's outputs are no classes")
    with pytest.raises(UserError, match="--max-drop: no answers to judge in either: their outputs are no classes"):
        compare(old, new, max_drop=0.1)
    generated = saved(tmp_path / "generated.json", inputs="generated", **regressions)
    assert [check.quantity for check in compare(generated, new).checks] == ["speed"]
    failed = {**regressions, "evaluations": (evaluation("teacher", None), evaluation("student", None, error="crashed"))}
    gate = compare(old, saved(tmp_path / "failed.json", seed=2, **failed), max_drop=0.1)
    assert "can no longer be evaluated: crashed" in gate.failures[0]


def test_several_labels_a_sample_are_judged_by_f1(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (400, 5)).astype(np.int32)
    worse = np.where(generator.random(labels.shape) < 0.1, 1 - labels, labels)
    old = saved(tmp_path / "old.json", None, {"student": labels}, labels=labels)
    new = saved(tmp_path / "new.json", None, {"student": worse}, labels=labels)
    gate = compare(old, new)
    check = next(check for check in gate.checks if check.quantity == "F1")
    assert (check.old, check.outcome) == (1.0, "beyond")
    assert check.low < check.change < check.high < -0.05
    assert next(check for check in compare(old, old).checks if check.quantity == "F1").outcome == "within"


def test_what_only_one_side_has_is_named_and_fails_if_strict(tmp_path):
    old = saved(tmp_path / "old.json", {"teacher": 1e-3, "student": 5e-4, "pruned": 3e-4})
    new = saved(tmp_path / "new.json", {"teacher": 1e-3, "student": 5e-4, "quick": 1e-4}, seed=1)
    gate = compare(old, new)
    assert gate.passed
    assert gate.missing == ("pruned on cpu, 1 thread, batch 4",)
    assert any("only in NEW, with nothing to compare them to: quick on cpu" in note for note in gate.notes)
    assert verdict(gate) == "PASSES: 1 comparison within bounds, 1 cell missing in NEW"
    assert not compare(old, new, strict=True).passed
    assert compare(new, new, strict=True).passed


@pytest.mark.parametrize(("size", "outcome"), [(1000, "within"), (1100, "within"), (1101, "beyond"), (1, "within")])
def test_a_file_may_grow_by_so_much(size, outcome, tmp_path):
    old = saved(tmp_path / "old.json")
    new = saved(tmp_path / "new.json", artifacts=(artifact("teacher"), artifact("student", size_bytes=size)))
    gate = compare(old, new, max_growth=0.1)
    (check,) = [check for check in gate.checks if check.quantity == "size" and check.rung == "student"]
    assert (check.old, check.new, check.outcome) == (1000, size, outcome)
    assert check.change == pytest.approx(size / 1000 - 1)
    assert gate.passed == (outcome == "within")


def test_what_no_longer_runs_or_holds_fails_by_name(tmp_path):
    old = saved(tmp_path / "old.json", None, {"student": RIGHT})
    gone = (cell("teacher", "0", rounds=8), cell("student", None, rounds=8, error="out of memory"))
    gate = compare(old, saved(tmp_path / "gone.json", measurements=gone))
    assert not gate.passed
    assert gate.failures == ("student on cpu, 1 thread, batch 4: no longer runs: out of memory",)
    assert "no longer so: student on cpu" in gate_lines(gate)[0]
    assert "- no longer so: student on cpu" in gate_to_markdown(gate)
    better = compare(tmp_path / "gone.json", old)
    assert better.passed
    assert better.notes == ("student on cpu, 1 thread, batch 4: OLD has no number: out of memory",)
    assert verdict(better) == "PASSES: nothing to compare"
    assert not compare(tmp_path / "gone.json", old, strict=True).passed

    def placed(name, elsewhere):
        nodes = {"OpenVINOExecutionProvider": {"Conv": 9}, "CPUExecutionProvider": {"Gemm": elsewhere}}
        placement = {provider: operators for provider, operators in nodes.items() if sum(operators.values())}
        shown = {"backend": "openvino", "placement": placement, "time_share": {"OpenVINOExecutionProvider": 1.0}}
        cells = tuple(
            cell(rung, raw, rounds=8, backend="openvino") for rung, raw in (("teacher", "0"), ("student", "1"))
        )
        judged = (evaluation("student", None, **shown),)
        return saved(tmp_path / f"{name}.json", measurements=cells, evaluations=judged)

    none, one, two = placed("none", 0), placed("one", 1), placed("two", 2)
    assert compare(one, one).passed
    assert compare(two, one).passed
    (failure,) = compare(none, one).failures
    assert "student on openvino, 1 thread, batch 4: a claim no longer holds: fallback: of 10 nodes 1 on CPU" in failure
    (failure,) = compare(one, two).failures
    assert "fallback: of 11 nodes 2 on CPU" in failure  # it held before no more than now, but more of it did
    lost = saved(tmp_path / "lost.json", evaluations=(evaluation("student", None, error="crashed"),))
    assert compare(old, lost).failures == ("student on cpu, 1 thread, batch 4: can no longer be evaluated: crashed",)


def test_two_machines_share_no_ratio_and_other_versions_are_said(tmp_path):
    def on(name, **changes):
        return saved(tmp_path / f"{name}.json", machine=MACHINE.model_copy(update=changes))

    old = on("old")
    others = {"cpu": {"cpu": "other"}, "cores": {"cores_logical": 4}, "avx": {"features": ()}}
    for name, changes in others.items():
        with pytest.raises(
            UserError, match="measured on two machines, which never share a ratio: OLD on here"
        ) as error:
            compare(old, on(name, **changes))
        assert "kdbench compare OLD.onnx NEW.onnx" in str(error.value)
    larger = MACHINE.model_copy(update={"memory_bytes": 2 * MACHINE.memory_bytes})
    hardware = [machine.hardware for machine in (MACHINE, larger)]
    apart = rf"OLD on here \(.*\), {hardware[0]}, NEW on here \(.*\), {hardware[1]}: measure both"
    for name, fingerprints in (("before", ("", "")), ("mixed", ("", hardware[1])), ("today", tuple(hardware))):
        with pytest.raises(UserError, match=apart):  # also of files from before there were fingerprints
            compare(
                on(f"{name}-1", fingerprint=fingerprints[0]),
                on(f"{name}-2", fingerprint=fingerprints[1], memory_bytes=larger.memory_bytes),
            )
    assert compare(old, on("known", fingerprint=MACHINE.hardware)).passed
    newer = on("newer", versions={"onnxruntime": "2"}, governor="powersave")
    assert [note for note in compare(old, newer).notes if "→" in note] == [
        "other versions, whose changes are among those of the models: onnxruntime 1 → 2",
        "another governor: – → powersave",
    ]


def test_a_comparison_that_is_open_fails_if_strict_and_many_are_judged_together(tmp_path):
    rungs = {f"r{number}": 1e-3 for number in range(24)}
    old = saved(tmp_path / "old.json", rungs, noise=0.02)
    slower = saved(tmp_path / "new.json", rungs | {"r7": 1.082e-3}, noise=0.02, seed=1)
    gate = compare(old, slower)
    check = next(check for check in gate.checks if check.rung == "r7")
    assert check.low > 0.05
    assert check.outcome == "can't tell"
    assert "beyond the bound by itself, but of 24 comparisons some come out so by chance; about" in check.settle
    assert gate.passed
    strict = compare(old, slower, strict=True)
    assert not strict.passed
    assert verdict(strict).startswith("FAILS (--strict): ")
    alone = [saved(tmp_path / f"a{n}.json", {"r7": v}, noise=0.02, seed=n) for n, v in ((0, 1e-3), (1, 1.15e-3))]
    assert speeds(compare(*alone)) == {"r7": "beyond"}


# --- what it says -----------------------------------------------------------------------------------------------------


def test_tables_keep_to_the_terminal_whatever_they_hold(capsys):
    facts = {"old": 1.234e-3, "new": 1.5e-2, "change": 11.155, "low": 10.1, "high": 12.2, "bound": 0.05}
    checks = [
        Check(quantity="speed", rung=rung, backend=backend, threads=threads, batch=batch, dims=dims, **facts,
              outcome="can't tell", settle="about 41 rounds would tell", notes=tuple(f"note {i}" for i in range(9)))
        for rung in ("a-student-of-a-long-name", "another-student|<b>")
        for backend in ("openvino:bf16@an-environment", "cpu")
        for threads in (1, 16) for batch in (1, 128) for dims in ("height=224 width=224", "height=32 width=32")
    ]  # fmt: skip
    gate = Gate(kdbench="0", date="2026", old="old.onnx", new="n|\x1b[1m.onnx", passed=False, checks=tuple(checks),
                machine=MACHINE)  # fmt: skip
    tables = narrow_tables(gate, WIDTH)
    for table in tables:
        print_table(table)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert printed.count("+1115.5 % [1010.0, 1220.0]") == len(checks) == 32
    assert "…" not in printed
    assert "\x1b" not in printed
    assert len(gate_table(gate).rows) == 32
    written = gate_to_markdown(gate)
    assert "another-student\\|\\<b\\>" in written
    assert "n\\|\N{REPLACEMENT CHARACTER}\\[1m.onnx" in written
    few = gate.model_copy(update={"checks": gate.checks[:1]})
    assert len(narrow_tables(few, WIDTH)) == 1
    assert (
        "a-student-of-a-long-name, openvino:bf16@an-environment, 1 thread, batch 1, height=224" in gate_table(few).title
    )
