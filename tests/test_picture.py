"""The picture of a grid: what its lines say, in which order, and that they fit."""

import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from login_study import begin, end, finish, grid, planned, specs

from furnace_hpc.cluster.columns import bar, number, sparkline
from furnace_hpc.cluster.evidence import Evidence
from furnace_hpc.cluster.overview import Line, overview
from furnace_hpc.cluster.picture import picture, plain
from furnace_hpc.cluster.submission import write_submission
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.loss_curve import BLOCK, loss_curve
from furnace_hpc.runs.records import MetricsFile, last_record
from furnace_hpc.runs.state import RunState, RunStatus
from furnace_hpc.runs.unchanged import while_unchanged

WIDTHS = (120, 80, 60, 40, 20, 5)


def write(run: RunFolder, attempt: int, steps: range, **more: object) -> None:
    """Records of these steps; the loss is 100/step."""
    metrics = MetricsFile(run.metrics(attempt))
    for step in steps:
        metrics.write({"step": step, "kind": "train", "train/loss": 100 / step, "lr": 1e-3} | more)
        metrics.write({"step": step, "kind": "val", "val/loss": -1.0})
    metrics.close()


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    """Four runs: one done, one on its second attempt, one that has crashed, one that was never begun."""
    write_submission(planned(tmp_path / "runs", grid()))
    folder, runs = GridFolder(tmp_path / "runs" / "study"), specs()
    finish(runs[0], folder)
    end(begin(runs[1], folder), "stopped")
    begin(runs[1], folder)
    write(folder.run(runs[1].run_id), 2, range(8, 21), step_time_s=4.5, samples_per_s=1234.5)
    end(begin(runs[2], folder), "crash", error="RuntimeError: [bold]x[/red]\n " + "long " * 60)
    return folder


def lines_of(folder: GridFolder, width: int, height: int = 50) -> list[str]:
    return [text.plain for text in picture(*overview(folder), width, height)]


def invented(count: int, state: RunState) -> list[Line]:
    runs = [RunFolder(Path(f"/nowhere/{state.value}{n}-s0-deadbeef")) for n in range(count)]
    return [Line(run, RunStatus(state, 0, 3, "why not"), 40, 0.5, None, None, "") for run in runs]


def test_a_line_says_how_far_a_run_is_how_fast_and_how_the_attempt_before_ended(folder):
    head, columns, *lines, sum_ = (re.split("  +", line) for line in lines_of(folder, 130))
    assert head == ["━━━━━━━━━╾" + "─" * 30 + " 23 %", "step 38 of 160"]
    assert columns == ["run", "state", "step", "loss", "samples/s", "try", "left, or why"]
    running = lines[0]
    assert running[:5] == ["base-s1", "running", "━━━━━━──────", "20/40", "5.000"]
    curve = running[5]
    assert (curve[:2], curve[-1], len(curve)) == ("▁█", "▃", 12)  # 1.0 at step 7 of the first attempt, then 12.5 to 5
    assert list(curve[1:]) == sorted(curve[1:], reverse=True)
    assert running[6:] == ["1,234", "2", "1 min 30 s left; attempt 1: stopped"]
    assert lines[1][:2] == ["full-s0", "failed"]
    assert lines[1][-1].startswith("RuntimeError: [bold]x[/red] long long")
    assert lines[1][-1].endswith("…")
    assert lines[2] == ["full-s1", "new", "────────────", "0/40"]
    assert lines[3][:2] == ["base-s0", "done"]
    assert sum_ == ["4 runs: 1 new, 1 running, 1 done, 1 failed"]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_wraps_and_state_and_name_are_never_dropped(folder, width):
    lines = lines_of(folder, width)
    assert len(lines) == 7
    assert max(map(len, lines)) <= width
    assert not any("\n" in line for line in lines)
    if width >= 40:
        assert re.match(r"base-s1 +running ", lines[2])


def test_a_narrow_terminal_keeps_what_is_worth_most(folder):
    heads = {width: re.split("  +", lines_of(folder, width)[1]) for width in (120, 80, 60, 40)}
    assert heads[120] == ["run", "state", "step", "loss", "samples/s", "try", "left, or why"]
    assert set(heads[40]) < set(heads[60]) <= set(heads[80]) <= set(heads[120])
    assert heads[60] == ["run", "state", "step", "left, or why"]
    assert "━" in lines_of(folder, 60)[2]
    assert "█" in lines_of(folder, 80)[2], "the loss curve is there"


@pytest.mark.parametrize("height", [6, 10, 24, 100])
def test_what_moves_comes_first_and_the_rest_is_one_line(height):
    rows = [*invented(30, RunState.DONE), *invented(5, RunState.NEW), *invented(4, RunState.QUEUED)]
    rows += [*invented(2, RunState.INTERRUPTED), *invented(3, RunState.FAILED), *invented(6, RunState.RUNNING)]
    lines = [text.plain for text in picture(rows, Evidence(), 80, height)]
    assert len(lines) <= height
    states = [line.split()[1] for line in lines[2:-1] if "more:" not in line]
    order = ["running", "failed", "interrupted", "queued", "new", "done"]
    assert states == sorted(states, key=order.index)
    assert lines[-1] == "50 runs: 5 new, 4 queued, 6 running, 30 done, 2 interrupted, 3 failed"
    if height == 24:
        assert lines[-2] == "30 more: 30 done"
    if height == 10:
        assert lines[-2] == "44 more: 5 new, 4 queued, 30 done, 2 interrupted, 3 failed"
    assert len(states) == min(50, max(1, height - 4))


def test_names_lose_their_hash_only_where_they_stay_different():
    rows = invented(2, RunState.NEW)
    same = [*rows, Line(RunFolder(Path("/nowhere/new1-s0-0badcafe")), *list(vars(rows[0]).values())[1:])]
    assert picture(rows, Evidence(), 80)[2].plain.startswith("new0-s0 ")
    assert picture(same, Evidence(), 80)[2].plain.startswith("new0-s0-deadbeef ")


def test_plain_lines_are_whole_and_have_all_columns(folder):
    head, *lines, _ = plain(*overview(folder))
    assert re.split("  +", head) == ["run", "state", "attempt", "step", "loss", "samples/s", "left", "job", "why"]
    assert len(lines) == 4
    assert lines[1].count("long") == 60


def test_bars_say_by_their_glyphs_alone_how_far_it_is():
    assert [bar(done, 40, 4).plain for done in (0, 1, 10, 15, 39, 40, 99)] == [
        "────",
        "╾───",
        "━───",
        "━╾──",
        "━━━╾",
        "━━━━",
        "━━━━",
    ]
    assert bar(0, 0, 3).plain == "───"


def test_a_sparkline_spans_from_the_lowest_to_the_highest_finite_value():
    assert sparkline([8, 1, 4.5, math.nan, math.inf, 8]).plain == "█▁▅!!█"
    assert sparkline([2, 2]).plain == "▁▁"
    assert sparkline([]).plain == ""


def test_numbers_have_four_digits():
    assert [number(x) for x in (None, 0.5, 12.3456, 1234.5, 1234567.0, math.nan, math.inf, 1e20)] == [
        "",
        "0.5000",
        "12.35",
        "1,234",
        "1,234,567",
        "nan",
        "inf",
        "1.000e+20",
    ]


@pytest.mark.parametrize("count", [1, 3, 12, 40, 5000])
def test_a_loss_curve_has_even_steps_and_the_true_losses(tmp_path, count):
    run = RunFolder(tmp_path)
    write(run, 1, range(1, count + 1))
    curve = loss_curve(run, 1, 12)
    assert len(curve) == min(count, 12)
    assert (curve[0], curve[-1]) == (100, 100 / count)
    assert curve == sorted(curve, reverse=True)
    for number_, loss in enumerate(curve):
        asked = 1 + (count - 1) * number_ / max(1, len(curve) - 1)
        assert asked - count / 12 - 1 <= 100 / loss <= asked + 1e-9


def test_a_loss_curve_goes_through_all_attempts_and_the_later_one_wins(tmp_path):
    run = RunFolder(tmp_path)
    assert loss_curve(run, 3, 12) == []
    write(run, 1, range(1, 9))
    write(run, 3, range(6, 13), **{"train/loss": 7.0})
    with run.metrics(3).open("ab") as file:
        file.write(b'{"step": 13, "ki')
    assert loss_curve(run, 3, 12) == [100 / step for step in range(1, 6)] + [7.0] * 7


def test_a_growing_file_has_its_end_read_alone(tmp_path, monkeypatch):
    run, read = RunFolder(tmp_path), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read.append(at) or pread(file, size, at))
    write(run, 1, range(1, 1001))
    loss_curve(run, 1, 12)
    size = run.metrics(1).stat().st_size
    assert 12 < len(read) < 30
    read.clear()
    loss_curve(run, 1, 12)
    assert read == []
    write(run, 1, range(1001, 1003))
    assert loss_curve(run, 1, 12)[-1] == 100 / 1002
    assert read
    assert min(read) > size - 2 * BLOCK


def test_what_is_unchanged_is_not_read_again(tmp_path):
    read = []

    @while_unchanged(lambda path: [path])
    def text(path):
        read.append(path)
        return path.read_text() if path.exists() else None

    path = tmp_path / "x"
    assert [text(path), text(path)] == [None, None]
    path.write_text("a")
    assert [text(path), text(path), len(read)] == ["a", "a", 2]
    other = tmp_path / "y"
    other.write_text("b")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert text(path) == "b", "replaced by one of the same size and time"
    with path.open("a") as file:
        file.write("c")
    assert [text(path), len(read)] == ["bc", 4]


def test_a_second_look_reads_no_run_file_that_has_not_changed(folder, monkeypatch):
    before = [line.as_json() for line in overview(folder)[0]]
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail(f"read again: {text}"))
    assert [line.as_json() for line in overview(folder)[0]] == before
    monkeypatch.undo()
    running = folder.run(specs()[1].run_id)
    write(running, 2, range(21, 22))
    assert overview(folder)[0][1].status.step == last_record(running.metrics(2))["step"] == 21


class Terminal:
    """`furnace status --watch` on a pseudo-terminal, and what it wrote there."""

    def __init__(self, folder: GridFolder, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-m", "furnace_hpc.status", "--grid", "study", *arguments]
        kept = {name: value for name, value in os.environ.items() if name not in ("FURNACE_RUNS", "NO_COLOR")}
        self.master, slave = pty.openpty()
        environment = kept | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20", "PATH": "/nowhere"} | variables
        self.process = subprocess.Popen(
            command,
            cwd=folder.path.parent.parent,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read(self, until: str = "", timeout_s: float = 60) -> str:
        """What it has written since, until this comes or until it ends."""
        deadline, said = time.monotonic() + timeout_s, ""
        while not (until and until in said):
            assert time.monotonic() < deadline, said
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    said += os.read(self.master, 65536).decode()
                except OSError:  # Linux's way of saying that nobody has the terminal any more
                    break
        self.said += said
        return said


@pytest.mark.parametrize("number_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_terminal_as_it_was_and_the_last_picture_on_it(folder, number_):
    terminal = Terminal(folder, "--watch", NO_COLOR="1")
    try:
        first = terminal.read(until="4 runs: 1 new, 1 running, 1 done, 1 failed")
        assert "\x1b[?1049h" in first
        assert "\x1b[?25l" in first
        terminal.process.send_signal(number_)
        after = terminal.read()
        assert terminal.process.wait(30) == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    assert after.index("\x1b[?1049l") < after.index("base-s1"), "on the screen of before"
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l")
    assert "4 runs: 1 new, 1 running, 1 done, 1 failed" in after
    assert "Traceback" not in terminal.said
    assert not re.search("\x1b\\[[0-9;]*3[0-7]m", terminal.said), "no colour"


def test_a_terminal_that_can_show_little_gets_plain_lines(folder):
    terminal = Terminal(folder, TERM="dumb")
    said = terminal.read()
    assert terminal.process.wait(30) == 0
    os.close(terminal.master)
    assert "\x1b" not in said
    assert said.splitlines()[0].split()[:3] == ["run", "state", "attempt"]
