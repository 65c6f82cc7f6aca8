"""`furnace_hpc.load_grid` on a real Slurm: the same submission as the command, waiting, cancel."""

import os
import signal
import threading
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study

import furnace_hpc as furnace

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CLOSED = {"partition": "closed"}  # takes jobs, runs none: they can be counted
ONCE = dict.fromkeys(range(4), 1)  # each of the four runs has one array element
FILES = ("grid.yaml", "profile.json", "specs.jsonl", "rows.jsonl")


@pytest.fixture
def user(quiet: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process as one of a user of the cluster."""
    for name in [name for name in os.environ if name not in quiet.environment]:
        monkeypatch.delenv(name)
    for name, value in quiet.environment.items():
        monkeypatch.setenv(name, value)
    return quiet


def submission(study: Study, number: int) -> dict[str, str]:
    folder = study.folder / "submissions" / str(number)
    return {name: (folder / name).read_text() for name in FILES}


def test_python_submits_as_the_command_does(user: Cluster, tmp_path: Path, monkeypatch, capfd):
    made = Study(user, tmp_path, variants=("ok", "ok2"), seeds=2, profile=CLOSED)
    monkeypatch.chdir(tmp_path)
    printed = made.submitted().splitlines()
    made.furnace("cancel", "--grid", "study")
    wait_until(lambda: made.elements() == {}, 60, "the end of the first jobs")
    study = furnace.load_grid("study.yaml")
    capfd.readouterr()
    plan = study.submit("dev")
    assert submission(made, 2) == submission(made, 1)
    assert made.elements() == ONCE
    assert [line.partition(" ")[0] for line in plan.messages] == ["submitted", "submitted", "then:"]
    assert plan.messages[-1] == printed[-1]
    assert study.status().counts == {"queued": 4}
    _interrupt_the_wait(study)
    assert made.elements() == ONCE
    assert study.cancel(["ok"]) == [
        "cancelled 2 jobs; the next submit resumes from saved checkpoints"
    ]
    assert study.cancel()[0].startswith("cancelled 3 jobs; ")  # two runs, and the follow-up job
    assert capfd.readouterr() == ("", "")


def _interrupt_the_wait(study: furnace.Study) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        study.wait(progress=False)
    timer.join()


def test_wait_returns_when_all_jobs_have_ended(user: Cluster, tmp_path: Path, monkeypatch, capfd):
    Study(user, tmp_path, variants=("ok", "ok2"))
    monkeypatch.chdir(tmp_path)
    study = furnace.load_grid("study.yaml")
    study.submit("dev", wait=True)
    assert study.status().counts == {"done": 2}
    out, err = capfd.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "2 runs: 2 done")
    assert study.results().table["n"].to_list() == [1, 1]
