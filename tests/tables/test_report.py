"""The report in a real browser. Its bytes depend only on the runs."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from foreign_runs import table_of, wide_lines, write_csv
from report_study import ERROR, make, noisy, open_browser, overlap
from tables_study import complete, finish, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.modality_subsets import consistency_blocks, modality_matrix
from furnace_hpc.tables.output.figures import _consistency_figure, draw_figures
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.table import Ablation


def table(folder: GridFolder) -> Ablation:
    grid, runs = study()
    return collect(grid, runs, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> GridFolder:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(folder) -> Path:
    path = folder.path.with_name("report.html")
    path.write_text(to_html(table(folder)), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    """The report, opened offline. A console message or a network request fails the test."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert messages == [path.as_uri()]


def test_another_tools_run_has_only_what_is_known(browser, tmp_path):
    lines = wide_lines()
    lines[5]["acc"] = "NaN"
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    path = tmp_path / "report.html"
    path.write_text(to_html(ablation), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.get_by_role("heading", name="Means").count() == 1
    for name in ("Learning curves", "Score against cost"):
        assert page.get_by_role("heading", name=name).count() == 0
    page.locator("#table tbody th button", has_text="big").click()
    text = page.get_by_role("dialog", name="big").inner_text()
    assert f"{tmp_path}/runs.csv:6" in text
    assert "failed: acc is NaN" in text
    assert "attempts" not in text
    assert "null" not in text
    assert "selected step" not in text
    assert "The files name no setting in which this row differs from base." in text
    page.close()
    assert errors == []


def variants(page) -> list[str]:
    """Names of the visible rows, without the letters of their footnotes."""
    buttons = page.locator("#table tbody th button:visible").all()
    return [button.evaluate("node => node.firstChild.textContent").strip() for button in buttons]


def test_a_heading_sorts_the_rows(page):
    """The third click restores the grid's order."""
    order = variants(page)
    head = page.locator("#table th[data-column=metric]")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = [
        float(text.split()[0])
        for text in page.locator("#table tbody td:nth-child(4)").all_inner_texts()
    ]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 2
    head.get_by_role("button").click()
    up = [
        float(text.split()[0])
        for text in page.locator("#table tbody td:nth-child(4)").all_inner_texts()
    ]
    assert up == sorted(down)
    head.get_by_role("button").click()
    assert variants(page) == order


def test_the_filter_keeps_matching_rows(page):
    page.get_by_label("Filter rows").fill("loss.beta full")
    assert variants(page) == ["full"]
    assert page.get_by_role("status").first.inner_text() == "1 of 4 rows"


def test_a_cell_opens_its_runs(page):
    """It does so after sorting too, and by keyboard."""
    page.locator("#table th[data-column=metric] button").click()
    page.locator("#table tbody th button", has_text="specific_only").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="specific_only")
    text = dialog.inner_text()
    assert "In the mean: 4 of 5 runs." in text
    assert "loss.beta" in text
    assert "0 → 0.3" in text
    assert ERROR in text
    for spec in study()[1]:
        assert (spec.run_id in text) == (spec.variant == "specific_only")
    assert "17_3" in text
    assert "1234567" in text
    assert "/logs/1-0.log" in text
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_pointer_and_arrow_keys_select_a_step(page):
    chart = page.locator("svg[tabindex='0']").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    assert page.locator("#step").inner_text() == "step 100"
    values = page.locator(".legend .value").all_inner_texts()
    assert len(values) == 4
    assert all(values)
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#step").inner_text() == "step 200"
    assert page.locator(".legend .value").all_inner_texts() != values
    assert "at step 200: base " in chart.get_attribute("aria-label")


def test_narrow_screen_and_dark_mode(page):
    """A phone scrolls the page in one direction only."""
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    heads, cells = (
        page.locator(f"#table {part} tr").first.locator("th:visible, td:visible").count()
        for part in ("thead", "tbody")
    )
    assert heads == cells
    page.locator("#table tbody th button", has_text="full").focus()
    page.keyboard.press("ArrowRight")  # over columns that a phone does not show
    assert "±" in page.evaluate("document.activeElement.textContent")
    labels = [label.bounding_box() for label in page.locator("svg .mark text.name").all()]
    assert len(labels) >= 4
    assert not any(overlap(one, other) for at, one in enumerate(labels) for other in labels[:at])
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.get_by_label("Light or dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_first_screen_has_verdicts_and_forest_plot(page):
    """So is the difference of each row, on a phone too."""
    for width, height in ((1400, 900), (400, 800)):
        page.set_viewport_size({"width": width, "height": height})
        plot = page.locator("#differences svg")
        for part in (page.locator(".verdicts li").last, plot):
            box = part.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height
        region = page.locator("#table").locator("..").bounding_box()
        for cell in page.locator("#table td.difference").all():
            box = cell.bounding_box()
            assert box["width"] > 40
            assert box["x"] + box["width"] <= region["x"] + region["width"]


def test_the_forest_plot_has_the_pairs(page):
    """One dot per seed, the interval of the table, zero, and no mark for a failed run."""
    rows = page.locator("#differences .mark")
    assert [row.locator("circle.seed").count() for row in rows.all()] == [5, 4, 5]
    label = rows.nth(0).get_attribute("aria-label")
    assert label.startswith("consistency_only: difference 1.2")
    assert label.endswith("5 pairs, undecided")
    assert page.locator("#differences .zero").count() == 1
    assert page.locator("#differences .sesoi").count() == 0
    rows.nth(2).press("Enter")
    assert page.get_by_role("dialog", name="full").is_visible()


@pytest.mark.slow
def test_order_and_place_of_files_change_no_byte(folder, tmp_path):
    expected = table(folder)
    page, drawn = to_html(expected), draw_figures(expected)
    for seed in range(5):
        files = sorted(path for path in folder.path.rglob("*") if path.is_file())
        random.Random(seed).shuffle(files)
        copied = tmp_path / str(seed) / "runs" / "study"
        for file in files:
            place = copied / file.relative_to(folder.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        other = table(GridFolder(copied))
        assert to_html(other) == page
        if seed == 0:
            assert draw_figures(other) == drawn


def test_matrices_of_subsets_and_consistency(folder, tmp_path):
    """Small subsets come first. Results without subsets have no matrix."""
    ablation = table(folder)
    matrix = modality_matrix(ablation)
    assert matrix.columns == ("text", "image", "audio", "text+image", "text+image+audio")
    assert matrix.means[0][0] == pytest.approx(0.82 / 4)
    assert matrix.counts[2][0] == 4
    assert max(map(max, matrix.shades())) == 0  # these rows differ by noise
    clear = modality_matrix(noisy(tmp_path / "clear"))
    for shades in zip(*clear.shades(), strict=True):
        base, equivalent, worse, better = shades
        assert (base, equivalent) == (0, 0)
        assert worse < -0.5 < 0.5 < better
    (block,) = consistency_blocks(ablation)
    assert (block.title, block.columns) == ("text and image", ("cosine_matched", "auc", "gap"))
    plain = complete(tmp_path)
    assert (modality_matrix(plain), consistency_blocks(plain)) == (None, [])
    assert "Subsets of the modalities" not in to_html(plain)


def test_heat_maps_have_names_and_digits_of_the_report(folder):
    """Small cosines and recalls are not all 0.00, and -0.0004 is no negative zero."""
    (block,) = consistency_blocks(table(folder))
    means = ((0.0014, -0.0004, 0.9645), *block.means[1:])
    block = replace(block, means=means, columns=("text+image", "auc", "gap"))
    figure = _consistency_figure([block], [0, 1])
    [axes] = figure.axes
    assert [label.get_text() for label in axes.texts][:3] == ["0.001", "0.000", "0.965"]
    assert axes.get_xticklabels()[0].get_text() == "text +\nimage"


@pytest.mark.slow
def test_outdated_figures_are_removed(folder, tmp_path):
    grid, runs = study()
    out = tmp_path / "out"
    write_results(collect(grid, runs, folder), out)
    assert len(list((out / "figures").iterdir())) == 12
    plain = GridFolder(tmp_path / "plain")
    for spec in runs:
        finish(spec, plain)
    write_results(collect(grid, runs, plain), out)
    assert sorted(path.name for path in (out / "figures").glob("*.png")) == [
        "cost.png",
        "curves.png",
        "differences.png",
        "means.png",
    ]
