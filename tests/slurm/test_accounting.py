"""The time of jobs in Slurm's accounting, from outputs as sacct prints them."""

import pytest
from tables_study import finish, study

from furnace_hpc.aggregate import show_table
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.slurm.accounting import describe_hours, sum_allocations

# 12_0 ran an hour on 2 GPUs, was requeued, ran half an hour, was requeued and cancelled. 12_1 ran
# 15 minutes on 4 GPUs, and runs again. The other jobs are of other grids or clusters.
ANSWER = """\
12_0|here|3600|billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,node=1|2026-11-25T19:01:46
12_0|here|1800|billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,node=1|2026-11-25T19:31:46
12_1|here|900|cpu=8,gres/gpu:a100=4,node=1|2026-11-25T19:01:46
12_1|here|60|cpu=8,gres/gpu:a100=4,node=1|Unknown
12_0|here|0||Unknown
12_0|here|0||2026-11-25T20:00:00
12_2|here|900|cpu=8,gres/gpu=4,node=1|2026-11-25T19:01:46
13|elsewhere|7200|gres/gpu=8|2026-11-25T19:01:46
12_[3-9]|here|0||Unknown
torn"""


@pytest.fixture
def sacct(tmp_path, monkeypatch):
    """An sacct that prints a text and logs its calls."""

    def make(answer, exit_code=0, error=""):
        (tmp_path / "answer").write_text(answer)
        script = f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
cat {tmp_path}/answer
echo "{error}" >&2
exit {exit_code}
"""
        for name in ("sacct", "sbatch", "squeue"):
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "calls"

    return make


def attempts(*jobs, cluster="here"):
    return [
        Attempt(attempt=number, job_id=job, cluster=cluster) for number, job in enumerate(jobs, 1)
    ]


def test_allocations_of_our_jobs_are_summed(sacct):
    calls = sacct(ANSWER)
    ended = Attempt(
        attempt=3, job_id="12_0", cluster="here", gpus=2, start_unix_s=100.0, end_unix_s=1900.0
    )
    found = sum_allocations([*attempts("12_0", "12_0", "12_1", "13"), Attempt(attempt=1), ended])
    assert found == (3, 2, 1.75, 1.5 * 2 + 0.25 * 4, 1.0)
    assert calls.read_text().splitlines()[:1] == [
        "--duplicates --allocations --noheader --parsable2 "
        "--format=JobID,Cluster,ElapsedRaw,AllocTRES,End --jobs=12,13"
    ]
    assert describe_hours(attempts("12_0", "12_0", "12_1")).startswith(
        "Slurm's accounting: 4.00 GPU-hours in 3 allocations of 2 jobs"
    )
    assert sum_allocations(attempts("13", cluster="")).gpu_hours == 16


def test_without_gpus_jobs_accounting_or_answer(sacct):
    calls = sacct("7|here|1800|cpu=4,node=1|2026-11-25T19:01:46")
    assert "0.50 hours of jobs without GPUs in 1 allocation of 1 job" in describe_hours(
        attempts("7")
    )
    calls.unlink()
    assert sum_allocations([Attempt(attempt=1)]) is None
    assert not calls.exists()
    sacct("", 1, "Slurm accounting storage is disabled")
    assert describe_hours(attempts("7")) == ""
    sacct("", 1, "sacct: error: slurmdbd: Connection refused")
    assert sum_allocations(attempts("7")) is None


def test_footnote_of_the_table_from_one_sacct(sacct, tmp_path):
    grid, runs = study(seeds=[0])
    folder = GridFolder(tmp_path / "runs" / "study")
    for number, spec in enumerate(runs):
        run = finish(spec, folder)
        ended = {
            "attempt": 1,
            "start_unix_s": 1000.0,
            "end_unix_s": 1080.0,
            "reason": "done",
            "step": 500,
        }
        write_json(run.attempt(1), ended | {"job_id": f"12_{number}", "cluster": "here"})
    write_atomically(folder.grid, "{}")
    calls = sacct(ANSWER)
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 0
    assert (
        "Slurm's accounting: 5.00 GPU-hours in 4 allocations of 3 jobs"
        in (tmp_path / "out" / "table.md").read_text()
    )
    assert len(calls.read_text().splitlines()) == 1
