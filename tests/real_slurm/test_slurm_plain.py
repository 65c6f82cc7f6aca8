"""Other clusters: without accounting, or with a folder that nodes cannot see."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cluster import CannotStart, Cluster, start_cluster, wait_until
from slurm_study import Study, shim

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_a_folder_that_nodes_cannot_see_is_reported(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    hidden = tmp_path / "login only"
    hidden.mkdir()
    blind = started(tmp_path_factory, "--no-accounting", "--hide", str(hidden))
    try:
        study = Study(blind, hidden, profile={"retries": 0, "follow_up": False})
        study.submitted()
        study.wait_for(interrupted=1)
        [run] = study.status().values()
        assert "Check that compute nodes can write there, and the free space" in run["reason"]
        study.write({"shared_folders": ["/home", "/scratch"]})
        done = study.submit()
        assert done.returncode == 2
        assert (
            "do not see (they see /home, /scratch): choose --runs-root below one of these"
            in done.stderr
        )
    finally:
        blind.down()


def started(factory: pytest.TempPathFactory, *options: str) -> Cluster:
    """Start another cluster, with other settings."""
    try:
        return start_cluster(factory.mktemp("plain") / "c", *options)
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes without accounting, whose arrays have at most three elements."""
    cluster = started(tmp_path_factory, "--no-accounting", "--max-array-size", "3")
    yield cluster
    cluster.down()


def test_without_accounting_no_run_is_lost(plain: Cluster, tmp_path: Path):
    study = Study(plain, tmp_path, variants=("ok", "dies"), seeds=2, profile={"retries": 0})
    said = study.submitted()
    assert said.count("submitted array") == 2
    wait_until(lambda: (study.place / "results/study/table.md").exists(), 60, "the table")
    assert study.states() == {"done": 2, "interrupted": 2}
    assert set(study.starts().values()) == {1}
    plain.run("scontrol", "reconfigure")
    killed = study.submit(script="crash.py after:1")
    assert killed.returncode == -signal.SIGKILL
    said = study.submitted()
    assert "never reached Slurm" in said
    wait_until(lambda: study.starts().total() == 6, 30, "two more starts")
    plain.quieten()


ERROR = "sbatch: error: Socket timed out on send/recv operation"
LOST = f'$REAL "$@" >/dev/null; echo "{ERROR}" >&2; exit 1'


def test_without_accounting_a_lost_job_is_found(plain: Cluster, tmp_path: Path):
    def submit_and_finish(how: str) -> None:
        study = Study(
            plain, tmp_path / how.replace(":", "-"), seeds=4, profile={"partition": "closed"}
        )
        if how == "lost":
            study.submitted(PATH=shim(study.place, "sbatch", LOST))
        else:
            assert study.submit(script=f"crash.py {how}").returncode == -signal.SIGKILL
            study.submitted()
        assert study.elements() == dict.fromkeys(range(4), 1), how
        assert "nothing to do" in study.submitted(), how

    # The journal has an intent and an outcome for each of two arrays, then for the follow-up job.
    ways = ("lost", "before:2", "after:2", "before:4")
    with ThreadPoolExecutor(len(ways)) as side_by_side:
        list(side_by_side.map(submit_and_finish, ways))
    plain.quieten()
