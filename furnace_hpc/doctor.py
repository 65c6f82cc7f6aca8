"""Look at this machine, its disks and its Slurm, and say what would go wrong, before it does.

python -m furnace_hpc.doctor                          this machine; with Slurm its settings and, by a short job, a node
python -m furnace_hpc.doctor --write-profile mine     and write slurm/clusters/mine.yaml from what Slurm says
"""

import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc import __version__
from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.diagnostics import node, slurm, this_machine
from furnace_hpc.diagnostics.device import device_checks
from furnace_hpc.diagnostics.disk import disk_checks
from furnace_hpc.diagnostics.profile_writer import (
    check_new,
    choose_partitions,
    profile_of,
    write_profile,
)
from furnace_hpc.diagnostics.report import Check, Section, as_json, count, look, page, worst
from furnace_hpc.diagnostics.slurm_info import SlurmFacts, ask, try_gpu_flags
from furnace_hpc.launch.show_plan import choose_profile
from furnace_hpc.runs.trust import trust_group
from furnace_hpc.slurm.client import has_slurm


def main(
    cluster: Annotated[
        str, typer.Option(help="profile in slurm/clusters/, `local`, or `auto`")
    ] = "auto",
    here_: Annotated[
        bool, typer.Option("--here", help="look at this machine alone, not at Slurm")
    ] = False,
    no_job: Annotated[
        bool, typer.Option("--no-job", help="start no job to look at a compute node")
    ] = False,
    write: Annotated[
        str, typer.Option("--write-profile", help="write slurm/clusters/NAME.yaml", metavar="NAME")
    ] = "",
    partition: Annotated[
        str, typer.Option(help="partition of that profile [one with GPUs, else the default]")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="write over a profile that is there")
    ] = False,
    replace_: Annotated[
        bool, typer.Option("--replace", hidden=True, help="older name of --force")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="for programs; goes to stdout alone")
    ] = False,
    runs_dir: Annotated[
        Path | None,
        typer.Option("--runs-root", help="where runs will lie [$FURNACE_RUNS or ./runs]"),
    ] = None,
) -> None:
    """Check this machine, its disks and GPUs, Slurm, and one compute node, and report how to fix each problem.

    Every line is ok, warn or fail, with a hint. Exit code 1: something fails. It takes about half a minute, most of
    it torch's start, and changes nothing; a job of five minutes at most, two cores and a GPU looks at a compute node.
    """
    over = force or replace_
    if write:
        check_new(write, over)
    root, on_slurm = runs_root(runs_dir), has_slurm() and not here_
    profile = _find_profile(cluster) if cluster not in ("auto", "local") or on_slurm else None
    trust_group(profile is not None and profile.group)
    _say(not json_, "looking at this machine ...")
    sections = _this_machine(root, on_slurm or node.in_job())
    facts: SlurmFacts | None = None
    if on_slurm:
        _say(not json_, "asking Slurm ...")
        facts = _ask(profile, write, partition)
        if facts is None:
            hint = "use a login node, or try again: `scontrol ping`"
            sections.append(
                Section("Slurm", (Check("controller", "fail", "does not answer", hint),))
            )
        else:
            sections.append(look("Slurm", *slurm.slurm_checks(facts, profile)))
            if not no_job:
                _say(not json_, f"waiting for a job on a compute node, {node.WAIT_S} s at most ...")
                sections += node.node_sections(profile or _suggested(facts, write, partition), root)
    elif not here_:
        sections.append(
            Section(
                "Slurm",
                (Check("sbatch", "ok", "not on PATH: runs wait in a queue on this machine"),),
            )
        )
    _show(sections, json_)
    if write:
        if on_slurm and facts is None:
            raise ConfigError(f"profile {write!r} was not written: Slurm does not answer")
        path = write_profile(write, facts, partition or None, over)
        print(
            f"wrote {path}: read it, then `furnace submit --grid smoke --cluster {write} --dry-run`",
            file=sys.stderr,
        )
    raise typer.Exit(1 if worst(sections) == "fail" else 0)


def _this_machine(root: Path, on_slurm: bool) -> list[Section]:
    sections = [look("Job", node.job_checks)] if node.in_job() else []
    software = (
        this_machine.python,
        this_machine.host_python,
        this_machine.versions,
        this_machine.text_encoding,
        this_machine.hub_cache,
    )
    return [
        *sections,
        look("Software", *software),
        look("Machine", this_machine.cores, this_machine.open_files, device_checks),
        look("Disk of the runs", *disk_checks(root, on_slurm)),
    ]


def _find_profile(cluster: str) -> ClusterProfile | None:
    """The profile that is meant; None where `auto` finds none, which is a line of the page."""
    if cluster != "auto":
        return load_profile(cluster)
    try:
        return choose_profile("auto")
    except ConfigError:
        return None


def _ask(profile: ClusterProfile | None, write: str, partition: str) -> SlurmFacts | None:
    account, qos = (profile.account, profile.qos) if profile else (None, None)
    facts = ask(account, qos)
    if facts is None:
        return None
    if write:
        parts = choose_partitions(facts, partition or None)
    else:
        parts = facts.named(profile.partition if profile else None)[0]
    part = next((part for part in parts if part.gpus), None)
    if part is None:
        return facts
    names = ",".join(part.name for part in parts)
    return replace(facts, gpu_flags=try_gpu_flags(names, part.gpus, part.gpu_type, account))


def _suggested(facts: SlurmFacts, write: str, partition: str) -> ClusterProfile | None:
    """The profile that --write-profile writes: where there is none yet, the job asks as that one does."""
    try:
        return ClusterProfile.model_validate(
            profile_of(write or "suggested", facts, partition or None)
        )
    except ValueError:  # ConfigError too: no partition is up
        return None


def _show(sections: list[Section], json_: bool) -> None:
    if json_:
        print(as_json(sections))
        return
    colour = (
        sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    )
    counts = count(sections)
    print(f"Furnace {__version__} on {os.uname().nodename}, {datetime.now():%Y-%m-%d %H:%M}")
    print(page(sections, colour))
    print(f"\n{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail")


def _say(aloud: bool, words: str) -> None:
    """What is being done, for somebody who waits; not into files."""
    if aloud and sys.stderr.isatty():
        print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
