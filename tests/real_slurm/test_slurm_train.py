"""Real training on a real Slurm: several nodes, DeepSpeed, the snapshot, a node thought dead."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from login_study import command
from real_study import GRID, RealStudy
from slurm_cluster import Cluster, wait_until

import furnace_hpc

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.distributed]

ROOT = Path(furnace_hpc.__file__).resolve().parent.parent


@pytest.fixture
def study(quiet: Cluster, tmp_path: Path, small_root: Path) -> RealStudy:
    shutil.copytree(small_root, tmp_path / "data")
    return RealStudy(quiet, tmp_path)


def test_runs_of_two_nodes_train_the_snapshot(study):
    """One is requeued, and its result equals that of an undisturbed local run."""
    tree = study.place / "tree"  # a copy of the code, which is damaged later
    for name in ("furnace_hpc", "ds_configs", "experiments", "slurm"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    said = study.submitted(PYTHONPATH=str(tree), PYTHONSAFEPATH="1")
    [snapshot] = (study.folder / "code").iterdir()
    assert f"code {snapshot.name}, as it is now" in said
    for path in (tree / "furnace_hpc").rglob("*.py"):
        path.write_text("raise RuntimeError('the live tree was imported')\n")

    wait_until(lambda: study.steps("first") >= 12, 120, "step 12 of the first run")
    job_id = study.attempts("first")[0]["job_id"]
    assert study.cluster.run("scontrol", "requeue", job_id).returncode == 0
    calm = calm_result(study.place)  # while the job waits to start again
    wait_until(lambda: (study.place / "results/study/table.md").exists(), 200, "the table")
    assert study.states() == {"done": 2}
    assert "1 of 1" not in (study.place / "results/study/table.md").read_text()
    assert len(study.attempts("first")) == 2
    assert len(study.attempts("second")) == 1
    hosts = {study.attempts(run)[0]["holder"]["host"] for run in ("first", "second")}
    assert len(hosts) == 1  # both met their ranks on the same nodes at the same time
    [run] = study.folder.glob("first*")
    log = (run / "logs/2-1.log").read_text()
    assert f"code {snapshot}" in log
    assert "resumed after step" in (run / "logs/2-0.log").read_text()
    assert (study.folder / "logs" / f"{run.name}.log").resolve() == (run / "logs/2-0.log").resolve()

    assert calm["parameters_sha256"] == study.result("first")["parameters_sha256"]
    assert study.result("first")["world_size"] == calm["world_size"] == 2


def calm_result(place: Path) -> dict:
    """Return the result of the first run, trained here without Slurm and interruption."""
    calm = place / "calm"  # with a table of its own
    calm.mkdir()
    grid = (
        "--grid",
        str(place / "study.yaml"),
        "--data-root",
        str(place / "data"),
        "--variant",
        "first",
    )
    done = command(
        "submit", calm, *grid, "--cluster", "local", "--set", "resources.processes_per_node=2"
    )
    assert done.returncode == 0, done.stderr
    [path] = calm.glob("runs/study/first*/result.json")
    return json.loads(path.read_text())


def test_a_node_thought_dead_overwrites_nothing(quiet, tmp_path, small_root):
    """Its ranks continue when the next attempt is done, and leave that one's files alone."""
    shutil.copytree(small_root, tmp_path / "data")
    study = RealStudy(quiet, tmp_path, profile={"nodes": 1})
    (study.place / "study.yaml").write_text(yaml.safe_dump(GRID | {"variants": {"first": {}}}))
    study.submitted()
    wait_until(lambda: study.steps("first") >= 12, 120, "step 12")
    [run] = study.folder.glob("first*")
    node = study.attempts("first")[0]["holder"]["host"]
    frozen = quiet.processes(node)
    assert len(frozen) >= 5  # slurmd, the step's manager, the batch script, srun, a rank
    ranks = [process for process in frozen if "submitit" in " ".join(process.cmdline())]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    # as Slurm does itself later
    quiet.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=no answer")
    try:
        wait_until((run / "result.json").exists, 120, "the result of a second attempt, elsewhere")
        wait_until(lambda: "reason" in study.attempts("first")[1], 30, "its end")
        assert study.states() == {"done": 1}
        before = contents(run)
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        # or Slurm takes half a minute to look
        quiet.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert ranks
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    # files of one attempt alone
    theirs = ("logs/1-", "verdicts/1-", "metrics/1.")
    assert {n: c for n, c in contents(run).items() if not n.startswith(theirs)} == {
        n: c for n, c in before.items() if not n.startswith(theirs)
    }
    first, second = study.attempts("first")
    assert (second["reason"], study.result("first")["attempts"]) == ("done", 2)
    assert second["holder"]["host"] != node
    assert "Slurm restarted its job" in first["error"]
    said = (run / "logs/1-0.log").read_text()
    assert "attempt 1 has been replaced by attempt 2: it writes nothing more" in said


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
