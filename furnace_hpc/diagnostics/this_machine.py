"""This machine without torch: Python, versions, locale, the hub's cache, limits."""

import locale
import os
import platform
import re
import resource
import shutil
import stat
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from furnace_hpc.config.parsing.lookup import PACKAGE
from furnace_hpc.diagnostics.report import Check

OLDEST = (3, 11)
HOST_OLDEST = (3, 6)  # of the node's own python3, which runs host/batch.py
SHOWN = 4
SAFE_TORCH = (2, 10)  # CVE-2026-24747 beats weights_only before it, CVE-2025-32434 before 2.6


def python() -> Check:
    """The Python that runs this, which ranks get too."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST:
        return Check(
            "Python",
            "fail",
            found,
            "Furnace needs Python 3.11 or newer: make the environment anew with one",
        )
    return Check("Python", "ok", found)


def host_python() -> Check:
    """The `python3` on PATH: batch scripts begin and end attempts with it."""
    place = shutil.which("python3")
    if place is None:
        return Check(
            "python3 of the host",
            "fail",
            "not on PATH",
            "batch scripts need a python3: module load one",
        )
    said = _says(place, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    numbers = tuple(int(part) for part in re.findall(r"\d+", said))
    if numbers < HOST_OLDEST:
        return Check(
            "python3 of the host",
            "fail",
            f"{said or 'does not answer'}, {place}",
            "3.6 or newer is needed",
        )
    return Check("python3 of the host", "ok", f"{said}, {place}")


def versions() -> list[Check]:
    """What is installed, against what the tests ran with."""
    return [_torch(), _pins(), _needed()]


def _torch() -> Check:
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Check(
            "torch", "fail", "not installed", "pip install furnace-hpc --constraint constraints.txt"
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < SAFE_TORCH:
        return Check(
            "torch",
            "fail",
            f"{found}: weights_only can be got round before 2.10",
            "install the pinned one",
        )
    return Check("torch", "ok", found)


def _pins() -> Check:
    file = next(
        (
            p
            for p in (PACKAGE.parent / "constraints.txt", PACKAGE / "_shipped/constraints.txt")
            if p.exists()
        ),
        None,
    )
    if file is None:
        return Check(
            "pinned versions",
            "warn",
            "constraints.txt is not here",
            "compare with the repository's by hand",
        )
    differing, same = differences(file.read_text(encoding="utf-8"))
    if differing:
        more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        found = (
            f"{len(differing)} differ from constraints.txt: {', '.join(differing[:SHOWN])}{more}"
        )
        return Check(
            "pinned versions", "warn", found, f"pip install --constraint {file.name} furnace-hpc"
        )
    return Check("pinned versions", "ok", f"{same} packages are as constraints.txt says")


def differences(constraints: str) -> tuple[list[str], int]:
    """Installed packages that differ from `name==version` lines, and how many are the same."""
    differing, same = [], 0
    for line in constraints.splitlines():
        name, equal, wanted = line.partition("#")[0].strip().partition("==")
        if not equal:
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # of an extra
        if found.partition("+")[0] == wanted:
            same += 1
        else:
            differing.append(f"{name} {found} (wanted {wanted})")
    return differing, same


def _needed() -> Check:
    missing = []
    for line in requires("furnace-hpc") or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and "extra ==" not in line:
            try:
                version(name[0])
            except PackageNotFoundError:
                missing.append(name[0])
    if missing:
        return Check(
            "dependencies",
            "fail",
            f"not installed: {', '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )
    return Check("dependencies", "ok", "all there")


def text_encoding() -> Check:
    """Names and logs are UTF-8."""
    asked = next(
        (f"{n}={os.environ[n]}" for n in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(n)),
        "none set",
    )
    hint, before = "export LC_ALL=C.UTF-8", locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        return Check("locale", "warn", f"{asked}: this machine does not have it", hint)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    encoding = sys.getfilesystemencoding()
    if encoding.lower() != "utf-8":
        return Check("locale", "warn", f"{asked}: files are named in {encoding}", hint)
    return Check("locale", "ok", f"{asked}, UTF-8")


def hub_cache() -> list[Check]:
    """Pretrained weights come from the hub's cache where nodes have no network."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    names = (
        sorted(path.name[8:].replace("--", "/") for path in cache.glob("models--*"))
        if cache.is_dir()
        else []
    )
    shown = f": {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else ""
    found = f"{len(names)} models in {cache}{shown}"
    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "ON", "YES")
    checks = [
        Check(
            "hub cache", "ok", f"{found}{', offline' if offline else ''}; random weights need none"
        )
    ]
    if offline and not names:
        hint = "fetch them on a machine with network, or train from random weights or a folder"
        checks = [Check("hub cache", "warn", f"{found}, and HF_HUB_OFFLINE is set", hint)]
    token = home / "token"
    if token.exists() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        checks.append(
            Check("hub token", "warn", f"{token} can be read by others", f"chmod 600 {token}")
        )
    return checks


def open_files() -> Check:
    """Columns, shards and sockets of a rank are a few hundred."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 1024:
        return Check(
            "open files",
            "warn",
            f"at most {soft}",
            f"ulimit -n {min(4096, hard) if hard > 0 else 4096}",
        )
    return Check(
        "open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}"
    )


def cores() -> Check:
    """What this process may use."""
    may, there = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    return Check("cores", "ok", f"{may} of {there}; {_memory_gib():.0f} GiB of memory")


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _says(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
