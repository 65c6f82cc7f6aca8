"""The working directory is not on the path of any Python that Furnace starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

from batch_study import execute

import furnace_hpc
from furnace_hpc.runs.snapshot import source
from furnace_hpc.slurm.environment import absolute_folders, clean_environment


def test_relative_pythonpath_reaches_no_rank(tmp_path):
    """An empty part means the working directory. `export PYTHONPATH=/a:$PYTHONPATH` makes one."""
    assert absolute_folders(":/a b::lib:/c:.") == ["/a b", "/c"]
    path = "export PYTHONPATH=':/a b::lib:/c*:.:'"
    _, _, _, tools = execute(tmp_path, "done", 0, setup=(path,))
    code = source().snapshot_hash
    assert (tools / "path").read_text() == f"{tmp_path}/runs of 'mine'/study/code/{code}:/a b:/c*"


def test_child_ignores_the_working_directory(tmp_path):
    """In /tmp, for example, any user can put a torch.py."""
    planted = tmp_path / "statistics.py"
    planted.write_text("raise SystemExit('planted')")
    script = (
        "import subprocess, sys; sys.argv = ['furnace', '--version']\n"
        "from furnace_hpc.cli import furnace\n"
        "child = [sys.executable, '-m', 'statistics']\n"
        "try: furnace()\n"
        "except SystemExit: sys.exit(subprocess.run(child).returncode)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    child = [sys.executable, "-P", "-c", script]
    assert subprocess.run(child, cwd=tmp_path, env=kept, capture_output=True).returncode == 0
    bare = [sys.executable, "-m", "statistics"]
    assert subprocess.run(bare, cwd=tmp_path, env=kept, capture_output=True).stderr == b"planted\n"
    assert "PYTHONSAFEPATH" not in clean_environment({"PYTHONSAFEPATH": "1"})


def test_started_pythons_use_safe_path():
    """Each started Python gets -P, -I or PYTHONSAFEPATH."""
    package = Path(furnace_hpc.__file__).parent
    found = [
        (path.name, command)
        for path in package.rglob("*.py")
        for command in re.findall(
            r"\[\s*(?:sys\.executable|python|place),\s*([^\]]*)", path.read_text()
        )
    ]
    assert len(found) >= 6
    bare = {name for name, command in found if not command.startswith(('"-P"', '"-I"'))}
    assert bare == {"start.py"}  # of a container, for gpu_check.py, which sets PYTHONSAFEPATH
    assert 'PYTHONSAFEPATH="1"' in (package / "host" / "gpu_check.py").read_text()
