"""What a job asks Slurm for, and the lines of its batch script: profile and shape as submitit's parameters. Pure."""

import shlex
import sys
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import access
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.host.batch import EXIT_DONE_ALREADY
from furnace_hpc.launch.arrays import Array, ranges
from furnace_hpc.launch.plan import Shape

BATCH = "furnace_hpc/host/batch.py"  # in a code snapshot
# time limit of a follow-up job; it works for seconds, and waits where the controller is away
FOLLOW_UP_MIN = 60


def array_parameters(
    profile: ClusterProfile,
    array: Array,
    name: str,
    submission: Path,
    code: Path,
    exclude: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Submitit's parameters of one array. Additional ones are sbatch flags that submitit has no name for."""
    shape = array.shape
    parallel = min(profile.array_parallelism, len(array.rows))
    return {
        **_common(profile, name, shape.timeout_min),
        **_optional(partition=shape.partition or profile.partition, constraint=profile.constraint),
        **_optional(exclude=",".join(exclude) or None),
        **_optional(
            cpus_per_task=profile.cpus_per_task,
            mem=f"{profile.mem_gb}GB" if profile.mem_gb else None,
        ),
        **_gpus(profile, shape),
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes_per_node,
        "signal_delay_s": profile.signal_delay_s,
        "srun_args": _srun_args(profile),
        "setup": [
            *_private(profile),
            *_site_setup(profile),
            *_checked(submission, code),
            *_begin(profile, submission, array.base, code),
        ],
        "teardown": _decide(submission, code),
        "additional_parameters": {"array": f"{ranges(array.indices)}%{parallel}", "requeue": True},
    }


def follow_up_parameters(
    profile: ClusterProfile, name: str, after: list[str], submission: Path, code: Path
) -> dict[str, Any]:
    """Submitit's parameters of a follow-up job: one small task, once all elements of these jobs have ended."""
    return {
        **_common(profile, name, FOLLOW_UP_MIN),
        **_optional(partition=profile.follow_up_partition or profile.partition),
        "nodes": 1,
        "ntasks_per_node": 1,
        "dependency": f"afterany:{':'.join(after)}",
        "use_srun": False,
        "setup": [
            *_private(profile),
            *_site_setup(profile),
            *_checked(submission, code),
            *_code_exports(str(code)),
        ],
        "additional_parameters": {"requeue": True},
    }


def sbatch_flags(profile: ClusterProfile, shape: Shape) -> list[str]:
    """What a job of this shape asks for, as flags of an sbatch that is typed by hand."""
    wanted = {
        **_optional(
            partition=shape.partition or profile.partition, account=profile.account, qos=profile.qos
        ),
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes_per_node,
        **_optional(
            cpus_per_task=profile.cpus_per_task,
            mem=f"{profile.mem_gb}GB" if profile.mem_gb else None,
        ),
        **_gpus(profile, shape),
        "time": shape.timeout_min,
    }
    return [f"--{name.replace('_', '-')}={value}" for name, value in wanted.items()]


def rank_command(profile: ClusterProfile, code: Path) -> str:
    """Python of a rank, started with the stop signals blocked until the training can handle them."""
    python = shlex.quote(profile.python or sys.executable)
    return f"{python} -S {shlex.quote(str(code / BATCH))} launch {python}"


def check_path(path: Path) -> None:
    """Raise ConfigError for a path that cannot stand in a batch script."""
    if any(
        ord(character) < 32 or ord(character) == 127 or character in "%\\:"
        for character in str(path)
    ):
        raise ConfigError(
            f"path {str(path)!r} holds a control character or one of % : \\, which a batch script cannot: "
            f"choose --runs-root"
        )


def _common(profile: ClusterProfile, name: str, timeout_min: int) -> dict[str, Any]:
    optional = _optional(account=profile.account, qos=profile.qos)
    return {
        **optional,
        "job_name": name,
        "wckey": profile.wckey,
        "time": timeout_min,
        "stderr_to_stdout": True,
    }


def _optional(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _gpus(profile: ClusterProfile, shape: Shape) -> dict[str, Any]:
    per_node = shape.processes_per_node if profile.gpus_per_node is None else profile.gpus_per_node
    if profile.gpu_flag is None or per_node == 0:
        return {}
    count = (
        max(1, per_node // shape.processes_per_node)
        if profile.gpu_flag == "gpus_per_task"
        else per_node
    )
    typed = f"{profile.gpu_type}:{count}" if profile.gpu_type else str(count)
    return {"gres": f"gpu:{typed}"} if profile.gpu_flag == "gres" else {profile.gpu_flag: typed}


def _srun_args(profile: ClusterProfile) -> list[str]:
    """Srun does not inherit --cpus-per-task from Slurm 22.05 on; a lost rank must end its peers."""
    cpus = [f"--cpus-per-task={profile.cpus_per_task}"] if profile.cpus_per_task else []
    return [*cpus, "--kill-on-bad-exit=1", "--wait=60", *profile.srun_args]


def _site_setup(profile: ClusterProfile) -> list[str]:
    """The site's lines; the job ends at the first one that fails, and the batch log says which."""
    interface = profile.network_interface
    exports = (
        [f"export GLOO_SOCKET_IFNAME={interface} NCCL_SOCKET_IFNAME={interface}"]
        if interface
        else []
    )
    if profile.scratch:  # its variables are for each node to fill in
        exports.append(f"export FURNACE_SCRATCH={shlex.quote(profile.scratch)}")
    if not profile.setup:
        return exports
    trap = (
        """trap 'echo "furnace: this line of the profile'"'"'s setup failed: $BASH_COMMAND"' EXIT"""
    )
    return [*exports, trap, "set -e", *profile.setup, "set +e", "trap - EXIT"]


def _private(profile: ClusterProfile) -> list[str]:
    """What the job makes is this user's alone, or the group's."""
    trust = f"export {GROUP_ACCESS}=1" if profile.group else f"unset {GROUP_ACCESS}"
    return ["umask 007" if profile.group else "umask 077", trust]


def rule_text() -> str:
    """The function that decides in a batch script what may be executed: the program of host/access.py itself.

    The script is Slurm's own copy, so it is the only place on a compute node that nobody else can have changed.
    """
    program = Path(access.__file__).read_text(encoding="utf-8")
    return f'furnace_check() {{ python3 -I -S -c {shlex.quote(program)} "$@"; }}'


def _checked(submission: Path, code: Path) -> list[str]:
    """Before anything runs that lies on a shared disk: nobody else can have written it, or can put other code there.

    That is the snapshot, what submitit unpickles, and what the follow-up job reads: the profile has lines of shell.
    """
    names = ("payload.pkl", "profile.json", "rows.jsonl", "specs.jsonl", "code", "grid.yaml")
    return [
        # An empty or relative part of PYTHONPATH is the working directory.
        'kept=$(set -f; IFS=:; for place in ${PYTHONPATH:-}; do [[ $place = /* ]] && printf :%s "$place"; done)',
        'export PYTHONPATH="${kept#:}"',
        rule_text(),
        _check(submission, _quoted(code, *(submission / name for name in names))),
    ]


def _check(submission: Path, places: str) -> str:
    return f"furnace_check {_quoted(submission.parent.parent.parent)} {places} || exit 1"


def _quoted(*paths: Path) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def _begin(profile: ClusterProfile, submission: Path, base: int, code: Path) -> list[str]:
    """Begin the attempt of this element's row; there is nothing to do where the run is done already.

    The payload is copied anew, over whatever has that name; a run that goes on may have older code, which is checked.
    """
    folder, script = shlex.quote(str(submission)), shlex.quote(str(code / BATCH))
    row, python = (
        f'"$(({base} + SLURM_ARRAY_TASK_ID))"',
        shlex.quote(profile.python or sys.executable),
    )
    return [
        'id="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        f'cp --remove-destination {folder}/payload.pkl {folder}/"$id"_submitted.pkl || exit 1',
        f'begun=$(python3 -S {script} begin-row {folder} {row} "$id" $$ {python})',
        "rc=$?",
        f'[ "$rc" = {EXIT_DONE_ALREADY} ] && exit 0',
        '[ "$rc" = 0 ] || exit "$rc"',
        'eval "$begun"',
        f'[ "$FURNACE_CODE" = {_quoted(code)} ] || ' + _check(submission, '"$FURNACE_CODE"'),
        "export FURNACE_RUN_DIR FURNACE_ATTEMPT FURNACE_CODE",
        *_code_exports("$FURNACE_CODE"),
    ]


def _code_exports(code: str) -> list[str]:
    """The snapshot is what is imported, not the tree that it was taken from, nor the working directory."""
    place = '"$FURNACE_CODE"' if code.startswith("$") else shlex.quote(code)
    return [f'export PYTHONPATH={place}"$kept" PYTHONSAFEPATH=1']


def _decide(submission: Path, code: Path) -> list[str]:
    """Hours later: whether the code is still nobody else's is checked again."""
    batch = f"python3 -S {shlex.quote(str(code / BATCH))}"
    return [
        "rc=$?",
        _check(submission, _quoted(code)),
        f'verdict=$({batch} decide "$FURNACE_RUN_DIR" "$FURNACE_ATTEMPT" "$rc")',
        'echo "attempt $FURNACE_ATTEMPT ended: $verdict (srun said $rc)"',
        f'if [ "$verdict" = requeue ]; then {batch} requeue "$id" && sleep 60; fi',
        '[ "$verdict" = "done" ]',
    ]
