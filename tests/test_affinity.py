"""Workers that are pinned to CPUs, and CPUs that they may not run on."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.benchmark.cells import plan
from kdbench.cli.options import cpus
from kdbench.errors import UserError
from kdbench.records import Bench
from kdbench.report.markdown import to_markdown
from kdbench.report.table import ladder
from tests.test_report import arrays, result
from tests.test_schedule import subject

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")


def test_a_worker_runs_on_the_cpus_that_are_asked_for(tmp_path):
    mine = max(os.sched_getaffinity(0))
    (cell,) = plan([subject(tmp_path, "a")], Bench(backends=("fake",), affinity=(mine, mine)))
    with Worker(cell.backend, 1) as pinned, Worker(pick_backend("fake"), 1) as free:
        assert pinned.ask("hello")[0]["affinity"] == [mine]
        assert free.ask("hello")[0]["affinity"] == sorted(os.sched_getaffinity(0))


def test_a_cpu_that_is_not_allowed_is_named_beside_those_that_are(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    refused_cpu = allowed[-1] + 1
    with pytest.raises(UserError) as error:
        plan([subject(tmp_path, "a")], Bench(backends=("fake",), affinity=(allowed[0], refused_cpu)))
    assert str(error.value) == (
        f"--affinity: CPU {refused_cpu} is not among those that kdbench may run on here: {', '.join(map(str, allowed))}"
    )


@given(st.lists(st.integers(0, 300).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, a + 3))), min_size=1))
def test_ranges_of_cpus_are_read(ranges):
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    assert set(cpus(None, None, text)) == {cpu for a, b in ranges for cpu in range(a, b + 1)}


@pytest.mark.parametrize("text", ["3-1", "a", "", "1,", "-1", "1-2-3", "0-9999999999"])
def test_what_names_no_cpus_is_refused(text, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    said = mistake(f"bench x.onnx --affinity={text}")
    assert f"'{text}' should be numbers of CPUs, such as 0-3,6" in said


def test_a_report_says_what_was_pinned():
    pinned = result(settings=result().settings.model_copy(update={"affinity": (0, 2)}))
    assert "| pinned to CPUs | 0, 2 |" in to_markdown([ladder(pinned, arrays())])
    assert "pinned to CPUs" not in to_markdown([ladder(result(), arrays())])
