"""`furnace_hpc.load_grid` with a real queue on this machine."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_study import STEPS, submit, wait_for_step, write_grid

import furnace_hpc as furnace
from furnace_hpc.launch.grids.background import has_queue, own_queue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SUBMIT = """
import sys
import furnace_hpc as furnace
plan = furnace.load_grid("grid.yaml", data_dir=sys.argv[1]).submit("local")
print(plan.counts)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FURNACE_RUNS", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    yield tmp_path
    signal.signal(signal.SIGINT, before)


def test_a_queue_outlives_the_python_that_started_it(place: Path, small_root: Path, capsys):
    grid = write_grid(place, 20, "{first: {}, second: {loss.beta: 0.1}}")
    words = [sys.executable, "-c", SUBMIT, str(small_root)]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'start': 2}\n", "")
    study = furnace.load_grid(grid, data_dir=small_root)
    assert has_queue(study.folder)
    with pytest.raises(furnace.ConfigError, match="is being submitted or run by process"):
        study.submit("local")
    status = study.wait()
    assert status.is_done
    assert status.runs["step"].to_list() == [20, 20]
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "2 runs: 2 done")
    log = (study.folder.submissions / "1" / "queue.log").read_text()
    assert "[2/2]" in log
    table = study.results().table
    assert table["variant"].to_list() == ["first", "second"]
    assert table["n"].to_list() == [1, 1]
    again = submit(grid, small_root)
    assert "2 runs (2 skip) on local" in again.stdout
    assert study.submit("local", wait=True).counts == {"skip": 2}


def test_ctrl_c_saves_and_stops_the_queue(place: Path, small_root: Path):
    """As it does with the command. The next submission resumes."""
    grid = write_grid(place, STEPS, "{first: {}}")
    study = furnace.load_grid(grid, data_dir=small_root)

    def interrupt() -> None:
        wait_for_step(grid, "first", 12)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        study.submit("local", wait=True, progress=False)
    thread.join()
    assert not has_queue(study.folder)
    [step] = study.status().runs["step"]
    assert study.status().counts == {"interrupted": 1}
    assert 12 <= step < STEPS
    plan = study.submit("local", wait=True, progress=False)
    assert plan.counts == {"resume": 1}
    assert study.status().is_done


def test_errors_of_the_queue_reach_the_caller(place: Path, small_root: Path, monkeypatch):
    study = furnace.load_grid(write_grid(place, 20, "{first: {}}"), data_dir=small_root)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    with pytest.raises(furnace.ConfigError, match="CUDA_VISIBLE_DEVICES is 'GPU-abc', wanted"):
        study.submit("local")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    study.submit("local")
    queue = own_queue(study.folder)
    queue.process.kill()
    with pytest.raises(furnace.ConfigError) as caught:
        study.wait(progress=False)
    assert "the queue on this machine ended (exit code -9): " in str(caught.value)
    assert f"See {queue.log}, then submit again" in str(caught.value)
