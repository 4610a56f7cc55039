"""The table of backends: how each is asked for, under which interpreter, and what is said of those that can't run."""

import json
import shutil
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.backends import BACKENDS, Target, client, pick_backend, pick_backends
from kdbench.backends.available import Survey, rivals, survey, why_unavailable
from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Subject, plan
from kdbench.benchmark.schedule import Schedule
from kdbench.errors import UserError
from kdbench.machine import COMPUTES
from kdbench.records import Bench
from kdbench.store import load_artifact, load_result, sidecar
from tests.conftest import kdbench
from tests.test_schedule import feeds, settings, subject

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

VISIBLE = [row for row in BACKENDS.values() if not row.hidden]


@pytest.fixture(scope="module")
def environments(tmp_path_factory) -> Path:
    """`twin`, which sees the packages of this environment; `bare`, without any; and things that are no interpreters."""
    folder = tmp_path_factory.mktemp("environments")
    for name in ("twin", "bare"):
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder / name)
    (site,) = (folder / "twin").glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(str(Path(np.__file__).parent.parent))
    (folder / "script").write_text("#!/bin/sh\necho hello\n")
    (folder / "script").chmod(0o755)
    (folder / "text").write_text("hello")
    return folder


def changed(name: str, **fields) -> Target:
    """A backend whose row differs in some fields."""
    target = pick_backend(name)
    return replace(target, row=replace(target.row, **fields))


def test_whatever_a_backend_needs_is_named_in_its_results():
    """A newer one gives other latencies, and what was measured with the older one is not kept."""
    for row in VISIBLE:
        command, *packages = row.install.removeprefix("pip ").split()
        for package in packages if command == "install" else ():
            assert package.strip("'").partition("[")[0] in COMPUTES, row.name


# --- what is asked for ------------------------------------------------------------------------------------------------


@given(st.sampled_from(VISIBLE), st.data(), st.from_regex(r"[a-z0-9]{1,8}(-[0-9])?", fullmatch=True))
def test_a_label_is_read_as_what_it_stands_for(row, data, environment):
    precision = data.draw(st.sampled_from(list(row.precisions)))
    apart = "" if row.runs == "weights" else f"@/opt/{environment}/bin/python"
    target = pick_backend(f"{row.name}:{precision}{apart}")
    again = pick_backend(target.label)
    assert (again.row, again.precision, again.label) == (row, precision, target.label)
    assert "/" not in target.label
    assert target.label.startswith(row.name)
    assert (":" in target.label) == (precision != "fp32")


def test_fp32_is_the_default_and_is_asked_for_wherever_a_provider_could_do_otherwise():
    asked = {}
    for row in VISIBLE:
        target = pick_backend(row.name)
        assert target.precision == ("fp16" if row.name == "openvino-npu" else "fp32")
        asked[row.name] = {**target.options(2), **target.environment_variables()}
        for precision in row.precisions:
            other = pick_backend(f"{row.name}:{precision}")
            said = {**other.options(2), **other.environment_variables()}
            assert precision == target.precision or said != asked[row.name], f"{row.name}:{precision} asks for nothing"
    assert asked["cuda"] == {"use_tf32": "0"}
    assert asked["tensorrt"] == {"trt_fp16_enable": "0", "NVIDIA_TF32_OVERRIDE": "0"}
    assert asked["openvino"] == {"load_config": '{"CPU":{"INFERENCE_NUM_THREADS":2,"INFERENCE_PRECISION_HINT":"f32"}}'}
    assert asked["qnn"] == {"enable_htp_fp16_precision": "0"}
    assert asked["xnnpack"] == {"intra_op_num_threads": "2"}


@pytest.mark.parametrize(
    ("wanted", "options", "reason"),
    [
        ("cud", {}, "unknown backend 'cud': did you mean 'cuda'?"),
        ("CUDAExecutionProvider", {}, "its name here is cuda"),
        ("cuda:fp16", {}, "backend cuda: unknown precision 'fp16': known: fp32, tf32"),
        ("cuda:", {}, "unknown precision ''"),
        ("cuda@", {}, "name the interpreter"),
        ("torch@/opt/gpu/bin/python", {}, "torch runs under kdbench's own interpreter"),
        ("cuda", {"prefer_nwhc": "1"}, "backend cuda: unknown option 'prefer_nwhc': did you mean 'prefer_nhwc'?"),
        ("cuda", {"precisoin": "tf32"}, "did you mean 'precision'?"),
        ("cuda", {"use_tf32": "1"}, "'use_tf32' is set by the precision: ask for one of fp32, tf32"),
        ("openvino", {"load_config": "fast"}, "option 'load_config' should be a JSON object, not 'fast'"),
        ("openvino", {"load_config": '{"CPU":{"INFERENCE_PRECISION_HINT":"bf16"}}'}, "is set by the precision"),
        ("MlxExecutionProvider", {"precision": "fp16"}, "leave the precision out"),
    ],
)
def test_what_a_backend_does_not_know_is_refused_with_the_nearest_known(wanted, options, reason):
    with pytest.raises(UserError) as error:
        pick_backend(wanted, options)
    assert reason in str(error.value)


def test_options_are_passed_on_in_the_providers_own_terms():
    assert pick_backend("openvino", {"precision": "f16"}).label == "openvino:fp16"
    assert pick_backend("openvino:bf16", {"precision": "fp32"}).label == "openvino:bf16"
    streams = pick_backend("openvino", {"load_config": '{"CPU":{"NUM_STREAMS":2}}'}).options(3)
    assert json.loads(streams["load_config"]) == {
        "CPU": {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 2, "INFERENCE_PRECISION_HINT": "f32"}
    }
    cuda = pick_backend("cuda", {"graph": True, "device_id": 1})
    assert cuda.options(1) == {"use_tf32": "0", "enable_cuda_graph": "1", "device_id": "1"}
    assert cuda.request(1)["graph"]
    assert not pick_backend("cuda").request(1)["graph"]
    assert pick_backend("MlxExecutionProvider", {"anything": "1"}).options(1) == {"anything": "1"}


def test_options_of_a_backend_that_is_not_asked_for_are_refused():
    with pytest.raises(UserError, match="options of 'openvino', none of the backends asked for: cpu"):
        pick_backends(["cpu"], {"openvino": {"precision": "bf16"}})


def test_environments_of_one_name_are_told_apart_by_a_number():
    asked = ["cpu@/a/gpu/bin/python", "cuda@/a/gpu/bin/python", "cpu@/b/gpu/bin/python", "cpu@/c/.venv/bin/python3"]
    assert [target.label for target in pick_backends(asked)] == ["cpu@gpu", "cuda@gpu", "cpu@gpu-2", "cpu@venv"]


def test_one_backend_asked_for_in_two_ways_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"bench\.backends: fake, fake: each one once"):
        plan([subject(tmp_path, "a")], Bench(backends=("fake", "fake:fp32")))


# --- interpreters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("bare/bin/python", "no numpy and no onnxruntime in that environment"),
        ("twin", "a folder, not an interpreter"),
        ("nothing/bin/python", "no such interpreter"),
        ("text", "not an executable file"),
        ("script", "not a Python interpreter"),
    ],
)
def test_an_interpreter_that_cannot_serve_is_a_reason_without_its_path(environments, python, reason, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(np.__file__).parent.parent))  # is not for other environments
    said = why_unavailable(f"cpu@{environments / python}")
    assert said.startswith(reason)
    assert str(environments) not in said


def test_a_cell_under_another_interpreter_says_what_ran_and_not_where(environments, small_model):
    python = environments / "twin" / "bin" / "python"
    done = kdbench(
        "bench", small_model.name, "--backend", f"cpu@{python}", "--backend",
        f"cpu@{environments / 'bare' / 'bin' / 'python'}", "--budget", "0.05", "--out", "out", cwd=small_model.parent
    )  # fmt: skip
    result, _ = load_result(small_model.parent / "out" / "results.json")
    twin, bare = result.measurements
    assert (twin.backend, bare.backend) == ("cpu@twin", "cpu@bare")
    assert set(twin.versions) == {"python", "numpy", "onnxruntime"}
    assert twin.versions["onnxruntime"] == result.machine.versions["onnxruntime"]
    assert len(twin.processes) == 5
    assert bare.error == "cpu@bare: no numpy and no onnxruntime in that environment: install it there"
    assert "not measured: cpu@bare: no numpy" in done.stdout
    report = (small_model.parent / "out" / "report.md").read_text()
    assert f"| under cpu@twin | python {twin.versions['python']}, numpy" in report
    for written in (result.to_json(), report, done.stdout):
        assert str(environments) not in written


def test_nothing_that_can_be_measured_names_the_interpreter_as_it_was_asked_for(small_model):
    done = kdbench("bench", small_model.name, "--backend", "cuda@/nowhere/python", cwd=small_model.parent, check=False)
    assert done.returncode == 2
    assert done.stderr == "kdbench: no backend is available: cuda@/nowhere/python: no such interpreter\n"


def test_a_runtime_that_is_too_old_is_named_with_what_it_takes():
    too_old = r"onnxruntime \d[\d.]* \(Python 3[\d.]*\) is too old .* takes 99\.1"
    with Worker(changed("cpu", minimum="99.1"), 1) as worker, pytest.raises(WorkerError, match=too_old):
        worker.hello()
    with Worker(changed("cpu", minimum="1.9"), 1) as worker:
        assert worker.hello()["onnxruntime"]


def test_a_worker_of_another_protocol_is_refused(monkeypatch):
    monkeypatch.setattr(client, "PROTOCOL", 0)
    with Worker(pick_backend("fake"), 1) as worker, pytest.raises(WorkerError, match="speaks protocol 1, not 0"):
        worker.hello()


# --- what is installed ------------------------------------------------------------------------------------------------


def test_wheels_that_overwrite_each_other_are_noticed_and_explained(environments):
    (site,) = (environments / "twin").glob("lib/python*/site-packages")
    info = site / "onnxruntime_gpu-1.31.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    (info / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    survey.cache_clear()
    done = kdbench("backends", "--python", environments / "twin" / "bin" / "python", cwd=environments)
    text = " ".join(done.stdout.split())
    assert "onnxruntime-gpu 1.31.1 are installed together" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in text
    python = environments / "twin" / "bin" / "python"
    (said,) = rivals([pick_backend(name) for name in ("cpu", f"cpu@{python}", f"cuda@{python}")])
    assert said.startswith("onnxruntime ")
    shutil.rmtree(info)
    survey.cache_clear()


def test_one_wheel_is_no_rival_of_its_own():
    assert Survey({}, (), (), ("onnxruntime 1.31.1",), ()).rivals is None
    assert survey().rivals is None


def test_devices_that_no_row_covers_are_shown():
    found = (("MlxExecutionProvider", "GPU: Apple"), ("CPUExecutionProvider", "CPU: AMD"))
    assert Survey({}, (), (), (), found).unlisted == (("MlxExecutionProvider", "GPU: Apple"),)
    assert why_unavailable("MlxExecutionProvider") == "no device for it here"


def test_every_backend_is_listed_within_a_terminal(tmp_path):
    done = kdbench("backends", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    blocks = {line.split()[0]: line for line in lines[1:] if not line.startswith(" ")}
    assert set(blocks) >= {row.name for row in VISIBLE}
    assert "fake" not in blocks
    assert "AzureExecutionProvider" not in done.stdout
    assert "available: CPU" in blocks["cpu"]
    assert blocks["directml"].endswith("not available: for Windows only")
    if "not available: no part of" in blocks["cuda"]:
        assert "then --backend cuda@PATH/python" in " ".join(done.stdout.split())


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [None, "note"])
def test_bound_inputs_and_outputs_give_the_same_answers(small_model, graph):
    """On the CPU, whose memory can be bound as a GPU's is."""
    target = changed("cpu", binds="cpu", graph=graph, known=("note",))
    target = replace(target, given=(("note", "1"),)) if graph else target
    assert target.request(1)["graph"] is (graph is not None)
    with Worker(pick_backend("cpu"), 1) as plain, Worker(target, 1) as bound:
        for worker in (plain, bound):
            worker.load(small_model)
        for batch in (1, 5):
            bound.feed(str(batch), {"x": X[:batch]})
            assert len(bound.slice(str(batch), 5, 3)[0]) == 3
        np.testing.assert_array_equal(bound.predict({"x": X})["logits"], plain.predict({"x": X})["logits"])


def test_what_the_first_run_compiles_counts_as_loading(tmp_path):
    target = changed("fake", builds=True)
    slow = subject(tmp_path, "a", latencies_s=[0.3])
    cells = [replace(cell, backend=target) for cell in plan([slow], Bench(backends=("fake",)))]
    schedule = Schedule(cells, settings(), feeds)
    list(schedule.rounds())
    (m,), _ = schedule.records()
    assert m.error is None
    assert all(process.load_s >= 0.3 > process.first_run_s for process in m.processes)


def test_an_interpreter_that_is_gone_when_its_turn_comes_costs_its_own_cells_alone(tmp_path):
    (cell,) = plan([subject(tmp_path, "a")], Bench(backends=("fake",)))
    schedule = Schedule([cell, replace(cell, backend=pick_backend("fake@/nowhere/python"))], settings(), feeds)
    list(schedule.rounds())
    errors = [m.error for m in schedule.records()[0]]
    assert errors == [None, "its interpreter can't be started: No such file or directory"]


def test_a_provider_that_fails_on_the_model_says_so_in_short(tmp_path):
    said = (
        "/src/core/providers/x.cc:729 void onnxruntime::X::Load(const Options&) Error creating "
        "/opt/secret/lib/libx.so: see https://example.org/docs/x " + "and so on " * 100
    )
    cells = plan([subject(tmp_path, "a", fail_load=said), subject(tmp_path, "b")], Bench(backends=("fake",)))
    schedule = Schedule(cells, settings(), feeds)
    list(schedule.rounds())
    errors = [m.error for m in schedule.records()[0]]
    assert errors[0].startswith("Error creating libx.so: see https://example.org/docs/x and so on")
    assert len(errors[0]) <= 300
    assert errors[1] is None


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def test_pytorch_answers_as_the_file_that_was_exported_from_the_same_weights(tiny_run):
    artifact, model = load_artifact(sidecar(tiny_run / "student.onnx")), tiny_run / "student.onnx"
    x = np.random.default_rng(0).standard_normal((5, *artifact.inputs[0].shape[1:])).astype(np.float32)
    with Worker(pick_backend("cpu"), 1) as onnx, Worker(pick_backend("torch"), 1) as eager:
        assert set(eager.hello()) == {"python", "numpy", "torch"}
        for worker in (onnx, eager):
            worker.load(model)
        first_run_s, _ = eager.feed("5", {"input": x})
        assert first_run_s > 0
        assert (eager.slice("5", 5, 3)[0] > 0).all()
        np.testing.assert_allclose(
            eager.predict({"input": x})["logits"], onnx.predict({"input": x})["logits"], rtol=1e-4, atol=1e-4
        )
        with pytest.raises(WorkerError, match="tf32 is a precision of NVIDIA GPUs"):
            eager.ask("devices", provider=pick_backend("torch:tf32").request(1))


def test_only_rungs_with_their_own_weights_run_on_pytorch(tiny_run, tmp_path):
    def reason(rung, folder=tiny_run):
        artifact = load_artifact(sidecar(tiny_run / f"{rung}.onnx"))
        bench = Bench(backends=("cpu", "torch"))
        return plan([Subject(artifact, folder / f"{rung}.onnx")], bench)[1].error

    assert reason("student") is None
    assert "student-int8 has no weights of its own" in reason("student-int8")
    assert "student.safetensors is not beside its ONNX file" in reason("student", tmp_path)
    (tmp_path / "student.safetensors").write_bytes(b"others")
    assert "is not what its ONNX file was exported from" in reason("student", tmp_path)


def test_a_missing_compiler_is_a_reason():
    without = changed("torch-compile", environment={"CXX": "no-such-compiler"})
    assert why_unavailable(without) == "torch.compile needs the C++ compiler no-such-compiler, which is not installed"


def test_torch_compile_compiles_while_it_loads(tmp_path):
    from kdbench.teachers import architecture
    from kdbench.teachers.source import Wanted
    from kdbench.training import weights

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++, which is not installed")
    options = {"widths": []}  # one matrix product: nothing that the C++ compiler would take long for
    trained = weights.Trained(
        model="mlp", options=options, input_shape=(4,), classes=("a", "b"), preprocessing=None, fingerprint="", epoch=0
    )
    network = architecture("zoo", Wanted(model="mlp", options=options, input_shape=(4,), classes=2, folder=None))
    weights.save(tmp_path / "mlp.safetensors", network.state_dict(), trained)
    with Worker(pick_backend("torch"), 1) as eager, Worker(pick_backend("torch-compile"), 1) as compiled:
        eager.load(tmp_path / "mlp.onnx")
        load_s = compiled.load(tmp_path / "mlp.onnx", first={"x": X})
        first_run_s, _ = compiled.feed("5", {"x": X})
        assert load_s > 100 * first_run_s
        np.testing.assert_allclose(compiled.predict({"x": X})["logits"], eager.predict({"x": X})["logits"], rtol=1e-5)
