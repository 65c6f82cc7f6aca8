"""The program of a shared node is killed at each point of its work, with all its runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from batch_study import stand_in
from login_study import grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.submission import write_submission

# Every run ends with a result, except that the first attempt of `stops` wants a requeue.
SRUN = r"""
run=$(basename "$FURNACE_RUN_DIR")
[ -e "$FURNACE_RUN_DIR/result.json" ] && echo "$run" >> "$STAND_IN/doubled"
echo "$run" >> "$STAND_IN/sruns"
say() {
  printf '{"rank": 0, "verdict": "%s", "step": 5, "unix_s": 1}\n' "$1" \
    >> "$FURNACE_RUN_DIR/verdicts/$FURNACE_ATTEMPT-0.jsonl"
}
say entered
case $run in stops*) mkdir "$STAND_IN/stopped" && { say stopped; exit 85; } ;; esac
say done
echo '{}' > "$FURNACE_RUN_DIR/result.json"
"""
KILLED = """
import os, signal, sys
from furnace_hpc.host import batch, lifecycle
from furnace_hpc.host.shared_node import runner
point, count = sys.argv[1].split(":")[:2], int((sys.argv[1] + ":1").split(":")[2] or 1)
def die():
    os.killpg(0, signal.SIGKILL)
def dying(work):
    calls = []
    def instead(*arguments, **named):
        calls.append(1)
        if len(calls) == count and point[0] == "before":
            die()
        answer = work(*arguments, **named)
        if len(calls) == count:
            die()
        return answer
    return instead
for place, name in ((batch, "begin_attempt"), (runner, "start_step"), (lifecycle, "decide"),
                    (batch, "requeue")):
    if name == point[1]:
        setattr(place, name, dying(getattr(place, name)))
runner.POLL_S = 0.02
runner.REQUEUED_S = 0.0
runner.main(sys.argv[2:])
"""
WORK = ("before:begin_attempt", "after:begin_attempt", "after:start_step")
WORK += ("before:decide", "after:decide")
POINTS = [f"{point}:{count}" for point in WORK for count in (1, 2)]
POINTS += ["before:requeue:1", "after:requeue:1"]


@pytest.mark.parametrize("point", POINTS)
def test_no_run_is_missing_and_none_doubled(tmp_path, point):
    """Slurm starts the job again. A job of the same array runs in between."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_in(tools / "srun", SRUN)
    stand_in(tools / "scontrol", "exit 0\n")
    rows = {name: {"loss.alpha": 0.1 * number} for number, name in enumerate(("stops", "a", "b"))}
    rows |= {"c": {"loss.beta": 0.2}, "d": {"loss.beta": 0.1}}
    profile = ClusterProfile(name="c", executor="slurm", gpu_flag=None, runs_per_node=2)
    asked = grid(variants=rows, reference="stops", seeds=[0])
    plan = planned(tmp_path / "runs", asked, profile)
    submission = write_submission(plan).path

    def work(index: int, at: str = "never:", restarts: int = 0) -> int:
        ids = {"SLURM_ARRAY_JOB_ID": "91", "SLURM_ARRAY_TASK_ID": str(index)}
        ids |= {"SLURM_RESTART_COUNT": str(restarts)}
        ids |= {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
        environment = os.environ | ids
        environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "STAND_IN": str(tools)}
        words = (str(submission), "0-4", "2", "python3", "--srun", "--ranks", "rank")
        command = [sys.executable, "-c", KILLED, at, *words]
        done = subprocess.run(command, env=environment, timeout=60, start_new_session=True)
        return done.returncode

    assert work(0, point) == -signal.SIGKILL
    work(1)
    work(0, restarts=1)
    work(0, restarts=2)
    work(2)
    for run in plan.runs:
        place = Path(run.folder.path)
        assert (place / "result.json").exists(), run.folder.run_id
        ends = [json.loads(path.read_text()) for path in (place / "attempts").iterdir()]
        assert [end.get("reason") for end in ends].count("done") <= 1
        assert lifecycle.newest_attempt(str(place)) <= 3
    assert not (tools / "doubled").exists()
    starts = Counter((tools / "sruns").read_text().split())
    assert len(starts) == 5
    assert max(starts.values()) <= 3
