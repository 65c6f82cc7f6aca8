"""What the user sees of a plan: which machine, a table of runs with what will be done and why, the batch scripts."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from furnace_hpc.config.cluster import ClusterProfile, load_profile, profile_names
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.host import access
from furnace_hpc.launch.plan import Action, Plan
from furnace_hpc.runs.adopted import shown
from furnace_hpc.slurm.client import cluster_name, has_slurm

MAX_LINES = 40  # a longer plan shows its first runs and counts the others


def choose_profile(name: str) -> ClusterProfile:
    """The profile that `--cluster` means; `auto` is this Slurm cluster's, or `local` where there is no Slurm.

    Raises:
        ConfigError: unknown name, or no profile names this Slurm cluster.
    """
    if name != "auto":
        return load_profile(name)
    if not has_slurm():
        return load_profile("local")
    here, broken = cluster_name(), ""
    if here is None:
        raise UnavailableError(
            "there is an sbatch on PATH, but Slurm's controller does not answer: try again, or use this machine alone "
            "with --cluster local"
        )
    for candidate in profile_names():
        try:
            profile = load_profile(candidate)
        except ConfigError as error:  # another cluster's file is no reason to stop
            broken = f"; left out: {error}"
            continue
        if profile.cluster_name == here:
            return profile
    raise ConfigError(
        f"no profile in slurm/clusters/ has cluster_name {here!r}: add one (slurm/README.md), "
        f"or name it with --cluster; known: {', '.join(profile_names())}{broken}"
    )


def check_shared(runs: Path, profile: ClusterProfile) -> None:
    """Raise ConfigError when the profile says which folders compute nodes see, and the runs are in none of them."""
    place = runs.resolve()
    if profile.shared_folders and not any(
        place.is_relative_to(Path(p).resolve()) for p in profile.shared_folders
    ):
        raise ConfigError(
            f"runs would lie in {place}, which compute nodes of cluster {profile.name!r} do not see (they see "
            f"{', '.join(profile.shared_folders)}): choose --runs-root below one of these"
        )


def print_plan(plan: Plan) -> None:
    """Print what will be done with each run, and what it may cost."""
    console = Console(highlight=False, markup=False)  # an exception's words may hold brackets
    if not console.is_terminal:
        console.width = 1000  # a log file has no width: nothing is cropped or wrapped
    grid, profile = plan.grid, plan.profile
    console.print(printable(f"grid {grid.name}: {grid.description or grid.metric}"), markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("run", "state", "action", "why"):
        table.add_column(column, no_wrap=column != "why")
    shown = [run for run in plan.runs if run.action is not Action.SKIP or run.why != "done"]
    for run in shown[:MAX_LINES]:
        table.add_row(
            run.folder.run_id, run.status.state.value, run.action.value, printable(run.why)
        )
    if shown:
        console.print(table)
    if len(shown) > MAX_LINES:
        console.print(f"... and {len(shown) - MAX_LINES:,} more")
    counts = ", ".join(f"{number:,} {action}" for action, number in sorted(plan.counts.items()))
    console.print(f"{len(plan.runs):,} runs ({counts}) on {profile.name}", markup=False)
    for line in _other_names(plan):
        console.print(line, markup=False)
    if plan.to_do:
        older = sum(run.facts["snapshot"] != plan.snapshot for run in plan.to_do)
        rest = f"; {older:,} go on with the code they began with" if older else ""
        console.print(
            f"code {plan.snapshot}, as it is now; what is edited later changes nothing for these runs{rest}"
        )
    if plan.to_do and profile.executor == "slurm":
        for shape, rows in plan.shapes.items():
            console.print(f"{len(rows):,} runs of {shape}", markup=False)
        if plan.exclude:
            console.print(
                f"without {', '.join(plan.exclude)}: {profile.exclude_after_failures} or more attempts hung, never "
                f"started or were lost there (exclude_after_failures of the profile)"
            )
        once, everything = plan.bill
        console.print(
            f"at most {once:,.1f} GPU-hours if each run needs one attempt, and at most {everything:,.1f} with every "
            f"requeue that resources.max_attempts allows"
        )
    if not plan.to_do:
        console.print("nothing to do")


def _other_names(plan: Plan) -> Iterator[str]:
    """What there is of the plan's runs under other names, a line each."""
    adopted = [
        f"{r.folder.run_id} is {shown(r.adopts, plan.folder)}" for r in plan.runs if r.adopts
    ]
    if adopted:
        yield (
            f"{len(adopted):,} runs are done under another name, with the same config, seed and data, and are not "
            f"trained again (--no-adopt trains them): {_some(adopted)}"
        )
    left = [
        f"{r.folder.run_id} is {shown(r.unfinished, plan.folder)}"
        for r in plan.runs
        if r.unfinished
    ]
    if left:
        yield (
            f"{len(left):,} runs start at step 0 and are unfinished under another name; submit under that name to "
            f"resume them: {_some(left)}"
        )


def _some(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f", and {len(words) - 3:,} more" if len(words) > 3 else "")


def print_batch_texts(plan: Plan) -> None:
    """Print the batch script of each array as it would be submitted, and what Slurm, where there is one, says of it.

    The program that checks what may be executed is two hundred lines, and is named instead.
    """
    if plan.profile.executor != "slurm":
        return
    from furnace_hpc.launch.arrays import DEFAULT_MAX_ARRAY_SIZE, Limits, next_wave
    from furnace_hpc.launch.batch_script import rule_text
    from furnace_hpc.launch.slurm_array import batch_text, test_text
    from furnace_hpc.slurm.sbatch_errors import hint, short

    limits = Limits(plan.profile.max_array_size or DEFAULT_MAX_ARRAY_SIZE)
    for array in next_wave(plan.shapes, limits):
        print(f"\n# --- batch script of the array of {len(array.rows):,} runs ---")
        text = batch_text(plan, array, (plan.folder.submissions / "N").resolve())
        print(text.replace(rule_text(), f"# furnace_check: the program of {Path(access.__file__)}"))
        if has_slurm():
            said = test_text(plan, array)
            words = short(said.error)
            print(f"\n# Slurm says: {words}" + ("" if said.ok else f": {hint(words)}"))
