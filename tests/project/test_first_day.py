"""The first day of a user: version of Python, paths as names, advice that works, last lines."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import forked_commands
import pytest
import tables_study
from login_study import begin, command, end, finish, pack, specs, write_grid
from status_study import submit

from furnace_hpc.cli import COMMANDS, module_of
from furnace_hpc.config.base import ColumnName
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.train_config import run_ids
from furnace_hpc.console.progress_bar import _rate, progress_bar
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.render import to_terminal
from furnace_hpc.tables.output.verdict import last_lines

ROOT = Path(__file__).parents[2]
PYENV = Path.home() / ".pyenv" / "versions"


def pythons(*versions: str) -> list:
    """Real interpreters of these versions. Those that are missing are skipped."""
    found = []
    for version in versions:
        skip = pytest.mark.skip(reason=f"no Python {version} under {PYENV}")
        parameter = pytest.param(None, id=version, marks=skip)
        for path in PYENV.glob(f"{version}.*/bin/python"):
            parameter = pytest.param(path, id=version)
        found.append(parameter)
    return found


def make(place: Path, *words: str, old: bool = False) -> subprocess.CompletedProcess[str]:
    """`make` in a clone, without the installation. With `old`, its files have not changed."""
    if not shutil.which("make"):
        pytest.skip("no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place)
        if old:
            os.utime(place / name, (0, 0))
    return subprocess.run(
        ["make", *words, "INSTALL=true"], cwd=place, capture_output=True, text=True, timeout=200
    )


@pytest.mark.parametrize("python", pythons("2.7", "3.6", "3.9", "3.10"))
def test_old_python_is_named_and_leaves_nothing(tmp_path, python):
    done = make(tmp_path, "demo", f"PYTHON={python}")
    version = python.parent.parent.name
    assert done.returncode == 2
    assert (
        f"error: Furnace needs Python 3.11 or newer, and {python} is Python {version}. "
        in done.stderr
    )
    assert "make PYTHON=python3.12 demo" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("old", pythons("3.9", "3.10"))
def test_environment_of_an_old_python_is_replaced(tmp_path, old):
    subprocess.run(
        [old, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True, timeout=100
    )
    assert make(tmp_path, "demo", f"PYTHON={old}").returncode == 2
    done = make(tmp_path, ".venv/.demo", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    says = [tmp_path / ".venv/bin/python", "-c", "import sys, pip; print(sys.version_info[:2])"]
    assert (
        subprocess.run(says, capture_output=True, text=True).stdout == f"{sys.version_info[:2]}\n"
    )


def test_environment_that_works_is_kept(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    done = make(tmp_path, ".venv/.demo", "PYTHON=/nowhere/python")
    assert (done.returncode, (tmp_path / ".venv" / "bin" / "python").resolve()) == (
        0,
        Path(sys.executable).resolve(),
    )


def test_make_names_sizes_and_the_build_of_torch(tmp_path):
    """The default needs no index but that of all packages. Sizes come before each download."""
    default = make(tmp_path, "--dry-run", "demo").stdout
    assert "0.45 GB" in default
    assert "3.0 GB" in default
    assert default.index("GB") < default.index('".[demo]"')
    assert "index-url" not in default
    chosen = make(tmp_path, "--dry-run", "demo", "TORCH=cpu").stdout
    version = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    wanted = f'"torch=={version}+cpu" --index-url https://download.pytorch.org/whl/cpu'
    assert chosen.index("GB") < chosen.index(wanted) < chosen.index('".[demo]"')


def test_the_chosen_build_of_torch_is_kept(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".made").touch()
    (tmp_path / ".venv" / ".torch-cpu").touch()
    again = make(tmp_path, "--dry-run", "demo", "TORCH=cpu", old=True).stdout
    assert "index-url" not in again
    assert "cu130" in make(tmp_path, "--dry-run", "demo", "TORCH=cu130", old=True).stdout


def submitted(folder: GridFolder, sent: dict[str, list[int]], settings: str = "", **more):
    """A submission with all files that status and aggregate read."""
    submission = submit(folder, sent, **more)
    rows = [json.loads(row) for row in (submission.path / "rows.jsonl").read_text().splitlines()]
    facts = {"steps": 40, "data": ["tridigits", specs()[0].data_fingerprint]}
    (submission.path / "rows.jsonl").write_text(
        "".join(json.dumps(row | facts) + "\n" for row in rows)
    )
    content = (folder.path.parent.parent / "study.yaml").read_text()
    (submission.path / "grid.yaml").write_text(content + settings)
    folder.grid.write_text(content)


@pytest.fixture
def study(tmp_path: Path) -> GridFolder:
    """A study of four runs that were submitted to the local queue. Two are done."""
    write_grid(tmp_path)
    folder = GridFolder(tmp_path / "runs" / "study")
    submitted(folder, {})
    for spec in specs()[:2]:
        finish(spec, folder)
    return folder


@pytest.mark.parametrize("name", ["study", "study.yaml", "./study.yaml", "runs/study/grid.yaml"])
@pytest.mark.parametrize("asked", ["status", "cancel", "aggregate"])
def test_a_grid_is_given_by_name_or_file(study, asked, name):
    words, code, output = {
        "status": ([], 0, "4 runs: 2 new, 2 done"),
        "cancel": ([], 0, "nothing is running or waiting"),
        "aggregate": (["--no-figures"], 1, "verdict: undecided"),
    }[asked]
    done = command(asked, study.path.parent.parent, "--grid", name, *words)
    assert done.returncode == code, done.stderr
    assert output in done.stdout


def test_status_reads_only_the_name_of_the_file(study):
    place = study.path.parent.parent
    (place / "study.yaml").write_text("name: study\nbase: {stepz: 3}\n")
    assert "2 new, 2 done" in command("status", place, "--grid", "study.yaml").stdout
    (place / "study.yaml").write_text("name: ../study\n")
    done = command("status", place, "--grid", "study.yaml")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "name" in done.stderr


def test_unknown_grid_names_those_that_were_submitted(study):
    done = command("status", study.path.parent.parent, "--grid", "stduy")
    assert done.stderr.startswith(
        "error: grid 'stduy' has no submissions in runs/stduy (did you mean 'study'?"
    )


@pytest.mark.parametrize("asked", ["aggregate", "status"])
@pytest.mark.parametrize("name", ["ablation", "my studies/study.yaml"])
def test_advice_before_the_first_run_can_be_pasted(tmp_path, asked, name):
    (tmp_path / "my studies").mkdir()
    write_grid(tmp_path / "my studies")
    done = command(asked, tmp_path, "--grid", name)
    assert done.returncode == 2
    (advice,) = re.findall(r"Submit it with `([^`]+)`", done.stderr)
    assert advice.endswith(f"submit --grid {shlex.quote(name)}")
    pack(tmp_path / "data" / "tridigits")
    environment = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    words = ["/bin/bash", "-c", f"{advice} --dry-run"]
    pasted = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert pasted.returncode == 0, pasted.stderr


def test_furnace_is_called_as_the_shell_finds_it(tmp_path, monkeypatch):
    script = tmp_path / "env" / "bin" / "furnace"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert furnace("status", "--grid", "a b") == "env/bin/furnace status --grid 'a b'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert furnace("status") == "furnace status"
    script.unlink()
    assert furnace("status") == f"{sys.executable} -m furnace_hpc status"


def test_aggregate_names_runs_with_other_settings(study):
    place = study.path.parent.parent
    submitted(study, {}, "settings: {steps: 20, seed_x: 1e-3}\n", runs=["quick-s0-1"])
    (study.path / "quick-s0-1").mkdir()
    (study.path / "quick-s0-1" / "result.json").write_text("{}")
    done = command("aggregate", place, "--grid", "study", "--no-figures")
    assert done.returncode == 1
    assert (
        "runs with other settings (--set) have a table of their own:\n  1 of 1 run is done: "
        in done.stderr
    )
    assert "aggregate --grid study --set steps=20 --set seed_x=0.001\n" in done.stderr
    assert (
        done.stdout.splitlines()[-1]
        == f"next: {furnace_in(place)} submit --grid runs/study/grid.yaml"
    )


def furnace_in(place: Path) -> str:
    """The command that a child process with an empty PATH prints."""
    script = Path(sys.prefix) / "bin" / "furnace"
    if script.exists():
        return str(script)
    return f"{sys.executable} -m furnace_hpc"


def table(tmp_path: Path, **changes):
    asked, runs = tables_study.study(**changes)
    folder = GridFolder(tmp_path / "runs" / "study")
    for spec in runs:
        tables_study.finish(spec, folder)
    return collect(asked, runs, folder), folder


def test_a_table_ends_with_verdict_and_next_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ablation, folder = table(tmp_path)
    lines = last_lines(ablation, folder, Path("results/study"), 15)
    assert lines[0] == (
        "verdict: better than base: consistency_only (+2.28 points [1.11, 3.45]), "
        "full (+3.20 points [1.55, 4.85]); undecided: specific_only (-1.04 points [-2.79, 0.71]); "
        "effect of loss.alpha: 0 -> 0.5: better, +3.26 points [2.81, 3.71]"
    )
    assert lines[1] == "wrote 15 files to results/study; open results/study/report.html"
    run = run_ids([run.spec for run in ablation.runs])[0]
    assert re.fullmatch(
        rf"next: .*furnace.* export {folder.path}/{run} --out exported/{run}", lines[2]
    )
    assert len(lines) == 3


@pytest.mark.parametrize("width", [30, 50, 80, 100, 300])
def test_tables_cut_no_name_and_no_number(tmp_path, width, capsys):
    from rich.console import Console

    columns = [name for name in get_args(ColumnName) if name != "changes"]
    ablation, _ = table(tmp_path, columns=columns)
    Console(width=width, soft_wrap=True).print(to_terminal(ablation, width))
    said = capsys.readouterr().out
    assert "\u2026" not in said
    boxes = [
        line for line in said.splitlines() if line.startswith("  ") or line.startswith(" \u2500")
    ]
    assert max(map(len, boxes)) <= width
    if width >= 50:
        assert re.search(r"^  consistency_only( \(a\))?  ", said, re.MULTILINE)
        assert {"187,402", "62.0", "0.54", ".0625"} <= set(said.split())


def test_progress_of_one_thing_has_no_rate(capsys):
    with progress_bar() as report:
        report("speech", 0, 1)
        time.sleep(1.1)
        report("speech", 1, 1)
        report("samples", 0, 4000)
        report("samples", 4000, 4000)
    said = capsys.readouterr().out
    assert re.search(r"speech +\S+ done", said)
    assert re.search(r"samples +\S+ 4,000/4,000", said)
    assert "/s" not in said
    assert [_rate(0, 9.0), _rate(9, 0.5), _rate(6700, 10.0), _rate(3, 10.0)] == [
        "",
        "",
        "670/s",
        "3 s each",
    ]


def test_without_slurm_the_devcluster_is_named(tmp_path):
    write_grid(tmp_path)
    done = command(
        "submit", tmp_path, "--grid", "study.yaml", "--cluster", "devcluster", "--yes", "--wait"
    )
    assert done.returncode == 2
    assert "`furnace devcluster up` starts a Slurm on this machine" in done.stderr
    assert "--cluster local" in done.stderr


def test_status_of_a_local_grid_ignores_a_dead_slurm(study):
    """The grid was on a Slurm that is gone. Then the local queue trained or started all runs."""
    submitted(study, {"7": [0, 1, 2, 3], "8": []})
    time.sleep(0.01)
    for spec in specs()[2:]:
        end(begin(spec, study), "stopped")
    place, path = study.path.parent.parent, "/nowhere"
    if shutil.which("squeue"):
        path = os.environ["PATH"]
    words = [sys.executable, "-m", "furnace_hpc.status", "--grid", "study"]
    environment = os.environ | {"PATH": path, "SLURM_CONF": "/nowhere/slurm.conf"}
    study.slurm_cache.write_text(
        json.dumps({"queued": [], "ended": [], "failures": 3, "error": "no cluster"})
    )
    done = forked_commands.run(words, cwd=place, env=environment)
    assert done.stdout.splitlines()[-1] == "4 runs: 2 done, 2 interrupted"
    for spec in specs()[2:]:
        finish(spec, study)
    done = forked_commands.run(words, cwd=place, env=environment)
    assert done.stdout.splitlines()[-1] == "4 runs: 4 done"


@pytest.mark.parametrize("name", COMMANDS)
def test_one_name_for_the_data_root(name):
    module = "pack tridigits" if name == "pack" else name
    words = [
        sys.executable,
        "-m",
        module_of(module.split()[0]),
        *module.split()[1:],
        "--help",
    ]
    said = forked_commands.run(words).stdout
    assert "--data-dir" not in said
    assert "--replace" not in said
    assert ("--data-root" in said) is (
        name in ("submit", "drill", "train", "export", "check", "publish")
    )


@pytest.mark.slow
def test_the_old_name_still_works(tmp_path):
    done = command("export", tmp_path, "nowhere", "--out", "out", "--data-dir", "data")
    assert "nowhere is not a run's folder" in done.stderr


def test_export_lists_several_runs_that_match(tmp_path):
    done = command(
        "export", tmp_path, "runs/study/base-s0-1", "runs/study/base-s0-2", "--out", "out"
    )
    sentence = "2 run folders match: runs/study/base-s0-1, runs/study/base-s0-2. Give one of them"
    assert (done.returncode, done.stderr) == (2, f"error: {sentence}\n")
