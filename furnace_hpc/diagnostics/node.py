"""Run the same checks on a compute node in a short job, and those that need a job."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.parsing.sbatch_flags import OF_DOCTOR_JOBS, as_words, merged
from furnace_hpc.diagnostics.report import Check, Section, fail, from_json, ok, warn
from furnace_hpc.launch.container import host_python
from furnace_hpc.slurm.environment import clean_environment

JOB_MIN, WAIT_S, WORK_S = 5, 60, 240
TITLE = "Compute node"
CORES = 2


def node_sections(profile: ClusterProfile | None, root: Path) -> list[Section]:
    """Start the job, wait at most a minute for a node, and return the job's sections."""
    hint = "try again later, or skip it with --no-job"
    done = run_job(srun_command(profile, root), "job", hint)
    if isinstance(done, Check):
        return [Section(TITLE, (done,))]
    try:
        return from_json(done.stdout[done.stdout.index("{") :], before=f"{TITLE}: ")
    except (ValueError, KeyError, TypeError):
        return [Section(TITLE, (failed_job(done.stderr, done.returncode),))]


def run_job(command: list[str], name: str, hint: str) -> subprocess.CompletedProcess[str] | Check:
    """Wait for an srun. If it does not end, the answer is a check with this name and hint."""
    try:
        return subprocess.run(
            command,
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WAIT_S + WORK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return warn(name, f"no answer within {WAIT_S + WORK_S} s", hint)
    except OSError as error:
        return fail(name, f"srun cannot be started: {error.strerror}", "put srun on PATH")


def failed_job(messages: str, code: int) -> Check:
    """Judge the messages of an srun that gave no answer."""
    lines = [line for line in messages.strip().splitlines() if "queued and waiting" not in line]
    found = f"srun ended with exit code {code}"
    if lines:
        found = lines[-1].removeprefix("srun: ")
    if "Unable to allocate resources" in messages or "immediate" in messages.lower():
        hint = (
            f"no node was free within {WAIT_S} s, or the profile is wrong: try later, or --no-job"
        )
        return warn("job", found, hint)
    hint = "a run would fail in the same way: check the profile's python and setup, and the folders"
    return fail("job", found, hint)


def srun_command(profile: ClusterProfile | None, root: Path) -> list[str]:
    """Ask for one task with two cores and, if the profile has GPUs, one GPU."""
    flags = ["--job-name=furnace-doctor", "--nodes=1", "--ntasks=1", f"--cpus-per-task={CORES}"]
    flags += [f"--time={JOB_MIN}", f"--immediate={WAIT_S}"]
    python = sys.executable
    setup: tuple[str, ...] = ()
    if profile:
        flags += profile_flags(profile)
        python, setup = host_python(profile), profile.setup
    command = [python, "-P", "-m", "furnace_hpc.doctor", "--here", "--json"]
    command += ["--runs-root", str(root.absolute())]
    if not setup:
        return ["srun", *flags, *command]
    script = "\n".join(["set -e", *setup, "set +e", 'exec "$@"'])  # as in the batch script
    return ["srun", *flags, "bash", "-c", script, "doctor", *command]


def profile_flags(profile: ClusterProfile) -> list[str]:
    """Flags of srun from the profile, with one GPU if it has GPUs."""
    flags = site_flags(profile)
    if profile.partition:
        flags.insert(0, f"--partition={profile.partition}")
    if not profile.gpu_flag or profile.gpus_per_node == 0:
        return flags
    one = "1"
    if profile.gpu_type:
        one = f"{profile.gpu_type}:1"
    if profile.gpu_flag == "gres":
        return with_gres(flags, f"gpu:{one}")
    return [*flags, f"--gpus-per-node={one}"]


def site_flags(profile: ClusterProfile) -> list[str]:
    """Flags of the profile that a site may require of each job."""
    names = ("account", "qos", "constraint", "wckey")
    keys = [f"--{name}={value}" for name in names if (value := getattr(profile, name))]
    more = (flag for flag in merged(profile.sbatch) if flag[0] in OF_DOCTOR_JOBS)
    return keys + as_words(more)


def with_gres(flags: Sequence[str], gpus: str) -> list[str]:
    """Add GPUs to the flag --gres of these flags, which may not have one."""
    others = [flag.removeprefix("--gres=") for flag in flags if flag.startswith("--gres=")]
    kept = [flag for flag in flags if not flag.startswith("--gres=")]
    return [*kept, f"--gres={','.join([gpus, *others])}"]


def in_job() -> bool:
    """Whether this process is part of a job."""
    return "SLURM_JOB_ID" in os.environ


def job_checks() -> list[Check]:
    """Check the job that this process is part of."""
    node = ok("node", f"{socket.gethostname()}, job {os.environ['SLURM_JOB_ID']}")
    umask = os.umask(0o077)
    os.umask(umask)
    return [node, _commands(), _cores(), ok("umask", f"{umask:03o} by default; runs set 077")]


def _commands() -> Check:
    name = "Slurm's commands"
    missing = [tool for tool in ("scontrol", "squeue", "sbatch") if shutil.which(tool) is None]
    if not missing:
        return ok(name, "scontrol, squeue and sbatch are here: jobs can requeue themselves")
    hint = (
        "stopped runs resume only by the next `furnace submit`; set follow_up: false in the profile"
    )
    return warn(name, f"no {', '.join(missing)} on this node", hint)


def _cores() -> Check:
    name = "cpus-per-task"
    given, usable = os.environ.get("SLURM_CPUS_PER_TASK"), len(os.sched_getaffinity(0))
    if given != str(CORES):
        found = f"asked for {CORES} cores, the step has {given or 'no such setting'}"
        return warn(name, found, "set --cpus-per-task in srun_args of the profile")
    if usable < CORES:
        found = f"asked for {CORES} cores, {usable} can be used"
        return fail(name, found, "set --cpu-bind in srun_args of the profile")
    found = f"asked for {CORES} cores and got them"
    if usable > 2 * CORES:
        found += f"; not bound, all {usable} can be used"
    return ok(name, found)
