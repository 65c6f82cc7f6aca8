"""The note on changes after a look, and the declared plan in the report."""

from pathlib import Path

from aggregate_study import command
from login_study import CODE, finish, grid, planned, specs

from furnace_hpc.api.grid_table import make_table
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records import declaration
from furnace_hpc.tables.output.render import to_markdown
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View

START = "declared on 2026-11-28 with seeds 0 and 1 and metric test/digit/accuracy"
LOOK = "Intervals and verdicts do not account for this look"


def study(path: Path, monkeypatch, *versions: dict) -> GridFolder:
    """A grid that was submitted in these versions, on one day each, and finished each time."""
    folder = GridFolder(path / "study")
    for day, changes in enumerate(versions):
        monkeypatch.setattr(declaration, "_now_s", lambda day=day: 1795867200.5 + 86400 * day)
        write_submission(planned(path, grid(**changes)))
        finish_all(folder, **changes)
    return folder


def finish_all(folder: GridFolder, **changes) -> None:
    for spec in specs(**changes):
        if not folder.run(spec.run_id).path.exists():
            finish(spec, folder)


def table(folder: GridFolder, view: View | None = None, **changes) -> Ablation:
    return make_table(grid(**changes), folder, view or View())


def note(ablation: Ablation) -> str:
    return "\n".join(note.text for note in ablation.notes if note.text.startswith("declared"))


def test_seeds_added_after_a_look_are_named(tmp_path, monkeypatch):
    more = {"seeds": list(range(5))}
    folder = study(tmp_path, monkeypatch, {}, more)
    found = table(folder, **more)
    assert note(found) == (
        f"{START}. Seeds 2 to 4 were added on 2026-11-29, after 4 runs had results. {LOOK}"
    )
    assert "Seeds 2 to 4 were added on 2026-11-29" in to_markdown(found)


def test_a_plan_that_was_kept_has_no_note(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {}, {})
    assert note(table(folder)) == ""
    report = to_html(table(folder))
    assert "<details><summary>Declared plan</summary>" in report
    assert "Declared on 2026-11-28, before any run had a result." in report
    assert "Nothing was changed since." in report


def test_rows_removed_after_a_look_are_corrected_for(tmp_path, monkeypatch):
    """Keeping the best of several rows earns no smaller correction."""
    rows = {"base": {}} | {f"row{n}": {"loss.alpha": n / 10} for n in range(1, 6)}
    best = {name: rows[name] for name in ("base", "row5")}
    folder = study(tmp_path / "a", monkeypatch, {"variants": rows}, {"variants": best})
    found = table(folder, variants=best)
    assert found.row_of["row5"].difference.family == 5
    assert found.family == "1 row and 4 removed rows"
    assert note(found).endswith(
        "The correction counts 4 removed rows: row1, row2, row3 and row4. Apart from that, "
        "intervals and verdicts do not account for this look"
    )
    assert table(folder, variants=rows).row_of["row5"].difference.family == 5
    renamed = best | {name + "x": rows[name] for name in ("row1", "row2", "row3", "row4")}
    assert table(folder, variants=renamed).family == "5 rows"


def test_rows_removed_before_any_result_do_not_count(tmp_path, monkeypatch):
    rows = {"base": {}} | {f"row{n}": {"loss.alpha": n / 10} for n in range(1, 4)}
    best = {name: rows[name] for name in ("base", "row1")}
    write_submission(planned(tmp_path, grid(variants=rows)))
    folder = study(tmp_path, monkeypatch, {"variants": best})
    assert table(folder, variants=best).family == "1 row"


def test_rows_with_sources_are_not_changed_rows(tmp_path, monkeypatch):
    """Their runs have the identity of the run that they start from, and the plan has rows."""
    rows = {"base": {}, "full": {"init_from": {"variant": "base"}}}
    folder = study(tmp_path, monkeypatch, {"variants": rows})
    assert note(table(folder, variants=rows)) == ""
    renamed = {"base": {}, "other": rows["full"]}
    assert table(folder, variants=renamed).family == "1 row"


def test_removed_sources_do_not_count(tmp_path, monkeypatch):
    """They were never compared. A row that becomes a source is no longer compared."""
    rows = {"base": {}, "first": {"steps": 20}, "full": {"init_from": {"variant": "first"}}}
    less = {"base": {}, "full": {"loss.alpha": 0.1}}
    sources = {"variants": rows, "sources": ["first"]}
    folder = study(tmp_path / "a", monkeypatch, sources, {"variants": less})
    assert table(folder, variants=less).declared.removed == ()
    folder = study(tmp_path / "b", monkeypatch, {"variants": rows}, sources)
    found = table(folder, **sources)
    assert found.declared.removed == ("first",)
    assert "Source first was added on 2026-11-29, after 6 runs had results" in note(found)


def test_several_changes_are_several_looks(tmp_path, monkeypatch):
    three = {"seeds": [0, 1, 2]}
    folder = study(tmp_path, monkeypatch, {}, three, three | {"sesoi": 1.0})
    assert note(table(folder, **three, sesoi=1.0)) == (
        f"{START}. Seed 2 was added on 2026-11-29, after 4 runs had results. The sesoi was changed "
        "from none to 1 on 2026-11-30, after 6 runs had results. Intervals and verdicts do not "
        "account for these looks"
    )


def test_new_code_after_a_look_is_named(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    for run in folder.path.glob("*/result.json"):
        run.write_text(run.read_text().replace(CODE, "01d01d01d01d"))
    folder.declared.write_text(folder.declared.read_text().replace(CODE, "01d01d01d01d"))
    monkeypatch.setattr(declaration, "_now_s", lambda: 1795867200.5 + 86400)
    write_submission(planned(tmp_path, grid(), new_code=True))
    finish_all(folder)
    expected = f"The code was changed from 01d01d01d01d to {CODE} on 2026-11-29, after 4"
    found = table(folder)
    assert note(found) == f"{START}. {expected} runs had results. {LOOK}"
    assert "Code: 01d01d01d01d." in to_html(found)


def test_a_late_declaration_is_a_look(tmp_path, monkeypatch):
    folder = GridFolder(tmp_path / "study")
    finish_all(folder)
    study(tmp_path, monkeypatch, {})
    assert note(table(folder)) == f"{START}, after 4 runs had results. {LOOK}"


def test_a_grid_that_was_not_submitted_says_so(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    changed = table(folder, seeds=[0, 1, 2])
    text = "Changed in the grid file, not submitted: seed 2 was added"
    assert note(changed) == f"{START}. {text}"
    assert text in to_html(changed)


def test_a_view_is_no_change_of_the_plan(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    assert note(table(folder, View(metric="val/digit/accuracy", where=("seed=0",)))) == ""


def test_a_table_without_a_declaration(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    folder.declared.unlink()
    assert note(table(folder)) == ""
    assert "No plan was recorded before the runs of this table started." in to_html(table(folder))


def test_a_damaged_declaration_is_a_note(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    folder.declared.write_text("{")
    assert [n.text for n in table(folder).notes if "is damaged" in n.text]


def test_names_in_the_file_are_escaped(tmp_path, monkeypatch):
    folder = study(tmp_path, monkeypatch, {})
    text = folder.declared.read_text().replace('"full"', '"<script>"')
    folder.declared.write_text(text)
    assert (
        "<script>" not in to_html(table(folder)).partition("Declared plan")[2].partition("</ul>")[0]
    )


def test_other_tools_have_no_declared_plan(tmp_path):
    lines = "variant,seed,acc\n" + "".join(
        f"{row},{seed},0.{5 + seed}{len(row)}\n" for row in ("base", "full") for seed in range(3)
    )
    (tmp_path / "runs.csv").write_text(lines)
    words = ("--from", "runs.csv", "--metric", "acc", "--direction", "max", "--no-figures")
    assert command(tmp_path, *words).returncode == 0
    [report] = tmp_path.glob("results/*/report.html")
    assert "Declared plan" not in report.read_text()
