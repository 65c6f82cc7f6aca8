"""Which code makes the numbers: a hash over the sources that decide them, and the commit for people."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# A change of how tables look or how jobs are queued makes no run stale; a change in these rooms may.
DECIDING = ("data", "model", "engine", "spec/config.py", "spec/deepspeed_file.py", "spec/manifest.py")


@cache
def code_hash() -> str:
    """12 hexadecimal digits of SHA-256 over the sources that decide a run's numbers."""
    digest = hashlib.sha256()
    for path in sorted(file for part in DECIDING for file in _sources(PACKAGE / part)):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def git_commit() -> str | None:
    """The checkout's commit, with +dirty when files were changed; None outside a checkout of this project."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))
