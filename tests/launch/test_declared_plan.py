"""What `submit` declares before the first run, and what later submissions append."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from login_study import CODE, FINGERPRINT, GRID, finish, grid, planned, specs

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid, results_name, with_settings
from furnace_hpc.launch.planning.plan import Action
from furnace_hpc.launch.submission import declare_plan, record, write_submission
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.declaration import (
    CORRECTION,
    LEVEL,
    Declared,
    changes,
    join,
    numbers,
    plan_of,
    read_declared,
)
from furnace_hpc.tables.statistics import estimates, verdicts

MORE_SEEDS = {"seeds": [0, 1, 2, 3, 4]}


def submit(path: Path, **changes_: Any) -> None:
    write_submission(planned(path, grid(**changes_)))


def declared(path: Path, asked: Grid | None = None) -> tuple[Declared, ...]:
    return read_declared(GridFolder(path / "study"), asked or grid())


def finish_all(path: Path, **changes_: Any) -> None:
    for spec in specs(**changes_):
        finish(spec, GridFolder(path / "study"))


def test_the_first_submission_declares_the_plan(tmp_path):
    submit(tmp_path, sesoi=1.0)
    content = json.loads((tmp_path / "study" / "declared.json").read_text())
    [entry] = content["tables"]["study"]
    plan = entry["plan"]
    assert entry["runs_with_results"] == 0
    assert list(plan.pop("rows")) == ["base", "full"]
    assert plan == {
        "seeds": [0, 1],
        "packs": [],
        "data": {"tridigits": FINGERPRINT},
        "reference": "base",
        "metric": "test/digit/accuracy",
        "direction": "max",
        "sesoi": 1.0,
        "sanity": [],
        "sources": [],
        "by": [],
        "level": 0.95,
        "correction": "Bonferroni",
        "family": 1,
        "verdicts": "both",
        "tune": None,
        "code": CODE,
        "adopted": [],
    }


def test_the_declared_tests_are_those_of_the_tables():
    assert LEVEL == estimates.LEVEL
    assert CORRECTION in (verdicts.__doc__ or "")


def test_the_same_plan_is_recorded_once(tmp_path):
    submit(tmp_path)
    before = (tmp_path / "study" / "declared.json").read_bytes()
    finish_all(tmp_path)
    submit(tmp_path)
    record(planned(tmp_path, grid()))
    assert (tmp_path / "study" / "declared.json").read_bytes() == before


def test_later_seeds_are_appended_with_the_results(tmp_path, capsys):
    submit(tmp_path)
    [first] = declared(tmp_path)
    finish_all(tmp_path)
    submit(tmp_path, **MORE_SEEDS)
    before, after = declared(tmp_path)
    assert before == first
    assert after.runs_with_results == 4
    assert after.unix_s > first.unix_s
    assert changes(before.plan, after.plan) == ["seeds 2 to 4 were added"]
    assert capsys.readouterr().out == (
        "the declared plan changes after 4 runs had results: seeds 2 to 4 were added. "
        "A footnote names this\n"
    )


def test_a_change_without_results_is_no_look(tmp_path, capsys):
    submit(tmp_path)
    submit(tmp_path, **MORE_SEEDS)
    assert [entry.runs_with_results for entry in declared(tmp_path)] == [0, 0]
    assert capsys.readouterr().out == ""


def test_removed_rows_count_as_results(tmp_path):
    """The runs of a removed row are no longer planned, but they may have been seen."""
    submit(tmp_path)
    finish_all(tmp_path)
    submit(tmp_path, variants={"base": {}, "other": {"loss.beta": 0.1}})
    assert declared(tmp_path)[-1].runs_with_results == 4


def test_runs_moved_aside_count_as_results(tmp_path):
    submit(tmp_path)
    folder = GridFolder(tmp_path / "study")
    for spec in specs():
        finish(spec, folder, code="01d01d01d01d")
    write_submission(planned(tmp_path, grid(), new_code=True))
    assert not folder.run(specs()[0].run_id).path.exists()
    submit(tmp_path, **MORE_SEEDS)
    assert declared(tmp_path)[-1].runs_with_results == 4


def test_new_code_after_a_look_is_appended(tmp_path, capsys):
    """Also for some runs. The same command without runs to start declares nothing."""
    submit(tmp_path)
    finish_all(tmp_path)
    submit(tmp_path)
    assert len(declared(tmp_path)) == 1
    plan = planned(tmp_path, grid(), new_code=True)
    newer = [
        replace(run, action=Action.RESTART, attempt=run.attempt._replace(code_hash="0123456789ab"))
        for run in plan.runs
    ]
    declare_plan(replace(plan, runs=tuple(newer[:1])))
    before, after = declared(tmp_path)
    assert changes(before.plan, after.plan) == [f"the code was changed from {CODE} to 0123456789ab"]
    assert after.runs_with_results == 4
    assert "the code was changed from" in capsys.readouterr().out


def test_adopted_runs_are_appended(tmp_path, capsys):
    """Finished runs of another grid become the runs of a plan that was declared before."""
    submit(tmp_path)
    other = GridFolder(tmp_path / "copy")
    for spec in specs()[:2]:
        finish(spec, other)
    for folder in (other.path, *other.path.iterdir()):
        folder.chmod(0o700)
    submit(tmp_path)
    submit(tmp_path)
    before, after = declared(tmp_path)
    ids = [spec.run_id for spec in specs()[:2]]
    assert after.plan.adopted == tuple(ids)
    assert changes(before.plan, after.plan) == [
        f"runs {ids[0]} and {ids[1]} were adopted, finished under another name"
    ]
    assert after.runs_with_results == 2
    assert "were adopted" in capsys.readouterr().out


def test_a_late_declaration_says_so(tmp_path):
    """Runs that were trained before any declaration, or under another name, have been seen."""
    finish_all(tmp_path)
    submit(tmp_path)
    assert [entry.runs_with_results for entry in declared(tmp_path)] == [4]


def test_settings_have_their_own_declaration(tmp_path):
    submit(tmp_path)
    finish_all(tmp_path)
    other = with_settings(grid(), ["steps=7"])
    write_submission(planned(tmp_path, other))
    assert len(declared(tmp_path)) == 1
    [entry] = declared(tmp_path, other)
    assert entry.runs_with_results == 0
    tables = json.loads((tmp_path / "study" / "declared.json").read_text())["tables"]
    assert list(tables) == ["study", results_name(other)]
    write_submission(planned(tmp_path, with_settings(grid(), ["resources.timeout_min=9"])))
    assert len(declared(tmp_path)) == 1


def test_a_submission_of_some_runs_declares_the_grid(tmp_path):
    plan = planned(tmp_path, grid())
    declare_plan(replace(plan, runs=plan.runs[:1]))
    [entry] = declared(tmp_path)
    assert (list(entry.plan.rows), entry.plan.seeds) == (["base", "full"], (0, 1))


def test_a_damaged_file_is_one_error(tmp_path):
    submit(tmp_path)
    file = tmp_path / "study" / "declared.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(
        ConfigError, match=r"declared\.json is damaged\. Restore it, or move it away"
    ):
        submit(tmp_path)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"seeds": [1]}, "seed 0 was removed"),
        ({"seeds": [1, 0]}, ""),
        ({"variants": {"base": {}}}, "row full was removed"),
        ({"variants": GRID["variants"] | {"a": {"loss.beta": 0.1}}}, "row a was added"),
        (
            {"variants": {"base": {}, "full": {"loss.alpha": 0.7}}},
            "the config of row full was changed",
        ),
        ({"base": GRID["base"] | {"steps": 50}}, "the config of rows base and full was changed"),
        ({"base": GRID["base"] | {"log_every": 5}}, ""),
        (
            {"metric": "test/digit/loss"},
            "the metric was changed from test/digit/accuracy to test/digit/loss; "
            "the direction was changed from max to min",
        ),
        ({"reference": "full"}, "the reference was changed from base to full"),
        ({"sesoi": 1.0}, "the sesoi was changed from none to 1"),
        ({"sanity": ["full"]}, "sanity row full was added"),
        ({"by": ["loss.alpha"]}, "the key by was changed from none to loss.alpha"),
        ({"description": "Other words."}, ""),
    ],
)
def test_each_change_is_described(tmp_path, changed, text):
    submit(tmp_path)
    submit(tmp_path, **changed)
    before, after = (declared(tmp_path)[index] for index in (0, -1))
    assert "; ".join(changes(before.plan, after.plan)) == text


def test_a_plan_without_sources_is_not_new(tmp_path):
    """An older Furnace did not record them."""
    submit(tmp_path)
    path = tmp_path / "study" / "declared.json"
    content = json.loads(path.read_text())
    del content["tables"]["study"][0]["plan"]["sources"]
    path.write_text(json.dumps(content))
    submit(tmp_path)
    assert len(declared(tmp_path)) == 1


def test_new_data_and_packs_are_described(tmp_path):
    submit(tmp_path)
    [entry] = declared(tmp_path)
    packed = entry.plan.model_copy(update={"data": {"tridigits": "a" * 16}})
    assert changes(entry.plan, packed) == ["the data of data set tridigits were changed"]
    packs = entry.plan.model_copy(update={"packs": ("one", "two")})
    assert changes(entry.plan, packs) == ["packs one and two were added"]
    other = entry.plan.model_copy(update={"correction": "Sidak"})
    assert changes(entry.plan, other) == [
        "the level and correction were changed from 95% and Bonferroni to 95% and Sidak"
    ]


def test_configs_do_not_depend_on_seed_and_pack(tmp_path):
    """So the table finds the plan that was declared from the rows alone."""
    asked = grid(packs=["one", "two"])
    runs = expand(asked, {"one": "1" * 16, "two": "2" * 16})
    first = plan_of(asked, {run.variant: run.config for run in reversed(runs)}, {})
    assert first == plan_of(asked, {run.variant: run.config for run in runs}, {})


@pytest.mark.parametrize(
    ("values", "text"),
    [([0, 1, 2], "0 to 2"), ([0, 1], "0 and 1"), ([0, 1, 7], "0, 1 and 7"), ([3], "3")],
)
def test_numbers(values, text):
    assert numbers(values) == text


def test_long_lists_are_shortened():
    assert join(list("abcdefg")) == "a, b, c, d, e and 2 more"
