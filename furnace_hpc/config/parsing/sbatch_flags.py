"""The key `sbatch` of a cluster profile and of `resources`: flags of sbatch that have no own key.

A flag is named by its long option, with hyphens or underscores. It is stored with hyphens. Values
are text, a whole number, a list (joined by commas), true (a flag without value) or null (no flag).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_VALUE, MAX_FLAGS = 1000, 50  # characters of a value, flags of a section
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SETS_IT = "Furnace sets {} itself. Remove it"
_GPUS = "Use the keys gpus_per_node, gpu_flag and gpu_type of the profile"
_RANKS = "Use the key processes_per_node"
_LINES = "Use lines of setup in the profile, such as `export NAME=value`"
_OUTPUT = "Furnace reads what sbatch prints. Remove it"

# Flags that a job would not work with, or that have a key of their own -> what to do instead.
OWNED = {
    "account": "Use the key account of the profile",
    "array": _SETS_IT,
    "chdir": "Use a line of setup in the profile, such as `cd FOLDER`",
    "clusters": "Write one profile for each cluster",
    "constraint": "Use the key constraint of the profile",
    "cpus-per-task": "Use the key cpus_per_task of the profile",
    "dependency": _SETS_IT,
    "error": _SETS_IT,
    "exclude": "Furnace excludes nodes after failures (exclude_after_failures). Use constraint, or "
    "nodelist",
    "export": _LINES,
    "export-file": _LINES,
    "gid": "Jobs run as the user who submits. Remove it",
    "gpus": _GPUS,
    "gpus-per-node": _GPUS,
    "gpus-per-socket": _GPUS,
    "gpus-per-task": _GPUS,
    "help": _OUTPUT,
    "input": _SETS_IT,
    "job-name": _SETS_IT,
    "mem": "Use the key mem_gb of the profile. 0 is all memory of a node",
    "no-kill": "A run whose node fails must end, to start again on other nodes. Remove it",
    "no-requeue": "Interrupted runs are requeued. Remove it",
    "nodes": "Use the key nodes",
    "ntasks": _RANKS,
    "ntasks-per-core": _RANKS,
    "ntasks-per-gpu": _RANKS,
    "ntasks-per-node": _RANKS,
    "ntasks-per-socket": _RANKS,
    "open-mode": _SETS_IT,
    "output": _SETS_IT,
    "parsable": _OUTPUT,
    "partition": "Use the key partition",
    "qos": "Use the key qos of the profile",
    "quiet": _OUTPUT,
    "requeue": _SETS_IT,
    "signal": "Use the key signal_delay_s of the profile",
    "test-only": "`furnace submit --dry-run` does it. Remove it",
    "time": "Use the key timeout_min of resources",
    "uid": "Jobs run as the user who submits. Remove it",
    "usage": _OUTPUT,
    "verbose": _OUTPUT,
    "version": _OUTPUT,
    "wait": "`furnace submit --wait` waits. Remove it",
    "wckey": "Use the key wckey of the profile",
    "wrap": _SETS_IT,
}
# Further long options of sbatch, Slurm 20.11 to 25.11. `sbatch --help` leaves out some of them.
_OTHERS = """
acctg-freq batch bb bbf begin cluster-constraint comment consolidate-segments container container-id
contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot distribution
exclusive extra extra-node-info get-user-env gpu-bind gpu-freq gres gres-flags hint hold ignore-pbs
kill-on-invalid-dep licenses mail-type mail-user mcs-label mem-bind mem-per-cpu mem-per-gpu mincpus
network nice nodefile nodelist oom-kill-step overcommit oversubscribe power prefer priority profile
propagate reboot reservation resources segment sockets-per-node spread-job spread-segments stepmgr
switches thread-spec threads-per-core time-min tmp tres-per-task use-min-nodes wait-all-nodes
"""
OTHERS = frozenset(_OTHERS.split())
# The flags of the runs that a follow-up job has too: one core for some seconds, in the same queue.
OF_FOLLOW_UPS = ("comment", "mail-type", "mail-user", "mcs-label", "nice", "reservation")
# The flags of the runs that a job of `furnace doctor` has too: a small job on the same nodes.
OF_DOCTOR_JOBS = (
    *("comment", "exclusive", "gres", "hint", "licenses", "mcs-label", "network", "nice"),
    *("prefer", "reservation", "threads-per-core"),
)

Flag = tuple[str, str]
"""Name and value. The value of a flag without one is empty."""


def _flag_name(name: Any) -> str:
    """Return the name with hyphens."""
    text = str(name).replace("_", "-")
    if not isinstance(name, str) or not _NAME.fullmatch(text):
        raise ValueError("wanted a long option of sbatch without --, such as reservation")
    if text in OWNED:
        fix = OWNED[text].format(text)
        raise ValueError(f"wanted a flag without a key of its own. {fix}")
    return text


def _flag_value(value: Any) -> str | bool | None:
    """Return text, True (a flag without value), or None (no flag)."""
    if value is None or value is False:
        return None
    if value is True:
        return True
    texts = value if isinstance(value, (list, tuple)) else [value]
    if not texts or not all(type(one) in (str, int) and one != "" for one in texts):
        raise ValueError(
            "wanted text, a whole number, a list of these, true (a flag without value) or null "
            "(no flag)"
        )
    text = ",".join(map(str, texts))
    # A newline would end the comment #SBATCH, and the rest would run as shell.
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("contains a control character. Write it on one line")
    if "\\" in text:
        raise ValueError("contains a backslash, which sbatch leaves out. Remove it")
    if len(text) > MAX_VALUE:
        raise ValueError(f"wanted at most {MAX_VALUE:,} characters")
    return text


def _check_flags(flags: dict[str, str | bool | None]) -> dict[str, str | bool | None]:
    for flag in ("gres", "tres-per-task"):
        value = flags.get(flag)
        names = [_resource(item) for item in value.split(",")] if isinstance(value, str) else []
        if "gpu" in names:
            raise ValueError(f"{flag} asks for GPUs. {_GPUS}")
        if "cpu" in names:
            raise ValueError(f"{flag} asks for cores. {OWNED['cpus-per-task']}")
    return flags


def _resource(item: str) -> str:
    """The resource of an entry: gpu of gpu, gpu:4, gres/gpu:a100:4, gres:gpu:4 or gres/gpu=4."""
    name = re.sub("^gres[/:]", "", item.strip())
    return re.split("[:=]", name)[0]


_Written = str | int | bool | list[str | int] | None  # as in YAML, for editors
SbatchFlags = Annotated[
    dict[
        Annotated[str, BeforeValidator(_flag_name)],
        Annotated[str | bool | None, BeforeValidator(_flag_value, json_schema_input_type=_Written)],
    ],
    Field(max_length=MAX_FLAGS),
    AfterValidator(_check_flags),
]


def merged(*sections: Mapping[str, str | bool | None]) -> tuple[Flag, ...]:
    """Return the flags of all sections, sorted. The last one of a name counts. Null removes it."""
    values: dict[str, str | bool | None] = {}
    for section in sections:
        values |= section
    named = ((name, "" if value is True else str(value)) for name, value in values.items() if value)
    return tuple(sorted(named))


def as_words(flags: Iterable[Flag]) -> list[str]:
    """Return flags as words of a command line: --exclusive, --reservation=x."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in flags]
