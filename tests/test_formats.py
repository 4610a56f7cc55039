"""Tables in every format: the digits that are shown, and what each format reads of names that are anything."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdbench.errors import printable
from kdbench.report import text
from kdbench.report.comma import tables_to_csv
from kdbench.report.html import to_html
from kdbench.report.latex import SIGNS, to_latex
from kdbench.report.markdown import views_to_markdown
from kdbench.report.rendering import Asked, find, rendered
from kdbench.report.structured import tables_to_json
from kdbench.report.terminal import WIDTH, print_table
from kdbench.report.text import Cell, Column, TextTable
from kdbench.stats import Interval
from tests.conftest import PUBLISHED

# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (3.8612, 3.7431, 3.9832, ("3.86", "3.74", "3.98")),
        (2.5512, 2.5321, 2.5699, ("2.551", "2.532", "2.570")),
        (-1.2, -11.3, 8.2, ("−1.2", "−11.3", "8.2")),
        (112.3, 95.9, 130.4, ("112", "96", "130")),
        (2140.0, 1710.0, 2660.0, ("2140", "1710", "2660")),
        (2.0, 2.0, 2.0, ("2.000", "2.000", "2.000")),
        (0.0, 0.0, 0.0, ("0.0", "0.0", "0.0")),
        (0.0, -0.996, 0.996, ("0.0", "−1.0", "1.0")),
        (-0.004, -0.31, 0.30, ("0.00", "−0.31", "0.30")),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(value, low, high, shown):
    assert text.numbers(Interval(value, low, high)) == shown


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_digits_behind_the_second_of_the_half_width_are_not_shown_and_none_before_it_is_lost(value, half):
    shown = text.numbers(Interval(value, value - half, value + half))
    places = text.decimals(half, abs(value) + half)
    for number, written in zip((value, value - half, value + half), shown, strict=True):
        read = float(written.replace("−", "-"))
        assert abs(read - number) <= 0.5000001 * 10.0**-places
        assert "−0" not in written or read != 0
    # The last place is the second digit of the half-width, or the fourth of the largest number.
    largest = max(abs(value - half), abs(value + half))
    if places != 3 - int(f"{largest:.1e}".partition("e")[2]):
        assert 9.9 < float(f"{half:.2g}") * 10.0**places < 99.5


def test_latencies_and_rates_have_digits_by_their_interval():
    assert text.seconds_of(53.4321e-6, Interval(53.4321e-6, 53.30e-6, 53.56e-6)) == "53.43 µs"
    assert text.seconds_of(53.4321e-6, Interval(53.4321e-6, 41e-6, 65e-6)) == "53 µs"
    assert text.seconds_of(53.4321e-6, None) == "53.4 µs"
    assert text.count_of(18_347.0, Interval(18_347.0, 18_000, 18_690)) == "18.35 k"


# --- what each format reads -------------------------------------------------------------------------------------------

SIGNS_READ = "\\{}$&#^_~%<>|\"'`*[]()-=+@!?,.:;/0a "
NAME = (
    st.one_of(st.text(st.characters(codec="utf-8"), max_size=20), st.text(SIGNS_READ, max_size=30))
    .map(lambda name: " ".join(printable(" ".join(name.split())).split()))
    .filter(bool)
)


def any_name(test):
    """With names that each format would read, and with others."""
    for name in (
        "=cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "+1", "'=1", "'", "<script>alert(1)</script>", "&lt;b&gt; &amp;",
        "**a** _b_ __c__ ~~d~~ `e` [f](g) ![h](i) <j@k.l> $m$", "# a", "| a |", "a -- b --- c ,, d", "\\",
        "\\end{tabular}", "{", "}%", "50 % of #1 & $2 ^3 ~4", "[1.79, 1.81]", "*",
        '"quoted" ``and'' \'so\'', "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    ):  # fmt: skip
        test = example(name)(test)
    return settings(max_examples=40)(given(NAME)(test))


def table(name, note="a note", value="x"):
    columns = (Column("rung", "rung", left=True), Column(name, "it"), text.FLAGS)
    row = (Cell(name, value), Cell("1.00", 1.0, 0.9, 1.1, best=True, notes=(1,)), Cell("", "said", notes=(1, 2)))
    return TextTable(name, columns, (row,), (note, "another"), name)


TOKEN = re.compile(
    r"\\textbackslash\{\}|\\symbol\{34\}|\\ensuremath\{(?:-|\\[A-Za-z]+)\}|\\text[a-z]+\{\}|\\[{}$&#%_]|\{[\[\]*]\}|\{\}"
    r"|[^\\{}$&#%_^~<>|\"`\[\]*]"
)


def read_latex(escaped):
    """The text that LaTeX prints: fails on anything that it would read as more than a sign."""
    back, read, place = {code: sign for sign, code in SIGNS.items()}, [], 0
    while place < len(escaped):
        token = TOKEN.match(escaped, place)
        assert token, f"LaTeX would read: {escaped[place:]}"
        read.append("" if token[0] == "{}" else back.get(token[0], token[0]))
        place = token.end()
    assert not re.search("--|,,|''", escaped)
    return "".join(read)


def test_latex_of_a_ladder_has_the_tables_that_fit_a_page():
    text = rendered(find([PUBLISHED], Asked()), "latex")
    assert r"\caption{cpu, 1 thread, batch 32, against teacher}" in text
    assert max(line.count(" & ") for line in text.splitlines()) < 9
    assert "Details" in rendered(find([PUBLISHED], Asked()), "html")


@any_name
def test_latex_prints_any_name_as_it_is(name):
    lines = to_latex([table(name, note=name)]).splitlines()
    (caption,) = (line for line in lines if line.startswith(r"\caption{"))
    assert read_latex(caption.removeprefix(r"\caption{").removesuffix("}")) == name
    (row,) = (line for line in lines if r"\textbf{1.00}\tnote{1} & \tnote{1,2} \\" in line)
    assert read_latex(row.partition(r" & \textbf{1.00}")[0]) == name
    assert read_latex(next(line for line in lines if line.startswith(r"\item[1] ")).removeprefix(r"\item[1] ")) == name
    opened = [line for line in lines if line.startswith(r"\begin")]
    assert len(opened) == len([line for line in lines if line.startswith(r"\end")]) == 4
    joined = re.sub(r"\\[{}]", "", "\n".join(lines))
    assert joined.count("{") == joined.count("}")


class Read(HTMLParser):
    """Texts of cells and captions, and every tag with its attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.within = [], {}, []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.within.append(tag)

    def handle_endtag(self, tag):
        self.within.pop()

    def handle_data(self, data):
        self.texts.setdefault(self.within[-1] if self.within else "", []).append(data)


@any_name
def test_html_shows_any_name_as_it_is(name):
    reader = Read()
    reader.feed(to_html([table(name, note=name, value=name)]))
    reader.close()
    assert {tag for tag, _ in reader.tags} == {
        "section", "table", "caption", "thead", "tr", "th", "tbody", "td", "strong", "sup", "p", "ol", "li"
    }  # fmt: skip
    assert "".join(reader.texts["caption"]) == "".join(reader.texts["p"]) == name
    assert "".join(reader.texts["td"]).strip() == name
    assert [given["data-value"] for tag, given in reader.tags if tag == "td"] == [name, "1.0", "said"]
    assert "".join(reader.texts["li"]).replace("\n", "") == f"{name}another".replace("\n", "")
    assert reader.texts["sup"] == ["1", "1 2"]


@any_name
def test_markdown_shows_any_name_as_it_is(name):
    found = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(views_to_markdown([table(name)]))
    inline = [token for token in found if token.type == "inline"]
    assert [token.content for token in inline][1] == "rung"  # title, then a table of three columns
    for token in (inline[0], inline[2], inline[4]):
        assert {child.type for child in token.children} <= {"text", "text_special"}, token.children
        assert "".join(child.content for child in token.children) == name
    assert [child.type for child in inline[5].children] == ["text", "strong_open", "text", "strong_close", "text"]
    assert inline[6].content == "¹ ²"


def test_markdown_mentions_nobody():
    shown = views_to_markdown([table("by @someone, openvino@3.12 #1")])
    assert "&#64;someone" in shown
    assert "openvino@3.12 \\#1" in shown


@any_name
def test_csv_holds_no_formula_and_any_name_comes_back(name):
    _, row = csv.reader(io.StringIO(tables_to_csv([table(name, value=name)])))
    for shown in (row[0], row[1]):
        assert not shown.startswith(("=", "+", "-", "@"))
        assert (shown[1:] if shown.startswith("'") else shown) == name
    assert row[2:] == ["1.0", "0.9", "1.1", "it", "it: a note; a note; another"]


@any_name
def test_json_is_plain_data(name):
    (found,) = json.loads(tables_to_json([table(name, value=name)], "x"))["tables"]
    (row,) = found["rows"]
    assert (found["title"], row["rung"], row["it"], row["it_low"], row["best"]) == (name, name, 1.0, 0.9, ["it"])
    assert row["flags"] == ["it: a note", "a note", "another"]
    with_nan = TextTable("t", (Column("a", "a"),), ((Cell("–", math.nan),), (Cell("–", math.inf),)))
    assert [row["a"] for row in json.loads(tables_to_json([with_nan], "x"))["tables"][0]["rows"]] == [None, None]


def test_the_terminal_obeys_no_name_and_keeps_all_columns_within_its_width(capsys):
    name = "[red]:warning:\x1b[31m"
    columns = tuple(Column(f"column {number} {name}", f"c{number}") for number in range(12))
    row = tuple(Cell(f"value {number}", best=number == 3, notes=(1,)) for number in range(12))
    print_table(TextTable(name, columns, (row,), (name,), name), whole=True)
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "[red]:warning:�[31m" in printed
    assert all(f"value {number} ¹" in printed for number in range(12))
    assert max(map(len, printed.splitlines())) <= WIDTH
