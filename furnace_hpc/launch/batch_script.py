"""Make the submitit parameters and the lines of a batch script from a profile and a shape."""

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.sbatch_flags import OF_FOLLOW_UPS, Flag, as_words
from furnace_hpc.host import access
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.host.batch import EXIT_DONE_ALREADY
from furnace_hpc.host.local_python.unpack import ARCHIVE
from furnace_hpc.launch.arrays import Array, ranges
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.launch.python_archive import LINK

BATCH = "furnace_hpc/host/batch.py"  # in a code snapshot
RUNNER = "furnace_hpc/host/shared_node/runner.py"
# time limit of a follow-up job: it works for seconds, and waits while the controller is away
FOLLOW_UP_MIN = 60
# files of a submission that jobs read or execute
SUBMISSION_FILES = (
    "payload.pkl",
    "profile.json",
    "rows.jsonl",
    "specs.jsonl",
    "code",
    "grid.yaml",
)
# An empty or relative part of PYTHONPATH is the working directory.
KEEP_ABSOLUTE_PATHS = (
    "kept=$(set -f; IFS=:; for place in ${PYTHONPATH:-}; do "
    '[[ $place = /* ]] && printf :%s "$place"; done)',
    'export PYTHONPATH="${kept#:}"',
)
NAME_FAILED_LINE = (
    """trap 'echo "furnace: this line of the profile'"'"'s setup failed: $BASH_COMMAND"' EXIT"""
)


def array_parameters(
    profile: ClusterProfile,
    array: Array,
    name: str,
    submission: Path,
    code: Path,
    exclude: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return submitit's parameters of one array.

    `additional_parameters` are sbatch flags for which submitit has no parameter.
    """
    shape = array.shape
    parallel = min(profile.array_parallelism, len(array.indices))
    shared = shape.runs_per_node > 1
    return {
        **_common(profile, name, shape.timeout_min),
        **_optional(
            partition=shape.partition or profile.partition,
            constraint=profile.constraint,
            exclude=",".join(exclude) or None,
        ),
        **_tasks_and_memory(profile, shape),
        **_gpus(profile, shape),
        "nodes": shape.nodes,
        "use_srun": not shared,  # on a shared node, each run has its own
        "signal_delay_s": profile.signal_delay_s,
        # one file per node: the last --output counts, and submitit's is one per rank
        "srun_args": [f"--output={submission}/%A_%a_%n_log.out", *_srun_args(profile)],
        "setup": [
            *_umask(profile),
            *_site_setup(profile),
            *_check_files(submission, code),
            *_staged_python(profile, submission),
            *([] if shared else _begin(profile, submission, array.base, code)),
        ],
        "teardown": [] if shared else _decide(submission, code),
        "additional_parameters": {
            **_further_flags(profile, shape),
            "array": f"{ranges(array.indices)}%{parallel}",
            "requeue": True,
        },
    }


def follow_up_parameters(
    profile: ClusterProfile,
    name: str,
    after: list[str],
    submission: Path,
    code: Path,
    flags: Iterable[Flag] = (),
) -> dict[str, Any]:
    """Return submitit's parameters of a follow-up job.

    It has one small task, and starts when all elements of the jobs `after` have ended. Of the
    further flags of the runs (`flags`) it gets those that suit it.
    """
    return {
        **_common(profile, name, FOLLOW_UP_MIN),
        **_optional(
            partition=profile.follow_up_partition or profile.partition,
            constraint=_constraint_of_follow_up(profile),
        ),
        "nodes": 1,
        "ntasks_per_node": 1,
        "dependency": f"afterany:{':'.join(after)}",
        "use_srun": False,
        "setup": [
            *_umask(profile),
            *_site_setup(profile),
            *_check_files(submission, code),
            _import_from(shlex.quote(str(code))),
        ],
        "additional_parameters": {**_of_follow_up(profile, flags), "requeue": True},
    }


def _constraint_of_follow_up(profile: ClusterProfile) -> str | None:
    """Return the runs' constraint, because some sites refuse jobs without one.

    In a partition of its own no node may have the feature. A number of nodes (`ib*4`) is for runs.
    """
    if profile.follow_up_partition or re.search(r"[*\[]", profile.constraint or ""):
        return None
    return profile.constraint


def _of_follow_up(profile: ClusterProfile, flags: Iterable[Flag]) -> dict[str, str | bool]:
    """Return the flags of the runs that their follow-up job has too.

    A reservation holds nodes, and those may not be in a partition of its own.
    """
    found = {name: value or True for name, value in flags if name in OF_FOLLOW_UPS}
    if profile.follow_up_partition:
        found.pop("reservation", None)
    return found


def sbatch_flags(profile: ClusterProfile, shape: Shape) -> list[str]:
    """Return what a job of this shape asks for as flags of sbatch, for a submission by hand."""
    flags = {
        **_optional(
            partition=shape.partition or profile.partition,
            account=profile.account,
            qos=profile.qos,
            constraint=profile.constraint,
            wckey=profile.wckey,
        ),
        "nodes": shape.nodes,
        **_tasks_and_memory(profile, shape),
        **_gpus(profile, shape),
        "time": shape.timeout_min,
        "signal": f"USR2@{profile.signal_delay_s}",
        **_further_flags(profile, shape),
    }
    named = (
        (name.replace("_", "-"), "" if value is True else value) for name, value in flags.items()
    )
    return [shlex.quote(word) for word in as_words(named)]


def rank_command(profile: ClusterProfile, code: Path) -> str:
    """Return the command of a rank's Python.

    It starts with the stop signals blocked. The training unblocks them when it handles them. In a
    container `begin-row` has set the words, because they depend on the run and the node.
    """
    if profile.container:
        return '"${FURNACE_RANK[@]}"'
    python = shlex.quote(profile.python or sys.executable)
    first = "python3" if profile.stage_python else python  # of the node, which has it on its disk
    return f"{first} -S {shlex.quote(str(code / BATCH))} launch {python}"


def shared_node_command(
    profile: ClusterProfile, submission: Path, code: Path, name: str, shape: Shape
) -> str:
    """Return the command of a batch script whose runs share a node. It starts an srun per run."""
    python = shlex.quote(profile.python or sys.executable)
    runner = f"python3 -S {shlex.quote(str(code / RUNNER))} {shlex.quote(str(submission))}"
    # in a container the runner puts the words before, because they depend on the run
    start = "" if profile.container else rank_command(profile, code)
    ranks = f"{start} -u -m furnace_hpc.launch.rank_main".strip()
    return (
        f"{runner} {name} {shape.runs_per_node} {python} --srun {shlex.join(_srun_args(profile))} "
        f"--ranks {ranks} {shlex.quote(str(submission))}"
    )


def check_path(path: Path) -> None:
    """Raise ConfigError if a batch script cannot contain this path."""
    text = str(path)
    if any(ord(character) < 32 or character in "\x7f%\\:" for character in text):
        raise ConfigError(
            f"path {text!r} contains a control character or one of % : \\, which batch scripts "
            f"cannot contain: choose another --runs-root"
        )


def _common(profile: ClusterProfile, name: str, timeout_min: int) -> dict[str, Any]:
    return {
        **_optional(account=profile.account, qos=profile.qos),
        "job_name": name,
        "wckey": profile.wckey,
        "time": timeout_min,
        "stderr_to_stdout": True,
    }


def _optional(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _tasks_and_memory(profile: ClusterProfile, shape: Shape) -> dict[str, Any]:
    """Return the tasks of a node: its ranks. --gpus-per-task needs a task for each GPU."""
    memory = f"{profile.mem_gb}GB" if profile.mem_gb is not None else None
    tasks, cpus = shape.ranks_per_node, profile.cpus_per_task
    if profile.gpu_flag == "gpus_per_task" and shape.runs_per_gpu > 1:
        tasks = shape.gpus_in_use
        cpus = (cpus or 1) * shape.runs_per_gpu
    return {"ntasks_per_node": tasks, **_optional(cpus_per_task=cpus, mem=memory)}


def _gpus(profile: ClusterProfile, shape: Shape) -> dict[str, Any]:
    count = profile.gpus_per_node
    if count is None:
        count = shape.gpus_in_use
    if profile.gpu_flag is None or count == 0:
        return {}
    if profile.gpu_flag == "gpus_per_task":
        count = max(1, count // shape.gpus_in_use)
    wanted = f"{profile.gpu_type}:{count}" if profile.gpu_type else str(count)
    if profile.gpu_flag == "gres":
        return {"gres": f"gpu:{wanted}"}
    return {profile.gpu_flag: wanted}


def _further_flags(profile: ClusterProfile, shape: Shape) -> dict[str, str | bool]:
    """Return the flags that have no key. --gres has the GPUs too if the site requests them so."""
    flags: dict[str, str | bool] = {name: value or True for name, value in shape.sbatch}
    gpus = _gpus(profile, shape).get("gres")
    if gpus and "gres" in flags:
        flags["gres"] = f"{gpus},{flags['gres']}"
    return flags


def _srun_args(profile: ClusterProfile) -> list[str]:
    """Return srun's options. The end of one rank must end the others."""
    options = ["--kill-on-bad-exit=1", "--wait=60"]
    is_bound = any(part.startswith("--gpu-bind") for part in profile.srun_args)
    if profile.gpu_flag == "gpus_per_task" and not is_bound:
        # Otherwise Slurm hides the other GPUs from each rank. Then NCCL cannot use peer access
        # (NVIDIA/nccl issue 1066).
        options.append("--gpu-bind=none")
    options += profile.srun_args
    if profile.cpus_per_task:
        # From Slurm 22.05 on, srun does not inherit it from sbatch.
        return [f"--cpus-per-task={profile.cpus_per_task}", *options]
    return options


def _site_setup(profile: ClusterProfile) -> list[str]:
    """Return the profile's setup. The job ends at the first line that fails, and logs the line."""
    lines = []
    if interface := profile.network_interface:
        lines.append(f"export GLOO_SOCKET_IFNAME={interface} NCCL_SOCKET_IFNAME={interface}")
    if profile.scratch:  # each node expands its variables
        lines.append(f"export FURNACE_SCRATCH={shlex.quote(profile.scratch)}")
    if profile.setup:
        lines += [NAME_FAILED_LINE, "set -e", *profile.setup, "set +e", "trap - EXIT"]
    return lines


def _umask(profile: ClusterProfile) -> list[str]:
    """Return lines that make the job's files private, or the group's."""
    if profile.group:
        return ["umask 007", f"export {GROUP_ACCESS}=1"]
    return ["umask 077", f"unset {GROUP_ACCESS}"]


def check_function() -> str:
    """Return the shell function `furnace_check`, which contains the program host/access.py.

    The batch script is Slurm's own copy. So no other user can have changed this program.
    """
    program = Path(access.__file__).read_text(encoding="utf-8")
    return f'furnace_check() {{ python3 -I -S -c {shlex.quote(program)} "$@"; }}'


def _check_files(submission: Path, code: Path) -> list[str]:
    """Return lines that check, before anything runs, that no other user can have changed a file.

    They check the code snapshot and all files of the submission that jobs read. The profile
    contains shell commands, and submitit unpickles the payload.
    """
    files = (submission / name for name in SUBMISSION_FILES)
    check = _check(submission, _quoted(code, *files))
    return [*KEEP_ABSOLUTE_PATHS, check_function(), check]


def _staged_python(profile: ClusterProfile, submission: Path) -> list[str]:
    """Return lines that check the archive of the ranks' Python, and name it to them."""
    if not profile.stage_python:
        return []
    archive = _quoted(submission / LINK)
    return [_check(submission, archive), f"export {ARCHIVE}={archive}"]


def _check(submission: Path, places: str) -> str:
    root = submission.parent.parent.parent
    return f"furnace_check {_quoted(root)} {places} || exit 1"


def _quoted(*paths: Path) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def _begin(profile: ClusterProfile, submission: Path, base: int, code: Path) -> list[str]:
    """Return lines that begin the attempt of this element's row. They exit if the run is done.

    They copy the payload over any file of that name. The row may name the code of an older
    submission, which is checked then.
    """
    folder, script = shlex.quote(str(submission)), shlex.quote(str(code / BATCH))
    row = f'"$(({base} + SLURM_ARRAY_TASK_ID))"'
    python = shlex.quote(profile.python or sys.executable)
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
        _import_from('"$FURNACE_CODE"'),
        f'python3 -S {script} guard "$FURNACE_RUN_DIR" "$FURNACE_ATTEMPT" $$ & guard=$!',
    ]


def _import_from(code: str) -> str:
    """Return the line that makes Python import the snapshot (a word of shell).

    Without it Python could import the live code, or modules in the working directory.
    """
    return f'export PYTHONPATH={code}"$kept" PYTHONSAFEPATH=1'


def _decide(submission: Path, code: Path) -> list[str]:
    """Return the lines after the ranks. Hours have passed, so the code is checked again."""
    batch = f"python3 -S {shlex.quote(str(code / BATCH))}"
    return [
        "rc=$?",
        '{ kill "$guard" && wait "$guard"; } 2>/dev/null',
        _check(submission, _quoted(code)),
        f'verdict=$({batch} decide "$FURNACE_RUN_DIR" "$FURNACE_ATTEMPT" "$rc")',
        'echo "attempt $FURNACE_ATTEMPT ended: $verdict (srun exit code $rc)"',
        f'if [ "$verdict" = requeue ]; then {batch} requeue "$id" && sleep 60; fi',
        '[ "$verdict" = "done" ]',
    ]
