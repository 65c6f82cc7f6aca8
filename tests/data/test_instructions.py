"""Packed bytes do not depend on the instructions that OpenBLAS and numpy choose for the CPU."""

import os
import subprocess
import sys

import pytest

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.data.packing.instructions import ENVIRONMENT
from furnace_hpc.host.portable import missing_instructions

SIZES = ("--train", "24", "--val", "8", "--test", "8", "--workers", "1")
OTHERS = {"OPENBLAS_CORETYPE": "Sandybridge"}  # kernels of another CPU
SHOW = "import os; from furnace_hpc.data.packing.instructions import fix_instructions as fix; fix()"


def start(code: str) -> str:
    command = [sys.executable, "-c", f"{code}\nprint(os.environ['OPENBLAS_CORETYPE'])"]
    environment = os.environ | OTHERS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(bool(missing_instructions()), reason="this CPU has no AVX2")
def test_the_choice_of_the_user_does_not_count():
    assert start("import os") == "Sandybridge"
    assert start(SHOW) == ENVIRONMENT["OPENBLAS_CORETYPE"]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_instructions()), reason="this CPU has no AVX2")
def test_kernels_of_another_cpu_change_no_byte(tmp_path):
    found = []
    for number, others in enumerate(({}, OTHERS)):
        out = tmp_path / str(number) / "tridigits"
        command = [sys.executable, "-P", "-m", "furnace_hpc.pack", "tridigits", "--out", str(out)]
        subprocess.run([*command, *SIZES], env=os.environ | others, check=True)
        found.append({name: file.xxh3_128 for name, file in read_manifest(out).files.items()})
    assert found[0] == found[1]
