"""One Slurm array per resource shape, built and submitted by submitit; nothing more is asked of submitit.

The batch script frames each attempt: host.py begins it before srun and decides after it, from the ranks' own verdicts.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from furnace_hpc.cluster.plan import Plan
from furnace_hpc.cluster.profile import ClusterProfile
from furnace_hpc.cluster.submission import journal, only_submitter, write_submission
from furnace_hpc.cluster.task import run_task
from furnace_hpc.runs import host
from furnace_hpc.spec.errors import ConfigError

Shape = tuple[int, int, int, str | None]


def submit_plan(plan: Plan) -> list[str]:
    """Submit the plan's arrays and return their job ids; the caller gets its prompt back.

    Raises:
        ConfigError: sbatch refused (its own words are in the message).
    """
    _check_path(plan.folder.path.resolve())
    with only_submitter(plan.folder):
        submission = write_submission(plan).resolve()
        DelayedSubmission(run_task, str(submission)).dump(submission / "payload.pkl")
        jobs: list[str] = []
        for shape, indices in plan.shapes.items():
            journal(submission, "intent", shape=shape, rows=indices)
            executor = SlurmExecutor(submission, max_num_timeout=1000, python=rank_command())
            executor.update_parameters(**parameters(plan, shape, indices, submission))
            executor.parameters["map_count"] = len(indices)
            try:
                job = executor._submit_command(executor._submitit_command_str)
            except submitit.core.utils.FailedJobError as error:
                before = f" (already submitted: {', '.join(jobs)})" if jobs else ""
                raise ConfigError(f"sbatch refused the array of {len(indices)} runs{before}: {error}") from None
            journal(submission, "submitted", job_id=job.job_id)
            jobs.append(str(job.job_id))
        return jobs


def batch_text(plan: Plan, shape: Shape, indices: list[int], submission: Path) -> str:
    """The batch script of one array, as `submit_plan` would submit it. Works where there is no Slurm."""
    _check_path(submission)
    command = f"{rank_command()} -u -m submitit.core._submit {shlex.quote(str(submission))}"
    every = parameters(plan, shape, indices, submission)
    text: str = _make_sbatch_string(command=command, folder=submission, map_count=len(indices), **every)
    return text


def parameters(plan: Plan, shape: Shape, indices: list[int], submission: Path) -> dict[str, Any]:
    """Submitit's parameters of one array. Additional ones are sbatch flags that submitit has no name for."""
    nodes, processes_per_node, timeout_min, partition = shape
    profile = plan.profile
    additional = {
        "array": f"{_ranges(indices)}%{min(profile.array_parallelism, len(indices))}",
        "requeue": True,
    }
    optional = {
        "partition": partition or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "cpus_per_task": profile.cpus_per_task,
        "mem": f"{profile.mem_gb}GB" if profile.mem_gb else None,
    }
    return {
        **{key: value for key, value in optional.items() if value is not None},
        **_gpus(profile, processes_per_node),
        "job_name": f"furnace-{plan.grid.name}",
        "wckey": profile.wckey,
        "nodes": nodes,
        "ntasks_per_node": processes_per_node,
        "time": timeout_min,
        "signal_delay_s": profile.signal_delay_s,
        "stderr_to_stdout": True,
        "srun_args": _srun_args(profile),
        "setup": [*profile.setup, *_setup(submission, profile)],
        "teardown": _teardown(),
        "additional_parameters": additional,
    }


def rank_command() -> str:
    """Python of a rank, started with the stop signals blocked until the training can handle them."""
    python = shlex.quote(sys.executable)
    return f"{python} -S {shlex.quote(host.__file__)} launch {python}"


def _check_path(path: Path) -> None:
    if any(ord(character) < 32 or ord(character) == 127 or character == "%" for character in str(path)):
        raise ConfigError(
            f"path {str(path)!r} holds a control character or a %, which no batch script can: choose --runs-root"
        )


def _gpus(profile: ClusterProfile, processes_per_node: int) -> dict[str, Any]:
    count = processes_per_node if profile.gpus_per_node is None else profile.gpus_per_node
    if profile.gpu_flag is None or count == 0:
        return {}
    typed = f"{profile.gpu_type}:{count}" if profile.gpu_type else str(count)
    return {"gres": f"gpu:{typed}"} if profile.gpu_flag == "gres" else {"gpus_per_node": typed}


def _srun_args(profile: ClusterProfile) -> list[str]:
    """Srun does not inherit --cpus-per-task from Slurm 22.05 on; a lost rank must end its peers."""
    cpus = [f"--cpus-per-task={profile.cpus_per_task}"] if profile.cpus_per_task else []
    return [*cpus, "--kill-on-bad-exit=1", "--wait=60", *profile.srun_args]


def _setup(submission: Path, profile: ClusterProfile) -> list[str]:
    folder, script = shlex.quote(str(submission)), shlex.quote(host.__file__)
    interface = profile.network_interface
    exports = [f"export GLOO_SOCKET_IFNAME={interface} NCCL_SOCKET_IFNAME={interface}"] if interface else []
    return [
        *exports,
        "id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        f'cp -n {folder}/payload.pkl {folder}/"$id"_submitted.pkl',
        f'begun=$(python3 {script} begin-row {folder} "${{SLURM_ARRAY_TASK_ID:-0}}" "$id" $$) || exit 1',
        'eval "$begun"',
        "export FURNACE_RUN_DIR FURNACE_ATTEMPT",
    ]


def _teardown() -> list[str]:
    script = shlex.quote(host.__file__)
    return [
        "rc=$?",
        f'verdict=$(python3 {script} decide "$FURNACE_RUN_DIR" "$FURNACE_ATTEMPT" "$rc")',
        'echo "attempt $FURNACE_ATTEMPT ended: $verdict (srun said $rc)"',
        'if [ "$verdict" = requeue ]; then scontrol requeue "$id" && sleep 60; fi',
        '[ "$verdict" = "done" ]',
    ]


def _ranges(indices: list[int]) -> str:
    """Indices as Slurm writes them: 0-3,7."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
