"""The environment of portable runs, made to give the same bits on x86-64 CPUs with AVX2.

torch, oneDNN and MKL choose instructions by the CPU, and each choice rounds differently. These
variables fix the choice. docs/models.md names the CPUs on which it was checked. The libraries read
the variables once, so they are set before torch is imported.
Standard library only, syntax of Python 3.6.
"""

import os
import sys
from typing import Any, Dict, List, Mapping

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",  # MKL's other branches depend on the vendor of the CPU
    "OMP_NUM_THREADS": "1",
}
INSTRUCTIONS = ("avx2", "fma")  # torch does not check them if ATEN_CPU_CAPABILITY is set
CPUINFO = "/proc/cpuinfo"
FIRST_ENVIRONMENT = "/proc/self/environ"

_prepared: List[bool] = []  # True after `prepare` has set the variables before the import of torch


def environment_of(spec: Mapping[str, Any]) -> Dict[str, str]:
    """The variables that the ranks of a run need. Empty unless its spec.json is portable."""
    if spec.get("config", {}).get("portable"):
        return dict(ENVIRONMENT)
    return {}


def prepare() -> str:
    """Set the variables in this process, before it imports torch.

    Returns:
        Why a portable run cannot start in this process. Empty if it can.
    """
    problem = missing_instructions()
    if not problem and "torch" in sys.modules:
        problem = find_problem()
    if not problem:
        os.environ.update(ENVIRONMENT)
        _prepared.append(True)
    return problem


def find_problem() -> str:
    """Why this process cannot train a portable run. Empty if it can. It may have imported torch."""
    problem = missing_instructions()
    if problem:
        return problem
    for name, wanted in ENVIRONMENT.items():
        found = os.environ.get(name)
        if found != wanted:
            value = "not set" if found is None else repr(found)
            return (
                f"{name} is {value} in this process, wanted {wanted!r}. Start the run with {_START}"
            )
    if not _prepared and not _started_with_variables():
        return (
            "this process imported torch before the variables were set. Start the run with "
            f"{_START}"
        )
    return ""


_START = (
    "`furnace submit`, `furnace train` or the sbatch templates, which set them before torch loads"
)


def missing_instructions() -> str:
    """Why the CPU cannot train portable runs. Empty if it can.

    Under an emulator the file has the flags of the real CPU.
    """
    flags = set()
    with open(CPUINFO, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                flags = set(value.split())
                break
    missing = [name for name in INSTRUCTIONS if name not in flags]
    if not missing:
        return ""
    return (
        f"the CPU of {os.uname().nodename} has no {' and no '.join(missing)}. Use an x86-64 CPU "
        f"with AVX2 (Intel from 2013 on, AMD from 2015 on), or set portable: false"
    )


def _started_with_variables() -> bool:
    """Whether the variables were in the environment when this process started."""
    with open(FIRST_ENVIRONMENT, "rb") as file:
        first = set(file.read().split(b"\0"))
    return all(f"{name}={value}".encode() in first for name, value in ENVIRONMENT.items())
