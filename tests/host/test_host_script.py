"""batch.py as a batch script runs it: bare Python, old syntax, signals, shell assignments."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from furnace_hpc.host import batch, lifecycle

SCRIPT = Path(batch.__file__)
BARE = ["python3", "-S", "-I"]  # no site-packages, no environment, no working directory on the path

LAUNCHED = """
import os, signal, sys, time
print("started", flush=True)
sys.stdin.readline()
print(sorted(s.name for s in signal.sigpending()), flush=True)
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
sys.exit(85)
"""


def test_launch_keeps_signals_until_unblocked():
    command = [*BARE, str(SCRIPT), "launch", sys.executable, "-c", LAUNCHED]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "started\n"
        for number in lifecycle.STOP_SIGNALS:
            process.send_signal(number)
        out, _ = process.communicate("go\n", timeout=30)
    finally:
        process.kill()
    assert out == "['SIGHUP', 'SIGTERM', 'SIGUSR1', 'SIGUSR2']\nhandled\n"
    assert process.returncode == lifecycle.EXIT_STOPPED


def test_without_launch_a_signal_kills():
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_host_is_python_3_6_and_standard_library():
    for path in (*SCRIPT.parent.rglob("*.py"), SCRIPT.parent.parent / "__init__.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 6))
        names = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names} - {
            "furnace_hpc"
        } <= sys.stdlib_module_names
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.NamedExpr, ast.Match))]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*BARE, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    "name", ["plain", "with space", "quo'te", 'dou"ble $HOME `id` \\ ;&', "new\nline"]
)
def test_begin_row_prints_shell_assignments(tmp_path, name):
    run = tmp_path / name
    rows = [
        {
            "row": n,
            "run_dir": str(run),
            "run_id": f"run{n}",
            "code": str(tmp_path / "c d"),
            "spec_at": [5 * n, 11],
            "facts": {"code_hash": f"code{n}"},
        }
        for n in (0, 3)
    ]
    write_rows = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(write_rows)
    (tmp_path / "specs.jsonl").write_text('{"a": "ü"}    {"b": "é"}\n')
    printed = script("begin-row", str(tmp_path), "3", "12_3", str(os.getpid()))
    assert (printed.returncode, printed.stderr) == (0, "")
    shell = 'eval "$1"; printf "%s|%s|%s" "$FURNACE_RUN_DIR" "$FURNACE_ATTEMPT" "$FURNACE_CODE"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", printed.stdout], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{run}|1|{tmp_path / 'c d'}"
    assert json.loads((run / "spec.json").read_text()) == {"b": "é"}
    record = lifecycle.read_attempt(str(run), 1)
    assert (record["code_hash"], record["job_id"], record["holder"]["pid"]) == (
        "code3",
        "12_3",
        os.getpid(),
    )


def test_errors_are_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    for arguments, message in (
        (("begin-row", str(tmp_path), "3", "12", "1"), f"batch.py: {tmp_path} has no row 3\n"),
        (
            ("began",),
            "batch.py: unknown command 'began'; wanted begin-row, begin-run, decide, "
            "requeue or launch\n",
        ),
    ):
        done = script(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_decide_script_prints_one_word(tmp_path):
    lifecycle.begin(str(tmp_path), {})
    done = script("decide", str(tmp_path), "1", "143")
    assert (done.returncode, done.stdout, done.stderr) == (0, "requeue\n", "")


SCONTROL = """#!/bin/bash
echo "$*" >> "$STAND_IN/calls"
[ "$(wc -l < "$STAND_IN/calls")" -gt "$AWAY" ] && { echo "$SAYS"; exit "$CODE"; }
echo "Unable to contact slurm controller (connect failure)" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("away", "code", "says", "calls", "status", "words"),
    [
        (0, 0, "", 1, 0, ""),
        (2, 0, "", 3, 0, "not requeued yet: Unable to contact slurm controller (connect failure)"),
        (
            0,
            1,
            "Invalid job id specified",
            1,
            1,
            "was not requeued: Invalid job id specified. The follow-up job or ",
        ),
        (
            9,
            0,
            "",
            4,
            1,
            "Slurm did not answer, so job 91_2 was not requeued. The follow-up job or ",
        ),
    ],
)
def test_requeue_waits_for_the_controller(tmp_path, away, code, says, calls, status, words):
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    facts = {"AWAY": str(away), "CODE": str(code), "SAYS": says, "STAND_IN": str(tmp_path)}
    environment = os.environ | facts | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    hurried = (
        "from furnace_hpc.host import batch; batch.REQUEUE_PAUSES_S = (0.1, 0.1, 0.1); "
        "batch.main(['requeue', '91_2'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", hurried],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["requeue 91_2"] * calls
