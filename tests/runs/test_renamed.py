"""A renamed or copied row or grid keeps its finished runs, since names change no number."""

import json
import os
import shutil
from pathlib import Path

import pytest
from login_study import FINGERPRINT as DATA
from login_study import (
    begin,
    command,
    dead_holder,
    end,
    finish,
    grid,
    pack,
    planned,
    specs,
    tree,
    write_grid,
)
from tables_study import result_of

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.launch.planning.plan import Action
from furnace_hpc.launch.submission import record, write_submission
from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.state import RunState, read_status
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.reading.submitted import submitted_runs

RENAMED = {"variants": {"base": {}, "both": {"loss.alpha": 0.5, "loss.beta": 0.3}}}  # was `full`


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a runs' root with the finished study: base and full, seeds 0 and 1."""
    tmp_path.chmod(0o700)
    folder = GridFolder(tmp_path / "study")
    for spec in specs():
        finish(spec, folder)
    return tmp_path


def actions(plan) -> dict[str, str]:
    return {f"{run.spec.variant}-s{run.spec.config.seed}": run.action.value for run in plan.runs}


def files(place: Path) -> dict[str, str]:
    """The files of all finished runs, without links."""
    return {
        name: content
        for name, content in tree(place).items()
        if "-s" in name and not (place / name).is_symlink()
    }


def notes(place: Path, asked, name: str = "study", **choices) -> list[str]:
    plan = planned(place, asked, **choices)
    folder = GridFolder(place / name)
    table = collect(asked, [run.spec for run in plan.runs], folder)
    write_results(table, place.parent / f"{place.name}-out", figures=False)
    return [note.text for note in table.notes]


def test_renamed_row_is_not_trained_again(place):
    asked, before = grid(**RENAMED), files(place)
    plan = planned(place, asked)
    assert actions(plan) == dict.fromkeys(("base-s0", "base-s1", "both-s0", "both-s1"), "skip")
    assert [run.adopts.name for run in plan.runs if run.adopts] == [
        spec.run_id for spec in specs()[2:]
    ]
    record(plan)
    assert files(place) == before
    for spec in expand(asked, {"tridigits": DATA})[2:]:
        link = place / "study" / spec.run_id
        assert link.is_symlink()
        assert link.readlink() == Path(spec.run_id.replace("both", "full"))
    again = planned(place, asked)
    assert [run.adopts for run in again.runs] == [None] * 4  # they are links now
    assert again.to_do == []


def test_table_of_a_renamed_row(place):
    asked = grid(**RENAMED)
    record(planned(place, asked))
    said = notes(place, asked)
    [note] = [note for note in said if "another row" in note]
    assert note.startswith(
        "trained as another row or grid, with the same config, seed and data: both-s0-"
    )
    assert " is full-s0-" in note
    assert not any(
        "another config" in note or "left out" in note or "missing" in note for note in said
    )
    csv = (place.parent / f"{place.name}-out" / "runs.csv").read_text()
    assert csv.count("both,") + csv.count("both-") >= 2
    assert "full" not in csv


def test_status_of_adopted_runs(place):
    asked = grid(**RENAMED)
    record(planned(place, asked))
    lines, _ = overview(GridFolder(place / "study"))
    assert {line.run_id.split("-")[0]: line.status.state for line in lines} == {
        "base": RunState.DONE,
        "both": RunState.DONE,
    }


@pytest.mark.parametrize("copied", [False, True])
def test_grid_of_another_name_adopts_all_runs(place, copied):
    changes = {"name": "other"} | ({} if copied else RENAMED)
    asked, before = grid(**changes), files(place)
    plan = planned(place, asked)
    assert plan.to_do == []
    record(plan)
    assert files(place) == before
    assert len(submitted_runs(asked, GridFolder(place / "other")).runs) == 4
    assert not any("missing" in note for note in notes(place, asked, "other"))
    link = place / "other" / plan.runs[0].folder.run_id
    assert link.readlink() == Path("..", "study", plan.runs[0].folder.run_id)
    third = planned(place, grid(name="third"))  # links are not adopted
    assert {run.adopts.parent.name for run in third.runs} == {"study"}


def test_another_config_seed_or_data_is_trained(place):
    for changes in (
        {"variants": {"base": {"optimizer.lr": 0.5}, "both": {"loss.alpha": 0.4}}, "seeds": [0]},
        {"seeds": [7, 8]},
    ):
        assert set(actions(planned(place, grid(name="other", **changes))).values()) == {"start"}
    plan = planned(place, grid(name="other"))
    other = expand(grid(name="other"), {"tridigits": "0" * 16})
    assert not {spec.run_id for spec in other} & {run.folder.run_id for run in plan.runs}


def test_equal_digits_are_not_enough(place):
    """The name of the folder fits, but its spec.json has another config."""
    victim = place / "study" / specs()[2].run_id
    spec = json.loads((victim / "spec.json").read_text())
    spec["config"]["optimizer"]["lr"] = 0.5
    (victim / "spec.json").write_text(json.dumps(spec))
    assert actions(planned(place, grid(**RENAMED)))["both-s0"] == "start"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "result.json").write_text("{"),
        lambda run: (run / "spec.json").write_text("\x00"),
        lambda run: (run / "spec.json").unlink(),
        lambda run: (run / "result.json").chmod(0o666),
        lambda run: (run / "spec.json").chmod(0o666),
        lambda run: run.chmod(0o777),
        lambda run: os.chown(run / "result.json", 12345, 12345),
        lambda run: write_json(run / "result.json", result_of(specs()[0]).model_dump(mode="json")),
        lambda run: (run / "result.json").unlink(),
    ],
)
def test_bad_or_unfinished_runs_are_not_adopted(place, spoil):
    victim = place / "study" / specs()[2].run_id
    spoil(victim)
    before = files(place)
    plan = planned(place, grid(**RENAMED))
    assert actions(plan) == {
        "base-s0": "skip",
        "base-s1": "skip",
        "both-s0": "start",
        "both-s1": "skip",
    }
    write_submission(plan)
    assert files(place) == before
    assert not (place / "study" / plan.runs[2].folder.run_id).exists()


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_unfinished_run_is_unchanged_and_named(place, state):
    spec = specs(seeds=[5])[1]
    run = begin(spec, GridFolder(place / "study"), None if state == "running" else dead_holder())
    if state == "failed":
        end(run, "crash")
    before = files(place)
    plan = planned(place, grid(**RENAMED, seeds=[5]))
    assert actions(plan)["both-s5"] == "start"
    assert plan.runs[1].unfinished == run.path
    write_submission(plan)
    assert files(place) == before
    assert read_status(run).state.value == state


def test_link_to_a_run_that_is_not_done_is_replaced(place):
    """The run of the old name was started again, or its result was removed."""
    asked = grid(**RENAMED)
    record(planned(place, asked))
    old = place / "study" / specs()[2].run_id
    (old / "result.json").unlink()
    before = files(place)
    plan = planned(place, asked)
    assert actions(plan) == {
        "base-s0": "skip",
        "base-s1": "skip",
        "both-s0": "start",
        "both-s1": "skip",
    }
    assert plan.runs[2].status.state is RunState.NEW
    link = place / "study" / plan.runs[2].folder.run_id
    assert link.is_symlink()
    write_submission(plan)
    assert not link.exists()
    assert not link.is_symlink()
    assert files(place) == before


def test_link_to_a_missing_run(place):
    asked = grid(**RENAMED, name="other")
    record(planned(place, asked))
    (place / "study").rename(place.parent / f"{place.name}-elsewhere")
    said = notes(place, asked, "other")
    assert any("is a broken link to " in note for note in said)
    assert not any("foreign" in note for note in said)
    assert set(actions(planned(place, asked)).values()) == {"start"}
    (place.parent / f"{place.name}-elsewhere").rename(place / "study")
    assert set(actions(planned(place, asked)).values()) == {"skip"}


def test_crash_between_links_and_submission(place, monkeypatch):
    asked, done = grid(**RENAMED), []

    def crash(*_: object) -> None:
        done.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("furnace_hpc.launch.submission.write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            record(planned(place, asked))
    assert done
    assert not GridFolder(place / "study").all_submissions()
    plan = planned(place, asked)
    assert plan.to_do == []
    record(plan)
    assert len(GridFolder(place / "study").all_submissions()) == 1
    assert not [path for path in (place / "study").iterdir() if path.name.startswith(".")]


def test_code_new_trains_stale_runs_again(place):
    shutil.rmtree(place / "study")
    for spec in specs():
        finish(spec, GridFolder(place / "study"), code="01d01d01d01d")
    asked, before = grid(**RENAMED), files(place)
    plan = planned(place, asked)
    assert [run.why for run in plan.runs[2:]] == ["done, stale: by code 01d01d01d01d"] * 2
    record(plan)
    again = planned(place, asked, new_code=True)
    assert actions(again) == {
        "base-s0": "restart",
        "base-s1": "restart",
        "both-s0": "start",
        "both-s1": "start",
    }
    write_submission(again)
    kept = files(place)
    assert {name for name in before if name.startswith("study/full")} <= kept.keys()
    assert not (place / "study" / again.runs[2].folder.run_id).is_symlink()


def test_runs_of_this_code_come_first(place):
    for spec in specs():
        run = GridFolder(place / "study").run(spec.run_id)
        write_json(run.result, json.loads(run.result.read_text()) | {"code_hash": "01d01d01d01d"})
        finish(spec, GridFolder(place / "new"))
    plan = planned(place, grid(**RENAMED))
    assert [run.adopts.parent.name for run in plan.runs[2:]] == ["new", "new"]
    assert [run.why for run in plan.runs[2:]] == ["done", "done"]


def test_no_adopt_trains_again(place):
    asked = grid(**RENAMED)
    record(planned(place, asked))
    plan = planned(place, asked, adopt=False)
    assert actions(plan) == {
        "base-s0": "skip",
        "base-s1": "skip",
        "both-s0": "start",
        "both-s1": "start",
    }
    write_submission(plan)
    said = notes(place, asked)
    assert any(
        note.startswith(
            "2 runs left out, because the table has the same config, seed and data under another "
            "name: full-s0-"
        )
        for note in said
    )
    assert not any("another config" in note for note in said)


def test_other_configs_are_named_in_the_notes(place):
    asked = grid(variants={"base": {}, "both": {"loss.alpha": 0.1}})
    assert any(
        "2 older runs left out, because the grid no longer contains them (2 with another config): "
        "full-s0" in note
        for note in notes(place, asked)
    )


def test_rename_there_and_back(place):
    record(planned(place, grid(**RENAMED)))
    back = planned(place, grid())
    assert [(run.action, run.adopts) for run in back.runs] == [(Action.SKIP, None)] * 4
    record(back)
    assert "full" in (place / "study" / "grid.yaml").read_text()
    said = notes(place, grid())
    assert not any("another" in note or "left out" in note for note in said)


def test_file_system_without_links_is_an_error(place, monkeypatch):
    def refuse(self: Path, target: object, target_is_directory: bool = False) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(
        ConfigError, match=r"could not be taken for both-s0-.*or give --no-adopt to train it again"
    ):
        record(planned(place, grid(**RENAMED)))


@pytest.mark.slow
def test_submit_and_aggregate_adopted_runs(tmp_path):
    """Run the real commands on a grid file with a renamed row."""
    from furnace_hpc.runs.code import code_hash

    tmp_path.chmod(0o700)
    for spec in specs():
        finish(spec, GridFolder(tmp_path / "runs" / "study"), code=code_hash())
    (tmp_path / "runs").chmod(0o700)
    pack(tmp_path / "data" / "tridigits")
    write_grid(tmp_path, **RENAMED)
    dry = command("submit", tmp_path, "--grid", "study.yaml", "--cluster", "local", "--dry-run")
    [line] = [line for line in dry.stdout.splitlines() if "another name" in line]
    both = [spec.run_id for spec in expand(grid(**RENAMED), {"tridigits": DATA})[2:]]
    full = [spec.run_id for spec in specs()[2:]]
    assert line == (
        "2 runs are done under another name, with the same config, seed and data, "
        "and are not trained again (--no-adopt trains them): "
        f"{both[0]} is {full[0]}, {both[1]} is {full[1]}"
    )
    assert not (tmp_path / "runs" / "study" / both[0]).exists()
    done = command("submit", tmp_path, "--grid", "study.yaml", "--cluster", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    table = command("aggregate", tmp_path, "--grid", "study", "--no-figures")
    assert table.returncode == 0, table.stdout + table.stderr
    assert "both" in table.stdout
    assert "another config" not in table.stdout
    copied = (tmp_path / "study.yaml").read_text().replace("name: study", "name: copied")
    (tmp_path / "copied.yaml").write_text(copied)
    done = command("submit", tmp_path, "--grid", "copied.yaml", "--cluster", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs are done under another name" in done.stdout
    shown = command("status", tmp_path, "--grid", "copied")
    assert shown.stdout.count("done") >= 4
