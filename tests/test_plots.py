"""Plots: nothing over another, the same bytes for the same results, and no more said than the numbers hold."""

import itertools
import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from kdbench import stats
from kdbench.records.budget import Budget, CandidateRecord, CurvePoint, Estimate, LayerNoise
from kdbench.report.files import save_report
from kdbench.report.plots import hover_svg, plots_of, png, svg
from kdbench.report.plots.labels import spread
from kdbench.report.plots.pareto import Point, front_line, standings
from kdbench.report.plots.style import styled
from kdbench.report.plots.timing import timed
from kdbench.report.selection import Selection, selected
from kdbench.report.table import ladder, load_ladders
from kdbench.report.text import seconds, shortened
from kdbench.report.views import tables_of
from kdbench.stats import Interval
from kdbench.store import RunFolder
from tests.conftest import PUBLISHED
from tests.test_report import ROUNDS, artifact, cell, evaluation, result

LONG = "student-with-a-name-that-goes-on-and-on-$x$-"
NAMES = ["teacher", "teacher-int8", "student", "student-slim", "student-int8", "a<b>&\"c'\x07", LONG + "1", LONG + "2"]


def made(rungs, batches=(1,), backends=("cpu",), equal=False, threads=(1,)):
    """A ladder of so many rungs; all of them alike if `equal`."""
    names = [*NAMES, *(f"turn-{number}" for number in range(rungs))][:rungs]
    random, labels = np.random.default_rng(1), np.arange(300) % 10
    raw, cells, judged = {"labels": labels}, [], []
    for (number, name), backend, count in itertools.product(enumerate(names), backends, threads):
        key = f"{backend}-{number}-{count}"
        raw[f"predictions.{key}"] = np.where(np.arange(300) < 5 + (0 if equal else 3 * number), labels + 1, labels)
        judged.append(evaluation(name, key, backend=backend, threads=count))
        for batch in batches:
            base = 1e-3 * (1.0 if equal else 0.8**number) * batch**0.8
            raw[f"latencies.{key}-{batch}"] = base * (1 if equal else random.uniform(0.98, 1.05, 15)) * np.ones(15)
            raw[f"rounds.{key}-{batch}"] = ROUNDS
            cells.append(cell(name, f"{key}-{batch}", backend=backend, batch=batch, threads=count))
    artifacts = tuple(
        artifact(name, "teacher" if number else None, size_bytes=1000 if equal else 3_000_000 >> number)
        for number, name in enumerate(names)
    )
    return ladder(result(artifacts=artifacts, measurements=tuple(cells), evaluations=tuple(judged)), raw)


def texts(figure):
    """All that is drawn, without ticks that lie outside of their axis."""
    outside = {
        id(tick.label1)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in outside
    ]


def assert_readable(plot):
    with styled():
        figure = plot.draw()
        figure.draw_without_rendering()
        drawn = [text for text in texts(figure) if all(axes.get_visible() for axes in [text.axes] if axes)]
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in drawn]
    whole = figure.bbox
    for said, box in boxes:
        inside = whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1 and whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1
        assert inside, f"{plot.name}: '{said}' is cut off"
    for (one, box), (other, beside) in itertools.combinations(boxes, 2):
        assert not box.overlaps(beside), f"{plot.name}: '{one}' over '{other}'"
    return [said for said, _ in boxes]


@pytest.mark.parametrize(
    ("rungs", "equal", "batches"),
    [(1, False, (1,)), (2, True, (1, 32)), (4, False, (1, 2, 3, 32)), (12, False, (1,)), (12, True, (1, 8))],
)
def test_no_text_lies_on_another(rungs, equal, batches):
    found = made(rungs, batches, equal=equal)
    for plot in plots_of([found]):
        said = assert_readable(plot)
        for name in shortened(dict.fromkeys(row.rung for row in found.rows)).values():
            assert name in said, f"{plot.name}: {name} is not named"


def test_published_plots_are_readable():
    for plot in plots_of(load_ladders([PUBLISHED])[:1]):
        assert_readable(plot)


def test_where_names_have_no_room_there_is_a_legend():
    (plot,) = [plot for plot in plots_of([made(24, (1, 8), equal=True)]) if plot.name == "throughput-batch"]
    assert_readable(plot)
    with styled():
        assert len(plot.draw().legends[0].get_texts()) == 24


def test_what_is_drawn_depends_on_what_there_is():
    def names(**how):
        return [plot.name for plot in plots_of([made(2, **how)])]

    always = ["accuracy-latency", "accuracy-size", "latency-distribution"]
    assert names() == always
    assert names(batches=(1, 8)) == [*always[:2], "throughput-batch", always[2]]
    assert names(threads=(1, 2)) == [*always[:2], "throughput-threads", always[2]]
    several = plots_of([made(2), made(2)])
    assert [plot.name for plot in several] == [*always, *(f"{name}-2" for name in always)]
    failed = tuple(cell(name, None, error="no device") for name in ("teacher", "student"))
    assert plots_of([ladder(result(measurements=failed, evaluations=()), {})]) == []


def test_chosen_cells_are_drawn_alone_and_in_the_colours_of_all():
    def colours(found):
        with styled():
            marks = plots_of([found])[0].draw().findobj(lambda artist: artist.get_gid() == "hover")
        return {mark.get_label().splitlines()[0]: mark.get_color() for mark in marks}

    whole = made(4, (1, 8))
    (some,) = selected([whole], Selection(rungs=("student", "student-slim"), batches=(8,)))
    assert colours(some) == {rung: colours(whole)[rung] for rung in ("student", "student-slim")}
    assert [plot.name for plot in plots_of([some])] == ["accuracy-latency", "accuracy-size", "latency-distribution"]


def test_networks_of_three_sizes_are_drawn_against_their_work_too():
    found = made(3)
    grown = tuple(a.model_copy(update={"macs": 1000 * 4**n}) for n, a in enumerate(found.result.artifacts))
    again = ladder(found.result.model_copy(update={"artifacts": grown}), found.arrays)
    assert "accuracy-macs" in [plot.name for plot in plots_of([again])]
    unknown = tuple(a.model_copy(update={"macs": None, "parameters": a.macs}) for a in grown)
    again = ladder(found.result.model_copy(update={"artifacts": unknown}), found.arrays)
    assert "accuracy-parameters" in [plot.name for plot in plots_of([again])]


def test_intervals_are_those_of_the_processes():
    found = timed(made(3))[2]
    medians = [float(np.median(own)) for own in found.processes.values()]
    half = 2.7764451 * np.std(np.log(medians), ddof=1) / math.sqrt(5)
    assert found.latency.value == found.row.latency_p50_s
    assert found.latency.low == pytest.approx(found.latency.value / np.exp(half))
    assert found.latency.high == pytest.approx(found.latency.value * np.exp(half))
    assert found.throughput.low <= found.row.throughput_per_s <= found.throughput.high


def test_a_plot_and_a_table_of_a_page_have_one_interval_for_one_number():
    one = made(3)
    for measure in ("latency", "throughput"):
        (table,) = tables_of([one], [], "backends", measure=measure)
        drawn = [getattr(cell, measure) for cell in timed(one)]
        assert [(row[1].value, row[1].low, row[1].high) for row in table.rows] == [
            (each.value, each.low, each.high) for each in drawn
        ]


def exactly(cost, gain, reach=0.0):
    return Point(Interval(cost, cost - reach, cost + reach), Interval(gain, gain - reach, gain + reach))


def test_the_front_by_hand():
    points = [exactly(1, 0.5), exactly(2, 0.9), exactly(2, 0.9), exactly(3, 0.8), exactly(2.5, 0.8, reach=0.2)]
    assert standings(points) == ["on", "on", "on", "off", "maybe"]
    assert front_line(points) == [(1, 0.5), (2, 0.9)]


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 2, st.integers(0, 3)), min_size=1, max_size=12))
def test_the_front_beats_all_that_is_not_on_it(given_points):
    points = [exactly(*point) for point in given_points]
    found = standings(points)
    on = [point for point, how in zip(points, found, strict=True) if how == "on"]
    assert on
    for point, how in zip(points, found, strict=True):
        beaten = any(
            q.cost.value <= p.cost.low and q.gain.value >= p.gain.high and (q.cost.value, q.gain.value) != (c, g)
            for p in [point]
            for c, g in [(p.cost.low, p.gain.high)]
            for q in on
        )
        assert (how == "off") == (beaten and how != "on")
    line = front_line(points)
    assert line == sorted(line)
    assert [gain for _, gain in line] == sorted(gain for _, gain in line)


@given(st.lists(st.floats(-0.5, 1.5), max_size=12), st.floats(0.01, 0.08))
def test_names_at_the_ends_of_lines_keep_their_order_and_distance(wanted, step):
    found = spread(wanted, step)
    assert all(step / 2 - 1e-9 <= y <= 1 - step / 2 + 1e-9 for y in found)
    ordered = sorted(zip(wanted, found, strict=True), key=lambda pair: pair[1])
    assert [pair[0] for pair in ordered] == sorted(wanted)
    assert all(after[1] - before[1] >= step - 1e-9 for before, after in itertools.pairwise(ordered))


@given(st.lists(st.text(alphabet="ab-", max_size=60), unique=True, max_size=20))
def test_shortened_names_stay_short_and_different(names):
    found = shortened(names)
    assert len(set(found.values())) == len(names)
    assert all(len(short) <= 32 for short in found.values())


def test_equal_results_give_equal_bytes_whatever_the_users_settings():
    (first, *_), (second, *_) = plots_of([made(3)]), plots_of([made(3)])
    with mpl.rc_context({"font.size": 20, "xtick.direction": "in", "svg.fonttype": "path"}):
        other = svg(first), png(first)
    assert (svg(second), png(second)) == other


def test_a_page_shows_values_on_hover_in_its_own_colours():
    plots = plots_of([made(6), made(6)])[::3]
    page = "".join(hover_svg(plot) for plot in plots)
    root = ElementTree.fromstring(f"<body>{page}</body>")  # noqa: S314
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {one or other for one, other in targets} <= set(ids)
    assert not re.search(r"#000000|#ffffff|<style|<\?xml|<!DOCTYPE|http", page.replace(SVG_NAMESPACE, ""))
    for plot, image in zip(plots, root, strict=True):
        assert image.get("role") == "img"
        title, desc = (image.find(name) for name in ("title", "desc"))
        assert (title.text, desc.text) == (plot.title, plot.alt.replace("\x07", "\N{REPLACEMENT CHARACTER}"))
        assert image.get("aria-labelledby").split() == [title.get("id"), desc.get("id")]
    hovers = [title.text for title in root[0].iter("title")][1:]
    assert len(hovers) == 6
    assert hovers[0].startswith("teacher\naccuracy: 98.3 %\nlatency") or hovers[0].startswith(
        "teacher\naccuracy: 98.3 %"
    )
    assert any("a<b>&\"c'" in text and "difference to teacher: " in text for text in hovers)


def test_names_with_numbers_in_them_are_written_as_they_are():
    renamed = {"teacher": "mobilenet-0.125", "student": "v1.2000"}
    found = made(3)
    named = [
        tuple(one.model_copy(update={"rung": renamed.get(one.rung, one.rung)}) for one in group)
        for group in (found.result.artifacts, found.result.measurements, found.result.evaluations)
    ]
    changes = dict(zip(("artifacts", "measurements", "evaluations"), named, strict=True))
    again = ladder(found.result.model_copy(update={**changes, "baseline": "mobilenet-0.125"}), found.arrays)
    image = ElementTree.fromstring(hover_svg(plots_of([again])[0]))  # noqa: S314
    drawn = {element.text for element in image.iter("text")}
    assert set(renamed.values()) <= drawn


SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def test_a_broken_claim_is_marked_in_the_plot():
    found = made(2)
    placement = {"CPUExecutionProvider": {"Conv": 3}, "OtherExecutionProvider": {"Resize": 2}}
    evaluations = tuple(e.model_copy(update={"placement": placement}) for e in found.result.evaluations)
    again = ladder(found.result.model_copy(update={"evaluations": evaluations}), found.arrays)
    assert again.rows[0].broken_claims
    said = assert_readable(plots_of([again])[0])
    assert "teacher †" in said
    assert any("†: a claim of the cell does not hold" in text.replace("\n", " ") for text in said)
    cut = ladder(found.result.model_copy(update={"complete": False}), found.arrays)
    assert any("(interrupted)" in text for text in assert_readable(plots_of([cut])[0]))


def test_the_sensitivity_curve_is_readable_and_lies_among_the_plots_of_its_run(tmp_path):
    def point(left, drop):
        reach = Estimate(value=drop, low=drop - 0.02, high=drop + 0.02)
        return CurvePoint(left_in_float=left, drop=reach, int8_macs=1 - len(left) / 40)

    names = [f"backbone/stage.{number}/a-layer-with-a-long-name/convolution" for number in range(30)]
    candidate = CandidateRecord(
        name="per-channel", options={}, left_in_float=tuple(names[:4]),
        curve=tuple(point(tuple(names[:count]), 0.3 / (1 + count)) for count in range(12)),
        layers=tuple(
            LayerNoise(layer=n, nodes=(n,), operator="Conv", macs=9, noise=0.5**k, left_in_float=k < 4)
            for k, n in enumerate(names)
        ),
    )  # fmt: skip
    budget = Budget(
        model="student.onnx", model_sha256="", backend="cpu", threads=1, batch=1, metric="accuracy", fp32=0.9,
        max_drop=0.05, calibration_samples=9, judged_samples=9, evaluations=9, candidates=(candidate,),
        chosen="per-channel",
    )  # fmt: skip
    (tmp_path / "student-int8.budget.json").write_text(budget.to_json())
    (plot,) = plots_of([], RunFolder(tmp_path))
    assert plot.name == "student-int8-budget"
    said = assert_readable(plot)
    assert "left in float: hatched; 10 quieter layers not shown" in said
    assert any("dashed: the budget" in text for text in said)
    page = hover_svg(plot)
    assert "layers in float: 4\ndrop of accuracy: 6.00 [4.00, 8.00] points" in page
    assert f"{names[0]} (Conv, 9 multiply-accumulates)\nnoise: 0.0 dB\nfloat" in page
    worse = candidate.model_copy(update={"name": "worse", "curve": candidate.curve[:2], "layers": candidate.layers[:3]})
    missed = budget.model_copy(update={"chosen": None, "candidates": (worse, candidate)})
    (tmp_path / "student-int8.budget.json").write_text(missed.to_json())
    (plot,) = plots_of([], RunFolder(tmp_path))
    assert plot.title.endswith("per-channel") and "is the budget kept" in plot.alt  # the one that came closest
    assert any("nothing chosen; dashed" in text for text in assert_readable(plot))


def write(path, entries):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(entries))


def test_training_curves_of_several_seeds(tmp_path):
    line = '{{"epoch": {0}, "loss": {1}, "held_out": {2}}}'
    write(tmp_path / "student.metrics.jsonl", [line.format(1, 2.0, 0.5), line.format(2, 1.0, 0.6), '{"epoch": 3, "lo'])
    write(tmp_path / "seed-1" / "student.metrics.jsonl", [line.format(1, 4.0, 0.3), line.format(2, "NaN", 0.4), "[]"])
    write(tmp_path / "teacher.metrics.jsonl", [line.format(1, 2.0, 0.5)])
    (plot,) = plots_of([], RunFolder(tmp_path))
    assert plot.name == "training-curves"
    assert "student 50.0 %" in plot.alt
    assert "teacher" not in plot.alt  # of one epoch there is no curve
    said = assert_readable(plot)
    assert any("of up to 2 seeds" in text.replace("\n", " ") for text in said)
    assert "student, epoch 2: 50 %\nmean of 2 seeds, 40 to 60 %" in hover_svg(plot)
    assert plots_of([], RunFolder(tmp_path / "nothing")) == []


def test_a_runs_report_shows_its_plots_and_removes_those_of_an_earlier_one(tmp_path):
    found = load_ladders([PUBLISHED])[0]
    for stale in ("throughput-threads.svg", "accuracy-latency-2.png", "mine.svg"):
        (tmp_path / stale).write_text("")
    paths = save_report([found], found.rows, tmp_path, RunFolder(tmp_path))
    drawn = {path.name for path in tmp_path.iterdir() if path.suffix in (".svg", ".png")}
    assert drawn == {path.name for path in paths if path.suffix in (".svg", ".png")} | {"mine.svg"}
    assert {"accuracy-latency.svg", "accuracy-size.png", "latency-distribution.svg"} <= drawn
    shown = re.findall(r"!\[(.+?)\]\((.+?)\)", (tmp_path / "report.md").read_text())
    assert {address for _, address in shown} == {name for name in drawn if name.endswith(".svg")} - {"mine.svg"}
    assert shown[0][0].startswith("Scatter plot of accuracy against median latency")


def test_latencies_are_told_apart_by_process():
    found = load_ladders([PUBLISHED])[0]
    (plot,) = [plot for plot in plots_of([found]) if plot.name == "latency-distribution"]
    hovers = re.findall(r"<title>([^<]*, process \d+ of \d+[^<]*)</title>", hover_svg(plot))
    assert len(hovers) == sum(len(cell.processes) for cell in timed(found))
    own = next(iter(timed(found)[0].processes.values()))
    assert f"half of its {len(own):,} runs" in hovers[0]
    assert hovers[0].startswith(f"teacher, process 1 of 5\nmedian {seconds(stats.percentile(own, 50.0))}\n")
