"""The same check-up on a compute node, through one short job; and what only a job can tell."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.report import Check, Section, from_json
from furnace_hpc.slurm.environment import scrubbed

JOB_MIN, WAIT_S, WORK_S = 5, 60, 240
TITLE = "Compute node"


def node_sections(profile: ClusterProfile | None, root: Path) -> list[Section]:
    """Start the job, wait for a minute at most that it begins, and return its sections."""
    command = srun_command(profile, root)
    try:
        done = subprocess.run(
            command,
            env=scrubbed(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WAIT_S + WORK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"no answer within {WAIT_S + WORK_S} s"
        return [
            Section(
                TITLE,
                (
                    Check(
                        "job", "warn", found, "give it again later, or leave it out with --no-job"
                    ),
                ),
            )
        ]
    except OSError as error:
        return [
            Section(
                TITLE,
                (
                    Check(
                        "job", "fail", f"srun cannot be started: {error.strerror}", "is it on PATH?"
                    ),
                ),
            )
        ]
    start = done.stdout.find("{")
    try:
        return from_json(done.stdout[start:] if start >= 0 else "", before=f"{TITLE}: ")
    except (ValueError, KeyError, TypeError):
        return [Section(TITLE, (_failed(done.stderr, done.returncode),))]


def _failed(words: str, code: int) -> Check:
    lines = [line for line in words.strip().splitlines() if "queued and waiting" not in line]
    said = lines[-1].removeprefix("srun: ") if lines else f"srun ended with exit code {code}"
    if "Unable to allocate resources" in words or "immediate" in words.lower():
        hint = (
            f"nodes are busy for more than {WAIT_S} s, or the profile is wrong: later, or --no-job"
        )
        return Check("job", "warn", said, hint)
    return Check(
        "job",
        "fail",
        said,
        "a run would fail so too: python and setup of the profile, shared folders",
    )


def srun_command(profile: ClusterProfile | None, root: Path) -> list[str]:
    """One task of two cores and, where the profile has GPUs, one GPU."""
    flags = [
        "--job-name=furnace-doctor",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=2",
        f"--time={JOB_MIN}",
    ]
    flags.append(f"--immediate={WAIT_S}")
    python = sys.executable
    setup: tuple[str, ...] = ()
    if profile:
        wishes = ("partition", "account", "qos", "constraint", "wckey")
        flags += [f"--{name}={value}" for name in wishes if (value := getattr(profile, name))]
        if profile.gpu_flag and profile.gpus_per_node != 0:
            one = f"{profile.gpu_type}:1" if profile.gpu_type else "1"
            flags.append(
                f"--gres=gpu:{one}" if profile.gpu_flag == "gres" else f"--gpus-per-node={one}"
            )
        python, setup = profile.python or python, profile.setup
    here = [
        python,
        "-P",
        "-m",
        "furnace_hpc.doctor",
        "--here",
        "--json",
        "--runs-root",
        str(root.absolute()),
    ]
    if not setup:
        return ["srun", *flags, *here]
    script = "\n".join(["set -e", *setup, "set +e", 'exec "$@"'])  # as the batch script runs them
    return ["srun", *flags, "bash", "-c", script, "doctor", *here]


def in_job() -> bool:
    """Whether this process is part of a job."""
    return "SLURM_JOB_ID" in os.environ


def job_checks() -> list[Check]:
    """What a job finds on its node."""
    checks = [Check("node", "ok", f"{socket.gethostname()}, job {os.environ['SLURM_JOB_ID']}")]
    missing = [name for name in ("scontrol", "squeue", "sbatch") if shutil.which(name) is None]
    if missing:
        hint = "runs that are stopped come back by the next `furnace submit` only; follow_up: false in the profile"
        checks.append(
            Check("Slurm's commands", "warn", f"no {', '.join(missing)} on this node", hint)
        )
    else:
        checks.append(
            Check(
                "Slurm's commands",
                "ok",
                "scontrol, squeue and sbatch are here: jobs requeue themselves",
            )
        )
    said, may = os.environ.get("SLURM_CPUS_PER_TASK"), len(os.sched_getaffinity(0))
    if said != "2":
        found = f"two were asked for, the step says {said or 'nothing'}"
        checks.append(
            Check(
                "cpus-per-task", "warn", found, "give --cpus-per-task in srun_args of the profile"
            )
        )
    elif may < 2:
        checks.append(
            Check(
                "cpus-per-task",
                "fail",
                "two were asked for, and one may be used",
                "set srun_args: --cpu-bind",
            )
        )
    else:
        bound = "" if may <= 4 else f"; not bound: all {may} may be used"
        checks.append(Check("cpus-per-task", "ok", f"two were asked for and given{bound}"))
    umask = os.umask(0o077)
    os.umask(umask)
    checks.append(Check("umask", "ok", f"{umask:03o} by default; runs set 077"))
    return checks
