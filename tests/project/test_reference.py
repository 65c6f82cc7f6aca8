"""docs/reference/ is generated from the code."""

import subprocess
import sys

from documents import ROOT

from furnace_hpc.config.metrics import CONSISTENCY, DESCRIPTIONS, METRICS


def test_the_reference_is_up_to_date():
    command = [sys.executable, "docs/generate_reference.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_metric_has_a_description():
    assert {*DESCRIPTIONS} == {
        *CONSISTENCY,
        *(name for names in METRICS.values() for name in names),
    }
