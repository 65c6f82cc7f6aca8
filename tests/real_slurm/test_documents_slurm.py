"""The commands in docs/slurm.md and slurm/README.md, on a real Slurm."""

import shutil
import sys
from pathlib import Path

import pytest
from documents import ROOT, commands
from slurm_cluster import Cluster

# it waits for 40 runs of 150 steps; here they are cancelled before
LATER = ("furnace status --grid ablation --watch",)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_commands_on_the_devcluster(quiet: Cluster, tmp_path: Path, small_root: Path):
    shutil.copytree(small_root, tmp_path / "data")
    path = f"{Path(sys.prefix) / 'bin'}:{quiet.environment['PATH']}"

    def give(line: str, code: int = 0) -> str:
        done = quiet.run("bash", "-c", line, cwd=tmp_path, timeout_s=600, PATH=path)
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    smoke = [
        c.line
        for c in commands(ROOT / "slurm/README.md")
        if c.line.startswith("furnace") and "smoke" in c.line
    ]
    assert smoke[-1] == "furnace submit --grid smoke --cluster devcluster --prepare"
    said = [give(line) for line in smoke]
    assert "3 runs: 3 done" in said[1]
    assert "verdict: " in said[2]
    assert "then: furnace status --grid smoke --watch\n" in said[0]

    printed = [c.line for c in commands(ROOT / "docs/slurm.md") if "--grid ablation" in c.line]
    [dry] = [line for line in printed if "--dry-run" in line]
    assert "# sbatch --test-only: " in give(dry.replace("mine", "devcluster"))
    ablation = [line for line in printed if line != dry]
    assert len(ablation) == 5
    for line in [line for line in ablation if line not in LATER] + list(LATER):
        said = give(line, code=1 if "aggregate" in line else 0)
        if "cancel" in line:
            assert "the next submit resumes from saved checkpoints" in said
