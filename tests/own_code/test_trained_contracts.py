"""`furnace check` finds broken contracts that only training shows, with real runs."""

import sys
from pathlib import Path

import forked_commands
import pytest
from own_code_study import FILES, NET, PACKAGE, write_grid, write_package

pytestmark = pytest.mark.slow

BROKEN = '''

class Counts(MyNet):
    """It keeps a number that is in no checkpoint."""

    steps = 0

    def forward(self, inputs, lengths, present_BM):
        output = super().forward(inputs, lengths, present_BM)
        if self.training:
            self.steps += 1
            scale = 1 + 0.1 * self.steps
            output["logits"] = {task: v * scale for task, v in output["logits"].items()}
        return output
'''
SUMS = '''

def total(inputs):
    """A sum over the samples of a process, not a mean."""
    return inputs.features_BMD.square().sum()
'''


def test_state_and_sums_are_found(small_root: Path, tmp_path: Path):
    """A row with a hidden state does not resume. A sum depends on the number of processes."""
    files = FILES | {"net.py": NET + BROKEN, "losses.py": FILES["losses.py"] + SUMS}
    write_package(tmp_path, files)
    rows = {
        "counts": {"model.network": f"{PACKAGE}.net:Counts"},
        "sums": {"loss.extra": {f"{PACKAGE}.losses:total": 0.1}},
    }
    grid = write_grid(tmp_path, rows)
    command = [sys.executable, "-m", "furnace_hpc.check", "--grid", str(grid)]
    command += ["--data-root", str(small_root)]
    done = forked_commands.run(command, cwd=tmp_path, timeout=580)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert len(broken) == 2, done.stdout
    resumed, loss = sorted(broken)
    assert resumed.startswith("counts: BROKEN: save and resume, bit for bit")
    assert "differ" in resumed
    assert "Keep all state in parameters and buffers" in resumed
    assert loss.startswith("sums: BROKEN: the same fp32 loss on 1 and 2 processes")
    assert "The loss must be a mean over samples" in loss
