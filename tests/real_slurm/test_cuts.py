"""Real training on nodes with networks of their own, which are cut in the middle of a run."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from login_study import command
from network_cuts import HANG_S, NODE_CUTS, PATIENT_S, Victim, strike
from real_study import GRID, RealStudy
from slurm_cluster import CannotStart, Cluster, start_cluster, wait_until
from slurm_study import Study

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.distributed]
CUTS = {
    "blip": next(cut for cut in NODE_CUTS if "5 s" in cut.what),
    "host": next(cut for cut in NODE_CUTS if "rank 0" in cut.what and "gives it up" in cut.what),
}
VARIANTS = {
    "blip": {"hang_timeout_s": HANG_S},
    "host": {"hang_timeout_s": PATIENT_S, "loss.beta": 0.3},
}


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Six nodes with a network each."""
    if os.geteuid():
        pytest.skip("--net separate needs root")
    options = ("--net", "separate", "--nodes", "6", "--cpus", "1", "--gpus", "0")
    try:
        cluster = start_cluster(tmp_path_factory.mktemp("cuts") / "cluster", *options)
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")
    yield cluster
    cluster.down()


def test_cut_runs_end_with_equal_parameters(separate, tmp_path: Path, small_root: Path):
    """A blip costs no attempt. A batch host that comes back does not end its successor."""
    shutil.copytree(small_root, tmp_path / "data")
    study = RealStudy(separate, tmp_path, profile={"exclude_after_failures": None})
    grid = GRID | {"variants": VARIANTS, "reference": "blip"}
    grid["base"] = GRID["base"] | {"steps": 150}
    (study.place / "study.yaml").write_text(yaml.safe_dump(grid))
    study.submitted()
    threads = {}
    for name, cut in CUTS.items():
        wait_until(lambda name=name: list(study.folder.glob(f"{name}-*/metrics")), 60, "a start")
        [run] = (path for path in study.folder.glob(f"{name}-*") if path.is_dir())
        threads[name] = threading.Thread(target=strike, args=(cut, Victim(separate, run)))
        threads[name].start()
    wait_until(lambda: (study.place / "results/study/table.md").exists(), 400, "the table")
    for thread in threads.values():
        thread.join(timeout=60)
    assert study.states() == {"done": 2}
    assert [attempt["reason"] for attempt in study.attempts("blip")] == ["done"]
    reasons = [attempt["reason"] for attempt in study.attempts("host")]
    assert reasons == ["node_fail", "done"]
    for name, parameters in undisturbed(study.place).items():
        assert study.result(name)["parameters_sha256"] == parameters


def test_a_batch_host_that_returns_ends_no_step(separate: Cluster, tmp_path: Path):
    """Its srun and the one of the next attempt have the same job and step id.

    When the cut ends, the old rank 0 loses its peer and ends. Then its srun would end the step.
    """
    profile = {"nodes": 2, "exclude_after_failures": None}
    study = Study(separate, tmp_path, variants=("waits",), profile=profile)
    study.submitted()
    study.wait_for_starts(1)
    host = study.attempts("waits")[0]["holder"]["host"]
    old = [process for process in separate.processes(host) if is_rank(process)]
    assert len(old) == 1
    separate.cut_node(host)
    try:
        study.wait_for_starts(2)
        log = study.folder / "submissions/1"
        wait_until(lambda: replaced(log), 30, "the end of the old srun")
    finally:
        separate.heal_node(host)
    old[0].kill()
    time.sleep(15)  # without the guard the step ends within five seconds
    assert [attempt.get("end_unix_s") is None for attempt in study.attempts("waits")] == [
        False,
        True,
    ]
    (study.folder / "release").touch()
    study.wait_for(done=1)
    assert len(study.attempts("waits")) == 2


def is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "stand_in_rank" in " ".join(process.cmdline())
    return False


def replaced(submission: Path) -> bool:
    logs = [path.read_text() for path in submission.glob("*_0_log.out")]
    return any("srun is ended: a newer attempt has replaced attempt 1" in log for log in logs)


def undisturbed(place: Path) -> dict[str, str]:
    """Return the hash of the parameters of both runs, trained here without Slurm and cuts."""
    calm = place / "calm"
    calm.mkdir()
    words = ("--grid", str(place / "study.yaml"), "--data-root", str(place / "data"))
    where = ("--cluster", "local", "--set", "resources.processes_per_node=2")
    done = command("submit", calm, *words, *where)
    assert done.returncode == 0, done.stderr
    found = {}
    for name in VARIANTS:
        [path] = calm.glob(f"runs/study/{name}-*/result.json")
        found[name] = json.loads(path.read_text())["parameters_sha256"]
    return found
