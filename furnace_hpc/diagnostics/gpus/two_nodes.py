"""Measure an all-reduce between two nodes in a short job, beside what their link should give."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.container import image_command
from furnace_hpc.diagnostics.node import JOB_MIN, WAIT_S, failed_job, profile_flags, run_job
from furnace_hpc.diagnostics.report import Check, Section, fail, ok, warn

TITLE = "Two nodes"
MODULE = "furnace_hpc.engine.ranks.link_probe"
SLOW_SHARE = 0.5  # of the link's rate; one rank per node reaches 70 to 95 % of one link
NETWORK = (
    "check network_interface in the profile, NCCL_SOCKET_IFNAME and NCCL_IB_HCA; NCCL_DEBUG=INFO "
    "shows the network that NCCL chose"
)


def two_node_section(profile: ClusterProfile | None, root: Path) -> Section:
    """Start one rank on each of two nodes, and judge the rate between them.

    The ranks meet through a file in the folder of the runs, as those of a run do.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=root) as folder:
        command = srun_command(profile, Path(folder) / "rendezvous")
        done = run_job(command, "all-reduce", NETWORK)
    if isinstance(done, Check):
        return Section(TITLE, (done,))
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), "")
    try:
        return Section(TITLE, (judge(json.loads(line)),))
    except (ValueError, KeyError, TypeError):
        return Section(TITLE, (failed_job(done.stderr, done.returncode),))


def srun_command(profile: ClusterProfile | None, rendezvous: Path) -> list[str]:
    """Ask for two nodes with one task each and, if the profile has GPUs, one GPU each."""
    flags = ["--job-name=furnace-doctor", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    flags += ["--cpus-per-task=2", f"--time={JOB_MIN}", f"--immediate={WAIT_S}"]
    flags += ["--kill-on-bad-exit=1"]
    python, setup = sys.executable, list[str]()
    if profile:
        flags += profile_flags(profile)
        python, setup = profile.python or python, [*profile.setup]
        if name := profile.network_interface:
            setup.insert(0, f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}")
    if profile and profile.container:
        arguments = ["-P", "-m", MODULE, str(rendezvous.absolute())]
        return image_command(profile, flags, arguments, [rendezvous.parent])
    command = [python, "-P", "-m", MODULE, str(rendezvous.absolute())]
    if not setup:
        return ["srun", *flags, *command]
    script = "\n".join(["set -e", *setup, "set +e", 'exec "$@"'])
    return ["srun", *flags, "bash", "-c", script, "doctor", *command]


def judge(facts: dict[str, Any]) -> Check:
    """Judge the output of `engine/ranks/link_probe.py`."""
    name = f"{facts['backend']} all-reduce"
    if facts["error"]:
        return fail(name, facts["error"], NETWORK)
    hosts = ", ".join(dict.fromkeys(facts["hosts"]))
    found = f"{facts['bus_gb_s']:.2f} GB/s for {facts['mb']:.0f} MB between {hosts}"
    if len(set(facts["hosts"])) < 2:
        found += ", which are one machine"
        return ok(name, found)
    slowest = min(facts["links"], key=lambda link: float(link["gb_s"]))
    if not slowest["gb_s"]:
        return ok(name, f"{found}; the rate of link {slowest['name']} is not known")
    found += f"; link {slowest['name']} should give {slowest['gb_s']:.1f}"
    if facts["bus_gb_s"] < SLOW_SHARE * slowest["gb_s"]:
        return warn(name, found, NETWORK)
    return ok(name, found)
