"""Choose the cluster profile, and print a plan: runs, reasons, costs, batch scripts."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from furnace_hpc.config.cluster import ClusterProfile, load_profile, profile_names
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.parsing.plural import counted, is_are
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.config.preprocessing.feature_size import feature_lines
from furnace_hpc.config.train_config import UNKNOWN_STEPS
from furnace_hpc.host import access
from furnace_hpc.launch.planning.plan import Action, Plan, PlannedRun
from furnace_hpc.launch.planning.shared_nodes import on_own_gpus, unshared
from furnace_hpc.runs.adopted import shown
from furnace_hpc.slurm.client import cluster_name, has_slurm

MAX_LINES = 40  # runs in the table of a plan
MAX_NAMES = 3  # runs in a sentence


def choose_profile(name: str) -> ClusterProfile:
    """Return the profile of `--cluster`.

    `auto` means the profile of this Slurm cluster, or `local` if there is no Slurm.

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
            "there is an sbatch on PATH, but Slurm's controller does not answer: try again, or use "
            "this machine alone with --cluster local"
        )
    for candidate in profile_names():
        try:
            profile = load_profile(candidate)
        except ConfigError as error:  # a damaged profile of another cluster must not stop this one
            broken = f"; left out: {error}"
            continue
        if profile.cluster_name == here:
            return profile
    raise ConfigError(
        f"no profile in slurm/clusters/ has cluster_name {here!r}: add one (slurm/README.md), "
        f"or name it with --cluster; known: {', '.join(profile_names())}{broken}"
    )


def check_shared(runs: Path, profile: ClusterProfile) -> None:
    """Raise ConfigError if the runs are in none of the profile's shared folders."""
    place = runs.resolve()
    shared = [Path(folder).resolve() for folder in profile.shared_folders]
    if shared and not any(place.is_relative_to(folder) for folder in shared):
        raise ConfigError(
            f"the runs would be in {place}, which compute nodes of cluster {profile.name!r} do not "
            f"see (they see {', '.join(profile.shared_folders)}): choose --runs-root below one of "
            f"these"
        )


def print_plan(plan: Plan) -> None:
    """Print what is done with each run, and what it may cost."""
    console = Console(highlight=False, markup=False)  # an exception's text may contain brackets
    if not console.is_terminal:
        console.width = 1000  # never crop or wrap in a log file
    console.print(title(plan))
    _print_runs(plan, console)
    for line in lines_of(plan):
        console.print(line)


def title(plan: Plan) -> str:
    """Return the line above the runs of a plan."""
    grid = plan.grid
    return printable(f"grid {grid.name}: {grid.description or grid.metric}")


def lines_of(plan: Plan) -> list[str]:
    """Return the lines below the runs of a plan: counts, notes and costs."""
    counts = ", ".join(f"{number:,} {action}" for action, number in sorted(plan.counts.items()))
    lines = [f"{counted(len(plan.runs), 'run')} ({counts}) on {plan.profile.name}"]
    lines += [*plan.tuning, *_epochs(plan), *_other_names(plan), *_code(plan), *_jobs(plan)]
    lines += [*_cached_features(plan), *_early_stopping(plan), *map(printable, plan.notes)]
    return lines if plan.to_do else [*lines, "nothing to do"]


def not_done(plan: Plan) -> list[PlannedRun]:
    """Return all runs except those that are simply done."""
    return [run for run in plan.runs if (run.action, run.why) != (Action.SKIP, "done")]


def _print_runs(plan: Plan, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("run", "state", "action", "reason"):
        table.add_column(column, no_wrap=column != "reason")
    runs = not_done(plan)
    for run in runs[:MAX_LINES]:
        state, why = run.status.state.value, printable(run.why)
        table.add_row(run.folder.run_id, state, run.action.value, why)
    if runs:
        console.print(table)
    if len(runs) > MAX_LINES:
        console.print(f"... and {len(runs) - MAX_LINES:,} more")


def _epochs(plan: Plan) -> Iterator[str]:
    """Yield a line for each number of epochs and its steps."""
    configs = [run.spec.config for run in plan.runs]
    lines = dict.fromkeys(
        f"epochs {config.epochs:g} of {config.data.name}: {counted(config.steps, 'step')} of "
        f"{config.global_batch_size:,} samples"
        for config in configs
        if config.epochs is not None and config.steps != UNKNOWN_STEPS
    )
    if len(lines) > MAX_NAMES:
        yield f"epochs: {counted(len(lines), 'length')} of training, see `furnace status`"
    else:
        yield from lines


def _cached_features(plan: Plan) -> Iterator[str]:
    """Yield a line for each frozen encoder whose features the runs will store."""
    cached = [run for run in plan.to_do if run.spec.config.model.cached_modalities]
    rows = []
    for run in {(run.spec.variant, run.spec.config.data.name): run for run in cached}.values():
        config = run.spec.config
        with suppress(ConfigError):  # the default set may not be packed yet
            manifest = read_manifest(Path(run.attempt.data_dir))
            is_bf16 = config.deepspeed.precision == "bf16"
            rows.append((config.model, manifest, config.data.name, is_bf16))
    for line in feature_lines(rows):
        yield f"{line}, in {plan.folder.features}"


def _early_stopping(plan: Plan) -> Iterator[str]:
    """Yield warnings about early stopping that is unfair, or that never happens."""
    unfinished, never = list[str](), list[str]()
    decays = set[str]()
    for name, config in {run.spec.variant: run.spec.config for run in plan.to_do}.items():
        rule = config.early_stopping
        if rule is None:
            continue
        first_stop = config.evaluation.every * (rule.patience + 1)
        if config.steps != UNKNOWN_STEPS and first_stop >= config.steps:
            never.append(f"{name} ({config.steps} steps, earliest stop after step {first_stop})")
        elif config.schedule.decay != "constant":
            unfinished.append(name)
            decays.add(config.schedule.decay)
    if unfinished:
        kinds = " or ".join(sorted(decays))
        yield (
            f"warning: early_stopping with schedule.decay {kinds}, in {_some(unfinished)}: the "
            f"learning rate of a run that stops early has not come down to 0, so stopping changes "
            f"more than the number of steps. Set schedule.decay to constant"
        )
    if never:
        yield (
            f"warning: early_stopping cannot stop a run of {_some(never)}. Lower evaluation.every "
            f"or early_stopping.patience"
        )


def _other_names(plan: Plan) -> Iterator[str]:
    """Yield lines about runs that exist under other names."""
    adopted = [_is_run(run, run.adopts, plan) for run in plan.runs if run.adopts]
    if adopted:
        are = is_are(len(adopted))
        yield (
            f"{counted(len(adopted), 'run')} {are} done under another name, with the same config, "
            f"seed and data, and {are} not trained again (--no-adopt trains them): {_some(adopted)}"
        )
    unfinished = [_is_run(run, run.unfinished, plan) for run in plan.runs if run.unfinished]
    if unfinished:
        yield (
            f"{counted(len(unfinished), 'new run')} {is_are(len(unfinished))} unfinished under "
            f"another name; submit under that name to resume instead: {_some(unfinished)}"
        )


def _is_run(run: PlannedRun, other: Path, plan: Plan) -> str:
    return f"{run.folder.run_id} is {shown(other, plan.folder)}"


def _some(words: list[str]) -> str:
    text = ", ".join(words[:MAX_NAMES])
    if len(words) > MAX_NAMES:
        text += f", and {len(words) - MAX_NAMES:,} more"
    return text


def _code(plan: Plan) -> Iterator[str]:
    """Yield lines about the code that the runs use."""
    if plan.to_do:
        yield f"code {plan.snapshot}, as it is now: later edits do not affect these runs"
    if older := sum(run.attempt.snapshot != plan.snapshot for run in plan.to_do):
        yield f"{counted(older, 'run')} will resume with the code of the first attempt"


def _jobs(plan: Plan) -> Iterator[str]:
    """Yield lines about the jobs and their costs."""
    if not plan.to_do or plan.profile.executor != "slurm":
        return
    for shape, rows in plan.shapes.items():
        yield shape.describe(len(rows))
    yield from filter(None, (unshared(plan), on_own_gpus(plan)))
    if any(shape.runs_per_gpu > 1 for shape in plan.shapes):
        yield (
            "runs share a GPU with MPS if the node has nvidia-cuda-mps-control, and else by time "
            "slicing: the job's log and `furnace status` name which"
        )
    if plan.exclude:
        yield (
            f"excluded nodes: {', '.join(plan.exclude)}, where at least "
            f"{plan.profile.exclude_after_failures} attempts hung, did not start, had a "
            f"broken GPU or lost their node (exclude_after_failures in the profile)"
        )
    once, everything = plan.gpu_hours
    yield (
        f"at most {once:,.1f} GPU-hours with one attempt per run, and at most {everything:,.1f} "
        f"with all attempts that resources.max_attempts allows"
    )
    if any(shape.runs_per_node > 1 for shape in plan.shapes):
        yield f"at most {plan.node_hours:,.1f} node-hours with one attempt per run"


def print_batch_texts(plan: Plan) -> None:
    """Print the texts of `batch_texts`.

    Raises:
        ConfigError: a job would never start, or be refused.
    """
    for text in batch_texts(plan):
        print(f"\n{text}")


def batch_texts(plan: Plan) -> Iterator[str]:
    """Yield the batch script of each array, and Slurm's answer to a test if there is a Slurm.

    The text of `furnace_check` has two hundred lines: it is only named.

    Raises:
        ConfigError: a job would never start, or be refused.
    """
    if plan.profile.executor != "slurm":
        return
    from furnace_hpc.launch.arrays import DEFAULT_MAX_ARRAY_SIZE, Limits, next_wave
    from furnace_hpc.launch.batch_script import check_function
    from furnace_hpc.launch.shape_checks import (
        check_flag_names,
        find_refused,
        note_dropped_variables,
        note_shared_cores,
    )
    from furnace_hpc.launch.slurm_array import array_size, batch_text, try_plan
    from furnace_hpc.slurm.sbatch_errors import short

    check_flag_names(plan.shapes)
    note_dropped_variables()
    elsewhere = _other_cluster(plan.profile)
    if not elsewhere:
        note_shared_cores(plan.shapes, plan.profile)
    answers = try_plan(plan) if has_slurm() and not elsewhere else {}
    size = plan.profile.max_array_size or DEFAULT_MAX_ARRAY_SIZE
    if has_slurm() and not elsewhere:
        size = array_size(plan.profile)
    for array in next_wave(plan.shapes, Limits(size)):
        heading = f"# --- batch script of the array of {counted(len(array.rows), 'run')} ---"
        text = batch_text(plan, array, (plan.folder.submissions / "N").resolve())
        named = f"# furnace_check() {{ ... }}: the program {access.__file__}"
        yield f"{heading}\n{text.replace(check_function(), named)}"
        if answer := answers.get(array.shape):
            yield f"# sbatch --test-only: {short(answer.error)}"
        elif elsewhere:
            yield f"# sbatch --test-only: not run, {elsewhere}"
    if problems := find_refused(plan.shapes, answers, plan.profile):
        raise ConfigError("\n".join(problems))


def _other_cluster(profile: ClusterProfile) -> str:
    """Say why sbatch here cannot test the profile's jobs. Empty if it may, or there is none."""
    if not has_slurm():
        return ""
    here = cluster_name()
    if here is None:  # without a controller, sbatch refuses GPUs
        return "because Slurm's controller does not answer"
    if profile.cluster_name and here != profile.cluster_name:
        return f"this is cluster {here}, and the profile is for {profile.cluster_name}"
    return ""
