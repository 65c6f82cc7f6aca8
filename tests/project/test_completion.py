"""`furnace` completes commands, options, grids and profiles in a shell."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = """
eval "$(furnace --show-completion bash)"
complete -p furnace
ask() {
    COMP_WORDS=("$@")
    COMP_CWORD=$(( $# - 1 ))
    _furnace_completion furnace
    echo "$* -> ${COMPREPLY[*]}"
}
"""
COMPLETIONS = {  # line -> the words that complete its last word
    "furnace su": "submit",
    "furnace --ver": "--version",
    "furnace submit --retr": "--retry",
    "furnace submit --grid sm": "smoke",
    "furnace submit --grid nothing": "",
    "furnace status --grid my": "my_run",
    "furnace status --runs-root bin --grid my": "",
    "furnace pack tridigits --varia": "--variant",
}
SCRIPTS = {
    "bash": ("complete -o default -F _furnace_completion furnace", ".bash_completions/furnace.sh"),
    "zsh": ("compdef _furnace_completion furnace", ".zfunc/_furnace"),
    "fish": ("complete --command furnace", ".config/fish/completions/furnace.fish"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with a `furnace` script and a submitted grid."""
    script = tmp_path / "bin" / "furnace"
    script.parent.mkdir()
    code = "from furnace_hpc.cli import furnace; furnace()"
    words = shlex.join([sys.executable, "-P", "-X", "importtime", "-c", code])
    script.write_text(f'#!/bin/sh\nexec {words} "$@" 2>>{shlex.quote(str(tmp_path))}/imports\n')
    script.chmod(0o755)
    (tmp_path / "runs" / "my_run").mkdir(parents=True)
    (tmp_path / "runs" / "my_run" / "grid.yaml").touch()
    return tmp_path


def run(place: Path, *words: str, **variables: str) -> str:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(place)} | variables
    done = subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def imported(place: Path) -> set[str]:
    """Modules that import statements of the `furnace` script have loaded."""
    lines = (place / "imports").read_text().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(place):
    script = BASH + "".join(f"ask {line}\n" for line in COMPLETIONS)
    registered, *answers = run(place, "bash", "--norc", "-c", script).splitlines()
    assert registered == "complete -o default -F _furnace_completion furnace"
    assert answers == [f"{line} -> {words}" for line, words in COMPLETIONS.items()]


def test_a_list_of_commands_imports_none(place):
    variables = {"COMP_WORDS": "furnace s", "COMP_CWORD": "1", "_FURNACE_COMPLETE": "complete_bash"}
    assert run(place, "furnace", **variables).split() == ["submit", "status", "schema"]
    assert "furnace_hpc.console.completion" in imported(place)
    assert not {"furnace_hpc.launch.planner", "furnace_hpc.monitor.run_status"} & imported(place)


def test_other_commands_do_not_import_completion(place):
    run(place, "furnace", "schema", "--help")
    assert "furnace_hpc.config.grids.grid" in imported(place)
    assert "furnace_hpc.console.completion" not in imported(place)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete(place, shell):
    variables = {
        "_FURNACE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "furnace submit --grid smo",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert "smoke" in run(place, "furnace", **variables)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_shown_and_installed(place, shell):
    line, file = SCRIPTS[shell]
    assert line in run(place, "furnace", "--show-completion", shell)
    assert str(place / file) in run(place, "furnace", "--install-completion", shell)
    assert line in (place / file).read_text()
