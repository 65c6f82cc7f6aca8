"""Check this machine without loading torch: Python, versions, locale, model cache and limits."""

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
from furnace_hpc.diagnostics.report import Check, fail, ok, warn

OLDEST = (3, 11)
HOST_OLDEST = (3, 6)  # of the node's own python3, which runs host/batch.py
SHOWN = 4
SAFE_TORCH = (2, 10)  # before it weights_only can be bypassed: CVE-2026-24747, CVE-2025-32434
FEW_FILES, ENOUGH_FILES = 1024, 4096


def python() -> Check:
    """The Python of this command and of the ranks."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST:
        hint = "Furnace needs Python 3.11 or newer: create a new environment with it"
        return fail("Python", found, hint)
    return ok("Python", found)


def host_python() -> Check:
    """The `python3` on PATH, with which batch scripts start and end attempts."""
    name = "python3 of the host"
    place = shutil.which("python3")
    if place is None:
        return fail(name, "not on PATH", "batch scripts need python3: load a module that has it")
    text = _output(place, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    if _numbers(text) < HOST_OLDEST:
        return fail(name, f"{text or 'does not start'}, {place}", "3.6 or newer is needed")
    return ok(name, f"{text}, {place}")


def versions() -> list[Check]:
    """Installed packages, compared with those of the tests."""
    return [_torch(), _pins(), _dependencies()]


def _torch() -> Check:
    found = _version("torch")
    if found is None:
        hint = "pip install furnace-hpc --constraint constraints.txt"
        return fail("torch", "not installed", hint)
    if _numbers(found) < SAFE_TORCH:
        found += ": before 2.10 a checkpoint file can run code in spite of weights_only"
        return fail("torch", found, "install the pinned version (constraints.txt)")
    return ok("torch", found)


def _pins() -> Check:
    name = "pinned versions"
    places = (PACKAGE.parent / "constraints.txt", PACKAGE / "_shipped/constraints.txt")
    file = next((place for place in places if place.exists()), None)
    if file is None:
        hint = "compare your versions with the repository's file"
        return warn(name, "constraints.txt is missing", hint)
    differing, same = differences(file.read_text(encoding="utf-8"))
    if not differing:
        return ok(name, f"{same} packages are as in constraints.txt")
    found = f"{len(differing)} differ from constraints.txt: {', '.join(differing[:SHOWN])}"
    if len(differing) > SHOWN:
        found += f", and {len(differing) - SHOWN} more"
    return warn(name, found, f"pip install --constraint {file.name} furnace-hpc")


def differences(constraints: str) -> tuple[list[str], int]:
    """Compare installed packages with `name==version` lines.

    Returns those that differ, and the number of equal ones. Packages that are not installed belong
    to extras.
    """
    differing, same = [], 0
    for line in constraints.splitlines():
        name, _, wanted = line.partition("#")[0].strip().partition("==")
        found = _version(name) if wanted else None
        if found is None:
            continue
        if found.partition("+")[0] == wanted:
            same += 1
        else:
            differing.append(f"{name} {found} (wanted {wanted})")
    return differing, same


def _dependencies() -> Check:
    lines = [line for line in requires("furnace-hpc") or [] if "extra ==" not in line]
    names = [name[0] for line in lines if (name := re.match(r"[A-Za-z0-9._-]+", line))]
    missing = [name for name in names if _version(name) is None]
    if missing:
        found, hint = f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        return fail("dependencies", found, hint)
    return ok("dependencies", "all installed")


def text_encoding() -> Check:
    """Names of files and logs must be UTF-8."""
    name, hint = "locale", "export LC_ALL=C.UTF-8"
    found = "none set"
    for variable in ("LANG", "LC_CTYPE", "LC_ALL"):  # the last one that is set counts
        if os.environ.get(variable):
            found = f"{variable}={os.environ[variable]}"
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        return warn(name, f"{found}: this machine does not have it", hint)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    encoding = sys.getfilesystemencoding()
    if encoding.lower() != "utf-8":
        return warn(name, f"{found}: names of files are in {encoding}", hint)
    return ok(name, f"{found}, UTF-8")


def hub_cache() -> list[Check]:
    """The cache of Hugging Face's hub, from which nodes without network load pretrained weights."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    checks = [_cached_models(Path(os.environ.get("HF_HUB_CACHE") or home / "hub"))]
    token = home / "token"
    if token.exists() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        checks.append(warn("hub token", f"others can read {token}", f"chmod 600 {token}"))
    return checks


def _cached_models(cache: Path) -> Check:
    folders = sorted(cache.glob("models--*"))
    names = [path.name.removeprefix("models--").replace("--", "/") for path in folders]
    found = f"{len(names)} models in {cache}"
    if names:
        found += f": {', '.join(names[:SHOWN])}"
    if len(names) > SHOWN:
        found += ", ..."
    is_offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "ON", "YES")
    if is_offline and not names:
        hint = "fetch models on a machine with network, or train from random weights or a folder"
        return warn("hub cache", f"{found}, and HF_HUB_OFFLINE is set", hint)
    if is_offline:
        found += ", offline"
    return ok("hub cache", f"{found}; random weights need none")


def open_files() -> Check:
    """A rank opens a few hundred files and sockets."""
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok(name, "no limit")
    if soft >= FEW_FILES:
        return ok(name, f"at most {soft:,}")
    if hard == resource.RLIM_INFINITY:
        hard = ENOUGH_FILES
    return warn(name, f"at most {soft}", f"ulimit -n {min(ENOUGH_FILES, hard)}")


def cores() -> Check:
    """Cores and memory that this process may use."""
    usable, all_ = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ok("cores", f"{usable} of {all_}; {memory_gib:.0f} GiB of memory")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
