"""`furnace open`: the report is made, its age is known, and a browser shows it or not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from login_study import command, finish, grid, planned, specs, tree

from furnace_hpc.console import browser
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder

REPORT = Path("results/study/report.html")


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    write_submission(planned(tmp_path / "runs", grid()))
    folder = GridFolder(tmp_path / "runs" / "study")
    for spec in specs():
        finish(spec, folder)
    return folder


def give(folder: GridFolder, *words: str, **variables: str) -> tuple[int, str, str]:
    """Run the command as in an ssh session without a display."""
    kept = {name: value for name, value in os.environ.items() if name not in browser_variables()}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "furnace_hpc", "open", "--grid", "study", *words],
        cwd=folder.path.parent.parent,
        env=kept | {"PATH": "/nowhere", "SSH_CONNECTION": "a 1 b 22"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def browser_variables() -> tuple[str, ...]:
    return ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "FURNACE_RUNS")


def test_made_opened_and_compared(folder, tmp_path):
    """The first call makes the report, and the second one says that it is older than the runs."""
    opened, program = tmp_path / "opened", tmp_path / "my browser"
    program.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    program.chmod(0o700)
    code, said, complaint = give(folder, BROWSER=str(program))
    assert (code, complaint) == (0, "")
    first, last = said.splitlines()
    assert first.startswith("wrote ")
    assert first.endswith(f" files to {REPORT.parent}")
    assert last == f"opened {REPORT}"
    assert opened.read_text() == f"{(tmp_path / REPORT).as_uri()}\n"
    before = tree(tmp_path / "results")
    os.utime(tmp_path / REPORT, (time.time() - 7300,) * 2)
    code, said, _ = give(folder, BROWSER=str(program))
    assert code == 0
    [age, _] = said.splitlines()
    assert age.startswith("the report is 2 h ")
    assert "older than its runs. Renew it: " in age
    assert age.endswith("aggregate --grid study")
    assert tree(tmp_path / "results") == before
    command("aggregate", tmp_path, "--grid", "study", "--out", "again")
    made = {name: tree(tmp_path / name)["table.csv"] for name in ("results/study", "again")}
    assert made["results/study"] == made["again"]


def test_without_a_browser(folder, tmp_path):
    """The path and a command for the user's own machine."""
    _, said, complaint = give(folder)
    assert complaint == ""
    _, path, _, copy = said.splitlines()
    assert path == f"report: {tmp_path / REPORT}"
    assert copy.startswith("  scp ")
    assert copy.endswith(f":{tmp_path / REPORT} study.html")
    assert give(folder, BROWSER="/nowhere/browser")[1].splitlines()[0] == path


def test_an_unknown_grid_is_refused(folder):
    code, said, complaint = give(folder, "--grid", "studi")
    assert (code, said) == (2, "")
    assert complaint.startswith(
        "error: grid 'studi' has no submissions in runs/studi (did you mean"
    )


@pytest.mark.parametrize(
    ("variables", "opens"),
    [
        ({}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a 1 b 22"}, False),
        ({"BROWSER": "code", "SSH_CONNECTION": "a 1 b 22"}, True),
    ],
)
def test_where_a_browser_can_appear(monkeypatch, variables, opens):
    for name in browser_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert browser.can_open() is opens


def test_paths_are_quoted(tmp_path):
    copy = browser.copy_command(tmp_path / "my results" / "report.html", "a b.html")
    assert copy.endswith("/my results/report.html' 'a b.html'")
