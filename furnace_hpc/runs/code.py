"""Which code makes the numbers: a hash over the sources that decide them, and the commit for people."""

import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path

from furnace_hpc.host.regular_file import read_regular

PACKAGE = Path(__file__).resolve().parent.parent
RUNS = (PACKAGE.name, "ds_configs")  # what of a checkout decides or does anything in a run
# beside the package: this is a snapshot, and that file tells its commit
SNAPSHOT_FACTS = "snapshot.json"
# A change of how tables look or how jobs are queued makes no run stale; a change in these rooms
# may.
DECIDING = (
    "data",
    "model",
    "engine",
    "config/train_config.py",
    "config/model_config.py",
    "config/deepspeed_file.py",
    "config/manifest.py",
)


@cache
def code_hash() -> str:
    """12 hexadecimal digits of SHA-256 over the sources that decide a run's numbers."""
    digest = hashlib.sha256()
    for path in sorted(file for part in DECIDING for file in _sources(PACKAGE / part)):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def git_commit() -> str | None:
    """The code's commit, with +dirty when files were changed; None where nothing knows it."""
    facts = PACKAGE.parent / SNAPSHOT_FACTS
    if facts.exists():
        commit: str | None = json.loads(read_regular(facts))["commit"]
        return commit
    try:
        return f"{git('rev-parse', 'HEAD').strip()}{'+dirty' if changes() or untracked() else ''}"
    except (OSError, subprocess.SubprocessError):
        return None


def changes() -> str:
    """What differs from the commit, as a patch."""
    return git("diff", "--no-color", "--no-ext-diff", "HEAD", "--", *RUNS)


def untracked() -> list[str]:
    """Files that git does not know and does not ignore."""
    return [
        name
        for name in git("ls-files", "-z", "--others", "--exclude-standard", "--", *RUNS).split("\0")
        if name
    ]


def git(*arguments: str) -> str:
    """What git says in this project's checkout.

    Raises:
        OSError, subprocess.SubprocessError: no git, or no checkout of this project.
    """
    # a package installed somewhere below another project's checkout
    if not (PACKAGE.parent / ".git").exists():
        raise FileNotFoundError(f"{PACKAGE.parent} is no checkout")
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
    return answer.decode("utf-8", "replace")  # a patch may hold any bytes


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))
