"""`furnace` completes commands, options, grids and profiles in a shell."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

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
ZSHRC = """
autoload -Uz compinit && compinit -u -D
eval "$(furnace --show-completion zsh)"
answer() { print -r -- "$BUFFER" >> answers; BUFFER= }
zle -N answer
bindkey '^Xa' answer
PS1='ready>'
"""
FISH = """
furnace --show-completion fish | source
for line in $argv
    set found (complete --do-complete $line | string replace --regex '\\t.*' '')
    echo "$line -> $found"
end
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


@contextmanager
def typing_in_zsh(place: Path) -> Iterator[Callable[[str], str]]:
    """An interactive zsh on a terminal. The function types keys and returns the edited line."""
    (place / ".zshrc").write_text(ZSHRC)
    answers = place / "answers"
    answers.touch()
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "ZDOTDIR": str(place), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    shown = bytearray()
    shell = subprocess.Popen(
        ["zsh", "-i"], cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)

    def read() -> None:
        try:
            while block := os.read(ours, 4096):
                shown.extend(block)
        except OSError:  # zsh has ended
            pass

    def wait(is_reached: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 120
        while not is_reached():
            assert shell.poll() is None, shown.decode()
            assert time.monotonic() < end_s, shown.decode()
            time.sleep(0.05)

    def complete(line: str) -> str:
        lines = len(answers.read_text().splitlines())
        os.write(ours, f"{line}\t\x18a".encode())
        wait(lambda: len(answers.read_text().splitlines()) > lines)
        return answers.read_text().splitlines()[-1]

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        wait(lambda: b"ready>" in shown)
        yield complete
    finally:
        shell.kill()
        shell.wait()
        reader.join()
        os.close(ours)


def imported(place: Path) -> set[str]:
    """Modules that import statements of the `furnace` script have loaded."""
    lines = (place / "imports").read_text().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes(place):
    script = BASH + "".join(f"ask {line}\n" for line in COMPLETIONS)
    registered, *answers = run(place, "bash", "--norc", "-c", script).splitlines()
    assert registered == "complete -o default -F _furnace_completion furnace"
    assert answers == [f"{line} -> {words}" for line, words in COMPLETIONS.items()]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed (apt-get install zsh)")
def test_zsh_completes(place):
    with typing_in_zsh(place) as complete:
        answers = {line: complete(line).strip() for line in COMPLETIONS}
    assert answers == {
        line: f"{line.rpartition(' ')[0]} {word}" if word else line
        for line, word in COMPLETIONS.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed (apt-get install fish)")
def test_fish_completes(place):
    answers = run(place, "fish", "--no-config", "--command", FISH, *COMPLETIONS).splitlines()
    assert answers == [f"{line} -> {words}" for line, words in COMPLETIONS.items()]


def test_a_list_of_commands_imports_none(place):
    variables = {"COMP_WORDS": "furnace s", "COMP_CWORD": "1", "_FURNACE_COMPLETE": "complete_bash"}
    assert run(place, "furnace", **variables).split() == ["submit", "status", "serve", "schema"]
    assert "furnace_hpc.console.completion" in imported(place)
    assert not {"furnace_hpc.launch.planning.planner", "furnace_hpc.monitor.run_status"} & imported(
        place
    )


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
