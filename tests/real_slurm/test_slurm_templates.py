"""The templates slurm/*.sbatch on a real Slurm: a grid without submitit, as in slurm/README.md."""

import re
import subprocess
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study

SLURM = Path(__file__).parents[2] / "slurm"


@pytest.mark.parametrize("name", ["train", "array", "pack", "aggregate"])
def test_the_head_of_a_template_shows_its_command(name):
    path = SLURM / f"{name}.sbatch"
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^#   sbatch .*slurm/{name}\.sbatch ", path.read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.slurm
def test_templates_train_an_array_and_single_runs(quiet: Cluster, tmp_path: Path):
    """The last template makes the table."""
    study = Study(quiet, tmp_path, variants=("ok", "waits", "dies"))
    said = study.submitted("--prepare")
    assert study.queue() == []
    submission = study.folder / "submissions" / "1"
    [asked] = re.findall(
        rf"^then: sbatch --array=0-2 (.*) {SLURM}/array.sbatch {submission}$", said, re.MULTILINE
    )
    python = {"FURNACE_PYTHON": str(study.place / "python")}
    sizes = (*asked.split(), "--parsable")
    assert "--nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --mem=1GB --time=" in asked

    def sbatch(*words: str | Path) -> str:
        done = quiet.run("sbatch", *sizes, *words, cwd=study.place, **python)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    array = sbatch("--array=0-1", SLURM / "array.sbatch", submission)
    table = sbatch(f"--dependency=afterany:{array}", SLURM / "aggregate.sbatch", "--grid", "study")
    study.wait_for_starts(2)
    element = f"{array}_1"
    assert quiet.run("scontrol", "requeue", element).returncode == 0
    study.wait_for_starts(3)
    study.wait_for(done=1, running=1, new=1)
    assert {run["job_id"] for run in study.status().values() if run["state"] == "running"} == {
        element
    }
    done = study.submit("--dry-run")
    assert "1 leave" in done.stdout, done.stdout
    (study.folder / "release").touch()
    wait_until(
        lambda: (study.place / "results/study/table.md").exists(), 60, f"the table of job {table}"
    )
    assert [attempt["job_id"] for attempt in study.attempts("waits")] == [element, element]

    [run] = study.folder.glob("dies*")
    job = sbatch(SLURM / "train.sbatch", run)
    log = study.place / f"furnace-train-{job}.log"
    wait_until(lambda: log.exists() and "ended: fail" in log.read_text(), 30, "the end of one run")
    assert [attempt["reason"] for attempt in study.attempts("dies")] == ["killed"]
    (study.folder / "release").unlink()
    [run] = study.folder.glob("waits*")
    (run / "result.json").unlink()
    sbatch(SLURM / "train.sbatch", run)
    study.wait_for_starts(5)
    assert "cancelled 1 job;" in study.furnace("cancel", "--grid", "study").stdout
    wait_until(lambda: not study.queue(), 30, "an empty queue")
    [done] = study.folder.glob("ok*")
    again = study.place / f"furnace-train-{sbatch(SLURM / 'train.sbatch', done)}.log"
    wait_until(
        lambda: again.exists() and "is not started: it is done already" in again.read_text(),
        30,
        "a short end",
    )


@pytest.mark.slow
@pytest.mark.slurm
def test_the_pack_template_passes_arguments_on(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path)
    packed = (
        "sbatch",
        "--wait",
        "--cpus-per-task=2",
        "--mem=1G",
        SLURM / "pack.sbatch",
        "nothing",
        "--out",
        "packed",
    )
    done = quiet.run(
        *packed, cwd=tmp_path, timeout_s=60, FURNACE_PYTHON=str(study.place / "python")
    )
    [log] = tmp_path.glob("furnace-pack-*.log")
    assert done.returncode == 2
    assert "'nothing'" in log.read_text()
    assert "tridigits" in log.read_text()
