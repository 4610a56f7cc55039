"""Packed runs that were cut off, edited, or made to harm: named in one line, and nothing of them is left or run."""

import json
import stat
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kdbench import archive, pack, pipeline
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.errors import UserError, printable
from kdbench.onnxfile import external_data, inspect
from kdbench.pipeline.packing import MANIFEST, unpacked
from kdbench.store import sha256
from tests.packs import manifest, rewritten, with_files


def deflated(path: Path) -> None:
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as found:
        members = {info.filename: found.read(info) for info in found.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)


def with_external(model: bytes, where: str, location: str) -> bytes:
    """The model with a tensor at `where` that lies at `location`."""
    loaded = onnx.load_from_string(model)
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    branch = helper.make_graph([helper.make_node("Identity", ["secret"], ["y"])], "b", [], [], [tensor])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    match where:
        case "initializer":
            loaded.graph.initializer.append(tensor)
        case "sparse values" | "sparse indices":
            sparse = loaded.graph.sparse_initializer.add(dims=[8])
            (sparse.values if where == "sparse values" else sparse.indices).CopyFrom(tensor)
        case "attribute":
            loaded.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        case "branch":
            loaded.graph.node.append(condition)
        case "branch of a function":
            opsets = [helper.make_opsetid("", 17)]
            loaded.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [condition], opsets))
        case "training":
            loaded.training_info.add().initialization.initializer.append(tensor)
    return bytes(loaded.SerializeToString())


def bad_pack(kind: str, good: Path, path: Path) -> Path:
    """A packed run that is wrong in one way."""
    content, record = good.read_bytes(), manifest(good)
    model = archive.read(good, "teacher.onnx")

    def with_file(name: str, content: bytes, stored: str | None = None) -> Path:
        added = {"name": name, "sha256": sha256(content), "size_bytes": len(content)}
        changed = {**record, "files": [*record["files"], added]}
        return rewritten(good, path, {MANIFEST: json.dumps(changed).encode(), stored or name: content})

    match kind:
        case "text":
            path.write_text("hello")
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            place = content.index(model) + len(model) // 2
            path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        case "edited":
            rewritten(good, path, {"teacher.onnx": model[:-1] + bytes([model[-1] ^ 1])})
        case "missing":
            rewritten(good, path, {"teacher.onnx": None})
        case "no manifest":
            rewritten(good, path, {MANIFEST: None})
        case "manifest cut":
            rewritten(good, path, {MANIFEST: json.dumps(record).encode()[:-20]})
        case "newer schema":
            rewritten(good, path, {MANIFEST: json.dumps({**record, "schema": 2, "kdbench": "9.1"}).encode()})
        case "newer version":
            rewritten(good, path, {MANIFEST: json.dumps({**record, "kdbench": "0.10.0", "power": True}).encode()})
        case "endless version":
            rewritten(good, path, {MANIFEST: json.dumps({**record, "kdbench": "9" * 5000, "power": True}).encode()})
        case "same version":
            rewritten(good, path, {MANIFEST: json.dumps({**record, "power": True}).encode()})
        case "no such baseline":
            rewritten(good, path, {MANIFEST: json.dumps({**record, "baseline": "boss"}).encode()})
        case "up" | "up in the manifest":
            with_file("../evil", b"x", None if kind == "up" else "evil")
        case "absolute":
            with_file(str(path.parent / "evil"), b"x")
        case "windows":
            with_file("..\\evil", b"x")
        case "drive":
            with_file("C:evil", b"x")
        case "huge":
            record["files"][0]["size_bytes"] = 2**60
            rewritten(good, path, {MANIFEST: json.dumps(record).encode()})
        case "bomb":
            with_file("zeros", b"0" * 10)
            with zipfile.ZipFile(path) as found:
                kept = {info.filename: found.read(info) for info in found.infolist() if info.filename != "zeros"}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
                for name, part in {**kept, "zeros": bytes(50_000_000)}.items():
                    made.writestr(name, part)
        case "honest bomb":
            with_files(good, path, {"zeros": bytes(50_000_000)})
            deflated(path)
        case "manifest bomb":
            rewritten(good, path, {MANIFEST: json.dumps(record).encode() + b" " * 20_000_000})
            deflated(path)
        case "wildcard":
            with_file("*/_ORT_MEM_ADDR_/*", b"x")
        case "escape":
            with_file("\x1b]0;owned\x07", b"x")
        case "weights":
            with_files(good, path, {"teacher.safetensors": b"x"})
        case "interpreter":
            with_files(good, path, {}, plan={**record["plan"], "backends": ["cpu@/bin/sh"]})
        case "library":
            plan = {**record["plan"], "backends": ["qnn"], "options": {"qnn": {"backend_path": "/x/evil.so"}}}
            with_files(good, path, {}, plan=plan)
        case "compiled":
            loaded = onnx.load_from_string(model)
            loaded.opset_import.append(helper.make_opsetid("com.microsoft", 1))
            loaded.graph.node.append(helper.make_node("EPContext", ["x"], ["e"], domain="com.microsoft"))
            file = path.with_name("teacher.onnx")
            onnx.save(loaded, file)
            files = {"teacher.onnx": file.read_bytes(), "teacher.artifact.json": inspect(file).to_json().encode()}
            file.unlink()
            with_files(good, path, files)
        case "external data in memory":
            with_files(good, path, {"teacher.onnx": with_external(model, "initializer", "*/_ORT_MEM_ADDR_/*")})
        case "link":
            rewritten(good, path, {})
            with zipfile.ZipFile(path, "a") as made:
                info = zipfile.ZipInfo("passwords")
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                made.writestr(info, "/etc/passwd")
        case "twice":
            rewritten(good, path, {})
            with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
                made.writestr("teacher.onnx", b"another")
        case "external data":
            loaded = onnx.load_from_string(model)
            onnx.external_data_helper.set_external_data(loaded.graph.initializer[0], "../../secret")
            loaded.graph.initializer[0].ClearField("raw_data")
            changed = loaded.SerializeToString()
            for file in record["files"]:
                if file["name"] == "teacher.onnx":
                    file |= {"sha256": sha256(changed), "size_bytes": len(changed)}
            rewritten(good, path, {MANIFEST: json.dumps(record).encode(), "teacher.onnx": changed})
    return path


BAD = {
    "text": "not a sound archive, or cut off",
    "empty": "not a sound archive, or cut off",
    "cut": "not a sound archive, or cut off",
    "flipped": "teacher.onnx",
    "edited": r"'teacher\.onnx' is not the file that was packed \(sha256 [0-9a-f]{16}… instead of [0-9a-f]{16}…\)",
    "missing": r"its 'teacher\.onnx' is missing",
    "no manifest": r"not a packed run, no pack\.json in it: make one with 'kdbench pack RUN_DIR'",
    "manifest cut": "was it cut off",
    "newer schema": r"packed by kdbench 9\.1, which is newer than this one \(.*\): install 9\.1 here, or pack",
    "newer version": r"packed by kdbench 0\.10\.0, which is newer",
    "endless version": "packed by kdbench 9{20}, which is newer",
    "same version": "unknown key 'power'",
    "no such baseline": "its baseline 'boss' is none of its rungs",
    "up": r"its '\.\./evil' leads outside its folder",
    "up in the manifest": r"its '\.\./evil' leads outside its folder",
    "absolute": "leads outside its folder",
    "windows": "leads outside its folder",
    "drive": "leads outside its folder",
    "huge": "bytes are needed to unpack",
    "bomb": "'zeros' is not the file that was packed",
    "honest bomb": r"would be 500\d+ bytes, \d+ times its size: not made by kdbench",
    "manifest bomb": r"its 'pack\.json' would be 200\d+ bytes: not made by kdbench",
    "wildcard": "leads outside its folder",
    "escape": "its '\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}' leads outside its folder",
    "weights": r"holds weights, 'teacher\.safetensors'",
    "interpreter": "its plan names an interpreter, --backend cpu@/bin/sh: not taken from a packed run",
    "library": r"its plan sets --option qnn\.backend_path=/x/evil\.so: not taken from a packed run",
    "compiled": r"'teacher\.onnx' was compiled elsewhere",
    "external data in memory": r"its external data '\*/_ORT_MEM_ADDR_/\*' is no file",
    "link": "its 'passwords' is a link",
    "twice": r"holds 'teacher\.onnx' twice",
    "external data": r"its external data '\.\./\.\./secret' leads outside its folder",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_pack_is_named_and_leaves_nothing(kind, mlp_run, tmp_path, monkeypatch):
    good = pack(mlp_run, tmp_path / "good.kdbench.zip").path
    place = tmp_path / "a" / "b" / "place"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    bad = bad_pack(kind, good, tmp_path / "bad.kdbench.zip")
    before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    with pytest.raises(UserError, match=BAD[kind]):
        pipeline.bench([bad], out=tmp_path / "out")
    left = {path for path in tmp_path.rglob("*") if path.name not in (".lock", "out")} - before
    assert left == set()


@given(st.data())
def test_bytes_of_a_pack_that_were_changed_never_pass(packed, data):
    """Whatever is cut or flipped: the run is unpacked as it was packed, or not at all."""
    content = packed.read_bytes()
    if data.draw(st.booleans()):
        changed = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        changed = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    spoilt = packed.with_name("spoilt.kdbench.zip")
    spoilt.write_bytes(changed)
    try:
        with unpacked(spoilt) as (record, folder):
            for file in record.files:
                assert (folder.path / file.name).read_bytes() == archive.read(packed, file.name)
    except UserError as error:
        assert str(error).startswith(str(spoilt))


@pytest.mark.parametrize(
    "where",
    ["initializer", "sparse values", "sparse indices", "attribute", "branch", "branch of a function", "training"],
)
def test_external_data_is_found_wherever_a_model_hides_it(where, small_model, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(with_external(small_model.read_bytes(), where, "../secret"))
    with pytest.raises(UserError, match=r"its external data '\.\./secret' leads outside its folder"):
        external_data(folder / "m.onnx")
    (folder / "m.onnx").write_bytes(with_external(small_model.read_bytes(), where, "beside"))
    (folder / "beside").write_bytes(bytes(16))
    assert external_data(folder / "m.onnx") == {"beside"}


def test_an_interpreter_of_a_plan_is_not_started_and_one_that_is_given_goes_before_it(mlp_run, tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    good, bad = pack(mlp_run, tmp_path / "good.kdbench.zip").path, tmp_path / "bad.kdbench.zip"
    plan = {**manifest(good)["plan"], "backends": [f"cpu@{program}"], "budget_s": 0.1}
    with_files(good, bad, {}, plan=plan)
    with pytest.raises(UserError, match="its plan names an interpreter"):
        pipeline.bench([bad], out=tmp_path / "out")
    assert pipeline.bench([bad], backends=["cpu"], out=tmp_path / "out").ladder.rows[0].error is None
    assert not (tmp_path / "ran").exists()


def test_options_of_a_plan_that_are_no_paths_are_taken(mlp_run, tmp_path):
    said = []
    plan = {"options": {"fake": {"precision": "bf16", "note": 3}}, "backends": ["fake"]}
    assert pack(mlp_run, tmp_path / "a.kdbench.zip", plan=plan, say=said.append).run.plan.options == plan["options"]
    assert not any("the plan" in sentence for sentence in said)
    pack(mlp_run, tmp_path / "b.kdbench.zip", plan={"options": {"fake": {"note": "x"}}}, say=said.append)
    assert "the plan sets --option fake.note=x: whoever measures it has to give that again" in said[-1]


def test_arrays_that_claim_more_than_there_is_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**50},), }}"
    text = header.ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x_test.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with path.open("rb") as file, pytest.raises(UserError, match=r"x\.npz: not a readable \.npz archive"):
        archive.arrays_of(file, "x.npz")
    path.write_bytes(archive.npz_bytes({"x": np.zeros(10**6)}))
    monkeypatch.setattr(archive, "MOST_OF_MEMORY", 1e-6)
    with path.open("rb") as file, pytest.raises(UserError, match=r"its arrays would take 8000\d+ bytes, this machine"):
        archive.arrays_of(file, "x.npz")


def test_a_model_that_wants_all_memory_is_an_error_of_its_cell(tmp_path):
    shape = numpy_helper.from_array(np.asarray([2**23, 2**23]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["all"]),
        helper.make_node("ReduceSum", ["all"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "hungry", values[:1], values[1:], [shape]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "hungry.onnx")
    report = pipeline.bench([tmp_path / "hungry.onnx"], budget_s=0.1, out=tmp_path / "out")
    assert report.ladder.rows[0].error


def test_where_memory_runs_out_the_worker_goes_first():
    with Worker(pick_backend("fake"), 1) as worker:
        worker.hello()
        assert Path(f"/proc/{worker._process.pid}/oom_score_adj").read_text().strip() == "1000"


def test_what_a_terminal_would_obey_is_not_printed(capsys):
    from kdbench.report.table import ladder
    from kdbench.report.terminal import print_ladder
    from tests.test_report import arrays, artifact, cell, result

    name = "teacher\x1b]52;c;aGVsbG8=\x07"
    made = result(
        artifacts=(artifact(name, warnings=("mind\x1b[2J",)),), measurements=(cell(name, "0"),), evaluations=(),
        baseline=name,
    )  # fmt: skip
    print_ladder(ladder(made, arrays()))
    said = capsys.readouterr().out
    assert "mind" in said
    assert "\x1b" not in said
    assert printable("a\tb\n\x9bc") == "a\tb\n\N{REPLACEMENT CHARACTER}c"
