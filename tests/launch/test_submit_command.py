"""The real submit command: its output, its errors, and that an error changes no file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from login_study import GRID, begin, command, end, finish, pack, refused, specs, tree, write_grid

import furnace_hpc
from furnace_hpc.cli import COMMANDS
from furnace_hpc.runs.folder import GridFolder

PACKAGE = Path(furnace_hpc.__file__).resolve().parent


@pytest.fixture
def place(tmp_path):
    """A working directory with a grid and its packed data."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    return tmp_path


def only(place: Path, *arguments: str, grid: str = "study.yaml") -> str:
    [line] = refused(place, grid, *arguments)
    return line


def test_help_names_every_option(tmp_path):
    done = command("submit", tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        *("--grid", "--cluster", "--set", "--variant", "--seed", "--retry", "--code"),
        *("--dry-run", "--yes", "--runs-root", "--data-root", "--help"),
    ):
        assert re.search(rf"^  (-h, )?{option} ", done.stdout, re.MULTILINE), option


def test_a_dry_run_shows_the_plan_and_changes_nothing(place):
    runs, folder = specs(), GridFolder(place / "runs" / "study")
    finish(runs[0], folder, code="01d01d01d01d")
    begin(runs[3], folder, code="01d01d01d01d")
    before = tree(place)
    done = command("submit", place, "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {
        line.split()[0]: line.split()[1:3]
        for line in done.stdout.splitlines()
        if "-s" in line.split(" ")[0]
    }
    assert lines == {
        runs[0].run_id: ["done", "skip"],
        runs[1].run_id: ["new", "start"],
        runs[2].run_id: ["new", "start"],
        runs[3].run_id: ["running", "leave"],
    }
    assert "4 runs (1 leave, 1 skip, 2 start) on local" in done.stdout
    assert tree(place) == before


def test_an_error_is_shown_whole_with_its_brackets(place):
    error = "RuntimeError: [bold]x[/red] " + "long " * 60 + "end"
    end(begin(specs()[0], GridFolder(place / "runs" / "study")), "crash", error=error)
    done = command("submit", place, "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"failed: {error} (--retry failed retries it)" in done.stdout


def test_a_dry_run_prints_the_batch_script(place):
    done = command(
        "submit",
        place,
        "--grid",
        "study.yaml",
        "--dry-run",
        "--cluster",
        "a100",
        "--set",
        "resources.nodes=1",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 runs of 1 node x 4 ranks, 60 min\n" in done.stdout
    assert (
        "at most 16.0 GPU-hours with one attempt per run, and at most 320.0 with all attempts"
        in done.stdout
    )
    script = done.stdout.partition("# --- batch script of the array of 4 runs ---\n")[2]
    assert script.startswith("#!/bin/bash\n")
    assert "#SBATCH --array=0-3%4\n" in script


def test_variants_seeds_and_settings_change_the_plan(place):
    choice = (
        "--variant",
        "full",
        "--seed",
        "1",
        "--set",
        "steps=7",
        "--dry-run",
        "--cluster",
        "local",
    )
    done = command("submit", place, "--grid", "study.yaml", *choice)
    assert done.returncode == 0
    wanted = specs(base=GRID["base"] | {"steps": 7})[3]
    assert wanted.run_id in done.stdout
    assert "1 run (1 start) on local" in done.stdout


def test_a_thousand_runs_are_planned_in_seconds(place):
    write_grid(
        place,
        variants={},
        axes={"loss.alpha": list(range(10)), "loss.beta": list(range(20))},
        seeds=[0, 1, 2, 3, 4],
        reference="alpha-0_beta-0",
    )
    done = command("submit", place, "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1,000 runs (1,000 start) on local" in done.stdout
    assert "... and 960 more" in done.stdout


def test_unknown_grid(place):
    assert only(place, grid="smoek").startswith("unknown grid 'smoek'; did you mean 'smoke'?")
    assert "there is no such file" in only(place, grid="no/such.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variant", "ful"), "unknown variant 'ful'; did you mean 'full'? (valid: base, full)"),
        (("--seed", "7"), "unknown seed '7'; valid: 0, 1"),
        (("--cluster", "a10"), "unknown cluster 'a10'; did you mean 'a100'?"),
        (
            ("--set", "optimizer.lrr=1"),
            "grid 'study', row 'base' and 1 more: unknown key 'optimizer.lrr'; did you mean 'lr'?",
        ),
        (
            ("--set", "steps"),
            "--set got 'steps', wanted key=value, such as --set optimizer.lr=1e-3",
        ),
        (
            ("--set", "seed=3"),
            "--set seed: seeds are listed in the grid. Choose among them with --seed",
        ),
        (("--retry", "fialed"), "--retry got 'fialed'; did you mean 'failed'? (valid: cancelled, "),
        (
            ("--code", "old"),
            "--code got 'old', wanted `new` or nothing: runs keep the code they began with",
        ),
        (
            ("--set", "data.name=mmimdb"),
            "data set 'mmimdb' is not packed: there is no folder data/mmimdb; pack it with",
        ),
        (
            ("--cluster", "a100", "--yes"),
            "cluster 'a100' needs Slurm, but there is no sbatch on PATH: use a login node",
        ),
        (
            ("--set", "micro_batch_size=5"),
            "row 'base' and 1 more: global_batch_size 16 is not micro_batch_size 5 x "
            "gradient_accumulation_steps 3 x ",
        ),
    ],
)
def test_a_wrong_option_is_one_error_line(place, arguments, message):
    if "a100" in arguments:
        write_grid(place, resources={"nodes": 1})
    assert only(place, *arguments).startswith(message)


def test_wrong_usage_exits_with_2(place):
    for arguments in (
        ("--grid", "study.yaml", "--seed", "one"),
        (),
        ("--grid", "study.yaml", "--sed", "1"),
    ):
        done = command("submit", place, *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "Error: " in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "name: a\nname: b\n",
            "study.yaml:2:1: key 'name' is a duplicate in its mapping. Keep one",
        ),
        ("name: a\nbase:\n\tsteps: 3\n", "study.yaml:3:1: a tab cannot indent YAML. Use spaces"),
        ("- a\n", "study.yaml: got a list, wanted a mapping. Write lines of `key: value`"),
        ("a: [", "study.yaml:2:1: did not find expected node content"),
        ("a: \xfc".encode("latin-1"), "study.yaml: not UTF-8 text. Save it as UTF-8"),
    ],
)
def test_a_broken_grid_file_is_one_error_with_its_line(place, content, message):
    (place / "study.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert only(place).startswith(message)


def test_each_problem_of_a_grid_file_is_one_line(place):
    write_grid(place, metrik="x", direction="up", seeds=[])
    lines = refused(place, "study.yaml")
    assert [line.split(": ")[0] for line in lines] == ["study.yaml"] * 3
    write_grid(place, metric="test/digit/acc")
    assert "unknown metric 'test/digit/acc'" in only(place)


def furnace(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script, environment = Path(sys.executable).with_name("furnace"), os.environ | variables
    kinds = {"capture_output": True, "text": True, "check": False}
    return subprocess.run([script, *arguments], cwd=place, env=environment, timeout=60, **kinds)


def test_the_furnace_script_finds_the_commands(place):
    helped = furnace(place)
    assert (helped.returncode, helped.stdout) == (0, furnace(place, "--help").stdout)
    assert helped.stdout.startswith("Usage: furnace COMMAND [OPTIONS]")
    assert re.search(r"^  submit +turn a grid into runs", helped.stdout, re.MULTILINE)
    assert furnace(place, "--version").stdout == f"furnace {furnace_hpc.__version__}\n"
    wrong = furnace(place, "submitt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown command 'submitt'; did you mean 'submit'?")
    planned = furnace(place, "submit", "--grid", "study.yaml", "--dry-run", "--cluster", "local")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert (
        planned.stdout
        == command(
            "submit", place, "--grid", "study.yaml", "--dry-run", "--cluster", "local"
        ).stdout
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_answers_its_help(place, name):
    """An old locale can show it."""
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = furnace(place, name, "--help", **old)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    begin = "devcluster: " if name == "devcluster" else f"Usage: furnace {name} [OPTIONS]"
    assert done.stdout.startswith(begin)
