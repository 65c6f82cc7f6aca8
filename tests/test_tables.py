"""The ablation table: statistics, collecting runs, and the files in each format."""

import csv
import difflib
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from furnace_hpc.runs import host
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records import MetricsFile, RunResult, write_result
from furnace_hpc.spec.config import RunSpec
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.grid import Grid
from furnace_hpc.spec.rows import expand
from furnace_hpc.tables import statistics
from furnace_hpc.tables.ablation import collect, differences
from furnace_hpc.tables.cells import PERCENT, PLAIN, all_cells, caption, scale_of
from furnace_hpc.tables.figures import draw_ablation, validation_curve
from furnace_hpc.tables.notes import describe
from furnace_hpc.tables.render import to_csv, to_latex, to_markdown, to_runs_csv, to_terminal
from furnace_hpc.tables.table import Ablation

GOLDEN = Path(__file__).parent / "golden"
FINGERPRINT = "feedfeedfeedfeed"
GRID = {
    "name": "study",
    "description": "Four loss variants, five seeds.",
    "base": {"deepspeed": "zero1", "steps": 500, "evaluation": {"every": 100, "select": "best"}},
    "seeds": [0, 1, 2, 3, 4],
    "reference": "base",
    "metric": "test/digit/accuracy",
    "variants": {
        "base": {},
        "consistency_only": {"loss.alpha": 0.5},
        "specific_only": {"loss.beta": 0.3},
        "full": {"loss.alpha": 0.5, "loss.beta": 0.3},
    },
}
BONUS = {"base": 0.0, "consistency_only": 0.02, "specific_only": -0.01, "full": 0.03}


def accuracy_of(spec: RunSpec) -> float:
    """An invented accuracy: differs by row and seed, the same each time."""
    seed, salt = spec.config.seed, sum(spec.variant.encode())
    return round(0.80 + BONUS[spec.variant] + 0.002 * ((seed * 7 + salt * seed * seed) % 11), 4)


def result_of(spec: RunSpec, **changes) -> RunResult:
    accuracy = changes.pop("accuracy", accuracy_of(spec))
    content = {
        "run_id": spec.run_id,
        "variant": spec.variant,
        "seed": spec.config.seed,
        "steps": 500,
        "selected_step": 400,
        "metrics": {
            "test/digit/accuracy": accuracy,
            "test/digit/loss": 0.5,
            "val/digit/accuracy": accuracy + 0.01,
        },
        "parameters_sha256": f"{spec.config.seed:064x}",
        "num_parameters": 187_402,
        "world_size": 2,
        "num_threads": 1,
        "attempts": 1,
        "train_s": 60.0 + spec.config.seed,
        "wall_s": 80.0,
        "samples_per_s": 250.0,
        "peak_memory_gib": 0.5 + 0.01 * spec.config.seed,
        "device": "a CPU",
        "precision": "bf16",
        "zero_stage": 1,
        "data_fingerprint": spec.data_fingerprint,
        "code_hash": "c0dec0de",
        "commit": "1234567",
        "versions": {"torch": "2.13.0"},
    }
    return RunResult.model_validate(content | changes)


def finish(spec: RunSpec, folder: GridFolder, **changes) -> RunFolder:
    """Leave a run folder as a finished run does."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    final = accuracy_of(spec)
    metrics = MetricsFile(run.metrics(1))
    for step in range(100, 501, 100):
        metrics.write({"step": step, "kind": "train", "loss": 1.0})
        metrics.write(
            {"step": step, "kind": "val", "val/digit/accuracy": final * (1 - 0.8 * 0.4 ** (step / 100))}
        )
    metrics.close()
    write_result(run, result_of(spec, **changes))
    return run


def fail(spec: RunSpec, folder: GridFolder, error: str) -> None:
    """Leave a run folder as a run whose first rank crashed."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    number = host.begin(str(run.path), {})
    write_json(run.verdict(number, 0), {"verdict": "crash", "error": error, "step": 120, "unix_s": 1.0})
    assert host.decide(str(run.path), number, 1) == "fail"


def study(**changes) -> tuple[Grid, list[RunSpec]]:
    grid = Grid.model_validate(GRID | changes)
    return grid, expand(grid, {"tridigits": FINGERPRINT})


def complete(path: Path, **changes) -> Ablation:
    grid, runs = study(**changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        finish(spec, folder)
    return collect(grid, runs, folder)


def troubled(path: Path, order: int = 0) -> Ablation:
    """A study in which everything that can be wrong is: for the golden files."""
    grid, runs = study(description="Loss terms at 100 % of R&D_budget: 5 $ ~ #1 {really}")
    folder = GridFolder(path / "study")
    shuffled = list(runs)
    random.Random(order).shuffle(shuffled)
    for spec in shuffled:
        match spec.variant, spec.config.seed:
            case "base", 4:
                pass  # never submitted
            case "consistency_only", 3:
                fail(spec, folder, "RuntimeError: a|b <c> 100% of x_y\n at C:\\tmp ☃")
            case "consistency_only", 1:
                finish(spec, folder, accuracy=math.nan)
            case "full", 0 | 1:
                finish(spec, folder, code_hash="01d01d01", world_size=4, commit=None)
            case "specific_only", seed if seed:
                pass
            case _:
                finish(spec, folder)
    older, _ = study(base=grid.base | {"steps": 400})
    finish(expand(older, {"tridigits": FINGERPRINT})[0], folder)
    finish(expand(grid, {"tridigits": "0" * 16})[0], folder)
    return collect(grid, runs, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ablation:
    return complete(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> Ablation:
    return troubled(tmp_path_factory.mktemp("holes"))


def row(ablation: Ablation, variant: str):
    return next(row for row in ablation.rows if row.variant == variant)


def notes(ablation: Ablation) -> str:
    return "\n".join(note.text for note in ablation.notes)


# Statistics


def test_t_interval_worked_by_hand():
    # values 1 2 3 4 5: mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445
    assert statistics.mean([1, 2, 3, 4, 5]) == 3
    assert statistics.sample_deviation([1, 2, 3, 4, 5]) == pytest.approx(math.sqrt(2.5), rel=1e-12)
    low, high = statistics.t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


def test_statistics_agree_with_scipy():
    import scipy.stats

    generator = random.Random(0)
    for n in (2, 3, 5, 10, 30):
        ours = [generator.gauss(0.8, 0.01) for _ in range(n)]
        theirs = [generator.gauss(0.79, 0.01) for _ in range(n)]
        oracle = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        difference = statistics.paired_difference(ours, theirs)
        assert difference.interval == pytest.approx((oracle.low, oracle.high), rel=1e-9)
        assert difference.n == n
        one = scipy.stats.ttest_1samp(ours, 0).confidence_interval(0.99)
        assert statistics.t_interval(ours, 0.99) == pytest.approx((one.low, one.high), rel=1e-9)


def test_too_few_values_give_none():
    assert statistics.mean([]) is None
    assert statistics.sample_deviation([1.0]) is None
    assert statistics.t_interval([1.0]) is None
    assert statistics.paired_difference([], []) is None
    assert statistics.paired_difference([2.0], [1.5]) == statistics.Difference(0.5, None, 1)
    with pytest.raises(ValueError, match="zip"):
        statistics.paired_difference([1.0], [])


# Collecting


def test_complete_table(whole):
    assert [row.variant for row in whole.rows] == list(BONUS)
    base, full = row(whole, "base"), row(whole, "full")
    values = [accuracy_of(run.spec) for run in base.runs]
    assert base.values == dict(zip(range(5), values, strict=True))
    assert base.mean == pytest.approx(sum(values) / 5, rel=1e-12)
    assert base.difference is None
    others = [accuracy_of(run.spec) for run in full.runs]
    assert full.difference.mean == pytest.approx(sum(others) / 5 - sum(values) / 5, abs=1e-12)
    assert full.difference.n == 5
    assert base.costs.train_s == 62
    assert base.costs.peak_memory_gib == 0.54
    assert base.costs.attempts == 5
    assert base.costs.num_parameters == 187_402
    assert not whole.missing
    assert whole.notes == ()


def test_changes_are_the_differing_identity_keys_only(whole):
    shown = [[(c.key, c.reference, c.value) for c in row.changes] for row in whole.rows]
    assert shown[0] == []
    assert shown[3] == [("loss.alpha", 0.0, 0.5), ("loss.beta", 0.0, 0.3)]
    config = whole.runs[0].spec.config
    assert differences(config.model_copy(update={"log_every": 99, "seed": 3}), config) == ()
    task = config.tasks[0].model_copy(update={"weight": 2.0})
    changed = differences(config.model_copy(update={"tasks": (task,)}), config)
    assert [(c.key, c.reference, c.value) for c in changed] == [("tasks.0.weight", 1.0, 2.0)]


def test_missing_and_failed_runs_are_named_with_state_and_reason(holes):
    assert row(holes, "base").n == 4
    assert row(holes, "consistency_only").n == 3
    assert row(holes, "specific_only").n == 1
    named = [describe(run) for run in holes.missing]
    assert any(re.fullmatch(r"base-s4-\w{8} \(new\)", text) for text in named)
    assert any("(failed: RuntimeError: a|b <c> 100% of x_y at C:\\tmp ☃)" in text for text in named)
    assert len(named) == 6


def test_a_value_that_is_not_finite_is_not_averaged_and_is_named(holes):
    assert 1 not in row(holes, "consistency_only").values
    assert re.search(
        r"not in the mean, test/digit/accuracy is not finite: consistency_only-s1-\w{8} \(nan\)", notes(holes)
    )


def test_differences_pair_seeds_that_both_rows_have(holes):
    difference = row(holes, "consistency_only").difference
    assert difference.n == 2  # its own 0, 2, 4 without the reference's missing 4
    base = row(holes, "base").values
    expected = [row(holes, "consistency_only").values[seed] - base[seed] for seed in (0, 2)]
    assert difference.mean == pytest.approx(sum(expected) / 2)
    assert "difference to base over seeds 0, 2, which both rows have" in notes(holes)
    assert row(holes, "specific_only").difference.interval is None
    assert "n=1: no deviation and no interval" in notes(holes)


def test_mixed_code_and_shapes_are_counted_and_named(holes):
    text = notes(holes)
    pattern = r"code hash differs: c0dec0de in \d+ of 14 runs, but 01d01d01 in 2 of 14 runs: full-s0-\w{8}, full-s1-\w{8}"
    assert re.search(pattern + "; means that mix them: full", text)
    assert "world size differs: 2 in 12 of 14 runs, but 4 in 2 of 14 runs" in text
    assert "threads" not in text
    assert "device" not in text


def test_runs_that_the_grid_no_longer_asks_for_are_left_out_and_counted(holes):
    assert "2 older runs left out (not asked for any more: 1 on other data, 1 with another config)" in notes(
        holes
    )


def test_result_of_other_data_is_named(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    finish(runs[0], folder, data_fingerprint="another")
    assert re.search(
        r"not the one asked for in 1 runs: base-s0-\w{8} \(another\)", notes(collect(grid, runs, folder))
    )


def test_reference_without_value_gives_no_difference(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        if spec.variant == "full":
            finish(spec, folder)
    ablation = collect(grid, runs, folder)
    assert row(ablation, "full").difference is None
    assert "no difference is given: the reference base has no value" in notes(ablation)
    assert "No row has an interval" in " ".join(caption(ablation, ()))


def test_nothing_finished_gives_a_table_of_dashes(tmp_path):
    grid, runs = study()
    ablation = collect(grid, runs, GridFolder(tmp_path / "empty"))
    assert [cells.n for cells in all_cells(ablation)] == ["0 of 5"] * 4
    assert [cells.mean for cells in all_cells(ablation)] == ["\u2013"] * 4
    assert not any(cells.best for cells in all_cells(ablation))
    assert len(draw_ablation(ablation)) == 2
    assert "\\bottomrule" in to_latex(ablation)


def test_unknown_metric_lists_those_that_exist(tmp_path):
    grid, runs = study(metric="test/digit/f1_macro")
    finish(runs[0], GridFolder(tmp_path))
    with pytest.raises(ConfigError, match="metric 'test/digit/f1_macro' is in no result") as error:
        collect(grid, runs, GridFolder(tmp_path))
    assert "test/digit/accuracy" in str(error.value)


def test_a_result_that_cannot_be_used_makes_the_run_missing(tmp_path):
    grid, runs = study()
    folder = GridFolder(tmp_path)
    write_json(folder.run(runs[0].run_id).result, {"format": 0})
    finish(runs[1], folder, run_id="another-s0-12345678")
    first, second, *_ = collect(grid, runs, folder).missing
    assert describe(first).endswith("(unknown: result.json was written by another version of the code)")
    assert describe(second).endswith("(unknown: result.json is that of another-s0-12345678)")


# What is shown


def test_scales():
    assert scale_of("test/digit/accuracy") is PERCENT
    assert scale_of("val/genre/f1_macro") is PERCENT
    assert scale_of("test/digit/loss") is PLAIN
    assert PERCENT.show(0.84149) == "84.1"
    assert PERCENT.show(-0.0004, signed=True) == "+0.0"
    assert PERCENT.show(-0.00051, signed=True) == "-0.1"
    assert PLAIN.show(0.123456) == "0.1235"


def test_best_follows_direction_and_ties_are_both_best(tmp_path):
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
    assert cells[1].difference == "-0.1000 [-0.1000, -0.1000]"


def test_caption_says_which_intervals_exclude_zero(whole, tmp_path):
    text = " ".join(caption(whole, ()))
    assert "best val/digit/accuracy, looked at every 100 of 500 steps" in text
    assert "The interval excludes zero for consistency_only, full (3 intervals, not corrected" in text
    grid, runs = study()
    folder = GridFolder(tmp_path)
    for spec in runs:
        noise = 0.02 * (-1) ** (spec.config.seed + (spec.variant == "full"))
        finish(spec, folder, accuracy=0.8 + noise * (1 + spec.config.seed))
    assert "excludes zero" not in _claim(collect(grid, runs, folder)).replace("No interval excludes zero", "")


def _claim(ablation: Ablation) -> str:
    return next(line for line in caption(ablation, ()) if "interval" in line and "Difference" not in line)


def test_caption_warns_when_the_selection_split_is_reported(tmp_path):
    text = " ".join(caption(complete(tmp_path, metric="val/digit/accuracy"), ()))
    assert "The step was chosen on this same split: the values are optimistic." in text


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.tex", "runs.csv"])
@pytest.mark.parametrize("case", ["whole", "holes"])
def test_golden_files(name, case, request):
    write = {"table.csv": to_csv, "table.md": to_markdown, "table.tex": to_latex, "runs.csv": to_runs_csv}[
        name
    ]
    check_golden(f"{case}-{name}", write(request.getfixturevalue(case)))


def check_golden(name: str, text: str) -> None:
    text = re.sub(
        r"(-s\d+)-[0-9a-f]{8}\b", r"\1-identity", text
    )  # changes with every new field of the config
    path = GOLDEN / name
    if os.environ.get("FURNACE_RENEW_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != golden:
        lines = difflib.unified_diff(
            golden.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
        )
        pytest.fail(
            "\n".join([*lines, "", f"if this is meant: FURNACE_RENEW_GOLDEN=1 pytest {__file__}"]),
            pytrace=False,
        )


def test_order_of_creation_changes_no_byte(holes, tmp_path):
    other = troubled(tmp_path, order=7)
    for write in (to_csv, to_markdown, to_latex, to_runs_csv):
        assert write(other) == write(holes)
    assert draw_ablation(other) == draw_ablation(holes)


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


def test_terminal_shows_every_row_and_brackets_as_they_are(holes):
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=160).print(to_terminal(holes))
    for variant in BONUS:
        assert variant in text.getvalue()
    assert all_cells(holes)[1].difference in text.getvalue()
    assert "4 of 5" in text.getvalue()


def test_latex_is_well_formed(holes):
    text = to_latex(holes)
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    columns = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith("\\\\")}
    assert columns == {5}
    bare = re.sub(r"\\[\\{}$]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "%" not in re.sub(r"\\%", "", text.split("\n", 1)[1])
    assert "☃" not in text


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="pdflatex is not installed: the LaTeX is not compiled here"
)
def test_latex_compiles(holes, whole, tmp_path):
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s%s\\end{document}\n"
    (tmp_path / "paper.tex").write_text(document % (to_latex(holes), to_latex(whole)), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


# Figures


def test_validation_curve_takes_steps_that_all_seeds_have(tmp_path):
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
    curve = validation_curve(collect(grid, runs, folder).rows[0], "val/digit/accuracy")
    assert curve.steps == [100]
    assert curve.mean == pytest.approx([0.3])
    assert (curve.low, curve.high) == ([0.2], [0.4])


def test_figure_names_rows_and_axes_with_units(whole):
    files = draw_ablation(whole)
    assert files["ablation.png"].startswith(b"\x89PNG")
    svg = files["ablation.svg"].decode()
    assert "<dc:date>" not in svg
    for text in ("optimizer steps", "test/digit/accuracy (%)", "consistency_only"):
        assert f"<!-- {text} -->" in svg


def test_importing_tables_imports_nothing_heavy():
    code = (
        "import sys, furnace_hpc.tables.results, furnace_hpc.aggregate; "
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'polars', 'numpy', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
