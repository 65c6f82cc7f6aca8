"""Limits on a real Slurm: time, disk space, and grids of another cluster.

Slurm takes half a minute to act on a time limit. Meanwhile the other tests work in a partition that
runs nothing.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from login_study import GRID
from slurm_cluster import Cluster, wait_until
from slurm_study import Study
from small_disk import only, small_file_system

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
HERE = "--partition=closed"
CLOSED = {"partition": "closed"}  # takes jobs, runs none: they can be counted
ONCE = dict.fromkeys(range(4), 1)


@pytest.fixture(scope="module", autouse=True)
def stopped(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Study, Future]]:
    """A study whose run has a time limit, and its `submit --wait`."""
    study = Study(cluster, tmp_path_factory.mktemp("stopped"), variants=("waits", "crash"))
    # Slurm checks time limits every half minute, and signals jobs that end before the next check.
    # Here that is the first one.
    study.write({"signal_delay_s": 30}, base=GRID["base"] | {"resources": {"timeout_min": 1}})
    with ThreadPoolExecutor(1) as aside:
        yield study, aside.submit(study.submit, "--wait")
        (study.folder / "release").touch()
    cluster.quieten()


def test_a_grid_of_another_cluster_is_refused(cluster: Cluster, tmp_path: Path):
    study = Study(cluster, tmp_path, seeds=4, profile=CLOSED)
    study.submitted()
    [journal] = study.folder.glob("submissions/*/journal.jsonl")
    here = journal.read_text()
    journal.write_text(here.replace('"cluster": "devcluster"', '"cluster": "elsewhere"'))
    for done in (
        study.submit(),
        study.submit("--set", "steps=7"),
        study.furnace("cancel", "--grid", "study"),
    ):
        assert done.returncode == 2, done.stdout
        assert len(done.stderr.splitlines()) == 1
        assert (
            "were submitted on cluster 'elsewhere', but this is 'devcluster': run the command there"
            in done.stderr
        )
        assert study.elements() == ONCE
    journal.write_text(here)
    assert "nothing to do" in study.submitted()
    ended(study)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that is small")
def test_a_full_file_system_is_one_error(cluster: Cluster, tmp_path: Path):
    """No job is left, and a later submit works."""
    study = Study(cluster, tmp_path / "study", seeds=4, profile=CLOSED)
    with small_file_system(study.place / "runs") as runs:
        # too little for the lock or the code, then for the rows or the script
        for places in ((0, 12, 2000), (20, 32)):
            for free_kib in places:
                with only(runs, free_kib):
                    done = study.submit()
                assert done.returncode == 2, (free_kib, done.stdout)
                assert len(done.stderr.splitlines()) == 1, done.stderr
                assert "No space left on device: free some space there" in done.stderr
                assert study.queue(HERE) == [], free_kib
            study.submitted()
            assert (study.elements(), study.follow_ups(HERE)) == (ONCE, 1)
            ended(study)


def test_a_time_limit_stops_and_requeues_a_run(stopped: tuple[Study, Future]):
    """Slurm signals it before, and `submit --wait` waits for its second start."""
    study, waiting = stopped
    wait_until(lambda: study.starts().total() == 3, 400, "a second start of the stopped run")
    assert not waiting.done()
    (study.folder / "release").touch()
    done = waiting.result()
    first, second = study.attempts("waits")
    assert (first["reason"], first["error"]) == ("stopped", "stopped by SIGUSR2")
    assert (second["reason"], second["job_id"]) == ("done", first["job_id"])
    assert done.returncode == 1, done.stdout + done.stderr  # a run is missing
    table = done.stdout.partition("2 runs: 1 done, 1 failed")[2]
    assert "50.0" in table
    assert "1 of 2 runs is missing" in done.stderr
    assert "ValueError: on purpose" in done.stderr
    study.write({}, variants={"waits": {}})
    done = study.submit("--wait")
    assert "nothing to do" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def ended(study: Study) -> None:
    assert "cancelled 5 jobs" in study.furnace("cancel", "--grid", "study").stdout
    wait_until(lambda: study.queue(HERE) == [], 30, "an end of all jobs")
