"""The store: what is published is sealed, of one machine a folder, and computed again from raw values."""

import functools
import json
import platform
import re
import shutil
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench import archive, machine, results_add, results_verify, store
from kdbench.errors import UserError
from kdbench.records import Comparison, Recipe
from kdbench.records.gate import Gate
from kdbench.report.schema import fields_of, recipe_to_markdown, records, tables
from kdbench.report.table import load_ladders
from tests import test_comparison
from tests.conftest import PUBLISHED, REPOSITORY
from tests.test_report import MACHINE, ROUNDS, arrays, artifact, cell, evaluation, result

OTHER = MACHINE.model_copy(update={"cpu": "Another", "memory_bytes": 2**34})


def digest(rung):
    return sha256(rung.encode()).hexdigest()


def whole(**changes):
    """A result file that is right in everything."""
    teacher = artifact("teacher", sha256=digest("teacher"))
    student = artifact("student", "teacher", sha256=digest("student"), parent_sha256=digest("teacher"))
    rungs = {"teacher": "0", "student": "1"}
    fields = {
        "artifacts": (teacher, student),
        "measurements": tuple(cell(rung, raw, artifact_sha256=digest(rung)) for rung, raw in rungs.items()),
        "evaluations": tuple(evaluation(rung, raw, artifact_sha256=digest(rung)) for rung, raw in rungs.items()),
    }
    return result(**(fields | changes))


def values(speed=2.0, noise=0.01):
    """Its raw arrays: three runs a slice, a slice a round."""
    return arrays(speed, noise) | {"slices.0": ROUNDS.astype(np.uint32), "slices.1": ROUNDS.astype(np.uint32)}


def saved(folder, raw=None, **changes):
    """A run folder with such a file."""
    folder.mkdir(parents=True)
    store.save_results(folder / "results.json", whole(**changes), values() if raw is None else raw)
    return folder / "results.json"


@functools.cache
def made_comparison():
    return test_comparison.compared(test_comparison.FULL)


def compared(folder):
    folder.mkdir(parents=True)
    store.save_results(folder / "comparison.json", *made_comparison())
    return folder / "comparison.json"


# --- machines ---------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_hardware_alone():
    same = {
        "name": "other", "os": "Linux 7", "governor": "powersave", "python": "3.13", "versions": {},
        "features": ("avx2",), "memory_bytes": MACHINE.memory_bytes - 5_000_000, "fingerprint": "0" * 12,
    }  # fmt: skip
    for field, value in same.items():
        assert MACHINE.model_copy(update={field: value}).hardware == MACHINE.hardware, field
    others = {
        "cpu": "B", "features": ("avx", "avx2"), "cores_physical": 2, "cores_logical": 3, "memory_bytes": 2**34,
        "gpus": ("NVIDIA H100",),
    }  # fmt: skip
    found = {MACHINE.model_copy(update={field: value}).hardware for field, value in others.items()}
    assert len(found | {MACHINE.hardware}) == len(others) + 1


def test_this_machine_has_a_fingerprint_and_no_name_of_its_own():
    here = machine.describe()
    assert here.fingerprint == here.hardware
    assert len(here.fingerprint) == 12
    assert platform.node() not in here.to_json()


def test_gpus_are_those_that_the_driver_names(tmp_path):
    assert machine.gpus(tmp_path) == ()
    for number, text in enumerate(("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n", "Model: NVIDIA A10\n", "IRQ: 2\n")):
        folder = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(text)
    assert machine.gpus(tmp_path) == ("NVIDIA A10", "NVIDIA H100 80GB HBM3")


# --- seals ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A published file and the bytes of both its parts; whoever changes it puts it back."""
    folder = tmp_path_factory.mktemp("sound")
    (path,) = results_add(saved(folder / "run"), into=folder / "results")
    return path, path.read_bytes(), path.with_suffix(".npz").read_bytes()


@given(st.data())
@settings(max_examples=150)
def test_any_edit_of_a_byte_is_noticed(sound, data):
    path, text, raw = sound
    file, content = data.draw(st.sampled_from([(path, text), (path.with_suffix(".npz"), raw)]))
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    edited = content[:place] + bytes([byte]) + content[place + 1 :]
    file.write_bytes(edited)
    try:
        found, _ = store.load_result(path)
    except UserError as error:
        assert "\n" not in str(error)
        assert path.stem in str(error)
    else:  # another kind of space between two values is no edit
        assert file == path
        assert json.loads(edited) == json.loads(text)
        assert found == store.load_result(path)[0]
    finally:
        file.write_bytes(content)


@given(st.lists(st.floats(1e-7, 1e3), min_size=15, max_size=15), st.text(max_size=20))
@settings(max_examples=25)
def test_what_is_saved_is_read_back(tmp_path_factory, latencies, error):
    folder = tmp_path_factory.mktemp("round")
    raw = values() | {"latencies.1": np.array(latencies)}
    made = whole(measurements=(*whole().measurements, cell("student", None, batch=8, error=error)))
    written = store.save_results(folder / "results.json", made, raw)
    found, read = store.load_result(folder / "results.json")
    assert found == written
    assert written.model_copy(update={"seal": "", "raw": made.raw}) == made
    assert read.keys() == raw.keys()
    assert all((read[name] == raw[name]).all() for name in raw)


def test_an_edited_file_is_named_with_both_hashes(sound):
    path, text, _ = sound
    edited = text.replace(b'"seed": 0', b'"seed": 1')
    path.write_bytes(edited)
    try:
        with pytest.raises(UserError) as caught:
            store.load_result(path)
        path.write_bytes(text.replace(json.loads(text)["seal"].encode(), b""))
        with pytest.raises(UserError, match="has lost its seal"):
            store.load_result(path)
    finally:
        path.write_bytes(text)
    seal = json.loads(text)["seal"][:12]
    assert f"{path}: edited after it was written: sealed as {seal}…, its content is " in str(caught.value)
    assert str(caught.value).endswith("restore it, or measure again")


def test_a_newer_schema_names_the_kdbench_that_wrote_it(sound, tmp_path):
    data = json.loads(sound[1]) | {"schema": 9, "kdbench": "3.1", "unheard": "of"}
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"x\.json: written by a newer kdbench, 3\.1 \(schema 9, .*\): upgrade"):
        store.load_result(tmp_path / "x.json")


def test_a_missing_npz_and_another_one_are_named(tmp_path):
    path = saved(tmp_path / "run")
    raw = path.with_name(store.load_record(path).raw.file)
    raw.write_bytes(archive.npz_bytes(values(speed=3.0)))
    with pytest.raises(UserError, match=rf"{raw.name}: not the file that results\.json was written with"):
        store.load_result(path)
    raw.unlink()
    with pytest.raises(UserError, match=rf"{raw.name}: is missing beside results\.json: bring both"):
        store.load_result(path)


def test_files_from_before_there_were_seals_are_read_and_verified_without():
    found = store.load_record(PUBLISHED)
    assert (found.schema_version, found.seal, found.machine.fingerprint) == (1, "", "")
    verified = results_verify(PUBLISHED)
    assert verified.problems == ()
    assert verified.remarks == (f"{PUBLISHED}: has no seal, as it is of schema 1: an edit can't be told",)


def test_published_results_hold():
    """The validator of the committed folder."""
    verified = results_verify(REPOSITORY / "results")
    assert verified.problems == ()
    assert PUBLISHED in verified.files


# --- publishing -------------------------------------------------------------------------------------------------------


def test_run_folders_files_archives_and_comparisons_are_published_once(tmp_path):
    path, methods, said = saved(tmp_path / "run"), compared(tmp_path / "methods"), []
    back = store.save_returned(path, tmp_path / "x.results.zip")
    into = tmp_path / "results"
    first, second = results_add(path.parent, methods, into=into, say=said.append)
    assert first == into / "here" / "2026-01-02-made.json"
    assert second.name == "2026-01-01-x-comparison.json"
    assert said == []
    assert results_add(path, back, methods.parent, into=into, say=said.append) == [first, first, second]
    assert [line.partition(": is published already as ")[2] for line in said] == [str(first)] * 2 + [str(second)]
    assert sorted(file.suffix for file in into.rglob("*.*")) == [".json", ".json", ".npz", ".npz"]
    assert store.find_results(into) == [first]
    assert store.find_comparisons(into) == [second]
    assert isinstance(store.load(second)[0], Comparison)
    assert results_verify(into).problems == ()


def test_other_json_files_are_no_results(tmp_path):
    """Such as what a gate writes beside the measurements that it compared."""
    ours, into = tmp_path / "ours", tmp_path / "results"
    first = saved(ours / "run")
    (published,) = results_add(first, into=into)
    gate = Gate(kdbench="0", date="2026-01-01", old="a", new="b", passed=True, machine=MACHINE)
    for folder in (first.parent, into, published.parent):
        (folder / "gate.json").write_text(gate.to_json())
        (folder / "vega.json").write_text('{"a": 1}')
    assert store.find_results(ours) == [first]
    assert results_add(ours, into=into) == [published]
    assert store.find_results(into) == [published]


def test_a_machines_name_is_chosen_and_stands_in_its_files(tmp_path):
    (path,) = results_add(saved(tmp_path / "run"), machine="pi-5", into=tmp_path / "results")
    assert path.parent.name == store.load_record(path).machine.name == "pi-5"
    with pytest.raises(UserError, match=r"--machine 'My Pi': should be small letters.*try 'my-pi'"):
        results_add(saved(tmp_path / "again", values(3.0)), machine="My Pi", into=tmp_path / "results")


def test_no_folder_is_shared_by_machines(tmp_path):
    into, said = tmp_path / "results", []
    (first,) = results_add(saved(tmp_path / "a"), into=into)
    add = {"into": into, "say": said.append}
    (second,) = results_add(saved(tmp_path / "b", values(3.0), machine=OTHER), **add)
    assert second.parent.name == store.load_record(second).machine.name == f"here-{OTHER.hardware[:6]}"
    assert said == [
        f"{first.parent} holds what another machine measured: this one's fingerprint is in its name, "
        f"{second.parent.name}"
    ]
    (third,) = results_add(saved(tmp_path / "c", values(4.0), machine=OTHER), **add)
    (fourth,) = results_add(saved(tmp_path / "d", values(5.0)), **add)
    assert (third.parent, fourth.parent) == (second.parent, first.parent)
    assert fourth.name == "2026-01-02-made-2.json"
    assert results_verify(into).problems == ()


@given(st.floats(1.2, 9.0), st.floats(1.2, 9.0))
@settings(max_examples=6)
def test_merged_machines_keep_their_ratios(tmp_path_factory, ours, theirs):
    folder = tmp_path_factory.mktemp("merged")
    alone = [
        saved(folder / "ours", values(ours, 0.002)),
        saved(folder / "theirs", values(theirs, 0.005), machine=OTHER),
    ]
    results_add(*alone, into=folder / "results")
    merged = {table.result.machine.cpu: ratios(table) for table in load_ladders([folder / "results"])}
    assert len(merged) == 2
    for path in alone:
        (table,) = load_ladders([path])
        assert merged[table.result.machine.cpu] == ratios(table)


def ratios(table):
    """What is formed of two cells."""
    names = ("rung", "parent", "speedup", "speedup_low", "speedup_high", "accuracy_diff", "agreement", "parent_diff")
    return [tuple(getattr(row, name) for name in names) for row in table.rows]


def test_what_is_not_to_be_published_is_refused(tmp_path):
    into = tmp_path / "results"
    with pytest.raises(UserError, match=r"results\.json: its measurement was interrupted"):
        results_add(saved(tmp_path / "cut", complete=False), into=into)
    with pytest.raises(UserError, match=r"results\.json: its measurement was interrupted"):
        results_add(saved(tmp_path / "whole"), tmp_path / "cut", into=into)
    assert not list(into.rglob("*.json"))  # all of them, or none
    with pytest.raises(UserError, match=r"'date' should be a date and time, not '\.\./\.\./up'"):
        results_add(saved(tmp_path / "up", date="../../up"), into=into)
    with pytest.raises(UserError, match="empty: no result files in it"):
        (tmp_path / "empty").mkdir()
        results_add(tmp_path / "empty", into=into)
    assert not list(tmp_path.rglob("20*"))


def test_the_same_run_twice_is_not_read_as_two(tmp_path):
    path = saved(tmp_path / "all" / "run")
    shutil.copytree(path.parent, tmp_path / "all" / "copy")
    with pytest.raises(UserError, match=r"run/results\.json: the same run as .*copy/results\.json \(raw values "):
        load_ladders([tmp_path / "all"])
    with pytest.raises(UserError, match=r"copy/results\.json: the same run as .*run/results\.json"):
        load_ladders([path, tmp_path / "all" / "copy"])
    assert len(results_verify(tmp_path / "all").problems) == 1


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def call(typed):
    """Exit status and output of `kdbench results`."""
    return lambda *arguments: astuple(typed("results", *arguments))


def test_the_command_adds_lists_shows_and_verifies(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    run, methods = saved(tmp_path / "runs" / "made"), compared(tmp_path / "runs" / "methods")
    here = made_comparison()[0].machine.name
    printed = f"results/here/2026-01-02-made.json\nresults/{here}/2026-01-01-x-comparison.json\n"
    assert call("add", run.parent, methods) == (0, printed, "")
    status, out, _ = call("list")
    assert status == 0
    assert all(f" {MACHINE.hardware}  2026-01-02  made " in line for line in out.splitlines() if "here" in line)
    assert re.search(r" x .* methods\s", out)
    _, out, _ = call("list", "results/here", "--json")
    (listed,) = json.loads(out)
    assert (listed["rungs"], listed["backends"], listed["cells"]) == (["teacher", "student"], ["cpu"], 2)
    assert (listed["complete"], listed["sealed"], listed["kind"]) == (True, True, "results")
    status, out, _ = call("show", "results/here/2026-01-02-made.json")
    assert status == 0
    for words in (MACHINE.hardware, MACHINE.cpu, "onnxruntime 1", digest("student")[:12], "kdbench bench teacher.onnx"):
        assert words in out
    assert max(map(len, out.splitlines())) <= 100
    assert call("verify")[:2] == (0, "2 files, no problems\n")
    Path("results/here/2026-01-02-made.npz").unlink()
    status, out, err = call("verify")
    assert (status, err) == (1, "")
    assert out.startswith("results/here/2026-01-02-made.npz: is missing beside 2026-01-02-made.json: bring both\n")
    Path("results/here/2026-01-02-made.json").write_text("{")
    status, out, err = call("list")
    assert status == 1
    assert err.startswith("kdbench: results/here/2026-01-02-made.json: not valid JSON")
    assert re.search(r" x .* methods\s", out)


def test_a_list_breaks_no_usual_name_and_has_no_empty_table(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PUBLISHED.parents[1], "results")
    file = compared(tmp_path / "runs" / "cifar10-resnet8")
    record, raw = store.load(file)
    named = record.model_copy(update={"name": "cifar10-shufflenetv2", "machine": store.load(PUBLISHED)[0].machine})
    store.save_results(file, named, raw)
    assert call("add", file)[0] == 0
    _, out, _ = call("list")
    assert "amd-epyc-2-core" in out
    assert re.search(r" cifar10-shufflenetv2 .* methods\s", out)
    assert re.search(" digits .* no seal", out)
    for left in Path("results").glob("*/*.json"):
        left.write_text("{")
    assert call("list")[:2] == (1, "")


def test_raw_values_that_are_no_archive_are_never_to_be_unpickled(tmp_path):
    file = saved(tmp_path / "run")
    (raw,) = file.parent.glob("*.npz")
    raw.write_bytes(b"\x00 something else")
    with pytest.raises(UserError, match=r"not a readable \.npz archive \(not one, cut off, or with pickled objects\)"):
        store.load(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("shwo", "unknown command 'results shwo': did you mean 'show'?"),
        ("add", "Missing argument 'FILES...'"),
        ("list nowhere", "nowhere: no such file or folder"),
        ("verify nowhere", "nowhere: no such file or folder"),
        ("verify", "results: no such file or folder"),
        ("show .", "no result files in it"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# --- the format -------------------------------------------------------------------------------------------------------


def test_the_format_of_results_leaves_recipes_to_their_own_page():
    assert Recipe not in records()
    assert "[student.training]" in recipe_to_markdown()


@pytest.mark.parametrize("kind", dict.fromkeys([*records(), *tables()]), ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind):
    assert [name for name, shown, words in fields_of(kind) if not words or not shown] == []
