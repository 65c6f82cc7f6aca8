"""The ablation table as files: CSV, Markdown, LaTeX, terminal and figures."""

import csv
import difflib
import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tables_study import (
    BONUS,
    GRID,
    complete,
    finish,
    result_of,
    row,
    study,
    troubled,
)

from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.metric import PERCENT, PLAIN, Metric, scale_of
from furnace_hpc.tables.output.captions import caption
from furnace_hpc.tables.output.cells import all_cells
from furnace_hpc.tables.output.figures import _differences_figure, draw_figures
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_runs_csv, to_terminal
from furnace_hpc.tables.reading.curves import curves_of
from furnace_hpc.tables.table import Ablation

GOLDEN = Path(__file__).parents[1] / "support" / "golden"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ablation:
    return complete(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> Ablation:
    return troubled(tmp_path_factory.mktemp("holes"))


# Numbers and captions


def test_scales():
    assert scale_of("test/digit/accuracy") is PERCENT
    assert scale_of("val/genre/f1_macro") is PERCENT
    assert scale_of("test/digit/loss") is PLAIN
    assert PERCENT.show(0.84149) == "84.1"
    assert PERCENT.show(-0.0004, signed=True) == "+0.0"
    assert PERCENT.show(-0.00051, signed=True) == "-0.1"
    assert PLAIN.show(0.123456) == "0.1235"


def test_metric_has_names_and_direction():
    higher, lower = Metric("test/digit/accuracy@text", "max"), Metric("val/a/loss", "min")
    assert (higher.split, higher.task, higher.short_name) == ("test", "digit", "accuracy@text")
    assert (higher.better, lower.better) == ("higher", "lower")


def test_digits_follow_the_deviation():
    """Two significant digits of the standard deviation."""
    cases = {0.0072: "84.15", 0.032: "84.1", 0.12: "84", 0.000031: "84.1490", 0.0995: "84"}
    for deviation, text in cases.items():
        assert PERCENT.for_deviation(deviation).show(0.84149) == text
    assert PERCENT.for_deviation(0.0994).show(0.0994) == "9.9"
    assert PLAIN.for_deviation(0, 0.00001234).show(0.00001234) == "0.000012"
    assert PLAIN.for_deviation(None, 0.5).show(0.5) == "0.5000"
    assert PLAIN.for_deviation(250.0).show(1234.5) == "1234"
    assert PERCENT.show_deviation(0.0) == "0"


def test_an_interval_without_zero_shows_none():
    for interval in ((0.00004, 0.03), (-0.02, -0.0000004)):
        scale = PERCENT.for_interval(interval)
        assert all(float(scale.show(bound)) for bound in interval)
    assert PERCENT.for_interval((0.0, 0.01)) is PERCENT


def test_small_values_are_not_shown_as_zero(tmp_path):
    """They would all be bold, as `0.0000 ± 0.0000`."""
    grid, runs = study(metric="test/digit/loss")
    folder = GridFolder(tmp_path)
    for number, spec in enumerate(runs):
        loss = {"full": 1.0e-6}.get(spec.variant, 3.0e-6) + 1e-8 * (number * 7 % 3)
        finish(spec, folder, metrics={"test/digit/loss": loss})
    cells = all_cells(collect(grid, runs, folder))
    assert cells[3].mean == "0.0000010080"
    assert cells[3].spread == "± 0.0000000084"
    assert [found.best for found in cells] == [False, False, False, True]
    assert cells[3].difference.startswith("-0.0000020")


def test_best_follows_the_direction(tmp_path):
    """Rows with the same displayed mean are both best."""
    grid, runs = study(metric="test/digit/loss", direction="min")
    folder = GridFolder(tmp_path)
    losses = {"base": 0.5, "consistency_only": 0.40001, "specific_only": 0.40002, "full": 0.6}
    for spec in runs:
        finish(spec, folder)
        content = result_of(spec).model_dump()
        content["metrics"]["test/digit/loss"] = losses[spec.variant]
        write_json(folder.run(spec.run_id).result, content)
    cells = all_cells(collect(grid, runs, folder))
    assert [cell.best for cell in cells] == [False, True, True, False]
    assert cells[1].mean == "0.4000"
    assert cells[1].difference == "-0.1000"  # the same in every seed


def test_caption_names_step_and_marks(whole, tmp_path):
    text = " ".join(caption(whole, ()))
    assert "best val/digit/accuracy, evaluated every 100 of 500 steps" in text
    assert "No row has a mark" not in text
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        noise = 0.02 * (-1) ** (spec.config.seed + (spec.variant == "full"))
        finish(spec, folder, accuracy=0.8 + noise * (1 + spec.config.seed))
    assert "No row has a mark. This does not show that rows are equal." in " ".join(
        caption(collect(grid, runs, folder), ())
    )


def test_caption_warns_of_optimistic_values(tmp_path):
    """They are optimistic if the table shows the split that selected the step."""
    text = " ".join(caption(complete(tmp_path, metric="val/digit/accuracy"), ()))
    assert "The same split selected the step, so the values are optimistic." in text


def test_caption_of_the_last_step(tmp_path):
    base = GRID["base"] | {"evaluation": {"every": 500, "select": "best"}}
    text = " ".join(caption(complete(tmp_path, metric="val/digit/accuracy", base=base), ()))
    assert "Measured at the last step (500)." in text
    assert "optimistic" not in text


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.tex", "runs.csv"])
@pytest.mark.parametrize("case", ["whole", "holes"])
def test_golden_files(name, case, request):
    write = {
        "table.csv": to_csv,
        "table.md": to_markdown,
        "table.tex": to_latex,
        "runs.csv": to_runs_csv,
    }[name]
    check_golden(f"{case}-{name}", write(request.getfixturevalue(case)))


def check_golden(name: str, text: str) -> None:
    # changes with every new field of the config
    text = re.sub(r"(-s\d+)-[0-9a-f]{8}\b", r"\1-identity", text)
    path = GOLDEN / name
    if os.environ.get("FURNACE_RENEW_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = ""
    if path.exists():
        golden = path.read_text(encoding="utf-8")
    if text != golden:
        lines = difflib.unified_diff(
            golden.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
        )
        pytest.fail(
            "\n".join(
                [*lines, "", f"if the change is intended: FURNACE_RENEW_GOLDEN=1 pytest {__file__}"]
            ),
            pytrace=False,
        )


def test_order_of_creation_changes_no_byte(holes, tmp_path):
    other = troubled(tmp_path, order=7)
    for write in (to_csv, to_markdown, to_latex, to_runs_csv):
        assert write(other) == write(holes)
    assert draw_figures(other) == draw_figures(holes)


def test_csv_has_raw_numbers_and_empty_cells(holes):
    lines = list(csv.DictReader(io.StringIO(to_csv(holes))))
    assert float(lines[0]["mean"]) == row(holes, "base").mean
    assert lines[0]["difference"] == ""
    runs = list(csv.DictReader(io.StringIO(to_runs_csv(holes))))
    assert len(runs) == 20
    by_name = {(line["variant"], line["seed"]): line for line in runs}
    assert by_name["base", "4"]["state"] == "new"
    assert by_name["base", "4"]["test/digit/accuracy"] == ""
    assert by_name["consistency_only", "1"]["test/digit/accuracy"] == "nan"
    assert by_name["full", "0"]["config.loss.alpha"] == "0.5"
    assert by_name["base", "0"]["config.loss.alpha"] == "0"
    assert by_name["full", "0"]["parameters_sha256"] == "0" * 64


def test_terminal_shows_every_row(holes):
    """Brackets are no markup."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=160).print(to_terminal(holes))
    for variant in BONUS:
        assert variant in text.getvalue()
    assert all_cells(holes)[1].difference in text.getvalue()
    assert "4 of 5" in text.getvalue()


def test_latex_is_well_formed(holes):
    text = to_latex(holes)
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    columns = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if r"\\" in line}
    assert columns == {2}
    bare = re.sub(r"\\[\\{}$]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "%" not in re.sub(r"\\%", "", text.split("\\toprule", 1)[1].split("\n% ", 1)[0])


# Figures


def test_forest_plot_has_pairs_interval_and_band(tmp_path):
    """Dots, interval and mean are those of the table, in points."""
    ablation = complete(tmp_path, sesoi=0.5)
    (axes,) = _differences_figure(ablation).axes
    full, base = row(ablation, "full"), row(ablation, "base")
    lines = [list(line.get_xdata()) for line in axes.lines]
    pairs = [100 * (full.values[draw] - base.values[draw]) for draw in full.values]
    assert pytest.approx(pairs) in lines
    assert pytest.approx([100 * bound for bound in full.difference.simultaneous]) in lines
    assert lines[0] == [0, 0]
    (band,) = axes.patches
    assert (band.get_x(), band.get_width()) == (-0.5, 1.0)
    assert axes.get_xlabel() == "test/digit/accuracy: difference to base (points), higher is better"
    view = replace(ablation, why_no_verdict="A view.")
    (axes,) = _differences_figure(view).axes
    assert not axes.patches
    assert "not corrected" in axes.get_title("left")


def test_one_row_has_no_forest_plot(tmp_path):
    names = draw_figures(complete(tmp_path, variants={"base": {}}))
    assert "differences.svg" not in names
    assert "means.svg" in names


def test_curve_has_the_steps_of_all_seeds(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec, values in zip(
        runs[:2], [{100: 0.2, 200: 0.5}, {100: 0.4, 200: math.nan, 300: 0.9}], strict=True
    ):
        run = finish(spec, folder)
        run.metrics(1).unlink()
        metrics = MetricsFile(run.metrics(1))
        for step, value in values.items():
            metrics.write({"step": step, "kind": "val", "val/digit/accuracy": value})
        metrics.close()
    curve = curves_of(collect(grid, runs, folder), ["val/digit/accuracy"])[0][0]
    assert curve.steps == [100]
    assert curve.mean == pytest.approx([0.3])
    assert (curve.low, curve.high) == ([0.2], [0.4])


def test_figures_name_rows_axes_and_units(whole):
    files = draw_figures(whole)
    assert all(files[f"{name}.png"].startswith(b"\x89PNG") for name in ("means", "curves", "cost"))
    svg = "".join(content.decode() for name, content in files.items() if name.endswith(".svg"))
    assert "<dc:date>" not in svg
    for text in ("optimizer steps", "test/digit/accuracy (%)", "consistency_only"):
        assert f"<!-- {text} -->" in svg
