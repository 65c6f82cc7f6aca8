"""Several runs on one node of a real Slurm: each ends, stops and resumes alone."""

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from crash import POINTS
from login_study import command
from slurm_cluster import Cluster, wait_until
from slurm_study import PROFILE, Study
from test_slurm_train import GRID, RealStudy

SHARED = {
    "runs_per_node": 4,
    "gpus_per_node": 4,
    "gpu_flag": "gpus_per_node",
    "gpu_type": "a100",
    "mem_gb": 4,
    "setup": ["export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"],  # the GPUs are simulated
}
# The stand-in for Python, also with the GPUs that Slurm gives each rank.
NOTE_GPUS = (
    '[ "${SLURM_PROCID:-}" = 0 ] && [ -n "${FURNACE_RUN_DIR:-}" ] && case "$*" in *rank_main*) '
    'echo "$(basename "$FURNACE_RUN_DIR") $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES" '
    '>> "$(dirname "$FURNACE_RUN_DIR")/gpus" ;; esac'
)


def shared(cluster: Cluster, place: Path, *variants: str, seeds: int = 1, **profile) -> Study:
    study = Study(cluster, place, variants=variants, seeds=seeds, profile=SHARED | profile)
    python = place / "python"
    python.write_text(python.read_text().replace("\n", f"\n{NOTE_GPUS}\n", 1))
    return study


def job_of(study: Study, run: str) -> str:
    return str(study.attempts(run)[-1]["job_id"])


@pytest.mark.slow
@pytest.mark.slurm
def test_eight_runs_share_two_nodes(quiet: Cluster, tmp_path: Path):
    """Each has a GPU of its own. A killed one is retried alone, a cancelled one ends alone."""
    study = shared(quiet, tmp_path, "waits", "waits2", seeds=4)
    said = study.submitted("--dry-run")
    assert "8 runs in 2 jobs of 4, each 1 node x 1 rank, 60 min" in said
    assert "at most 2.0 node-hours with one attempt per run" in said
    assert "at most 8.0 GPU-hours" in said
    assert "#SBATCH --array=0-1%2" in said
    assert "shared_node/runner.py" in said
    study.submitted()
    study.wait_for_starts(8)
    assert study.states() == {"running": 8}
    given = [line.split() for line in (study.folder / "gpus").read_text().splitlines()]
    assert len({(job, gpu) for _, job, gpu in given}) == 8
    assert {gpu for *_, gpu in given} == {"0", "1", "2", "3"}
    jobs = {job_of(study, f"waits{name}-s{seed}") for name in ("", "2") for seed in range(4)}
    assert len(jobs) == 2

    done = study.furnace("cancel", "--grid", "study", "--variant", "waits2")
    assert "asked 4 runs on shared nodes to save and stop" in done.stdout
    study.wait_for(interrupted=4, running=4)
    [cancelled] = study.attempts("waits2-s0")
    assert (cancelled["reason"], cancelled["gpus"]) == ("cancelled", 1)
    kill_rank(study, "waits-s0")
    wait_until(lambda: "reason" in study.attempts("waits-s0")[0], 30, "the end of the run")
    assert study.attempts("waits-s0")[0]["reason"] == "killed"
    (study.folder / "release").touch()
    study.wait_for(interrupted=4, done=4)
    assert [len(study.attempts(f"waits-s{seed}")) for seed in range(4)] == [2, 1, 1, 1]
    assert "8 runs (4 resume, 4 skip)" in study.submitted("--dry-run")


def kill_rank(study: Study, name: str) -> None:
    """Kill the rank of a run on its node."""
    [run] = study.folder.glob(f"{name}*")
    wanted = f"FURNACE_RUN_DIR={run.resolve()}".encode()
    for process in study.cluster.processes(study.attempts(name)[0]["holder"]["host"]):
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if wanted in environment and "stand_in_rank" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
        except (OSError, psutil.Error):
            continue


@pytest.mark.slow
@pytest.mark.slurm
def test_a_requeue_starts_only_what_is_unfinished(quiet: Cluster, tmp_path: Path):
    study = shared(quiet, tmp_path, "waits", "waits2", "ok", "crash")
    study.submitted()
    study.wait_for(running=2, done=1, failed=1)
    job = job_of(study, "waits-")
    assert {job_of(study, name) for name in ("waits2-", "ok-", "crash-")} == {job}
    assert quiet.run("scontrol", "requeue", job).returncode == 0
    wait_until(lambda: study.starts().total() == 6, 60, "the second start of two runs")
    assert study.states() == {"running": 2, "done": 1, "failed": 1}
    # Two ranks get the signal that comes before a time limit.
    assert quiet.run("scancel", "--signal=USR2", job).returncode == 0
    wait_until(lambda: study.starts().total() == 8, 90, "the third start of two runs")
    assert [len(study.attempts(name)) for name in ("waits-", "waits2-", "ok-", "crash-")] == [
        3,
        3,
        1,
        1,
    ]
    assert study.attempts("waits2-")[1]["reason"] == "stopped"
    (study.folder / "release").touch()
    study.wait_for(done=3, failed=1)
    assert study.starts().total() == 8


@pytest.mark.slow
@pytest.mark.slurm
def test_a_free_place_gets_the_next_row(quiet: Cluster, tmp_path: Path):
    """The jobs of rows that others have started end at once. No run starts twice."""
    names = [f"ok{number}" for number in range(1, 8)]
    study = shared(quiet, tmp_path, "waits", *names, runs_per_node=2, array_parallelism=1)
    said = study.submitted()
    assert "8 runs in 4 jobs of 2" in said
    study.wait_for(running=1, done=7)
    assert {job_of(study, f"{name}-") for name in names} == {job_of(study, "waits-")}
    (study.folder / "release").touch()
    study.wait_for(done=8)
    wait_until(lambda: not study.queue(), 60, "an empty queue")
    assert set(study.starts().values()) == {1}
    assert study.starts().total() == 8


@pytest.mark.slow
@pytest.mark.slurm
def test_a_dead_node_costs_no_run(quiet: Cluster, tmp_path: Path):
    """Slurm requeues its job. All its runs start again, those of the other node do not."""
    study = shared(quiet, tmp_path, "waits", "waits2", seeds=2, runs_per_node=2, cpus_per_task=32)
    study.submitted()
    study.wait_for_starts(4)
    dead, other = study.attempts("waits-s0")[0], study.attempts("waits2-s1")[0]
    assert dead["holder"]["host"] != other["holder"]["host"]
    quiet.kill_node(dead["holder"]["host"])
    quiet.start_node(dead["holder"]["host"])
    wait_until(lambda: study.starts().total() == 6, 120, "the second start of two runs")
    assert study.states() == {"running": 4}
    (study.folder / "release").touch()
    study.wait_for(done=4)
    assert sorted(study.starts().values()) == [1, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_preemption_stops_and_resumes_all_runs(quiet: Cluster, tmp_path: Path):
    study = shared(quiet, tmp_path, "waits", "ok", seeds=2, partition="preempt", cpus_per_task=16)
    study.submitted()
    study.wait_for(running=2, done=2)
    node = study.attempts("waits-s0")[0]["holder"]["host"]
    words = (f"--nodelist={node}", "--exclusive", "--time=1", "--wrap=sleep 3")
    assert quiet.run("sbatch", "--partition=a100", *words, cwd=tmp_path).returncode == 0
    wait_until(lambda: study.starts().total() == 6, 90, "the second start of two runs")
    assert [attempt["reason"] for attempt in first_attempts(study)] == ["stopped", "stopped"]
    (study.folder / "release").touch()
    study.wait_for(done=4)
    assert sorted(study.starts().values()) == [1, 1, 2, 2]


def first_attempts(study: Study) -> list[dict]:
    return [study.attempts(f"waits-s{seed}")[0] for seed in range(2)]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_killed_submission_of_shared_nodes(quiet: Cluster, tmp_path: Path):
    """The next submit leaves no run out, and starts none twice, whatever line it was killed at."""

    def kill_and_finish(point: str) -> None:
        place = tmp_path / point.replace(":", "-")
        place.mkdir()
        one = Study(
            quiet,
            place,
            variants=("ok", "ok2"),
            seeds=3,
            profile=SHARED | {"runs_per_node": 4, "retries": 0},
        )
        killed = one.submit(script=f"crash.py {point}")
        assert killed.returncode == -signal.SIGKILL, (point, killed.stdout, killed.stderr)
        one.submitted()
        one.wait_for(done=6)
        assert set(one.starts().values()) == {1}, point
        assert "nothing to do" in one.submitted(), point

    with ThreadPoolExecutor(3) as side_by_side:
        list(side_by_side.map(kill_and_finish, POINTS))


@pytest.mark.slow
@pytest.mark.slurm
def test_the_template_starts_runs_on_shared_nodes(quiet: Cluster, tmp_path: Path):
    study = shared(quiet, tmp_path, "ok", "waits", seeds=3)
    said = study.submitted("--prepare")
    [asked] = [line for line in said.splitlines() if line.startswith("then: sbatch ")]
    assert asked.endswith(" 0-5 4")
    assert "--array=0-1 --nodes=1 --ntasks-per-node=4 " in asked
    words = asked.removeprefix("then: ").split()
    python = {"FURNACE_PYTHON": str(study.place / "python"), "DS_ACCELERATOR": "cpu"}
    done = quiet.run(*words, cwd=study.place, **python)
    assert done.returncode == 0, done.stderr
    study.wait_for(done=3, running=3)
    done = study.furnace("cancel", "--grid", "study", "--variant", "waits")
    assert "asked 3 runs on shared nodes" in done.stdout, done.stdout + done.stderr
    study.wait_for(done=3, interrupted=3)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.distributed
def test_shared_nodes_change_no_parameter(quiet: Cluster, tmp_path: Path, small_root: Path):
    """A run that shares its node, and is requeued, equals a run alone on this machine."""
    shutil.copytree(small_root, tmp_path / "data")
    profile = PROFILE | SHARED | {"nodes": 1}
    study = RealStudy(quiet, tmp_path, profile=profile)
    (study.place / "study.yaml").write_text(yaml.safe_dump(GRID | {"seeds": [0, 1]}))
    study.submitted()
    wait_until(lambda: study.steps("first-s0") >= 12, 240, "step 12 of the first run")
    job = study.attempts("first-s0")[0]["job_id"]
    assert quiet.run("scontrol", "requeue", job).returncode == 0
    study.wait_for(400, done=4)
    assert len(study.attempts("first-s0")) == 2
    calm = tmp_path / "calm"
    calm.mkdir()
    grid = ("--grid", str(study.place / "study.yaml"), "--data-root", str(tmp_path / "data"))
    done = command("submit", calm, *grid, "--cluster", "local", "--variant", "first")
    assert done.returncode == 0, done.stderr
    for name in ("first-s0", "first-s1"):
        [path] = calm.glob(f"runs/study/{name}*/result.json")
        alone = json.loads(path.read_text())
        assert study.result(name)["parameters_sha256"] == alone["parameters_sha256"], name
