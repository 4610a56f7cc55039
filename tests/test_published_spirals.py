"""What is published of a spiral: beside the ladder of what was taken, all of its turns and why it ended."""

import pytest

from kdbench import UserError, results_add, results_verify, store
from kdbench.pipeline import rerunning
from kdbench.records.budget import Estimate
from kdbench.records.turns import SpiralRecord, TurnRecord
from kdbench.report.again import commands
from kdbench.report.markdown import to_markdown
from kdbench.report.page import to_page
from kdbench.report.rendering import Asked, find, rendered
from kdbench.report.table import load_ladders
from tests.conftest import PUBLISHED, REPOSITORY
from tests.test_results import saved

LEFT = {"macs": 60_000, "parameters": 6_000, "size_bytes": 24_000}
REFUSED = TurnRecord(
    number=1, parent=0, step=0.4, keep=0.6, refusal="accuracy", said="more than 1 points below the first model",
    share=0.6, score=0.96, drop=Estimate(value=0.03, low=0.01, high=0.05), p=0.03, duration_s=90.0, **LEFT,
)  # fmt: skip
JOURNAL = SpiralRecord(
    fingerprint="0" * 64, first="student", metric="accuracy", score=0.99, samples=200, target="macs", goal=0.5,
    max_drop=1.0, macs=100_000, parameters=10_000, size_bytes=40_000, limit="accuracy", best="student",
    turns=(REFUSED, TurnRecord(
        number=2, parent=0, step=0.2, keep=0.8, refusal="unreachable", duration_s=3.0,
        said="/home/me/recipes/own.py: pruning can't be brought to 0.8 of the MACs by /home/me/more/it.py",
    )),
    remarks=("the accuracy floor stopped it; ended with student, the first model",),
)  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """A folder of results that holds a spiral."""
    results_add(saved(tmp_path / "run", spiral=JOURNAL), into=tmp_path / "results")
    return tmp_path / "results"


def test_the_published_table_has_refused_turns_and_their_reasons(published):
    tables = to_markdown(load_ladders([published]), heading="##")
    turn = r"| spiral-1 | student | 60.0 % | 96.0 % | 3.0 \[1.0, 5.0\] | 0.03 | 60 k | 6 k | 24 kB | 1.5 | refused ¹ |"
    parts = [
        "### cpu, 1 thread, batch 4, against teacher",
        "### The spiral, to 0.5 of the MACs",
        turn,
        "| spiral-2 | student | 80.0 % | – | – | – | – | – | – | 0.1 | refused ² |",
        "¹ more than 1 points below the first model",
        f"{JOURNAL.remarks[0]}.",
        "### Details",
    ]
    assert sorted(parts, key=tables.index) == parts
    readme = published / "README.md"
    readme.write_text(f"<!-- [[[cog ]]] -->\n{tables}<!-- [[[end]]] -->\n")
    assert results_verify(published).problems == ()
    readme.write_text(readme.read_text().replace(turn, ""))
    (problem,) = results_verify(published).problems
    assert "1 lines of its tables are not those of today" in problem


def test_a_spiral_is_made_again_by_its_command_though_it_took_no_turn(tmp_path):
    file = next((REPOSITORY / "results").rglob("*-spiral.json"))
    result, _ = store.load_result(file)
    alone = result.model_copy(update={"artifacts": result.artifacts[:1]})
    for found in (result, alone):
        assert commands(found)[0].startswith("kdbench spiral cifar10-resnet56-spiral")
    with pytest.raises(UserError, match="'kdbench spiral cifar10-resnet56-spiral' makes them again"):
        rerunning._subjects(file, alone, store.RunFolder(tmp_path / "gone"))


@pytest.mark.parametrize("kind", ["page", "html"])
def test_pages_have_it_too(published, kind):
    found = find([published], Asked())
    page = to_page(found.ladders) if kind == "page" else rendered(found, "html")
    for words in ("The spiral, to 0.5 of the MACs", "refused", REFUSED.said):
        assert words in page
    assert (JOURNAL.remarks[0] in page) == (kind == "page")


def test_no_folder_of_the_machine_is_in_it(published):
    (file,) = published.glob("*/*.json")
    assert "/home/me" not in file.read_text()
    said = store.load_record(file).spiral.turns[1].said
    assert said == "own.py: pruning can't be brought to 0.8 of the MACs by it.py"


def test_a_terminal_shows_it_in_one_table(published, tmp_path, typed):
    """The widest, too: a latency as target, the last training, doubts."""
    timed = {"speedup": Estimate(value=1.36, low=1.2, high=1.5), "doubts": ("something else kept the machine busy",)}
    turn = REFUSED.model_copy(update={**timed, "p": 1.6e-15, "duration_s": 9000.0})
    final = turn.model_copy(update={"number": 0, "parent": 1, "refusal": None})
    wide = JOURNAL.model_copy(update={"target": "latency", "turns": (turn,), "final": final})
    for path in (published, saved(tmp_path / "wide", spiral=wide)):
        done = typed("report", path, "--format", "terminal")
        assert done.status == 0
        assert max(map(len, done.out.splitlines())) <= 100
        (row,) = (line for line in done.out.splitlines() if line.startswith("spiral-1 "))
        assert "60.0 %" in row
        assert "refused" in row
        assert JOURNAL.remarks[0] in done.out


def test_what_is_no_spirals_has_no_such_table(tmp_path):
    plain = load_ladders([saved(tmp_path / "run"), PUBLISHED])
    assert all(ladder.result.spiral is None for ladder in plain)
    assert "spiral" not in to_markdown(plain)
    assert "spiral" not in to_page(plain)
