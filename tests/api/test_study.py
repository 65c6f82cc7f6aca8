"""`furnace_hpc.load_grid` without training: plans, submissions, states, waiting and errors."""

import json
import os
import pickle
import re
import threading
from pathlib import Path

import pytest
import typer
from documents import ROOT, blocks
from login_study import GRID, begin, command, end, finish, pack, specs, tree, write_grid

import furnace_hpc as furnace
from furnace_hpc import submit
from furnace_hpc.api import study as study_module
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import load_grid
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.launch import local_queue
from furnace_hpc.launch.grids.background import Answer
from furnace_hpc.launch.grids.submit_grid import Hooks, submit_grid
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.monitor.following import runs as following
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import submissions
from furnace_hpc.slurm import client

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a grid, its packed data, and no Slurm."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    monkeypatch.chdir(tmp_path)
    for name in ("FURNACE_RUNS", "FURNACE_DATA", GROUP_ACCESS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return tmp_path


@pytest.fixture
def without_ranks(monkeypatch):
    """A queue on this machine writes its submission and starts nothing."""

    def write_only(plan, starts):
        starts(write_submission(plan), plan)
        return True

    def in_this_process(options, rows):
        return Answer(submit_grid(options, rows, Hooks()).plan)

    monkeypatch.setattr(local_queue, "submit_plan", write_only)
    monkeypatch.setattr(study_module, "start_queue", in_this_process)


def test_the_plan_is_that_of_the_command(place, capsys):
    folder = GridFolder(place / "runs" / "study")
    finish(specs()[0], folder)
    before = tree(place)
    done = command("submit", place, "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    plan = furnace.load_grid("study.yaml").plan()
    assert capsys.readouterr() == ("", "")
    assert tree(place) == before
    lines = done.stdout.splitlines()
    assert lines[-len(plan.lines) :] == plan.lines
    planned = plan.runs.filter(plan.runs["action"] == "start")
    started = [line.split()[0] for line in lines if line.split()[1:3] == ["new", "start"]]
    assert planned["run_id"].to_list() == started
    assert plan.runs["run_id"].to_list() == [spec.run_id for spec in specs()]
    assert plan.counts == {"skip": 1, "start": 3}
    assert repr(plan) == "<plan of study on local: 4 runs (1 skip, 3 start)>"


def test_choices_are_those_of_the_command(place):
    words = ("--variant", "full", "--seed", "1", "--set", "optimizer.lr=1e-4", "--cluster", "local")
    done = command("submit", place, "--grid", "study.yaml", "--dry-run", *words)
    [expected] = [line.split()[0] for line in done.stdout.splitlines() if "-s1-" in line]
    for settings in ({"optimizer.lr": 1e-4}, ["optimizer.lr=1e-4"]):
        study = furnace.load_grid(Path("study.yaml"), settings=settings)
        plan = study.plan("local", variants=["full"], seeds=[1])
        assert plan.runs["run_id"].to_list() == [expected]


def test_batch_scripts_are_those_of_the_command(place):
    words = ("--grid", "study.yaml", "--dry-run", "--cluster", "a100")
    printed = command("submit", place, *words).stdout
    [script] = furnace.load_grid("study.yaml").plan("a100").batch_scripts()
    assert script.splitlines()[1] == "#!/bin/bash"
    assert script in printed


def test_the_submission_is_that_of_the_command(place, without_ranks):
    choices = {"variants": ["full"], "seeds": [0], "adopt": False}
    plan = furnace.load_grid("study.yaml", settings={"steps": 30}).submit("local", **choices)
    path = place / "runs" / "study" / "submissions"
    by_python = tree(path)
    path.rename(place / "moved")
    settings = {"set_": ["steps=30"], "variant": ["full"], "seed": [0], "adopt": False}
    with pytest.raises(typer.Exit):
        submit.main("study.yaml", "local", **settings)
    assert by_python == tree(path)
    assert {"1/grid.yaml", "1/specs.jsonl", "1/rows.jsonl", "1/profile.json"} <= {*by_python}
    assert plan.counts == {"start": 1}


def test_rows_and_runs_of_a_grid(place):
    study = furnace.load_grid("study.yaml")
    assert repr(study) == "<grid study: 2 rows x 2 seeds, test/digit/accuracy>"
    assert [row.name for row in study.rows] == ["base", "full"]
    assert study.runs["variant"].to_list() == ["base", "base", "full", "full"]
    assert study.runs["seed"].to_list() == [0, 1, 0, 1]
    assert "<td" in study._repr_html_()
    assert "loss.alpha=0.5, loss.beta=0.3" in study._repr_html_()


def test_the_status_is_that_of_the_command(place, without_ranks, capsys):
    study = furnace.load_grid("study.yaml")
    study.submit("local")
    runs = specs()
    finish(runs[0], study.folder)
    failed = begin(runs[1], study.folder)
    end(failed, "crash", error=f"ValueError: {HOSTILE}")
    status = study.status()
    assert capsys.readouterr() == ("", "")
    assert status.counts == {"done": 1, "failed": 1, "new": 2}
    assert not status.is_done
    assert f"{status}\n" == command("status", place, "--grid", "study").stdout
    assert status.runs["run"].to_list() == [spec.run_id for spec in runs]
    assert status.runs["step"].to_list() == [9, 9, 0, 0]
    assert status.runs["loss"].dtype.is_float()
    page = status._repr_html_()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.index("failed") < page.index("done")
    assert repr(status).startswith("<status of study: 4 runs: ")


def test_hostile_texts_are_escaped(place):
    path = write_grid(
        place, description=HOSTILE, variants={"base": {}, "full": {"evaluation.select": HOSTILE}}
    )
    with pytest.raises(furnace.ConfigError, match="evaluation.select"):
        furnace.load_grid(path)
    write_grid(place, description=HOSTILE)
    study = furnace.load_grid(path)
    for page in (study._repr_html_(), study.plan("local")._repr_html_()):
        assert HOSTILE not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_wait_shows_progress_until_runs_end(place, without_ranks, monkeypatch, capsys):
    monkeypatch.setattr(following, "EVERY_S", 0.05)
    study = furnace.load_grid("study.yaml")
    study.submit("local", variants=["full"])
    run = begin(specs()[2], study.folder)
    timer = threading.Timer(0.5, end, (run, "crash"))
    timer.start()
    status = study.wait()
    assert status.counts == {"failed": 1, "new": 1}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["2 runs: 1 new, 1 running", "2 runs: 1 new, 1 failed"]
    assert study.wait(progress=False).counts == status.counts
    assert capsys.readouterr() == ("", "")


def test_wait_ends_after_the_queue(place, without_ranks, monkeypatch):
    """Runs that wait in a queue on this machine are new, so the queue itself counts."""
    monkeypatch.setattr(following, "EVERY_S", 0.05)
    study = furnace.load_grid("study.yaml")
    study.submit("local")
    seen = []

    def has_queue(_):
        seen.append(study.status().counts)
        return len(seen) < 4

    monkeypatch.setattr("furnace_hpc.api.waiting.has_queue", has_queue)
    assert study.wait(progress=False).counts == {"new": 4}
    assert len(seen) == 4


def test_ctrl_c_ends_the_wait_alone(place, without_ranks, monkeypatch):
    study = furnace.load_grid("study.yaml")
    study.submit("local")
    begin(specs()[0], study.folder)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.wait(progress=False)
    assert study.status().counts["running"] == 1
    assert study.cancel() == ["nothing is running or waiting"]


def test_a_call_leaves_the_process_as_it_is(place, without_ranks, monkeypatch):
    """A submission makes private files. Those that the notebook writes later are not."""
    before = os.umask(0o022)
    try:
        monkeypatch.setenv(GROUP_ACCESS, "1")
        furnace.load_grid("study.yaml").submit("local")
        assert os.environ[GROUP_ACCESS] == "1"
        (place / "own.txt").write_text("")
        assert (place / "own.txt").stat().st_mode & 0o777 == 0o644
        assert (place / "runs").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_each_call_asks_slurm_again(place):
    """What an earlier call found may be old: a notebook stays open for days."""
    assert client.configuration() == {}
    assert client.configuration.cache_info().currsize == 1
    assert code_hash() == code_hash()
    furnace.load_grid("study.yaml")
    assert client.configuration.cache_info().currsize == 0
    assert code_hash.cache_info().currsize == 0


def test_lines_of_a_command_are_messages(place, capsys):
    (place / "data").rename(place / "gone")
    plan = furnace.load_grid("study.yaml").plan("local")
    assert capsys.readouterr() == ("", "")
    assert plan.messages[0].startswith("data set 'tridigits' is not packed: `furnace submit` will")
    assert "is not packed" in plan._repr_html_()


@pytest.mark.parametrize(
    ("load", "call", "expected"),
    [
        ({"grid": "studi.yaml"}, "plan", "grid 'studi.yaml': there is no such file"),
        ({"settings": "steps=3"}, "plan", "settings is 'steps=3', wanted a list. Write ['steps=3"),
        ({"settings": {"optimizer.lr": object}}, "plan", "settings['optimizer.lr'] is <class"),
        ({"settings": {"optimizer.rl": 1}}, "plan", "optimizer.rl"),
        ({"settings": {"data.name": "mine"}}, "plan", "data set 'mine' is not packed"),
        ({}, "status", "has no submissions in runs/study. Call submit first"),
        ({"runs_dir": "other"}, "wait", "has no submissions in other/study"),
        ({}, "cancel", "has no submissions"),
        ({}, "results", "has no runs under runs"),
    ],
)
def test_a_wrong_input_is_one_error(place, capsys, load, call, expected):
    load = {"grid": "study.yaml"} | load
    with pytest.raises(furnace.ConfigError) as caught:
        getattr(furnace.load_grid(**load), call)()
    assert expected in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cluster": "nope"}, "unknown cluster 'nope'"),
        ({"variants": "full"}, "variants is 'full', wanted a list. Write ['full']"),
        ({"variants": ["ful"]}, "unknown variant 'ful'; did you mean 'full'?"),
        ({"seeds": [7]}, "unknown seed '7'"),
        ({"retry": ["failed", "hangg"]}, "'hangg'; did you mean 'hang'?"),
        ({"resume_with": {"steps": 3}}, "a started run may only change deepspeed or micro_batch"),
    ],
)
def test_a_wrong_choice_is_one_error(place, options, expected):
    before = tree(place)
    for call in ("plan", "submit"):
        with pytest.raises(furnace.ConfigError) as caught:
            getattr(furnace.load_grid("study.yaml"), call)(**({"cluster": "local"} | options))
        assert expected in str(caught.value)
    assert tree(place) == before


def test_the_page_names_what_exists(place, without_ranks):
    """Every call and attribute in the examples of docs/python.md."""
    study = furnace.load_grid("study.yaml")
    known = {"furnace": furnace, "study": study, "plan": study.submit("local")}
    finish(specs()[0], study.folder)
    known |= {"results": study.results(), "status()": study.status()}
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    found = re.findall(r"\b(furnace|study|plan|results|status\(\))\.([a-z_]\w*)", text)
    assert len(found) >= 14
    for name, attribute in found:
        assert hasattr(known[name], attribute), (name, attribute)
    for code in blocks(ROOT / "docs" / "python.md", "python"):
        compile(code, "python.md", "exec")


def test_the_package_lists_what_it_has():
    assert {*furnace.__all__} <= {*dir(furnace)}
    for name in furnace.__all__:
        assert getattr(furnace, name).__doc__
    assert issubclass(furnace.UnavailableError, furnace.ConfigError)
    with pytest.raises(AttributeError, match="no attribute 'load_gird'"):
        furnace.load_gird  # noqa: B018


def test_a_deepspeed_file_that_has_changed(place, without_ranks):
    """Runs, ids and the declared plan have the content that load_grid has read, or are refused."""
    file = place / "ds_configs" / "mine.json"
    file.parent.mkdir()
    before = (ROOT / "ds_configs" / "zero1.json").read_text()
    file.write_text(before)
    write_grid(place, base=GRID["base"] | {"deepspeed": "mine"})
    study = furnace.load_grid("study.yaml")
    ids = study.plan("local").runs["run_id"].to_list()
    content = json.loads(before)
    content["zero_optimization"]["reduce_bucket_size"] = 12_345
    file.write_text(json.dumps(content))
    changed = furnace.load_grid("study.yaml")  # it also replaces the cached rows of the other
    fix = "ds_configs/mine.json was changed after the grid was read. Repeat the command; in Python"
    for call in (study.plan, study.submit):
        with pytest.raises(furnace.ConfigError, match=re.escape(fix)):
            call("local")
    assert not study.folder.path.exists()
    assert not {*changed.plan("local").runs["run_id"].to_list()} & {*ids}
    file.unlink()
    with pytest.raises(furnace.ConfigError, match="unknown DeepSpeed file 'mine'"):
        study.submit("local")
    file.write_text(before)
    assert study.plan("local").runs["run_id"].to_list() == ids
    study.submit("local")
    [submission] = submissions(study.folder)
    specs = (submission.path / "specs.jsonl").read_text().splitlines()
    assert [json.loads(line)["config"]["deepspeed"] for line in specs] == [
        row.config.deepspeed.model_dump(mode="json") for row in study.rows for _ in range(2)
    ]


def test_another_process_uses_what_load_grid_read(place):
    """The process of a queue gets the grid, and expands it again."""
    file = place / "mine.json"
    file.write_text((ROOT / "ds_configs" / "zero1.json").read_text())
    write_grid(place, base=GRID["base"] | {"deepspeed": "./mine.json"})
    study = furnace.load_grid("study.yaml")
    file.write_text((ROOT / "ds_configs" / "zero2.json").read_text())
    received = pickle.loads(pickle.dumps(study.grid))
    assert expand_rows(received) == list(study.rows)
    assert expand_rows(load_grid("study.yaml")) != list(study.rows)
