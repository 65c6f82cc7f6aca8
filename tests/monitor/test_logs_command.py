"""`furnace logs`: choose runs, attempts and ranks, and follow over requeues."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from login_study import begin, command, end, finish, grid, planned, specs
from tables_study import result_of

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json
from furnace_hpc.runs.records.result import write_result

BASE0, BASE1, FULL0, FULL1 = RUNS = [spec.run_id for spec in specs()]


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    write_submission(planned(tmp_path / "runs", grid()))
    return GridFolder(tmp_path / "runs" / "study")


def give(folder: GridFolder, *arguments: str) -> tuple[int, str, str]:
    done = command("logs", folder.path.parent.parent, *arguments)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def write_log(run: RunFolder, attempt: int, text: str, node: int = 0) -> None:
    with run.log(attempt, node).open("a") as file:
        file.write(text)


class Following:
    """A real `furnace logs --follow`, and what it has printed so far."""

    def __init__(self, folder: GridFolder, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "furnace_hpc", "logs", *arguments, "--follow"],
            cwd=folder.path.parent.parent,
            env=dict(os.environ) | {"PATH": "/nowhere"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, text: str) -> None:
        deadline_s = time.monotonic() + 60
        while text not in self.lines:
            assert time.monotonic() < deadline_s, self.lines
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)

    def finish(self) -> tuple[int, list[str], str]:
        code = self.process.wait(60)
        self._reader.join(10)
        complaint = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert "Traceback" not in complaint
        return code, self.lines, complaint


def test_names_of_runs(folder):
    """A folder, GRID/RUN, and a beginning of a name with and without --grid give the same."""
    run = begin(specs()[0], folder)
    write_log(run, 1, "one\ntwo\n")
    wanted = f"==> {Path('runs/study', BASE0, 'logs/1-0.log')}\none\ntwo\n"
    for words in (
        [f"runs/study/{BASE0}"],
        [f"study/{BASE0}"],
        ["study/base-s0"],
        ["base-s0", "--grid", "study"],
        ["--grid", "study", "--variant", "base", "--seed", "0"],
    ):
        assert give(folder, *words) == (0, wanted, "")
    assert give(folder, "study/base-s0", "--lines", "1")[1].splitlines()[1:] == ["two"]
    assert give(folder, f"study/{FULL1}") == (
        0,
        f"run {FULL1} has no logs yet, because it has not started\n",
        "",
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no run given. Give RUN, or --grid NAME for the runs of a grid"),
        (["study"], "'study' is a grid, wanted one of its runs. Give the folder of a run"),
        (["nothing"], "'nothing' is not a run. Give the folder of a run, or GRID/RUN"),
        (["study/base"], "2 runs begin with 'base': give more of the name"),
        (["study/basf-s0"], "unknown run 'basf-s0'; valid: "),
        (["--grid", "study", "--variant", "ful"], "unknown variant 'ful'; did you mean 'full'?"),
        (["--grid", "study", "--seed", "7"], "no run has these seeds: 7. Seeds of the runs: 0, 1"),
        (["study/base-s0", "--seed", "0"], "RUN is one run already. Remove --variant and --seed"),
        (["study/base-s0", "--attempt", "3"], f"run {BASE0} has no attempt 3. It has 1"),
        (["study/base-s0", "--rank", "4"], "attempt 1 has no rank 4. Its ranks are 0 to 3"),
    ],
)
def test_what_cannot_be_found(folder, words, problem):
    begin(specs()[0], folder, world_size=4, nodes=2)
    code, said, complaint = give(folder, *words)
    assert (code, said) == (2, "")
    assert complaint.startswith(f"error: {problem}")


def test_attempts_and_ranks(folder):
    """Two nodes of two ranks: the log of the node, and the lines of one rank in it."""
    run = begin(specs()[0], folder, world_size=4, nodes=2)
    write_log(run, 1, "old\n")
    end(run, "crash")
    begin(specs()[0], folder, world_size=4, nodes=2)
    write_log(run, 2, "of rank 0\n[rank 1] of rank 1\n")
    write_log(run, 2, "of rank 2\n[rank 3] of rank 3\n[rank 3] more\n", node=1)

    def lines(*words: str) -> list[str]:
        code, said, _ = give(folder, "study/base-s0", *words)
        assert code == 0
        return [line for line in said.splitlines() if not line.startswith("==>")]

    assert lines("--attempt", "1") == ["old"]
    assert lines("--rank", "0") == ["of rank 0"]
    assert lines("--rank", "1") == ["[rank 1] of rank 1"]
    assert lines("--rank", "2") == ["of rank 2"]
    assert lines("--rank", "3", "--lines", "1") == ["[rank 3] more"]
    assert len(lines()) == 5


def test_follow_over_a_requeue(folder):
    """Output of two attempts, an unfinished line, and the end with the run's result."""
    write_json(folder.lock, lifecycle.holder() | {"what": "queue"})  # this process is the queue
    run = begin(specs()[0], folder)
    write_log(run, 1, "".join(f"step {step}\n" for step in range(50)))
    following = Following(folder, f"study/{BASE0}", "--lines", "2")
    following.wait_for("step 49")
    write_log(run, 1, "step 50\nhalf a")
    following.wait_for("step 50")
    write_log(run, 1, " line\n")
    following.wait_for("half a line")
    assert end(run, "stopped") == "requeue"
    begin(specs()[0], folder)
    write_log(run, 2, "resumed\n")
    following.wait_for("resumed")
    write_log(run, 2, "the last words")
    write_result(run, result_of(specs()[0]))
    end(run, "done", exit_code=0)
    code, lines, complaint = following.finish()
    first, second = (f"==> {Path('runs/study', BASE0, f'logs/{n}-0.log')}" for n in (1, 2))
    assert lines == [
        *(first, "step 48", "step 49", "step 50", "half a line"),
        *(second, "resumed", "the last words"),
    ]
    assert (code, complaint.splitlines()[-1]) == (0, f"-- {BASE0}: done")


def test_follow_a_run_that_fails(folder):
    run = begin(specs()[0], folder)
    write_log(run, 1, "begins\n")
    following = Following(folder, f"study/{BASE0}")
    following.wait_for("begins")
    end(run, "crash", error="ValueError: no")
    code, _, complaint = following.finish()
    assert (code, complaint.splitlines()[-1]) == (1, f"-- {BASE0}: failed: ValueError: no")


def test_follow_ends_at_once(folder):
    """Runs that are done are printed once, and a run that never started ends the command."""
    write_log(finish(specs()[0], folder), 1, "all\n")
    code, said, _ = give(folder, f"study/{BASE0}", "--follow")
    assert (code, said.splitlines()[1:]) == (0, ["all"])
    code, said, complaint = give(folder, f"study/{FULL0}", "--follow")
    assert (code, said, complaint) == (1, "", f"-- {FULL0}: new\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow_is_interrupted(folder, number):
    run = begin(specs()[0], folder)
    write_log(run, 1, "begins\n")
    following = Following(folder, f"study/{BASE0}")
    following.wait_for("begins")
    following.process.send_signal(number)
    assert following.finish()[0] == 130


def test_the_reader_ends(folder):
    """As `furnace logs --follow | head -1`."""
    run = begin(specs()[0], folder)
    write_log(run, 1, "begins\n")
    following = subprocess.Popen(
        [sys.executable, "-P", "-m", "furnace_hpc", "logs", f"study/{BASE0}", "--follow"],
        cwd=folder.path.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout.readline().startswith("==> ")
    following.stdout.close()
    while following.poll() is None:
        write_log(run, 1, "more\n" * 1000)
        time.sleep(0.2)
    assert following.returncode == 141
    assert following.stderr.read() == ""
    following.stderr.close()


def test_a_log_that_was_begun_again(tmp_path):
    from furnace_hpc.monitor.following.logs import _Followed

    path = tmp_path / "x.log"
    path.write_text("one\ntwo\n")
    followed = _Followed(path, lambda line: line != "no")
    assert followed.new_lines() == ["one", "two"]
    path.write_text("no\nx\n")
    assert followed.new_lines() == ["x"]
    path.unlink()
    assert followed.new_lines() == []
