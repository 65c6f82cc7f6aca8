"""Identify the code of a run: a hash of the sources that decide numbers, and the commit."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from furnace_hpc.host.json_lines import read_json

PACKAGE = Path(__file__).resolve().parent.parent
SNAPSHOT_PARTS = (PACKAGE.name, "ds_configs")  # the parts of a checkout that a run uses
# This file beside the package marks a snapshot, and has its commit.
SNAPSHOT_FACTS = "snapshot.json"
# Only changes of these files make finished runs stale.
DECIDING = (
    "data",
    "model",
    "engine",
    "config/train_config.py",
    "config/sections",
    "config/deepspeed_file.py",
    "config/manifest.py",
    "config/encoder_families.py",
    "config/own_code/arguments.py",
    "config/seeds.py",
    "host/portable.py",
)


@cache
def code_hash() -> str:
    """12 hexadecimal digits of SHA-256 over the sources that decide a run's numbers."""
    digest = hashlib.sha256()
    for path in sorted(file for part in DECIDING for file in _sources(PACKAGE / part)):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def is_snapshot() -> bool:
    """Whether this code is the snapshot of a submission."""
    return (PACKAGE.parent / SNAPSHOT_FACTS).exists()


@cache
def git_commit() -> str | None:
    """The code's commit, with +dirty if files were changed. None if it is unknown."""
    facts = PACKAGE.parent / SNAPSHOT_FACTS
    if facts.exists():
        commit: str | None = read_json(facts)["commit"]
        return commit
    try:
        commit = git("rev-parse", "HEAD").strip()
        is_dirty = changes() or untracked()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if is_dirty else commit


@cache
def changes() -> str:
    """The differences from the commit, as a patch."""
    return git("diff", "--no-color", "--no-ext-diff", "HEAD", "--", *SNAPSHOT_PARTS)


@cache
def untracked() -> tuple[str, ...]:
    """Files that git neither tracks nor ignores."""
    names = git("ls-files", "-z", "--others", "--exclude-standard", "--", *SNAPSHOT_PARTS).split(
        "\0"
    )
    return tuple(name for name in names if name)


def git(*arguments: str) -> str:
    """The output of a git command in this project's checkout.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, or no checkout of this project.
    """
    # the package may be installed somewhere below another project's checkout
    if not (PACKAGE.parent / ".git").exists():
        raise FileNotFoundError(f"{PACKAGE.parent} is not a git checkout")
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
    return answer.decode("utf-8", "replace")  # a patch may contain any bytes


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))
