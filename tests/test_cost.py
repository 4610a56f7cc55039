"""What a cell costs: a price, energy, memory and a cold start; and a fixed cell that all others are compared with."""

import itertools
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import click
import numpy as np
import pytest

from kdbench import pipeline
from kdbench.backends import pick_backend
from kdbench.backends.client import WORKER
from kdbench.benchmark import schedule as scheduling
from kdbench.benchmark.cells import Subject, plan, reference_cell
from kdbench.benchmark.energy import packages, read_uj, spent_j
from kdbench.cli import options
from kdbench.errors import UserError
from kdbench.onnxfile import known_artifact
from kdbench.pipeline import measuring
from kdbench.records import Bench, Process, Recipe, ReferenceCell, parse
from kdbench.report import ladder_tables, text
from kdbench.report.markdown import to_markdown
from kdbench.report.table import ladder
from kdbench.report.terminal import WIDTH, print_ladder
from kdbench.store import load_result
from tests.rows import load_rows
from tests.test_report import ROUNDS, arrays, artifact, cell, evaluation, result
from tests.test_schedule import cells_of, measured, subject

PLAIN = {
    "name": "m",
    "data": {"source": "digits"},
    "teacher": {"model": "mlp"},
    "student": {"model": "mlp", "training": {"epochs": 1, "learning_rate": 1.0}},
    "distill": {"losses": {"kd": 1.0}},
}
TEACHER = ReferenceCell(rung="teacher", backend="cpu", threads=1)


def settings(**changes):
    return result().settings.model_copy(update=changes)


# --- the price of a million inferences --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "price"),
    [
        ("0.08/h", (0.08, "")), ("0.08/hour", (0.08, "")), ("$0.08/h", (0.08, "$")), (" €.5 / hour ", (0.5, "€")),
        ("EUR 12/h", (12.0, "EUR")), ("1.25/h", (1.25, "")),
    ],
)  # fmt: skip
def test_a_price_is_an_amount_an_hour_with_or_without_a_currency(written, price):
    assert options.price(None, None, written) == price
    parse(Bench, {"price_per_h": price[0], "currency": price[1]}, "bench")


@pytest.mark.parametrize("written", ["0.08", "0/h", "-1/h", "0.08/s", "h", "$/h", "1e3/h", "0.08$/h", "nan/h", "$$1/h"])
def test_any_other_price_is_refused_in_one_line(written):
    with pytest.raises(click.BadParameter, match="should be a price of an hour, such as") as error:
        options.price(None, None, written)
    assert written in str(error.value)


@pytest.mark.parametrize("written", ["|", "1", "long", "€€", " "])
def test_a_recipes_currency_is_a_sign_or_some_letters(written):
    with pytest.raises(UserError, match="bench: 'currency' should"):
        parse(Bench, {"currency": written}, "bench")


def test_a_million_inferences_cost_what_the_machine_costs_meanwhile():
    found = ladder(result(settings=settings(price_per_h=0.72, currency="$")), arrays())
    teacher, student = found.rows
    # 0.0002 $ a second; 4 samples take 1 ms, a million 250 s; the student is twice as fast.
    assert teacher.cost_per_million == pytest.approx(0.05)
    assert student.cost_per_million == pytest.approx(0.025)
    (table,) = ladder_tables.ladder_tables(found)
    assert [row[table.header.index("per 1M")] for row in table.lines] == ["$0.05", "$0.025"]
    assert "at $0.72 an hour" in table.legend
    assert ladder(result(), arrays()).rows[0].cost_per_million is None


@pytest.mark.parametrize(
    ("value", "currency", "shown"),
    [(2.22222e-3, "$", "$0.00222"), (1.2e-7, "", "0.00000012"), (12345.6, "EUR", "EUR 12300"), (None, "$", "–")],
)
def test_money_has_three_digits_however_small_it_is(value, currency, shown):
    assert text.money(value, currency) == shown


# --- the reference cell -----------------------------------------------------------------------------------------------


def on_two_backends(**changes):
    """The teacher and a student on the CPU, in one millisecond and a half, and both on `fast`, ten times as fast."""
    raw = arrays()
    for number in (2, 3):
        raw[f"latencies.{number}"], raw[f"rounds.{number}"] = raw[f"latencies.{number - 2}"] / 10, raw["rounds.0"]
    measurements = (
        cell("teacher", "0"), cell("student", "1"), cell("teacher", "2", backend="fast"),
        cell("student", "3", backend="fast"),
    )  # fmt: skip
    return ladder(result(measurements=measurements, settings=settings(reference=TEACHER), **changes), raw)


def test_every_cell_is_compared_with_the_reference_too():
    rows = on_two_backends().rows
    assert [row.speedup and round(row.speedup, 6) for row in rows] == [None, 2, None, 2]
    assert [row.reference_speedup and round(row.reference_speedup, 6) for row in rows] == [None, 2, 10, 20]
    assert rows[3].reference_speedup_low <= rows[3].reference_speedup <= rows[3].reference_speedup_high


def test_the_ratio_to_the_reference_is_paired_by_round():
    drift = np.repeat([1.0, 1.2, 1.4, 1.6, 1.8], 3)
    raw = arrays() | {"latencies.0": 1e-3 * drift, "latencies.1": 0.5e-3 * drift}
    row = ladder(result(settings=settings(reference=TEACHER)), raw).rows[1]
    assert row.reference_speedup_high - row.reference_speedup_low < 1e-3


@pytest.mark.parametrize("other", [{"batch": 8}, {"dims": {"sequence": 64}}])
def test_another_batch_or_size_has_a_reference_of_its_own(other):
    raw = arrays() | {"latencies.1": arrays()["latencies.0"] / 5}
    measurements = (cell("teacher", "0"), cell("student", "1", **other))
    rows = ladder(result(measurements=measurements, settings=settings(reference=TEACHER)), raw).rows
    assert rows[1].reference_speedup is None


def test_the_reference_has_a_column_of_its_own():
    shown = [ladder_tables.ladder_tables(on_two_backends(), brief=brief) for brief in (False, True)]
    full, brief = ([dict(zip(t.header, row, strict=True)) for t in tables for row in t.lines] for tables in shown)
    assert [row["× teacher@cpu"] for row in full] == [
        "1",
        "2.000× [2.000, 2.000]",
        "10.00× [10.00, 10.00]",
        "20.00× [20.00, 20.00]",
    ]
    assert [row["× ref."] for row in brief] == ["1", "2.000×", "10.00×", "20.00×"]
    assert "p99" in full[0]
    assert "p99" not in brief[0]
    assert to_markdown([on_two_backends()]).count("not in turns") == 1


def test_a_terminal_has_room_for_both(capsys):
    name = "a-rung-with-a-very-long-name"
    noisy = arrays(speed=1.02, noise=0.09) | {"labels": np.arange(4) % 2}
    measurements = (cell("teacher", "0"), cell(name, "1"))
    made = result(
        artifacts=(artifact("teacher"), artifact(name, "teacher", warnings=("one", "two", "three"))),
        measurements=measurements,
        settings=settings(reference=TEACHER, price_per_h=0.08, currency="€"),
    )
    for raw in (noisy, arrays(speed=12.34, noise=0.01)):
        print_ladder(ladder(made, raw))
        table = capsys.readouterr().out.split("\n")
        assert max(map(len, table)) <= WIDTH
        assert "per 1M" in table[1]
        assert "× ref." in table[1]
        assert sum("1 kB" in line for line in table) == 2
        assert table[4].startswith("a-rung-…")
        assert "¹ ² ³" in table[4]  # all on one line


def test_the_reference_is_a_cell_of_the_plan_on_its_first_thread_count(tmp_path):
    bench = Bench(backends=("fake",), threads=(2, 1), reference="a@b@fake")
    cells = plan([subject(tmp_path, rung) for rung in ("a", "a@b", "c")], bench)
    assert reference_cell(cells, bench) == ReferenceCell(rung="a@b", backend="fake", threads=2)
    assert reference_cell(cells, bench.model_copy(update={"reference": None})) is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("teecher@fake", "bench.reference: no rung 'teecher': did you mean 'teacher'?"),
        ("teacher@fkae", "bench.reference: backend 'fkae' is not in the plan: did you mean 'fake'?"),
        ("teacher", "bench.reference: backend 'cpu' is not in the plan: known: fake"),
        ("fixed@fake", "bench.reference: fixed can't be measured on fake: fixed has a fixed batch of 1"),
    ],
)
def test_a_reference_that_is_not_in_the_plan_is_refused(tmp_path, reference, message):
    bench = Bench(backends=("fake",), batches=(8,), reference=reference)
    cells = plan([subject(tmp_path, "teacher"), subject(tmp_path, "fixed", batch=1)], bench)
    with pytest.raises(UserError) as error:
        reference_cell(cells, bench)
    assert str(error.value).startswith(message)


def test_scenarios_have_neither_price_nor_reference(tmp_path):
    for given in ({"reference": "a@fake"}, {"price_per_h": 1.0}):
        bench = Bench(backends=("fake",), scenarios=("offline",), **given)
        with pytest.raises(UserError, match=r"is for latencies, not for scenarios"):
            reference_cell(plan([subject(tmp_path, "a")], bench), bench)


def test_a_measurement_remembers_price_and_reference(small_model, tmp_path):
    plan = {"price_per_h": 0.08, "currency": "€", "reference": "small", "budget_s": 0.1}
    report = pipeline.bench([small_model], out=tmp_path / "out", **plan)
    found = report.ladder.result.settings
    assert (found.price_per_h, found.currency) == (0.08, "€")
    assert found.reference == ReferenceCell(rung="small", backend="cpu", threads=1)
    assert report.ladder.rows[0].cost_per_million > 0


def test_another_price_or_reference_makes_the_tables_again_and_measures_nothing(small_model, tmp_path, monkeypatch):
    subjects = [Subject(known_artifact(small_model), small_model)]

    def again(**plan):
        recipe = parse(Recipe, PLAIN | {"bench": {"budget_s": 0.1} | plan}, "recipe")
        options = {"name": "m", "seed": 0, "recipe": recipe, "keep": True}
        return measuring.measured(subjects, "small", recipe.bench, None, tmp_path / "out", **options)

    first = again()
    monkeypatch.setattr(measuring.Schedule, "rounds", lambda *_: pytest.fail("measured again"))
    priced = again(price_per_h=0.08, currency="€", reference="small")
    assert "at €0.08 an hour" in priced.report.read_text()
    assert "× small@cpu" in priced.report.read_text()
    assert priced.ladder.rows[0].latency_p50_s == first.ladder.rows[0].latency_p50_s
    (row,) = load_rows(tmp_path / "out")
    assert row.cost_per_million == priced.ladder.rows[0].cost_per_million > 0
    assert load_result(priced.results)[0].recipe.bench.currency == "€"
    assert again().ladder.rows == first.ladder.rows
    assert "an hour" not in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        again(price_per_h=0.08, budget_s=0.2)


# --- cold start and memory --------------------------------------------------------------------------------------------


def test_starting_is_told_of_processes_that_start_alone(tmp_path):
    _, measurements, _ = measured(cells_of([subject(tmp_path, "a"), subject(tmp_path, "b")], (1, 2)), processes=2)
    for m in measurements:
        first, second = m.processes
        assert first.start_s > 0
        assert second.start_s is None


def test_memory_is_read_after_the_timed_runs_and_the_devices_where_the_runtime_tells(tmp_path):
    (plain,), _ = measured(cells_of([subject(tmp_path, "a")]), processes=1)[1:]
    (device,), _ = measured(cells_of([subject(tmp_path, "b", device_memory_bytes=12_345)]), processes=1)[1:]
    assert plain.processes[0].steady_memory_bytes > 5_000_000
    assert plain.processes[0].device_memory_bytes is None
    assert device.processes[0].device_memory_bytes == 12_345


def test_a_cold_start_is_process_load_and_first_run():
    def process(number, **changes):
        return Process(round=number, load_s=0.2, first_run_s=0.03, **changes)

    told = tuple(process(n, start_s=None if n else 0.5, steady_memory_bytes=1000 + n) for n in range(5))
    made = result(measurements=(cell("teacher", "0", processes=told), cell("student", "1")))
    found = ladder(made, arrays())
    teacher, student = found.rows
    assert teacher.cold_start_s == pytest.approx(0.73)
    assert (teacher.start_s, teacher.steady_memory_bytes, teacher.device_memory_bytes) == (0.5, 1002, None)
    assert student.cold_start_s is None
    table = ladder_tables.details_table(found)
    shown = dict(zip(table.header, table.lines[0], strict=True))
    assert (shown["cold start"], shown["steady memory"]) == ("730 ms", "1.00 kB")
    assert "device memory" not in table.header
    assert "cold start" not in ladder_tables.details_table(ladder(result(), arrays())).header
    assert "load includes optimising" in to_markdown([found])


@pytest.mark.parametrize(("optimized_load_s", "optimize_s"), [(0.01, 0.02), (0.04, 0.0), (None, None)])
def test_optimizing_is_what_an_optimized_graph_loads_faster(optimized_load_s, optimize_s):
    found = evaluation("teacher", "0", optimized_load_s=optimized_load_s)
    made = ladder(result(evaluations=(found, evaluation("student", "1"))), arrays())
    assert made.rows[0].optimize_s == (None if optimize_s is None else pytest.approx(optimize_s))
    assert made.rows[1].optimize_s is None
    assert ("optimize" in ladder_tables.details_table(made).header) == (optimize_s is not None)


def test_the_optimized_graph_is_loaded_by_itself(small_model, tmp_path):
    report = pipeline.bench([small_model], budget_s=0.1, out=tmp_path / "out")
    (found,) = report.ladder.result.evaluations
    assert found.optimized_load_s > 0
    (row,) = report.ladder.rows
    assert row.optimize_s == max(0.0, row.load_s - found.optimized_load_s)
    assert "“optimize” is how much less" in report.report.read_text()


# --- energy -----------------------------------------------------------------------------------------------------------


def powercap(root, **domains):
    """A machine's counters: name, µJ and range by folder."""
    for number, (name, (energy_uj, range_uj)) in enumerate(domains.items()):
        folder = root / f"sys/class/powercap/intel-rapl:{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(name.replace("_", "-") + "\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root


def test_energy_is_that_of_all_packages_also_where_a_counter_starts_again(tmp_path):
    root = powercap(tmp_path, package_0=(900, 1000), package_1=(5_000_000, 10**12), psys=(1, 10**12), core=(2, 10**12))
    found = packages(root)
    assert [package.name for package in found] == ["package-0", "package-1"]
    before = read_uj(found)
    powercap(root, package_0=(100, 1000), package_1=(8_000_000, 10**12))
    assert spent_j(found, before, read_uj(found)) == pytest.approx(3 + 200e-6)
    assert spent_j(found, before, None) is None


@pytest.mark.parametrize("broken", ["energy_uj", "max_energy_range_uj"])
def test_energy_that_cannot_be_read_of_one_package_is_that_of_none(tmp_path, broken):
    root = powercap(tmp_path, package_0=(1, 10), package_1=(1, 10))
    (root / "sys/class/powercap/intel-rapl:1" / broken).unlink()
    assert packages(root) == packages(tmp_path / "nothing") == ()
    assert read_uj(()) is None


def test_the_schedule_reads_energy_around_each_slice_of_a_cell_on_the_cpu(tmp_path, monkeypatch):
    found = packages(powercap(tmp_path, package_0=(0, 10**12)))
    readings = itertools.count(0, 2_000_000)  # each one 2 J later
    monkeypatch.setattr(scheduling, "packages", lambda: found)
    monkeypatch.setattr(scheduling, "read_uj", lambda counters: [next(readings)])
    fake = pick_backend("fake")
    gpu = replace(fake, row=replace(fake.row, device="GPU"))
    cells = [replace(cell, backend=backend) for backend in (fake, gpu) for cell in cells_of([subject(tmp_path, "a")])]
    _, (m, on_gpu), raw = measured(cells, processes=1)
    slices = len(np.unique(raw[f"slices.{m.raw}"]))
    assert raw[f"package_j.{m.raw}"].tolist() == [2.0] * slices
    assert f"package_j.{on_gpu.raw}" not in raw  # nobody tells what its GPU took


def test_energy_of_an_inference_by_hand():
    # Five slices of three runs, and one before each that isn't counted, with four samples: 16 samples a slice.
    raw = arrays() | {"slices.0": ROUNDS, "slices.1": ROUNDS, "package_j.0": np.array([1.6, np.nan, 3.2, 1.6, 3.2])}
    found = ladder(result(energy=("package-0",)), raw)
    assert found.rows[0].energy_j == pytest.approx(0.15)
    assert found.rows[1].energy_j is None
    assert ladder(result(), raw | {"gpu_j.0": np.full(5, 0.8)}).rows[0].energy_j == pytest.approx(0.2)
    table = ladder_tables.details_table(found)
    assert table.lines[0][table.header.index("energy")] == "150 mJ"
    assert "RAPL, package-0; for GPUs" in to_markdown([found])


def test_energy_that_nobody_tells_is_said_so():
    assert "| energy | not readable |" in to_markdown([ladder(result(energy=()), arrays())])
    assert "| energy |" not in to_markdown([ladder(result(), arrays())])


@pytest.mark.parametrize(("gpus", "found"), [(1, 12.5), (2, None), (0, None)])
def test_energy_of_a_gpu_is_nvmls_where_there_is_only_one(monkeypatch, gpus, found):
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"gpu 0": 12_500}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    spec = spec_from_file_location("worker_gpu", WORKER / "gpu.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.energy_j() == found


def test_a_cell_on_the_cpu_is_told_from_others():
    assert pick_backend("cpu").on_cpu
    assert pick_backend("torch").on_cpu
    assert not pick_backend("torch", {"device": "cuda"}).on_cpu
    assert not pick_backend("cuda").on_cpu
