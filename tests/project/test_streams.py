"""Commands with other locales, closed streams, a reader that leaves, and non-UTF-8 paths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from aggregate_study import submit
from tables_study import fail, finish, study

from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.console.streams import EXIT_BROKEN_PIPE
from furnace_hpc.runs.folder import GridFolder

ASCII = {"PYTHONIOENCODING": "ascii"}
# ASCII for streams, arguments and paths
OLD_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
OPTIONS = {
    "aggregate": "--grid study --no-figures",
    "status": "--grid study",
    "cancel": "--grid study",
    "submit": "--grid study.yaml --cluster local --dry-run",
}
EXPECTED = {"aggregate": 1}  # a run is missing
ALL_CLOSED = ">&- 2>&- <&-"
DESCRIPTION = "λ 中文 ± \x1b[31m"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with a runs root, neither of which is UTF-8."""
    place = tmp_path_factory.mktemp("study") / os.fsdecode(b"w\xe4")
    grid, runs = study(description=DESCRIPTION, seeds=[0, 1])
    folder = GridFolder(place / os.fsdecode(b"r\xfcns") / "study")
    submit(grid, runs, folder)
    for spec in runs[1:]:
        finish(spec, folder)
    fail(runs[0], folder, "ValueError: ☃ \x1b[2J\x07\r")
    (place / "study.yaml").write_bytes(folder.grid.read_bytes())
    (folder.path / os.fsdecode(b"foreign\xff")).mkdir()
    return place


def run(place: Path, name: str, shell: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command with redirections of the shell."""
    words = "--help"
    if name in OPTIONS:
        words = f"{OPTIONS[name]} --runs-root $'r\\xfcns'"
    line = f"{sys.executable} -m furnace_hpc.{name} {words} {shell}"
    environment = {
        name: value for name, value in os.environ.items() if name != "FURNACE_RUNS"
    } | environment
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert b"Exception ignored" not in done.stderr
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


slow = pytest.mark.slow  # each starts a new Python, since that reads the locale


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        pytest.param("aggregate", ASCII, id="ascii"),
        pytest.param("aggregate", OLD_C, id="old-c"),
        pytest.param("aggregate", {"LC_ALL": "C"}, id="c", marks=slow),
        pytest.param("aggregate", LATIN, id="latin", marks=slow),
        *(pytest.param(name, OLD_C, id=name) for name in OPTIONS if name != "aggregate"),
    ],
)
def test_every_locale_shows_every_command(place, name, environment):
    code, out, error = run(place, name, **environment)
    assert code == EXPECTED.get(name, 0), error
    assert "\x1b" not in out + error
    if environment in (ASCII, OLD_C):
        assert out.isascii()
    if name == "aggregate":
        page = (place / "results/study/report.html").read_text(encoding="utf-8")
        assert r"r\\udcfcns/study/" in page
        sign = "±"
        if environment in (ASCII, OLD_C):
            sign = "+-"
        elif environment == {"LC_ALL": "C"}:  # Python writes UTF-8 then
            sign = sign.encode().decode("latin-1")
        assert f"mean {sign} sample" in out


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("aggregate", ALL_CLOSED),
        ("status", ">&-"),
        pytest.param("cancel", ALL_CLOSED, marks=slow),
        pytest.param("submit", ">&-", marks=slow),
        pytest.param("doctor", ALL_CLOSED, marks=slow),
    ],
)
def test_a_closed_stdout_changes_no_exit_code(place, name, closed):
    table = place / "results/study/table.csv"
    table.unlink(missing_ok=True)
    code, out, _ = run(place, name, closed)
    assert (code, out) == (EXPECTED.get(name, 0), "")
    if name == "aggregate":  # it costs no table
        assert table.read_text(encoding="utf-8").startswith("variant,changes,")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("aggregate", 1, marks=slow),
        ("cancel", 0),
        ("status", EXIT_BROKEN_PIPE),
        pytest.param("schema", EXIT_BROKEN_PIPE, marks=slow),
    ],
)
def test_a_reader_that_leaves(place, name, code):
    """A command that only prints ends. Another one continues to its own exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = OPTIONS.get(name, "grid").split()
    if name in OPTIONS:
        arguments += ["--runs-root", os.fsdecode(b"r\xfcns")]
    done = subprocess.run(
        [sys.executable, "-m", f"furnace_hpc.{name}", *arguments],
        cwd=place,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"error" not in done.stderr


def test_a_full_device_is_one_error(place):
    code, _, error = run(place, "status", ">/dev/full")
    assert code == 2
    assert error.startswith("error: furnace status could not continue: No space left on device: ")
    assert error.count("\n") == 1


def test_libraries_get_a_utf8_path(tmp_path):
    plain, other = tmp_path / "plain", tmp_path / os.fsdecode(b"\xff")
    other.mkdir()
    with utf8_path(plain) as named:
        assert named == plain
    with utf8_path(other) as named:
        str(named).encode("utf-8")
        (named / "a").write_text("1")
    assert (other / "a").read_text() == "1"
