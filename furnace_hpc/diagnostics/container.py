"""Start the profile's container once in a short job, and judge what ranks would find inside."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import PACKAGE
from furnace_hpc.diagnostics.node import (
    CORES,
    JOB_MIN,
    WAIT_S,
    failed_job,
    profile_flags,
    run_job,
)
from furnace_hpc.diagnostics.report import Check, Section, fail, ok, warn
from furnace_hpc.diagnostics.this_machine import OLDEST, SAFE_TORCH, SHOWN
from furnace_hpc.host.container.command import container_of, words
from furnace_hpc.host.container.image import image_facts, in_words
from furnace_hpc.host.container.start import passed_variables, without_nested
from furnace_hpc.launch.container import check_container

TITLE = "Container"
IMPORTED = ("torch", "deepspeed")
ENGINE = "furnace_hpc.engine.loop"  # what ranks import, with all that it needs
# Runs with the image's Python, which need not have furnace_hpc's packages.
PROBE = """
import importlib, importlib.metadata as metadata, json, os, sys
root, imported, *names = sys.argv[1:]
found = {"python": list(sys.version_info[:3]), "packages": {}, "errors": {}, "gpus": None}
found["writable"] = os.access(root, os.W_OK)
for name in names:
    try:
        found["packages"][name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found["packages"][name] = None
for name in imported.split(","):
    try:
        importlib.import_module(name)
    except Exception as error:
        found["errors"][name] = f"{type(error).__name__}: {error}"
if "torch" in sys.modules:
    found["gpus"] = sys.modules["torch"].cuda.device_count()
print("\\n" + json.dumps(found))
"""


def container_section(profile: ClusterProfile, root: Path) -> Section:
    """Start the image in a job, import torch and DeepSpeed in it, and compare versions."""
    assert profile.container is not None
    try:
        check_container(profile, [root])
    except ConfigError as error:
        return Section(TITLE, (fail("image", str(error), "change the profile"),))
    image = ok("image", in_words(image_facts(profile.container.image)))
    since_s = time.monotonic()
    hint = "try the same command by hand, or skip it with --no-job"
    done = run_job(probe_command(profile, root), "container", hint)
    if isinstance(done, Check):
        return Section(TITLE, (image, done))
    return Section(TITLE, (image, *judge(done, time.monotonic() - since_s, profile, root)))


def probe_command(profile: ClusterProfile, root: Path) -> list[str]:
    """Ask for one task, as the check of a compute node does, and start the probe in the image."""
    flags = ["--job-name=furnace-doctor", "--nodes=1", "--ntasks=1", f"--cpus-per-task={CORES}"]
    flags += [f"--time={JOB_MIN}", f"--immediate={WAIT_S}", *profile_flags(profile)]
    names = [*IMPORTED, *(name for name in dependencies() if name not in IMPORTED)]
    probe = ["-c", PROBE, str(root.absolute()), ",".join((*IMPORTED, ENGINE)), *names]
    return image_command(profile, flags, probe, [root])


def image_command(
    profile: ClusterProfile, flags: list[str], arguments: list[str], folders: list[Path]
) -> list[str]:
    """An srun that starts the image's Python with these arguments, as a rank is started.

    Args:
        profile: with a container.
        flags: of srun.
        arguments: of the Python.
        folders: further folders inside, beside this package and the working directory.
    """
    container = container_of(profile.model_dump(mode="json"))
    assert container is not None
    inside = [str(path.absolute()) for path in (*folders, PACKAGE.parent) if path.exists()]
    variables = passed_variables(os.environ)
    variables |= {"PYTHONPATH": str(PACKAGE.parent), "PYTHONNOUSERSITE": "1"}
    variables |= {"PYTHONSAFEPATH": "1"}
    started = words(container, without_nested(inside), variables, inside[0])
    setup = [*profile.setup]
    if name := profile.network_interface:
        setup.insert(0, f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}")
    if not setup or container.runtime == "pyxis":  # under pyxis srun starts all words inside
        return ["srun", *flags, *started, *arguments]
    script = "\n".join(["set -e", *setup, "set +e", 'exec "$@"'])
    return ["srun", *flags, "bash", "-c", script, "doctor", *started, *arguments]


def judge(
    done: subprocess.CompletedProcess[str], seconds: float, profile: ClusterProfile, root: Path
) -> list[Check]:
    """Judge the answer of the probe."""
    assert profile.container is not None
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), "")
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return [failed_job(done.stderr, done.returncode)]
    runtime = ok(profile.container.runtime, f"started the image; answered after {seconds:.0f} s")
    checks = [runtime, _python(found), *_imports(found), _packages(found["packages"])]
    if not found["errors"].keys() & {*IMPORTED} and ENGINE in found["errors"]:
        hint = "install what is missing in the image: ranks would fail in the same way"
        checks.append(fail("engine", found["errors"][ENGINE], hint))
    if root.exists() and not found["writable"]:
        hint = f"add {root.absolute()} to container.mounts"
        checks.append(fail("runs", f"{root.absolute()} cannot be written inside", hint))
    if profile.gpu_flag and profile.gpus_per_node != 0:
        checks.append(_gpus(found["gpus"], profile.container.runtime))
    return checks


def dependencies() -> list[str]:
    """The packages that furnace_hpc needs, from its own metadata."""
    try:
        lines = [line for line in requires("furnace-hpc") or [] if "extra ==" not in line]
    except PackageNotFoundError:  # a clone that is only on the path
        return ["numpy", "pydantic", "submitit", "transformers"]
    found = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines]
    return [name[0] for name in found if name]


def _python(found: dict[str, Any]) -> Check:
    text = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < OLDEST:
        hint = "Furnace needs Python 3.11 or newer: set python in the profile, or another image"
        return fail("Python", text, hint)
    return ok("Python", f"{text}; {sys.version.split()[0]} here")


def _imports(found: dict[str, Any]) -> list[Check]:
    """Whether torch and DeepSpeed can be imported, and how their versions compare with ours."""
    checks = []
    for name in IMPORTED:
        inside, here = found["packages"][name], _version(name)
        if name in found["errors"]:
            error = found["errors"][name]
            hint = "install it in the image, or set python in the profile to the Python that has it"
            checks.append(fail(name, error, hint))
        elif name == "torch" and _numbers(inside) < SAFE_TORCH:
            text = f"{inside}: before 2.10 a checkpoint file can run code in spite of weights_only"
            checks.append(fail(name, text, "use an image with a newer torch"))
        elif here and here != inside:
            text = f"{inside} in the image, {here} here"
            checks.append(warn(name, text, "runs have the image's; results record it"))
        else:
            checks.append(ok(name, f"{inside} in the image and here" if here else inside))
    return checks


def _packages(packages: dict[str, str | None]) -> Check:
    """The other packages that Furnace needs."""
    others = {name: found for name, found in packages.items() if name not in IMPORTED}
    missing = [name for name, found in others.items() if found is None]
    if missing:
        hint = f"add to the image: pip install {' '.join(missing)}"
        return fail("packages", f"not in the image: {', '.join(missing)}", hint)
    differing = [
        f"{name} {found} ({here} here)"
        for name, found in others.items()
        if (here := _version(name)) and here != found
    ]
    if differing:
        text = f"{len(differing)} differ: {', '.join(differing[:SHOWN])}"
        return warn("packages", text, "runs have the image's")
    return ok("packages", f"all {len(others)} are there")


def _gpus(count: int | None, runtime: str) -> Check:
    if count:
        return ok("GPUs", f"torch sees {count} inside")
    hint = "the image needs a torch with CUDA, and the node the NVIDIA container libraries"
    if runtime == "apptainer":
        hint += " (--nv is given)"
    return warn("GPUs", "torch sees none inside", hint)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text or "")[:2])
