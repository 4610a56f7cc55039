"""The report page in a browser: it sorts, filters and tells, asks nobody for anything; hostile names stay text."""

import os
import re
import shutil

import numpy as np
import pytest

from kdbench.records import BenchSettings
from kdbench.report.page import to_page
from kdbench.report.plots import plots_of
from kdbench.report.table import ladder, load_ladders
from tests.conftest import PUBLISHED
from tests.test_report import MACHINE, ROUNDS, artifact, cell, evaluation, result

HOSTILE = (
    "<script>document.title='pwned'</script>",
    '" onmouseover="document.title=1" x="',
    "</style></script><img src=http://example.invalid/x onerror=alert(1)>",
    "right‮left⁦",
    "long-" * 18,
    "{{ 7 * 7 }}",
    "line\x1b[31m\nbreak",
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


def ladder_of(rungs, batches=(1, 32), backends=("cpu",), warned=(), failed=(), **changes):
    """Rungs that are faster the later they come, right on 7 of 8 samples; some with a warning, some that failed."""
    artifacts = tuple(
        artifact(
            rung, rungs[0] if at else None, file=f"rung-{at}.onnx", sha256=f"{at:064x}",
            warnings=(f"of {rung}: mind it",) if rung in warned else (),
        )
        for at, rung in enumerate(rungs)
    )  # fmt: skip
    arrays = {"labels": np.arange(64) % 8}
    measurements, evaluations = [], []
    for backend in backends:
        for at, rung in enumerate(rungs):
            raw = f"{backend}{at}"
            arrays[f"predictions.{raw}"] = np.where(np.arange(64) % 8 == at % 8, 9, np.arange(64) % 8)
            evaluations.append(evaluation(rung, raw, backend=backend, artifact_sha256=artifacts[at].sha256))
        for batch in batches:
            for at, rung in enumerate(rungs):
                raw, spread = f"{backend}{batch}.{at}", np.tile([0.98, 1.0, 1.02], 5)
                told = {"backend": backend, "batch": batch, "artifact_sha256": artifacts[at].sha256}
                if rung in failed:
                    measurements.append(cell(rung, None, error=f"{backend} can't run it", **told))
                    continue
                arrays[f"latencies.{raw}"] = batch * 1e-3 / (1 + at / 2) * spread
                arrays[f"rounds.{raw}"] = arrays[f"slices.{raw}"] = ROUNDS
                measurements.append(cell(rung, raw, **told))
    made = result(
        baseline=rungs[0], artifacts=artifacts, measurements=tuple(measurements), evaluations=tuple(evaluations),
        **changes,
    )  # fmt: skip
    return ladder(made, arrays)


def big_ladder(rungs):
    settings = BenchSettings(seed=0, processes=5, precision=0.02, budget_s=30, slice_s=1, slice_runs=9)
    return ladder_of(rungs, (1, 8, 32), ("cpu", "openvino"), rungs[3:5], rungs[7:8], settings=settings)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium")
    flags = [flag for flag in FLAGS.split() if flag != "--no-sandbox" or os.geteuid() == 0]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages as files, each written once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name, *ladders, plots=False):
        path = folder / f"{name}.html"
        if not path.exists():
            drawn = plots_of(ladders) if plots else ()
            path.write_text(to_page(ladders, (), drawn), encoding="utf-8")
        return path

    return write


@pytest.fixture
def opened(browser):
    """Opens a file; in the end nothing may have been asked for but files, and the console has to be empty."""
    contexts, asked, said = [], [], []

    def open_page(path, hash="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri() + hash)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith("file:///")] == []
    assert said == []


@pytest.fixture(scope="module")
def small(made):
    rungs = ("teacher", "alpha", "beta", "gamma", "delta")
    return made("small", ladder_of(rungs, warned=("beta", "delta"), failed=("gamma",)), plots=True)


def column(page, table, key):
    """Texts of the rows that are shown, top to bottom."""
    return page.evaluate(
        """([id, key]) => {
          const table = document.getElementById(id);
          const at = [...table.tHead.rows[0].cells].findIndex((head) => head.dataset.key === key);
          const rows = [...table.tBodies[0].rows].filter((row) => row.offsetParent);
          return rows.map((row) => row.cells[at].innerText.trim());
        }""",
        [table, key],
    )


def table_named(page, title):
    return page.locator("table", has=page.locator("caption", has_text=title)).get_attribute("id")


def test_headings_sort_by_click_and_by_keyboard(opened, small):
    page = opened(small)
    table = table_named(page, "batch 32")
    head = page.locator(f"#{table} th[data-key=latency_p50_s]")
    button = head.get_by_role("button")
    assert column(page, table, "rung") == ["teacher", "alpha", "beta", "gamma", "delta"]
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, table, "rung") == ["delta", "beta", "alpha", "teacher", "gamma"]  # what has no number is last
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, table, "rung") == ["teacher", "alpha", "beta", "delta", "gamma"]
    assert page.url.endswith(f"#?{table}=-latency_p50_s")
    page.locator(f"#{table} th[data-key=accuracy]").get_by_role("button").press("Space")  # equal ones keep their order
    assert (column(page, table, "rung"), head.get_attribute("aria-sort")) == (
        ["teacher", "alpha", "beta", "gamma", "delta"],
        "none",
    )
    button.click(click_count=3)
    assert column(page, table, "rung") == ["teacher", "alpha", "beta", "gamma", "delta"]
    assert "#" not in page.url


def test_numbers_are_sorted_by_what_they_are_not_by_their_letters(opened, made):
    page = opened(made("many", ladder_of(("teacher", *(f"r{n}" for n in range(1, 12))), batches=(1,))))
    table = table_named(page, "batch 1")
    page.locator(f"#{table} th[data-key=latency_p50_s]").get_by_role("button").click()
    assert column(page, table, "rung") == [*(f"r{n}" for n in range(11, 0, -1)), "teacher"]
    assert column(page, table, "latency_p50_s")[-2:] == ["667 µs", "1 ms"]


def test_filters_work_over_all_tables_and_say_what_is_left(opened, small):
    page = opened(small)
    shown, everything = page.locator("output"), page.locator("tbody tr")
    assert shown.inner_text() == f"{everything.count()} rows"
    page.locator("select[name=batch]").select_option("32")
    assert page.locator("tbody tr:visible").count() < everything.count()
    assert not page.locator("table", has=page.locator("caption", has_text="batch 1,")).is_visible()
    page.get_by_label("Find in rows").fill("DELTA µs")
    assert column(page, table_named(page, "batch 32"), "rung") == []
    page.get_by_label("Find in rows").fill("delta")
    assert column(page, table_named(page, "batch 32"), "rung") == ["delta"]
    assert shown.inner_text() == f"{page.locator('tbody tr:visible').count()} of {everything.count()} rows shown"
    page.get_by_label("Find in rows").fill("no such thing")
    assert page.get_by_text("No rows match.").is_visible()
    assert shown.inner_text() == f"0 of {everything.count()} rows shown"
    page.get_by_role("button", name="Show all rows").click()
    page.wait_for_function("!location.hash")
    assert shown.inner_text() == f"{everything.count()} rows"
    assert page.locator("tbody tr:visible").count() == everything.count()


def test_a_view_can_be_linked(opened, small):
    page = opened(small)
    table = table_named(page, "batch 32")
    page.locator("select[name=rung]").select_option("delta")
    page.get_by_label("Find in rows").fill("a & b=c #%")
    page.locator(f"#{table} th[data-key=speedup] button").evaluate("button => button.click()")
    hash = "#" + page.url.partition("#")[2]
    again = opened(small, hash)
    assert again.locator("select[name=rung]").input_value() == "delta"
    assert again.get_by_label("Find in rows").input_value() == "a & b=c #%"
    assert again.locator(f"#{table} th[data-key=speedup]").get_attribute("aria-sort") == "ascending"
    unknown = opened(small, f"#?rung=nobody&{table}=-nothing&q=&<b>=1")
    assert unknown.locator("tbody tr:visible").count() == unknown.locator("tbody tr").count()


def test_footnotes_stay_with_their_rows_and_are_read_on_hover_and_focus(opened, small):
    page = opened(small)
    table = table_named(page, "batch 32")
    page.locator(f"#{table} th[data-key=latency_p50_s] button").click()
    for rung, expected in (("delta", "of delta: mind it"), ("gamma", "error: cpu can't run it")):
        mark = page.locator(f"#{table} tr", has_text=rung).locator("a.note").last
        mark.hover()
        assert page.locator("#tip").inner_text() == expected
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()
        mark.focus()
        assert page.locator("#tip").inner_text() == expected
        mark.click()
        assert page.locator("li:target").inner_text() == expected
        page.wait_for_function(f"location.hash === '#?{table}=latency_p50_s'")


def test_points_of_a_plot_tell_their_values(opened, small):
    page = opened(small)
    points = page.locator(".plots [data-said]")
    assert points.count() >= 8  # four rungs that were measured, in two panels
    points.first.hover()
    assert re.search(r"teacher.*(ms|µs)", page.locator("#tip").inner_text(), re.DOTALL)
    page.mouse.move(0, 0)
    plot = page.locator(".plots svg").first
    plot.focus()
    plot.press("ArrowRight")
    first = page.locator("#tip").inner_text()
    plot.press("ArrowRight")
    assert first and page.locator("#tip").inner_text() not in ("", first)


def test_a_hostile_name_stays_text(opened, made):
    path = made("hostile", ladder_of(("teacher", *HOSTILE), batches=(1,), warned=HOSTILE), plots=True)
    page = opened(path, viewport={"width": 360, "height": 740})
    assert page.title() == "made on A|B <CPU>, 2 cores"
    names = page.evaluate("[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent.trim())")
    for name in HOSTILE:
        assert " ".join(name.replace("\x1b", "\N{REPLACEMENT CHARACTER}").split()) in map(
            " ".join, map(str.split, names)
        )
    assert page.locator("img, script, style, iframe, object, embed, link").count() == 2
    assert page.locator("[onmouseover], [onerror]").count() == 0
    for mark in page.locator("a.note").all()[:8]:
        mark.hover()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_policy_refuses_what_is_not_ours(browser, small, tmp_path):
    """As if an escape had been forgotten: even then nothing runs and nothing is loaded."""
    spoilt = tmp_path / "spoilt.html"
    wild = (
        "<script>document.title='pwned'</script><img src=http://example.invalid/x onerror=\"document.title='pwned'\">"
    )
    spoilt.write_text(small.read_text(encoding="utf-8").replace("</main>", f"{wild}</main>"), encoding="utf-8")
    context, refused = browser.new_context(), []
    page = context.new_page()
    page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    page.goto(spoilt.as_uri())
    assert "pwned" not in page.title() and page.locator("thead button").count() > 0
    assert refused == [("http://example.invalid/x", "csp")]
    context.close()


LOW_CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const inked = element instanceof SVGTextElement;
    if (!own || !element.checkVisibility() || element.closest("script, .skip, .unseen, :disabled")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(inked ? style.fill : style.color)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 40)} ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_hard_to_read_in_either_theme(opened, small, theme):
    page = opened(small, color_scheme=theme)
    assert page.evaluate(LOW_CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")


def test_on_a_phone_tables_scroll_and_the_page_does_not(opened, made):
    rungs = tuple(f"student-with-a-name-{n}" for n in range(12))
    path = made("big", big_ladder(rungs))
    page = opened(path, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth > box.clientWidth)")
    assert any(boxes)
    table = table_named(page, "cpu, 1 thread, batch 32")
    box = page.locator(".scroll", has=page.locator(f"#{table}"))
    box.evaluate("box => box.scrollTo(400, 200)")
    head, name = (page.locator(f"#{table} {cell}").first.bounding_box() for cell in ("thead th", "tbody th"))
    frame = box.bounding_box()
    assert abs(head["y"] - frame["y"]) < 2 and abs(head["x"] - frame["x"]) < 2 and abs(name["x"] - frame["x"]) < 2


def test_print_has_all_rows_and_columns_and_no_controls(opened, made):
    rungs = tuple(f"student-with-a-name-{n}" for n in range(12))
    path = made("big", big_ladder(rungs))
    page = opened(path, "#?q=name-3&backend=cpu", viewport={"width": 965, "height": 700})  # of a letter
    assert 0 < page.locator("tbody tr:visible").count() < page.locator("tbody tr").count()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("tbody tr:visible").count() == page.locator("tbody tr").count()
    assert not page.locator("#filters").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 965
    assert page.locator(".notes li:visible").count() == page.locator(".notes li").count() > 0


def test_without_scripts_it_is_a_plain_page(opened, small):
    page = opened(small, java_script_enabled=False)
    assert page.locator("tbody tr:visible").count() == page.locator("tbody tr").count() > 5
    assert not page.locator("#filters").is_visible() and page.locator("button:visible").count() == 0
    assert page.locator(".plots g > title").count() >= 8
    assert page.locator("a.note[title='of beta: mind it']").count() == 2  # one a batch


def test_the_command_can_be_copied(opened, small):
    page = opened(small, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("kdbench bench rung-0.onnx rung-1.onnx")


def test_several_files_and_comparisons_have_contents_and_stand_side_by_side(opened, made):
    first = ladder_of(("teacher", "student"), machine=MACHINE)
    second = ladder_of(("teacher", "student", "other"), machine=MACHINE.model_copy(update={"name": "there"}))
    page = opened(made("several", first, second))
    assert page.title() == "2 measurements on 2 machines"
    links = page.get_by_role("navigation").get_by_role("link").all()
    assert len(links) == 3 and all(page.locator(link.get_attribute("href")).count() == 1 for link in links)
    page.locator("select[name=measurement]").select_option("made, there, 2026-01-02")
    assert "other" in column(page, table_named(page, "median latency, 1 thread, batch 32"), "rung")  # of both of them
    assert page.locator("table:visible", has_text="1 thread, batch 32, against teacher").count() == 1


def test_a_file_from_before_there_were_fingerprints_is_of_no_machine_of_its_own():
    machines = MACHINE, MACHINE.model_copy(update={"fingerprint": MACHINE.hardware})
    page = to_page([ladder_of(("teacher", "student"), machine=machine) for machine in machines])
    assert "<title>2 measurements on 1 machine</title>" in page


def test_equal_results_give_an_equal_page_smaller_than_a_megabyte():
    published = load_ladders([PUBLISHED])[:1]
    plots = plots_of(published)
    page = to_page(published, (), plots)
    assert page == to_page(published, (), plots)
    assert len(page.encode()) < 400_000
    assert "student-int8 is the fastest rung without a proven loss of accuracy: from 3.9" in page
    assert "<pre>kdbench run digits</pre>" in page
