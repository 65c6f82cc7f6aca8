"""Run the whole batch script under bash, with stand-ins for Slurm's commands."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from login_study import grid, planned, read_rows

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import RunFolder


def stand_in(path: Path, script: str) -> None:
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)


# The stand-in for srun drops its own options and records the rest. The environment has the ranks'
# verdicts and exit code.
SRUN = r"""
while [[ $1 == -* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
printf '%s\n' "$@" > "$STAND_IN/ranks"
printf '%s' "$FURNACE_RUN_DIR|$FURNACE_ATTEMPT|$SUBMITIT_EXECUTOR" > "$STAND_IN/environment"
rank=0
for word in $WORDS; do
  printf '{"verdict": "%s", "step": 5, "unix_s": 1}' "$word" \
    > "$FURNACE_RUN_DIR/verdicts/$FURNACE_ATTEMPT-$rank.json"
  rank=$((rank + 1))
done
[[ $WORDS == done* ]] && echo '{}' > "$FURNACE_RUN_DIR/result.json"
printf %s "$PYTHONPATH" > "$STAND_IN/path"
eval "$THEN"
exit "$CODE"
"""


def execute(
    tmp_path: Path,
    words: str,
    code: int,
    row: int = 2,
    meanwhile: Callable[[], Any] = lambda: None,
    then: str = "",
    asked: Grid | None = None,
    root: str = "runs of 'mine'",
    **facts: Any,
):
    """Run the batch script of a whole submission as Slurm would run one array element."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    stand_in(tools / "srun", SRUN)
    stand_in(tools / "scontrol", 'echo "$*" >> "$STAND_IN/requeued"\n')
    stand_in(tools / "sleep", "exit 0\n")
    plan = planned(
        tmp_path / root,
        asked or grid(),
        ClusterProfile(name="c", executor="slurm", gpu_flag=None, **facts),
    )
    submission = write_submission(plan).path
    (submission / "payload.pkl").write_bytes(b"payload")
    meanwhile()
    ids = {"SLURM_ARRAY_JOB_ID": "91", "SLURM_ARRAY_TASK_ID": str(row), "SLURM_JOB_ID": "93"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "FURNACE_"))
    }
    environment = (
        kept | ids | {"WORDS": words, "CODE": str(code), "STAND_IN": str(tools), "THEN": then}
    )
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    [array] = next_wave(plan.shapes, Limits())
    script = batch_text(plan, array, submission)
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, RunFolder(Path(read_rows(submission)[row]["run_dir"])), submission, tools
