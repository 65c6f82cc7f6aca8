"""Check this machine, its disks, and its Slurm for problems before a run has them.

furnace doctor                          this machine, Slurm's settings and, by a short job, one node
furnace doctor --two-nodes              also: how fast is the network between two nodes?
furnace doctor --portable               also: do portable runs have the recorded bits here?
furnace doctor --write-profile mine     the same, and write slurm/clusters/mine.yaml
"""

import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from furnace_hpc import __version__
from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import Cluster, RunsRoot
from furnace_hpc.diagnostics import node, slurm, this_machine
from furnace_hpc.diagnostics.container import container_section
from furnace_hpc.diagnostics.device import device_checks
from furnace_hpc.diagnostics.disk import disk_checks
from furnace_hpc.diagnostics.gpus.two_nodes import TITLE, two_node_section
from furnace_hpc.diagnostics.portable import portable_checks
from furnace_hpc.diagnostics.profile_writer import (
    check_new,
    choose_partitions,
    profile_of,
    write_profile,
)
from furnace_hpc.diagnostics.queue.start_times import start_section
from furnace_hpc.diagnostics.report import (
    Section,
    as_json,
    count,
    fail,
    ok,
    page,
    run_checks,
    warn,
    worst,
)
from furnace_hpc.diagnostics.slurm_info import SlurmFacts, ask, try_gpu_flags
from furnace_hpc.launch.planning.show_plan import choose_profile
from furnace_hpc.runs.trust import trust_group
from furnace_hpc.slurm.client import has_slurm

Portable = Annotated[
    bool, typer.Option("--portable", help="also check that portable runs have the recorded bits")
]
TwoNodes = Annotated[
    bool,
    typer.Option(
        "--two-nodes", help="also measure an all-reduce between two nodes, in a job of its own"
    ),
]
NO_SLURM = "not on PATH: runs wait in a queue on this machine"


def main(
    cluster: Cluster = "auto",
    here_: Annotated[
        bool, typer.Option("--here", help="check this machine only, not Slurm")
    ] = False,
    no_job: Annotated[
        bool, typer.Option("--no-job", help="start no job, so check no compute node")
    ] = False,
    portable: Portable = False,
    two_nodes: TwoNodes = False,
    write: Annotated[
        str, typer.Option("--write-profile", help="write slurm/clusters/NAME.yaml", metavar="NAME")
    ] = "",
    partition: Annotated[
        str, typer.Option(help="partition of that profile [one with GPUs, else the default]")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="replace an existing profile")] = False,
    replace_: Annotated[
        bool, typer.Option("--replace", hidden=True, help="older name of --force")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    runs_dir: RunsRoot = None,
) -> None:
    """Check this machine, disks, GPUs, Slurm and one compute node, and list how to fix problems.

    Each line is ok, warn or fail. The exit code is 1 if a line is fail. It takes about half a
    minute, mostly for the start of torch, and changes nothing. Jobs of at most five minutes check
    one node and the profile's container. The last part shows where a run would start soonest.
    """
    replaces = force or replace_
    if write:
        check_new(write, replaces)
    root, on_slurm = runs_root(runs_dir), has_slurm() and not here_
    profile = _find_profile(cluster, on_slurm)
    trust_group(profile is not None and profile.group)
    shows_progress = not json_ and sys.stderr.isatty()
    _progress(shows_progress, "checking this machine ...")
    sections = _this_machine(root, on_slurm or node.in_job())
    if portable:
        _progress(shows_progress, "training a few portable steps ...")
        sections.append(run_checks("Portable runs", portable_checks))
    facts: SlurmFacts | None = None
    if on_slurm:
        _progress(shows_progress, "querying Slurm ...")
        facts = _query_slurm(profile, write, partition)
        sections += _slurm_sections(facts, profile)
    elif not here_:
        sections.append(Section("Slurm", (ok("sbatch", NO_SLURM),)))
    suggested = _suggested(facts, write, partition) if facts and not profile else profile
    jobs = _Jobs(suggested, root, shows_progress)
    if facts and not no_job:
        sections += jobs.one_node()
    if two_nodes:
        sections.append(jobs.two_nodes(facts is not None))
    _show(sections, json_)
    if write:
        if on_slurm and facts is None:
            raise ConfigError(f"profile {write!r} was not written: Slurm does not answer")
        _write(write, facts, partition, replaces)
    raise typer.Exit(1 if worst(sections) == "fail" else 0)


class _Jobs(NamedTuple):
    """Checks in short jobs, and what they need."""

    profile: ClusterProfile | None
    root: Path
    shows_progress: bool

    def one_node(self) -> list[Section]:
        """The same checks on a compute node."""
        _progress(self.shows_progress, f"waiting at most {node.WAIT_S} s for a compute node ...")
        sections = node.node_sections(self.profile, self.root)
        if self.profile and self.profile.container:
            _progress(self.shows_progress, "starting the profile's container ...")
            sections.append(container_section(self.profile, self.root))
        return sections

    def two_nodes(self, has_slurm: bool) -> Section:
        """The rate of the network between two nodes."""
        if not has_slurm:
            hint = "use it on a login node of a cluster, without --here"
            return Section(TITLE, (warn("all-reduce", "needs Slurm", hint),))
        _progress(self.shows_progress, f"waiting at most {node.WAIT_S} s for two nodes ...")
        return two_node_section(self.profile, self.root)


def _find_profile(cluster: str, on_slurm: bool) -> ClusterProfile | None:
    """Load the profile. None if `auto` finds none, which is one of the checks."""
    if cluster in ("auto", "local") and not on_slurm:
        return None
    if cluster != "auto":
        return load_profile(cluster)
    try:
        return choose_profile("auto")
    except ConfigError:
        return None


def _this_machine(root: Path, on_slurm: bool) -> list[Section]:
    sections = [
        run_checks(
            "Software",
            this_machine.python,
            this_machine.host_python,
            this_machine.versions,
            this_machine.text_encoding,
            this_machine.hub_cache,
        ),
        run_checks("Machine", this_machine.cores, this_machine.open_files, device_checks),
        run_checks("Disk of the runs", *disk_checks(root, on_slurm)),
    ]
    if node.in_job():
        sections.insert(0, run_checks("Job", node.job_checks))
    return sections


def _query_slurm(profile: ClusterProfile | None, write: str, partition: str) -> SlurmFacts | None:
    """Read Slurm's settings, and try sbatch's flags for GPUs. None if Slurm does not answer."""
    account = qos = None
    if profile:
        account, qos = profile.account, profile.qos
    facts = ask(account, qos)
    if facts is None:
        return None
    if write:
        parts = choose_partitions(facts, partition or None)
    else:
        parts, _ = facts.named(profile.partition if profile else None)
    with_gpus = [part for part in parts if part.gpus]
    if not with_gpus:
        return facts
    names, first = ",".join(part.name for part in parts), with_gpus[0]
    site = node.site_flags(profile) if profile else []
    return replace(facts, gpu_flags=try_gpu_flags(names, first.gpus, first.gpu_type, site))


def _slurm_sections(facts: SlurmFacts | None, profile: ClusterProfile | None) -> list[Section]:
    if facts is None:
        hint = "use a login node, or try again: `scontrol ping`"
        return [Section("Slurm", (fail("controller", "does not answer", hint),))]
    settings = run_checks("Slurm", *slurm.slurm_checks(facts, profile))
    return [settings, start_section(facts, profile)] if profile else [settings]


def _suggested(facts: SlurmFacts, write: str, partition: str) -> ClusterProfile | None:
    """The profile that --write-profile would write, for the job. None if no partition is up."""
    try:
        content = profile_of(write or "suggested", facts, partition or None)
        return ClusterProfile.model_validate(content)
    except ValueError:  # ConfigError is one
        return None


def _show(sections: list[Section], json_: bool) -> None:
    if json_:
        print(as_json(sections))
        return
    is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    counts = count(sections)
    print(f"Furnace {__version__} on {os.uname().nodename}, {datetime.now():%Y-%m-%d %H:%M}")
    print(page(sections, colour=sys.stdout.isatty() and not is_plain))
    print(f"\n{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail")


def _write(name: str, facts: SlurmFacts | None, partition: str, replaces: bool) -> None:
    path = write_profile(name, facts, partition or None, replaces)
    try_it = f"furnace submit --grid smoke --cluster {name} --dry-run"
    print(f"wrote {path}. Read it, then try `{try_it}`", file=sys.stderr)


def _progress(shown: bool, text: str) -> None:
    if shown:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
