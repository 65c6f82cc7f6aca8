"""What a reader does in a report, in a real browser: pairs, logs, copies, other metrics."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from report_study import make, noisy, open_browser, overlap
from tables_study import finish, study
from tuned_study import end_trials, folder_at, rows_of, trials_of, tuned_grid

from furnace_hpc.api.grid_table import make_table
from furnace_hpc.monitor.tuning import next_stage
from furnace_hpc.runs.state import read_status
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.cells import DASH
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.view import View

RENDER = Path(__file__).parents[2] / "docs" / "render_pictures.py"
TEXT_AREA = "Object.assign(document.createElement('textarea'), {id: 'pasted'})"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("width", [400, 1400])
def test_text_of_the_tuning_chart_can_be_read(browser, tmp_path, width):
    """On a phone too: at least 11 pixels, inside the picture, and no text over another."""
    grid, folder = tuned_grid(), folder_at(tmp_path)
    for trials, best in zip(trials_of(grid), (0.5, 0.6), strict=True):
        end_trials(trials, folder, 0.2, 0.4, best)
    prints = {"tridigits": "feed" * 4}
    stage = next_stage(grid, rows_of(grid), prints, folder, read_status, write=True)
    for run in stage.runs:
        finish(run, folder)
    (tmp_path / "report.html").write_text(to_html(make_table(grid, folder, View())))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    chart = page.locator("section[aria-labelledby=tuning-title] svg")
    frame, texts = chart.bounding_box(), chart.locator("text").all()
    assert len(texts) >= 11
    scale = chart.evaluate("svg => svg.getScreenCTM().a")
    boxes = []
    for text in texts:
        size = text.evaluate("text => parseFloat(getComputedStyle(text).fontSize)")
        assert size * scale >= 11
        box = text.bounding_box()
        assert box["x"] >= frame["x"]
        assert box["x"] + box["width"] <= frame["x"] + frame["width"]
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1
        assert not [other for other in boxes if overlap(box, other)]
        boxes.append(box)
    page.close()


@pytest.fixture
def written(browser, tmp_path):
    """The report of a study with logs, where `aggregate` writes it."""
    write_results(noisy(tmp_path), tmp_path / "results" / "study", figures=False)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / "results" / "study" / "report.html").as_uri())
    yield page
    context.close()


def test_the_band_is_the_smallest_effect_of_interest(written):
    """It is two points wide, from -1 to +1."""
    band, zero = written.locator("#differences .sesoi"), written.locator("#differences .zero")
    left, width = float(band.get_attribute("x")), float(band.get_attribute("width"))
    assert left + width / 2 == pytest.approx(float(zero.get_attribute("x1")))
    scale = written.locator("#differences g[aria-hidden]")
    ticks = [float(text) for text in scale.locator("text").all_text_contents()[:-1]]
    lines = [float(line.get_attribute("x1")) for line in scale.locator("line").all()]
    point = (lines[-1] - lines[0]) / (ticks[-1] - ticks[0])
    assert width == pytest.approx(2 * point)


def test_a_dialog_has_pairs_and_a_log(written):
    """The link of a log is relative to the report, so it survives a copy of both folders."""
    written.locator("#table tbody th button", has_text="full").click()
    dialog = written.get_by_role("dialog", name="full")
    pairs = dialog.locator("table.pairs tbody tr")
    assert pairs.count() == 5
    name, value, reference, difference = pairs.first.locator("td").all_inner_texts()
    assert name == "seed 0"
    assert float(difference) == pytest.approx(float(value) - float(reference), abs=0.02)
    assert dialog.locator(".costs dd").first.inner_text() == "62 (60.0 to 64.0)"
    link = dialog.locator("a").first
    assert link.get_attribute("href").startswith("../../runs/study/full-s0-")
    with written.context.expect_page() as opened:
        link.click()
    assert opened.value.locator("body").inner_text() == "rank 0 writes this"
    written.keyboard.press("Escape")
    written.locator("#table tbody th button", has_text="base").click()
    assert written.get_by_role("dialog", name="base").locator("a").count() == 0


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_table_is_copied(written, tmp_path, has_clipboard):
    """Without the clipboard API the page copies a selection."""
    if has_clipboard:
        written.context.grant_permissions(["clipboard-read", "clipboard-write"])
    else:
        written.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    for name, file in {"LaTeX": "table.tex", "CSV": "table.csv", "Markdown": "table.md"}.items():
        written.get_by_role("button", name=name).click()
        written.get_by_text(f"copied the table as {name}").wait_for()
        written.evaluate(f"document.body.append({TEXT_AREA})")
        written.locator("#pasted").focus()
        written.keyboard.press("Control+V")
        pasted = written.locator("#pasted").input_value()
        assert pasted == (tmp_path / "results" / "study" / file).read_text(encoding="utf-8")
        written.evaluate("document.getElementById('pasted').remove()")


def test_another_metric_has_no_verdict(written):
    """It changes cells and charts, and the page says why there are no marks."""
    cells = written.locator("#table td.difference")
    assert cells.nth(3).inner_text().endswith("]*")
    written.get_by_label("Metric").select_option("test/digit/loss")
    assert written.locator("#table th[data-column=metric]").inner_text().startswith("loss")
    text = cells.nth(3).inner_text()
    assert text.startswith("-0.03")
    assert text.endswith("]")
    assert written.locator("#table td.word").all_inner_texts() == [DASH] * 4
    assert "no marks, verdicts" in written.locator("#of-metric").inner_text()
    assert "not corrected" in written.locator("#of-metric").inner_text()
    assert "not corrected" in written.locator("#differences").inner_text()
    of_grid = written.locator(".of-grid")
    assert of_grid.count() == 3  # verdicts, explanation and notes, effects
    assert not any(text.is_visible() for text in of_grid.all())
    written.get_by_label("Metric").select_option("test/digit/accuracy")
    assert all(text.is_visible() for text in of_grid.all())
    assert cells.nth(3).inner_text().endswith("]*")
    assert written.locator("#of-metric").inner_text() == ""


def test_names_stay_and_hidden_columns_are_counted(written):
    from playwright.sync_api import expect

    written.set_viewport_size({"width": 700, "height": 900})
    name, region = written.locator("#table tbody th").first, written.locator("#table").locator("..")
    cue = written.locator("#cue")
    assert cue.inner_text().endswith("more columns →")
    before = name.bounding_box()["x"]
    region.evaluate("node => node.scrollLeft = 10000")
    expect(cue).to_have_text("")  # wait_for_function needs eval, which the page forbids
    assert name.bounding_box()["x"] == before
    first = written.locator("#table tbody td").first.bounding_box()
    assert first["x"] + first["width"] < before  # it is scrolled away


def test_many_undecided_rows_are_folded(tmp_path):
    variants = {"base": {}} | {f"row_{n}": {"loss.alpha": 0.1 * n} for n in range(1, 10)}
    page = to_html(noisy(tmp_path, variants=variants, seeds=[0, 1]))
    assert "<summary>9 rows are undecided</summary>" in page


@pytest.mark.slow
def test_pictures_of_the_docs_have_true_colour(browser, tmp_path):
    """Eight bits per channel, not a palette of 256 colours."""
    folder = make(tmp_path)
    rows = [
        {"row": number, "run_id": run.run_id, "to_do": False, "shape": None, "facts": {}}
        for number, run in enumerate(study()[1])
    ]
    listed = folder.new_submission() / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, out = tmp_path / "report.html", tmp_path / "pictures"
    report.write_text(to_html(collect(*study(), folder)), encoding="utf-8")
    command = [sys.executable, RENDER, "--report", report, "--status", "study"]
    command += ["--runs-root", folder.path.parent, "--out", out]
    subprocess.run(command, check=True, timeout=120)
    for name in ("report", "status"):
        head = (out / f"{name}.png").read_bytes()[:26]
        width, _, bits, kind = struct.unpack(">IIBB", head[16:26])
        assert width > 600
        assert (bits, kind in (2, 6)) == (8, True)


def test_without_scripts_verdicts_and_table_remain(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(noisy(tmp_path)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(".verdicts li").count() == 6  # rows and effects
    assert page.locator("#table td.difference").nth(3).inner_text().endswith("]*")
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert not page.get_by_label("Filter rows").is_visible()
    assert not page.locator("#copies").is_visible()
    context.close()
