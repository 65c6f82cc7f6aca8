"""The report of a table with thousands of rows, in a real browser."""

import re
from pathlib import Path

import pytest
from foreign_runs import table_of, write_csv
from report_study import noisy, open_browser

from furnace_hpc.tables.large import drawn
from furnace_hpc.tables.large.drawn import drawn_rows, drawn_sentence, drawn_table
from furnace_hpc.tables.output import figures
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation

NUM_ROWS = 2_000
ROWS = """() => [...document.querySelectorAll("#table tbody tr[data-row]")].map((row) =>
  [row.dataset.row, row.innerHTML])"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Ablation:
    """A table with one run per row."""
    lines = [
        {"variant": f"row{number}", "seed": 0, "acc": 0.3 + number * 7919 % NUM_ROWS / 4_000}
        for number in range(1, NUM_ROWS)
    ]
    lines.insert(0, {"variant": "base", "seed": 0, "acc": 0.31})
    return table_of(write_csv(tmp_path_factory.mktemp("many") / "runs.csv", lines))


@pytest.fixture(scope="module")
def long_path(many, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(to_html(many), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, long_path):
    """The long report. An error in its scripts fails the test."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(long_path.as_uri())
    yield page
    page.close()
    assert errors == []


def names(page) -> list[str]:
    cells = page.locator("#table tbody th[scope=row]:visible span")
    return cells.all_inner_texts()


def test_rows_drawn_by_scripts_equal_the_html(browser, tmp_path, monkeypatch):
    """A row of a long table has the cells that a short table has in its HTML."""
    found = {}
    for most in (500, 3):
        monkeypatch.setattr(drawn, "MAX_PLAIN", most)
        path = tmp_path / f"{most}.html"
        variants = {"base": {}, "with_a-name": {"loss.alpha": 0.5}, "full": {"loss.beta": 0.3}}
        variants |= {"two": {"loss.alpha": 0.5, "loss.beta": 0.3}}
        path.write_text(to_html(noisy(tmp_path / str(most), variants=variants)), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(path.as_uri())
        states = [page.evaluate(ROWS)]
        page.get_by_label("Metric").select_option("test/digit/loss")
        states.append(page.evaluate(ROWS))
        page.locator("#table th[data-column=metric] button").click()
        states.append(page.evaluate(ROWS))
        page.get_by_label("Filter rows").fill("loss.alpha")
        states.append(names(page))
        found[most] = states
        page.close()
    assert found[3][:3] == found[500][:3]
    assert len(found[3][0]) == 4
    assert "<wbr>" in found[3][0][1][1]
    assert found[3][3] == found[500][3]
    assert set(found[3][3]) == {"two", "with_a-name"}


def test_only_rows_in_view_are_drawn(page):
    """The page says so, and scrolling shows the others without a change of widths."""
    assert len(names(page)) < 80
    assert page.locator("#table").get_attribute("aria-rowcount") == str(NUM_ROWS + 1)
    assert "2,000 rows, drawn while you scroll" in page.locator("#more-rows").inner_text()
    widths = "[...document.querySelectorAll('#table thead th')].map((head) => head.offsetWidth)"
    before = page.evaluate(widths)
    region = page.locator("#table").locator("..")
    region.evaluate("node => node.scrollTop = node.scrollHeight")
    page.locator(f'#table tr[data-row="{NUM_ROWS - 1}"]').wait_for()
    last = page.locator("#table tbody tr[data-row]").last
    assert last.get_attribute("aria-rowindex") == str(NUM_ROWS + 1)
    box, frame = last.bounding_box(), region.bounding_box()
    assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1
    assert page.evaluate(widths) == before
    region.evaluate("node => node.scrollTop = node.scrollHeight / 2")
    page.locator(f'#table tr[data-row="{NUM_ROWS // 2}"]').wait_for()
    heights = page.locator("#table tbody tr[data-row]").evaluate_all(
        "rows => rows.map((row) => row.offsetHeight)"
    )
    assert len(set(heights)) == 1


def test_all_rows_are_sorted_and_searched(page, many):
    """Also those that are not drawn."""
    page.locator("#table th[data-column=metric] button").click()
    best = sorted(many.rows, key=lambda row: -row.mean)
    assert names(page)[:20] == [row.variant for row in best[:20]]
    page.get_by_label("Filter rows").fill("row177")
    expected = [row.variant for row in best if "row177" in row.variant]
    assert names(page) == expected
    assert page.get_by_role("status").first.inner_text() == f"11 of {NUM_ROWS} rows"
    assert len(expected) == 11
    page.locator("#table tbody th button", has_text="row1775").click()
    assert page.get_by_role("dialog", name="row1775").is_visible()
    page.keyboard.press("Escape")
    page.get_by_label("Filter rows").fill("")
    assert page.get_by_role("status").first.inner_text() == f"{NUM_ROWS} of {NUM_ROWS} rows"


def test_arrow_keys_reach_rows_that_were_not_drawn(page):
    page.locator("#table tbody th button").first.focus()
    for _ in range(120):
        page.keyboard.press("ArrowDown")
        page.evaluate("new Promise(requestAnimationFrame)")
    assert page.evaluate("document.activeElement.closest('tr').dataset.row") == "120"


def test_printing_draws_all_rows(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#table tbody tr[data-row]").count() == NUM_ROWS
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(names(page)) < 80


def test_long_table_without_scripts(browser, long_path):
    """It has the first rows, and says where the others are."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(long_path.as_uri())
    assert names(page) == ["base", *(f"row{number}" for number in range(1, 100))]
    text = page.locator("#more-rows").inner_text()
    assert text.startswith("The first 100 of 2,000 rows.")
    assert "table.csv" in text
    context.close()


def test_charts_draw_the_best_rows(page, many):
    """And the reference. Each place says which rows these are."""
    best = sorted(many.rows[1:], key=lambda row: -row.mean)[: drawn.MAX_DRAWN - 1]
    assert {row.variant for row in drawn_table(many).rows} == {
        "base",
        *(row.variant for row in best),
    }
    assert list(drawn_rows(many)) == sorted(drawn_rows(many))
    sentence = drawn_sentence(many)
    assert sentence == "50 of 2,000 rows: base and the best means of acc"
    means = page.locator("section", has=page.get_by_role("heading", name="Means"))
    assert means.locator(".mark").count() == drawn.MAX_DRAWN
    assert page.get_by_text(f"Charts show {sentence}.").count() >= 1
    label = means.locator(".mark").nth(3).get_attribute("aria-label")
    name = re.match(r"(\w+): mean", label)[1]
    means.locator(".mark").nth(3).press("Enter")
    assert page.get_by_role("dialog", name=name, exact=True).is_visible()


def test_lower_is_better_and_rows_without_a_mean(tmp_path):
    """The lowest means are drawn then. Equal ones are taken in the grid's order."""
    lines = [{"variant": "base", "seed": 0, "loss": 9.0}]
    lines += [{"variant": f"r{n}", "seed": 0, "loss": float(n // 2)} for n in range(101)]
    lines += [{"variant": f"broken{n}", "seed": 0, "loss": "nan"} for n in range(60)]
    table = table_of(write_csv(tmp_path / "runs.csv", lines), metric="loss", direction="min")
    expected = ["base", *(f"r{n}" for n in range(drawn.MAX_DRAWN - 1))]
    assert [row.variant for row in drawn_table(table).rows] == expected


def test_figures_draw_the_same_rows(tmp_path, monkeypatch):
    """And say which. Shades of heat maps are those of the whole table."""
    monkeypatch.setattr(drawn, "MAX_DRAWN", 3)
    ablation, seen = noisy(tmp_path), []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: seen.append(figure))
    figures.draw_figures(ablation)
    sentence = "3 of 4 rows: base and the best means of test/digit/accuracy"
    assert {figure.get_suptitle().replace("\n", " ") for figure in seen} == {sentence}
    named = {figure.axes[0].get_title(loc="left"): figure.axes[0] for figure in seen}
    means = named["mean with 95 % interval; dots: seeds"]
    names = [label.get_text().replace("\n", "") for label in means.get_yticklabels()]
    assert names == ["base", "consistency_only", "full"]  # without the worst
    (heat,) = (axes for title, axes in named.items() if "subsets of the modalities" in title)
    shades = figures.modality_matrix(ablation).shades()
    expected = [shades[number] for number in drawn_rows(ablation)]
    assert heat.images[0].get_array().tolist() == expected
    assert shades[2][0] < 0 < shades[3][0]
