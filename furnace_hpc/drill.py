"""Disturb a tiny grid on purpose and prove that nothing is lost: `python -m furnace_hpc.drill [--cluster NAME]`.

Run it before you trust a new cluster: some minutes of it, as an ordinary user.
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
from furnace_hpc.drills.faults import Disturbance, disturbances
from furnace_hpc.drills.outcome import CALM, Outcome, read_outcome
from furnace_hpc.launch.show_plan import choose_profile
from furnace_hpc.options import Cluster, DataRoot, RunsRoot
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.records.metrics import last_record
from furnace_hpc.runs.state import RunState, read_status
from furnace_hpc.runs.trust import keep_private
from furnace_hpc.slurm.client import require_slurm

ROUNDS = 6  # of submit, which itself brings runs back
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
GRID = {
    "name": "drill",
    "description": "The same run again and again, each disturbed in another way.",
    "seeds": [0],
    "reference": CALM,
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
    """Start a tiny grid, really signal, kill, freeze and requeue its runs, and say what was lost.

    Every run trains the same, one of them undisturbed. At the end a table, and drill.json beside the runs, say for
    each: steps that were trained twice, seconds from the disturbance until training went on, and whether parameters
    and losses are those of the undisturbed run, bit for bit. Exit code 1: more was lost than is promised, or something
    differs.
    """
    profile = choose_profile(cluster)
    if profile.executor == "slurm":
        require_slurm(profile.name)
    chosen = _chosen(profile, only or [])
    drawn = random.SystemRandom().randrange(10_000) if seed is None else seed
    keep_private(profile.group)
    place = runs_root(runs_dir) / "drills" / time.strftime("%Y%m%d-%H%M%S")
    grid = _write_grid(place, chosen, steps, profile)
    print(
        f"drill on {profile.name}, seed {drawn}: {len(chosen) + 1} runs of {steps} steps in {place}",
        flush=True,
    )
    words = ["--grid", str(grid), "--cluster", profile.name, "--runs-root", str(place)]
    words += ["--data-root", str(data_root(data_dir))]
    drill = Drill(place / "drill", chosen, steps, random.Random(drawn))
    try:
        drill.run([*words, "--yes", "--wait"] if profile.executor == "slurm" else words)
    except KeyboardInterrupt:
        if profile.executor == "slurm":
            subprocess.run(
                [*_command("cancel"), "--grid", "drill", "--runs-root", str(place)], check=False
            )
        print(f"stopped; what there is lies in {place}", file=sys.stderr)
        raise typer.Exit(130) from None
    outcomes = [
        read_outcome(drill.find(way.name), drill.find(CALM), way, drill.did[way.name])
        for way in chosen
    ]
    # what scripts read
    write_json(place / "drill.json", [outcome.record(INTERVAL) for outcome in outcomes])
    raise typer.Exit(0 if _report(outcomes) else 1)


class Drill:
    """The drill's runs, disturbed while `submit` works on them."""

    def __init__(
        self, folder: Path, chosen: list[Disturbance], steps: int, draw: random.Random
    ) -> None:
        self._folder, self._chosen = folder, chosen
        # After the first checkpoint, and early enough to be at work when the signal arrives.
        self._at = {way.name: draw.randint(INTERVAL + 1, steps // 3) for way in chosen}
        self.did: dict[str, str] = {
            way.name: "its run was over before it could be disturbed" for way in chosen
        }
        self._left, self._done = list(chosen), 0

    def run(self, words: list[str]) -> None:
        """Submit and disturb, again and again, until all runs are done or none comes back."""
        for number in range(ROUNDS):
            with (self._folder.parent / f"submit-{number + 1}.log").open("w") as log:
                command = [*_command("submit"), *words]
                process = _start(command, log)
                try:
                    while process.poll() is None:
                        self._look(process)
                        time.sleep(POLL_S)
                except KeyboardInterrupt:
                    process.wait(timeout=60)  # the terminal has told it too
                    raise
            if process.returncode == 2:
                raise ConfigError(
                    f"the drill's grid cannot be submitted: {_last_line(Path(log.name))}"
                )
            states = [
                read_status(run).state for name in (CALM, *self._at) if (run := self._find(name))
            ]
            if len(states) > len(self._at) and not {RunState.INTERRUPTED, RunState.UNKNOWN} & set(
                states
            ):
                return

    def find(self, variant: str) -> RunFolder:
        """The folder of a row's run."""
        if found := self._find(variant):
            return found
        raise UnavailableError(f"run {variant} never began: see the logs in {self._folder.parent}")

    def _find(self, variant: str) -> RunFolder | None:
        found = [path for path in self._folder.glob(f"{variant}-s0-*") if path.is_dir()]
        return RunFolder(found[0]) if found else None

    def _look(self, submit: psutil.Process) -> None:
        """Disturb the runs whose step has come, and tell what is done."""
        done = len(list(self._folder.glob("*-s0-*/result.json")))
        if done > self._done:
            self._done = done
            print(f"{done} of {len(self._chosen) + 1} runs are done", flush=True)
        for way in list(self._left):
            run = self._find(way.name)
            attempts = read_attempts(run) if run else []
            if run is None or not attempts or len(attempts) > 1:
                continue
            record = last_record(run.metrics(1))
            if record is None or record["step"] < self._at[way.name] or run.result.is_file():
                continue
            self._left.remove(way)
            print(f"{way.name}: {way.what}, at step {record['step']}", flush=True)
            Thread(target=self._disturb, args=(way, run, attempts[0], submit), daemon=True).start()

    def _disturb(
        self, way: Disturbance, run: RunFolder, attempt: Attempt, submit: psutil.Process
    ) -> None:
        """In a thread of its own: Slurm's commands can take their time, and the other runs go on."""
        self.did[way.name] = "the command that was to do it has not come back"
        try:
            way.do(run, attempt, submit)
            self.did[way.name] = ""
        except (UnavailableError, psutil.Error, IndexError) as error:
            self.did[way.name] = f"it could not be done: {error}"


def _start(command: list[str], log: IO[str]) -> psutil.Popen:
    """Start `submit` so that a Ctrl-C reaches it: one of the disturbances is just that.

    Under nohup, or by `&` in a script, SIGINT is ignored, and children inherit this. Then `submit` gets a process group
    of its own too, so that a Ctrl-C meant for the script does not end it.
    """
    words: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        return psutil.Popen(command, **words)
    # what is handled here is not ignored in a child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return psutil.Popen(command, process_group=0, **words)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chosen(profile: ClusterProfile, only: list[str]) -> list[Disturbance]:
    known = {way.name: way for way in disturbances(profile.executor)}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f"--only got {unknown[0]!r}, wanted one of {', '.join(known)}")
    return [way for name, way in known.items() if not only or name in only]


def _write_grid(
    place: Path, chosen: list[Disturbance], steps: int, profile: ClusterProfile
) -> Path:
    """All rows train the same: how often they are evaluated changes nothing but their identity."""
    names = [CALM, *(way.name for way in chosen)]
    world = profile.nodes * profile.processes_per_node if profile.executor == "slurm" else 1
    # a rank that is killed or frozen needs a peer
    shape = {} if world > 1 else {"processes_per_node": 2}
    world = max(2, world)
    base = BASE | {"steps": steps, "global_batch_size": world * max(1, 16 // world)}
    variants = {name: {"evaluation.every": 40 + number} for number, name in enumerate(names)}
    grid = GRID | {"base": base, "resources": {"timeout_min": 20} | shape, "variants": variants}
    place.mkdir(parents=True)
    (place / "grid.yaml").write_text(strict_yaml.dump(grid))
    return place / "grid.yaml"


def _report(outcomes: list[Outcome]) -> bool:
    """Print the table; whether all is as promised."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in (
        "disturbance",
        "attempts",
        "ended as",
        "steps lost",
        "at most",
        "back after",
        "result",
        "verdict",
    ):
        table.add_column(column)
    for outcome in outcomes:
        table.add_row(*outcome.cells(INTERVAL))
    console.print(table)
    good = sum(outcome.is_good(INTERVAL) for outcome in outcomes)
    console.print(
        f"{good} of {len(outcomes)} disturbances lost no more than is promised, and changed nothing"
    )
    return good == len(outcomes)


def _command(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"furnace_hpc.{name}"]


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


if __name__ == "__main__":
    run_command(main)
