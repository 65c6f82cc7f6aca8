"""Packed bytes do not depend on the code paths that libraries choose for the CPU.

`benchmarks/portable.py` compares them with the bytes of emulated CPUs.
"""

import os
import platform
import subprocess
import sys

import portable_run
import pytest

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.data.packing.instructions import ENVIRONMENT
from furnace_hpc.host.portable import missing_instructions

pytestmark = pytest.mark.skipif(bool(missing_instructions()), reason="this CPU has no AVX2")
SIZES = ("--train", "24", "--val", "8", "--test", "8", "--workers", "1")
# Without numba's path, for which librosa's functions would be compiled again.
PATHS = ("OpenBLAS for Sandy Bridge", "numpy without AVX2", "C library without FMA and AVX2")
OTHERS = {name: v for path in PATHS for name, v in portable_run.CODE_PATHS[path].items()}
SHOW = "import os; from furnace_hpc.data.packing.instructions import fix_instructions as fix; fix()"
SINES = "import math; print([math.sin(number / 7) for number in range(10_000)])"


def start(code: str, **variables: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_choice_of_the_user_does_not_count(name):
    show = f"\nprint(os.environ[{name!r}])"
    assert start(f"import os{show}", **OTHERS) == OTHERS[name]
    assert start(SHOW + show, **OTHERS) == ENVIRONMENT[name]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variable is one of glibc")
def test_the_c_library_can_take_another_path():
    """So the comparison below can fail: a sine has other bits without FMA."""
    assert start(SINES) != start(SINES, **OTHERS)


def test_code_paths_of_another_cpu_change_no_byte(tmp_path):
    knobs = {"train": 4, "val": 4, "test": 4, "speech": "bank"}
    native = portable_run.pack(tmp_path / "native" / "tridigits", knobs)
    assert portable_run.pack(tmp_path / "other" / "tridigits", knobs, **OTHERS) == native


@pytest.mark.slow
def test_furnace_pack_makes_the_same_bytes(tmp_path):
    found = []
    for number, others in enumerate(({}, OTHERS)):
        out = tmp_path / str(number) / "tridigits"
        command = [sys.executable, "-P", "-m", "furnace_hpc.pack", "tridigits", "--out", str(out)]
        subprocess.run([*command, *SIZES], env=os.environ | others, check=True)
        found.append({name: file.xxh3_128 for name, file in read_manifest(out).files.items()})
    assert found[0] == found[1]
