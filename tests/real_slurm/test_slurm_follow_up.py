"""Follow-up jobs on a real Slurm: waves, retries, the table, and jobs that are cut off."""

import json
from pathlib import Path

import psutil
import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import HANG, Study, shim
from web_server import serving

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_waves_end_with_the_table(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path / "a user's runs", variants=("waits", "dies", "crash"), seeds=3)
    study.write({"max_submit_jobs": 6, "array_parallelism": 5, "retries": 1})
    said = study.submitted()
    assert "5 runs of 1 node x 1 rank" in said
    assert "submits the 4 runs left" in said
    study.wait_for_starts(5)
    study.wait_for(running=3, queued=6)  # the wave cannot end before the three are released
    reasons = [run["reason"] for run in study.status().values() if run["state"] == "queued"]
    assert sum(reason.startswith("waits for a later wave") for reason in reasons) == 4
    # the killed ones
    assert sum(reason.endswith(" will submit it again") for reason in reasons) == 2
    assert "nothing to do" in study.submitted()  # they are on their way: nothing is submitted twice
    (study.folder / "release").touch()
    wait_until(
        lambda: (study.place / "results/study/table.md").exists(),
        90,
        "the table of the last follow-up job",
    )
    starts = study.starts()
    # one retry, and only of the killed
    assert starts == {run: 2 if run.startswith("dies") else 1 for run in starts}
    assert len(starts) == 9
    assert study.states() == {"done": 3, "interrupted": 3, "failed": 3}
    table = (study.place / "results/study/table.md").read_text()
    assert "0 of 3" in table
    assert "ValueError: on purpose" in table
    done = study.furnace("aggregate", "--grid", "study", "--no-figures")
    assert done.returncode == 1
    assert "6 of 9 runs are missing" in done.stderr

    said = study.submitted("--retry", "failed", "--variant", "crash")
    assert "3 runs (3 retry) on dev" in said
    wait_until(lambda: study.starts().total() >= 15, 30, "the failed ones to start again")
    assert {run: n for run, n in study.starts().items() if n != starts[run]} == {
        run: 2 for run in starts if run.startswith("crash")
    }


def test_the_last_job_sends_the_notification(quiet: Cluster, tmp_path: Path):
    """After two waves a webhook gets one text, with the counts of all runs."""
    webhook = tmp_path / "webhook"
    webhook.touch(mode=0o600)
    with serving(503) as server:
        webhook.write_text(server.url)
        changes = {"max_submit_jobs": 3, "notify": str(webhook)}
        study = Study(quiet, tmp_path, seeds=3, profile=changes)
        assert "submits the 1 run" in study.submitted()
        wait_until(lambda: len(server.received) > 1, 120, "the notification")
        wait_until(lambda: not study.follow_ups(), 60, "the end of the last job")
        first, second = server.received  # the first try got 503
    assert first == second
    assert second["runs"] == {"done": 3}
    assert second["report"] == str(study.place / "results/study/report.html")
    stored = [path.read_bytes() for path in study.folder.rglob("*") if path.is_file()]
    assert not any(b"topsecret" in content for content in stored)


@pytest.mark.parametrize(
    ("how", "before"),
    [("cancelled", '$REAL "$@" >/dev/null'), ("killed", ":")],
    ids=["cancelled after its sbatch", "killed before its sbatch"],
)
def test_a_follow_up_job_that_is_cut_off(quiet: Cluster, tmp_path: Path, how, before):
    """The next submit completes it, and submits nothing twice."""
    study = Study(quiet, tmp_path, seeds=6, profile={"max_submit_jobs": 4})
    asked = study.place / "asked"
    is_third = f'echo >> {asked}.calls; [ "$(wc -l < {asked}.calls)" = 3 ]'
    third = f"{is_third} && {{ {before}; touch {asked}; {HANG}; }}"
    said = study.submitted(PATH=shim(study.place, "sbatch", f'{third}\nexec $REAL "$@"'))
    assert "submits the 3 runs left" in said
    wait_until(asked.exists, 60, "the follow-up job's own sbatch")
    assert (study.folder / "submit.lock").exists()
    job_id = follow_up_id(study)
    if how == "cancelled":
        assert quiet.run("scancel", job_id).returncode == 0
    else:
        [process] = [p for p in psutil.process_iter(["cmdline"]) if is_follow_up(p, study)]
        process.kill()
    wait_until(
        lambda: not quiet.run("squeue", "--noheader", f"--jobs={job_id}").stdout.strip(),
        30,
        "its end",
    )
    assert (study.folder / "submit.lock").exists()  # the killed job could not remove it
    said = study.submitted()
    assert ("found job " in said) == (how == "cancelled")
    study.wait_for(done=6)
    wait_until((study.place / "results/study/table.md").exists, 60, "the table")
    assert study.starts() == dict.fromkeys(study.starts(), 1)


def follow_up_id(study: Study) -> str:
    """Return the job id of the only follow-up job."""
    [journal] = study.folder.glob("submissions/*/journal.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    [name] = [event["name"] for event in events if event.get("kind") == "follow-up"]
    return next(
        event["job_id"]
        for event in events
        if event["event"] == "submitted" and event["name"] == name
    )


def is_follow_up(process: psutil.Process, study: Study) -> bool:
    words = process.info["cmdline"] or []
    return "furnace_hpc.follow_up" in words and str(study.folder / "submissions" / "1") in words


def test_a_limit_on_submitted_jobs_is_kept(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits",), seeds=9)
    change = ("sacctmgr", "--immediate", "modify", "qos", "normal", "set")
    assert quiet.run(*change, "MaxSubmitJobsPerUser=5").returncode == 0
    try:
        said = study.submitted()
        assert "4 runs of 1 node x 1 rank" in said  # and the follow-up job is the fifth
        assert "submits the 5 runs left" in said
        done = study.submit("--set", "steps=7")
        assert (done.returncode, done.stdout.count("submitted")) == (2, 0)
        assert "as many jobs as the site allows" in done.stderr
        (study.folder / "release").touch()
        wait_until(lambda: study.starts().total() == 9, 60, "all nine, in three waves")
        study.wait_for(done=9)
    finally:
        assert quiet.run(*change, "MaxSubmitJobsPerUser=-1").returncode == 0
