"""The status lines of a grid: their content, order and width."""

import json
import math
import re
from pathlib import Path

import pytest
from login_study import specs
from watch_study import make, write

from furnace_hpc.monitor.columns import bar, number, sparkline
from furnace_hpc.monitor.grid_status import StatusLine, overview
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.render import picture, plain
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.state import RunState, RunStatus

WIDTHS = (120, 80, 60, 40, 20, 5)


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return make(tmp_path)


def lines_of(folder: GridFolder, width: int, height: int = 50) -> list[str]:
    return [text.plain for text in picture(*overview(folder), width, height)]


def invented(count: int, state: RunState) -> list[StatusLine]:
    runs = [RunFolder(Path(f"/nowhere/{state.value}{n}-s0-deadbeef")) for n in range(count)]
    return [
        StatusLine(run, RunStatus(state, 0, 3, "why not"), 40, 0.5, None, None, "") for run in runs
    ]


def test_cells_of_a_line(folder):
    head, columns, *lines, sum_ = (re.split("  +", line) for line in lines_of(folder, 130))
    assert head == ["━━━━━━━━━╾" + "─" * 30 + " 23 %", "step 38 of 160"]
    assert columns == ["run", "state", "step", "loss", "samples/s", "attempt", "left, or reason"]
    running = lines[0]
    assert running[:5] == ["base-s1", "running", "━━━━━━──────", "20/40", "5.000"]
    curve = running[5]
    # 1.0 at step 7 of the first attempt, then 12.5 to 5
    assert (curve[:2], curve[-1], len(curve)) == ("▁█", "▃", 12)
    assert list(curve[1:]) == sorted(curve[1:], reverse=True)
    assert running[6:] == ["1,234", "2", "1 min 30 s left; attempt 1: stopped"]
    assert lines[1][:2] == ["full-s0", "failed"]
    assert lines[1][-1].startswith("RuntimeError: [bold]x[/red] long long")
    assert lines[1][-1].endswith("…")
    assert lines[2][:4] == ["full-s1", "new", "────────────", "0/40"]
    assert lines[2][4].startswith("the queue on this machine has ended; run `furnace")
    assert lines[3][:2] == ["base-s0", "done"]
    assert sum_ == ["4 runs: 1 new, 1 running, 1 done, 1 failed"]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_wraps_and_state_and_name_stay(folder, width):
    lines = lines_of(folder, width)
    assert len(lines) == 7
    assert max(map(len, lines)) <= width
    assert not any("\n" in line for line in lines)
    if width >= 40:
        assert re.match(r"base-s1 +running ", lines[2])


def test_a_narrow_terminal_drops_columns(folder):
    heads = {width: re.split("  +", lines_of(folder, width)[1]) for width in (120, 80, 60, 40)}
    assert heads[120] == ["run", "state", "step", "loss", "samples/s", "attempt", "left, or reason"]
    assert set(heads[40]) < set(heads[60]) <= set(heads[80]) <= set(heads[120])
    assert heads[60] == ["run", "state", "step", "left, or reason"]
    assert "━" in lines_of(folder, 60)[2]
    assert "█" in lines_of(folder, 80)[2], "the loss curve is there"


@pytest.mark.parametrize("height", [6, 10, 24, 100])
def test_running_runs_come_first(height):
    rows = [*invented(30, RunState.DONE), *invented(5, RunState.NEW), *invented(4, RunState.QUEUED)]
    rows += [
        *invented(2, RunState.INTERRUPTED),
        *invented(3, RunState.FAILED),
        *invented(6, RunState.RUNNING),
    ]
    lines = [text.plain for text in picture(rows, JobCache(), 80, height)]
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


def test_names_lose_their_hash_if_they_differ():
    rows = invented(2, RunState.NEW)
    same = [
        *rows,
        StatusLine(RunFolder(Path("/nowhere/new1-s0-0badcafe")), *list(vars(rows[0]).values())[1:]),
    ]
    assert picture(rows, JobCache(), 80)[2].plain.startswith("new0-s0 ")
    assert picture(same, JobCache(), 80)[2].plain.startswith("new0-s0-deadbeef ")


def test_plain_lines_are_complete(folder):
    head, *lines, _ = plain(*overview(folder))
    columns = ["run", "state", "attempt", "step", "loss", "samples/s", "left", "job", "reason"]
    assert re.split("  +", head) == columns
    assert len(lines) == 4
    assert lines[1].count("long") == 60


def test_progress_bars():
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


def test_sparklines():
    assert sparkline([8, 1, 4.5, math.nan, math.inf, 8]).plain == "█▁▅!!█"
    assert sparkline([2, 2]).plain == "▁▁"
    assert sparkline([]).plain == ""


def test_numbers_have_four_digits():
    assert [
        number(x) for x in (None, 0.5, 12.3456, 1234.5, 1234567.0, math.nan, math.inf, 1e20)
    ] == [
        "",
        "0.5000",
        "12.35",
        "1,234",
        "1,234,567",
        "nan",
        "inf",
        "1.000e+20",
    ]


def test_unchanged_run_files_are_not_read_again(folder, monkeypatch):
    before = [line.as_json() for line in overview(folder)[0]]
    loads = json.loads

    def loads_profile(text):
        assert '"executor"' in text, f"read again: {text}"  # one file for all runs
        return loads(text)

    monkeypatch.setattr(json, "loads", loads_profile)
    assert [line.as_json() for line in overview(folder)[0]] == before
    monkeypatch.undo()
    running = folder.run(specs()[1].run_id)
    write(running, 2, range(21, 22))
    assert overview(folder)[0][1].status.step == last_record(running.metrics(2))["step"] == 21


def test_speeds_of_a_running_run(folder):
    """MFU and the share of the time that waits for data. TFLOP/s only without MFU."""
    running = folder.run(specs()[1].run_id)
    more = {"step_time_s": 4.5, "data_wait_s": 0.9, "model_tflop_s": 98.76}
    write(running, 2, range(21, 22), mfu=0.317, **more)
    head, *lines = plain(*overview(folder))
    assert re.split("  +", head)[5:9] == ["samples/s", "MFU", "data wait", "left"]
    assert " 32 %       20 %" in lines[0]
    write(running, 2, range(22, 23), **more)
    head, *lines = plain(*overview(folder))
    assert re.split("  +", head)[5:9] == ["samples/s", "TFLOP/s", "data wait", "left"]
    assert " 98.8 " in lines[0]
