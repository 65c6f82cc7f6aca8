"""What is not endless on a real Slurm: time, and space for files; and grids that are another cluster's.

A time limit takes half a minute to be felt, in which the other tests do their work in a partition that runs nothing.
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
def told(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Study, Future]]:
    """A study whose run has a time limit, and its `submit --wait`."""
    study = Study(cluster, tmp_path_factory.mktemp("told"), variants=("waits", "crash"))
    # Slurm looks at time limits every half minute, and tells whom it must before the next look:
    # here at the first.
    study.write({"signal_delay_s": 30}, base=GRID["base"] | {"resources": {"timeout_min": 1}})
    with ThreadPoolExecutor(1) as aside:
        yield study, aside.submit(study.submit, "--wait")
        (study.folder / "release").touch()
    cluster.quieten()


def test_a_grid_whose_jobs_are_on_another_cluster_is_refused_by_that_cluster_s_name(
    cluster: Cluster, tmp_path: Path
):
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
def test_a_full_file_system_is_one_sentence_leaves_no_job_and_is_no_hindrance_later(
    cluster: Cluster, tmp_path: Path
):
    study = Study(cluster, tmp_path / "study", seeds=4, profile=CLOSED)
    with small_file_system(study.place / "runs") as runs:
        # in the lock and in the code; then in the rows and the script
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


def test_a_run_is_told_before_its_time_limit_stops_and_is_requeued_and_wait_outlasts_it(
    told: tuple[Study, Future],
):
    study, waiting = told
    wait_until(lambda: study.starts().total() == 3, 90, "a second start of the run that was told")
    assert not waiting.done()
    (study.folder / "release").touch()
    done = waiting.result()
    first, second = study.attempts("waits")
    assert (first["reason"], first["error"]) == ("stopped", "stopped by SIGUSR2")
    assert (second["reason"], second["job_id"]) == ("done", first["job_id"])
    assert done.returncode == 1, done.stdout + done.stderr  # a run is missing
    table = done.stdout.partition("2 runs: 1 done, 1 failed")[2]
    assert "50.0" in table
    assert "1 of 2 runs are missing" in done.stderr
    assert "ValueError: on purpose" in done.stderr
    study.write({}, variants={"waits": {}})
    done = study.submit("--wait")
    assert "nothing to do" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def ended(study: Study) -> None:
    assert "cancelled 5 jobs" in study.furnace("cancel", "--grid", "study").stdout
    wait_until(lambda: study.queue(HERE) == [], 30, "an end of all jobs")
