"""Disturb a tiny grid on purpose and check that nothing is lost: `furnace drill --cluster NAME`.

Run it before you trust a new cluster. It takes some minutes and needs no root.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import IO, Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.lookup import data_root, runs_root
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.config.parsing.plural import counted, is_are
from furnace_hpc.console.options import Cluster, DataRoot, RunsRoot
from furnace_hpc.drills.faults import Disturbance, disturbances, stages
from furnace_hpc.drills.outcome import UNDISTURBED, Outcome, read_outcome
from furnace_hpc.launch.planning.show_plan import choose_profile
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.state import RunState, read_status
from furnace_hpc.runs.trust import keep_private
from furnace_hpc.slurm.client import require_slurm

ROUNDS = 6  # of submit in each stage, which itself resumes runs
POLL_S = 0.1
INTERVAL = 25  # steps between checkpoints
BASE = {
    "model": {"width": 16, "num_heads": 2, "feedforward": 32, "text_layers": 1},
    "deepspeed": "zero1",
    "evaluation": {"select": "last"},
    "checkpoint_every": INTERVAL,
    "log_every": 1,
    "hang_timeout_s": 20,
}
COLUMNS = (
    "disturbance",
    "attempts",
    "ended as",
    "steps lost",
    "at most",
    "back after",
    "result",
    "verdict",
)
GRID = {
    "name": "drill",
    "description": "The same run several times, each with another disturbance.",
    "seeds": [0],
    "reference": UNDISTURBED,
    "metric": "test/digit/accuracy",
}


def main(
    cluster: Cluster = "auto",
    only: Annotated[
        list[str] | None, typer.Option(help="only this disturbance; repeatable")
    ] = None,
    steps: Annotated[int, typer.Option(min=4 * INTERVAL, help="optimizer steps of each run")] = 300,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="INTEGER",
            help="of the steps at which runs are disturbed [drawn]",
        ),
    ] = None,
    runs_dir: RunsRoot = None,
    data_dir: DataRoot = None,
) -> None:
    """Train a tiny grid, signal, kill, freeze and requeue its runs, and report what was lost.

    All runs train the same model, and one of them is not disturbed. The table at the end, and
    drill.json beside the runs, show for each disturbance the steps that were trained twice and the
    seconds until training continued. They also show whether parameters and losses equal those of
    the undisturbed run, bit for bit. The exit code is 1 if more was lost than is allowed, or if a
    result differs.
    """
    profile = choose_profile(cluster)
    if profile.executor == "slurm":
        require_slurm(profile.name)
    chosen = _select_disturbances(profile, only or [])
    drawn = random.SystemRandom().randrange(10_000) if seed is None else seed
    keep_private(profile.group)
    place = runs_root(runs_dir) / "drills" / time.strftime("%Y%m%d-%H%M%S")
    grid = _write_grid(place, chosen, steps, profile)
    runs = len(chosen) + 1
    print(
        f"drill on {profile.name}, seed {drawn}: {runs} runs of {steps} steps in {place}",
        flush=True,
    )
    cluster = _silent_profile(place, profile)
    options = ["--grid", str(grid), "--cluster", cluster, "--runs-root", str(place)]
    options += ["--data-root", str(data_root(data_dir))]
    drill = Drill(place / "drill", chosen, steps, random.Random(drawn))
    _run(drill, options, place, on_slurm=profile.executor == "slurm")
    outcomes = [drill.outcome(disturbance) for disturbance in chosen]
    # for scripts
    write_json(place / "drill.json", [outcome.record(INTERVAL) for outcome in outcomes])
    raise typer.Exit(int(not _report(outcomes)))


def _run(drill: "Drill", options: list[str], place: Path, on_slurm: bool) -> None:
    """Run the drill. Ctrl-C cancels its jobs and exits."""
    if on_slurm:
        options = [*options, "--yes", "--wait"]
    try:
        drill.run(options)
    except KeyboardInterrupt:
        if on_slurm:
            cancel = [*_command("cancel"), "--grid", "drill", "--runs-root", str(place)]
            subprocess.run(cancel, check=False)
        print(f"stopped; the files of the drill are in {place}", file=sys.stderr)
        raise typer.Exit(130) from None


class Drill:
    """The drill's runs, disturbed while `submit` works on them."""

    def __init__(
        self, folder: Path, chosen: list[Disturbance], steps: int, draw: random.Random
    ) -> None:
        self._folder, self._chosen = folder, chosen
        # After the first checkpoint, and early enough that the run still trains.
        self._at = {
            disturbance.name: draw.randint(INTERVAL + 1, steps // 3) for disturbance in chosen
        }
        # why a disturbance has not happened; empty if it has
        self._problems = {
            disturbance.name: "its run ended before the disturbance" for disturbance in chosen
        }
        self._left, self._done = list(chosen), 0

    def run(self, options: list[str]) -> None:
        """Submit and disturb until all runs are done, or none can resume."""
        number = 0
        for names in stages(self._chosen, UNDISTURBED):
            rows = [word for name in names for word in ("--variant", name)]
            for _ in range(ROUNDS):
                number += 1
                self._submit([*options, *rows], self._folder.parent / f"submit-{number}.log")
                if self._has_ended(names):
                    break

    def _submit(self, options: list[str], path: Path) -> None:
        """Run `submit` once, and disturb the runs while it works."""
        with path.open("w") as log:
            process = _start([*_command("submit"), *options], log)
            try:
                while process.poll() is None:
                    self._poll(process)
                    time.sleep(POLL_S)
            except KeyboardInterrupt:
                process.wait(timeout=60)  # the terminal has sent it the signal too
                raise
        if process.returncode == 2:
            raise ConfigError(f"the drill's grid cannot be submitted: {_last_line(path)}")

    def _has_ended(self, names: list[str]) -> bool:
        runs = [run for name in names if (run := self._find(name))]
        states = {read_status(run).state for run in runs}
        # A process that was killed just now may still look alive.
        is_open = bool(states & {RunState.INTERRUPTED, RunState.UNKNOWN, RunState.RUNNING})
        return len(runs) == len(names) and not is_open

    def outcome(self, disturbance: Disturbance) -> Outcome:
        """Compare a disturbed run with the undisturbed one."""
        run, undisturbed = self._find_started(disturbance.name), self._find_started(UNDISTURBED)
        return read_outcome(run, undisturbed, disturbance, self._problems[disturbance.name])

    def _find_started(self, variant: str) -> RunFolder:
        if found := self._find(variant):
            return found
        raise UnavailableError(f"run {variant} never began: see the logs in {self._folder.parent}")

    def _find(self, variant: str) -> RunFolder | None:
        found = [path for path in self._folder.glob(f"{variant}-s0-*") if path.is_dir()]
        return RunFolder(found[0]) if found else None

    def _poll(self, submit: psutil.Process) -> None:
        """Disturb the runs that have reached their step, and print how many are done."""
        done = len(list(self._folder.glob("*-s0-*/result.json")))
        if done > self._done:
            self._done = done
            runs = counted(len(self._chosen) + 1, "run")
            print(f"{done} of {runs} {is_are(done)} done", flush=True)
        for disturbance in list(self._left):
            run = self._find(disturbance.name)
            step = self._due_step(disturbance, run) if run else None
            if run and step is not None:
                self._left.remove(disturbance)
                print(f"{disturbance.name}: {disturbance.what}, at step {step}", flush=True)
                arguments = (disturbance, run, read_attempts(run)[0], submit)
                Thread(target=self._disturb, args=arguments, daemon=True).start()

    def _due_step(self, disturbance: Disturbance, run: RunFolder) -> int | None:
        """Return the run's step. None if it is too early, too late, or not the first attempt."""
        if len(read_attempts(run)) != 1 or run.result.is_file():
            return None
        record = last_record(run.metrics(1))
        if record is None or record["step"] < self._at[disturbance.name]:
            return None
        return int(record["step"])

    def _disturb(
        self, disturbance: Disturbance, run: RunFolder, attempt: Attempt, submit: psutil.Process
    ) -> None:
        """Disturb a run. It has its own thread, since Slurm's commands may take long."""
        self._problems[disturbance.name] = "the command of the disturbance has not returned"
        try:
            disturbance.do(run, attempt, submit)
            self._problems[disturbance.name] = ""
        except (UnavailableError, psutil.Error, IndexError) as error:
            self._problems[disturbance.name] = f"the disturbance failed: {error}"


def _start(command: list[str], log: IO[str]) -> psutil.Popen:
    """Start `submit` so that Ctrl-C reaches it, which is one of the disturbances.

    Under nohup, or with `&` in a script, SIGINT is ignored, and children inherit that. Then
    `submit` gets its own process group too, so that a Ctrl-C for the script does not end it.
    """
    words: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return psutil.Popen(command, **words)
    # A child does not ignore a signal that has a handler here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return psutil.Popen(command, process_group=0, **words)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _select_disturbances(profile: ClusterProfile, only: list[str]) -> list[Disturbance]:
    known = {disturbance.name: disturbance for disturbance in disturbances(profile.executor)}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f"--only got {unknown[0]!r}, wanted one of {', '.join(known)}")
    return [disturbance for name, disturbance in known.items() if not only or name in only]


def _write_grid(
    place: Path, chosen: list[Disturbance], steps: int, profile: ClusterProfile
) -> Path:
    """Write the drill's grid. Its rows differ only in `evaluation.every`: results are equal."""
    names = [UNDISTURBED, *(disturbance.name for disturbance in chosen)]
    resources, world_size = {"timeout_min": 20}, 1
    if profile.executor == "slurm":
        world_size = profile.nodes * profile.processes_per_node
        resources["runs_per_node"] = 1  # some disturbances end a whole job
    if world_size == 1:  # a rank that is killed or frozen needs a peer
        resources["processes_per_node"] = world_size = 2
    base = BASE | {"steps": steps, "global_batch_size": world_size * max(1, 16 // world_size)}
    variants = {name: {"evaluation.every": 40 + number} for number, name in enumerate(names)}
    grid = GRID | {"base": base, "resources": resources, "variants": variants}
    place.mkdir(parents=True)
    (place / "grid.yaml").write_text(strict_yaml.dump(grid))
    return place / "grid.yaml"


def _silent_profile(place: Path, profile: ClusterProfile) -> str:
    """Return the value of --cluster. Colleagues and trackers need not hear of a drill's runs.

    If the profile has `notify` or `trackers`, it is a copy without them.
    """
    if not profile.notify and not profile.trackers:
        return profile.name
    left_out = {"notify", "trackers"}
    content = profile.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    path = place / "cluster.yaml"
    path.write_text(strict_yaml.dump(content))
    return str(path)


def _report(outcomes: list[Outcome]) -> bool:
    """Print the table. Return whether every run lost no more than allowed."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in COLUMNS:
        table.add_column(column)
    for outcome in outcomes:
        table.add_row(*outcome.cells(INTERVAL))
    console.print(table)
    good = sum(outcome.is_good(INTERVAL) for outcome in outcomes)
    total = counted(len(outcomes), "disturbance")
    console.print(f"{good} of {total} lost at most the allowed steps and changed no result")
    return good == len(outcomes)


def _command(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"furnace_hpc.{name}"]


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    run_command(main)
