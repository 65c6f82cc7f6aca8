"""A study on a real Slurm whose ranks are stand-ins. It uses the commands of a user."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked_commands
import yaml
from login_study import GRID, pack
from slurm_cluster import Cluster, wait_until

from furnace_hpc.cli import module_of

HERE = Path(__file__).parent
LIMIT_S = 500  # of a command that waits for jobs, on a busy machine
STAND_IN = """#!/bin/bash
# A rank is a stand-in. All other Python of a job is real.
case " $* " in
*"/shared_node/runner.py "*) ;;
*" submitit.core._submit "* | *" furnace_hpc.launch.rank_main "*)
    exec {python} -S {here}/stand_in_rank.py ;;
*" furnace_hpc.launch.local_ranks.server "*) exit 1 ;;
esac
exec {python} "$@"
"""
PROFILE = {
    "name": "dev",
    "executor": "slurm",
    "cluster_name": "devcluster",
    "gpu_flag": None,
    "cpus_per_task": 1,
    "mem_gb": 1,
    "signal_delay_s": 20,
    "array_parallelism": 8,
}


@dataclass
class Study:
    """A folder with a grid, packed data and a profile, on a cluster."""

    cluster: Cluster
    place: Path
    variants: tuple[str, ...] = ("ok",)
    seeds: int = 1
    profile: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pack(self.place / "data" / "tridigits")
        stub = self.place / "python"
        stub.write_text(STAND_IN.format(python=sys.executable, here=HERE))
        stub.chmod(0o755)
        self.write(self.profile)

    def write(self, profile: dict[str, Any], **grid: Any) -> None:
        """Write profile and grid again."""
        (self.place / "slurm/clusters").mkdir(parents=True, exist_ok=True)
        content = PROFILE | {"python": str(self.place / "python")} | profile
        (self.place / "slurm/clusters/dev.yaml").write_text(yaml.safe_dump(content))
        rows = {name: {"loss.alpha": 0.01 * number} for number, name in enumerate(self.variants)}
        changes = {
            "variants": rows,
            "reference": self.variants[0],
            "seeds": list(range(self.seeds)),
        }
        (self.place / "study.yaml").write_text(
            yaml.safe_dump(GRID | changes | grid, sort_keys=False)
        )

    def furnace(
        self, command: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`furnace COMMAND`, on the login node."""
        words = [sys.executable, "-m", module_of(command), *arguments]
        environment = self.cluster.environment | {"COLUMNS": "200"} | variables
        return forked_commands.run(words, cwd=self.place, env=environment, timeout=LIMIT_S)

    def submit(
        self, *arguments: str, script: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `furnace submit`, or a script that does the same in another way."""
        asked = ("--grid", "study.yaml", "--cluster", "dev", "--yes", *arguments)
        if not script:
            return self.furnace("submit", *asked, **variables)
        words = (sys.executable, str(HERE / script.split()[0]), *script.split()[1:], *asked)
        return self.cluster.run(
            *words, cwd=self.place, timeout_s=LIMIT_S, COLUMNS="200", **variables
        )

    def submitted(self, *arguments: str, **variables: str) -> str:
        """Like `submit`, which must succeed. Return its output."""
        done = self.submit(*arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def folder(self) -> Path:
        """The grid's folder."""
        return self.place / "runs" / "study"

    def status(self) -> dict[str, dict[str, Any]]:
        """Run -> its entry of `status --json`, without the cache of Slurm's answers."""
        cache = self.folder / "slurm.json"
        if cache.exists():
            cache.write_text(json.dumps(json.loads(cache.read_text()) | {"asked_unix_s": 0}))
        done = self.furnace("status", "--grid", "study", "--json")
        assert done.returncode == 0, done.stderr
        return {run["run"]: run for run in json.loads(done.stdout)}

    def states(self) -> Counter[str]:
        """State -> number of runs."""
        return Counter(run["state"] for run in self.status().values())

    def starts(self) -> Counter[str]:
        """Run -> how often a rank 0 of it was started."""
        path = self.folder / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[0] for line in lines if line.endswith(" 0"))

    def attempts(self, run: str) -> list[dict[str, Any]]:
        """All attempts' records of the one run whose name begins so."""
        [folder] = [path for path in self.folder.glob(f"{run}*") if path.is_dir()]
        files = sorted((folder / "attempts").glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in files]

    def queue(self, *which: str) -> list[tuple[str, str]]:
        """(name, index) of every element that waits or runs, of other studies too."""
        done = self.cluster.run("squeue", "--noheader", "--array", "--format=%j|%K", *which)
        assert done.returncode == 0, done.stderr
        return [tuple(line.split("|")) for line in done.stdout.splitlines()]

    def elements(self) -> Counter[int]:
        """Row -> number of its array elements that wait or run, without other studies' jobs."""
        found: Counter[int] = Counter()
        base = {}
        for path in self.folder.glob("submissions/*/journal.jsonl"):
            for line in path.read_text().splitlines():
                event = json.loads(line)
                if event["event"] == "intent":
                    base[event["name"]] = event["base"]
        for name, index in self.queue():
            if index != "N/A" and name in base:
                found[int(index) + base[name]] += 1
        return found

    def follow_ups(self, *which: str) -> int:
        """Number of follow-up jobs that wait or run."""
        return [index for _, index in self.queue(*which)].count("N/A")

    def wait_for(self, timeout_s: float = 200, **states: int) -> None:
        """Until so many runs are in these states."""
        deadline = time.monotonic() + timeout_s
        while (now := self.states()) != Counter(states):
            assert time.monotonic() < deadline, (
                f"waited {timeout_s:g} s for {states}, there are {now}: {self.status()}"
            )
            time.sleep(0.2)

    def wait_for_starts(self, number: int, timeout_s: float = 200) -> None:
        """Until so many ranks 0 have been started."""
        wait_until(lambda: self.starts().total() >= number, timeout_s, f"{number} starts")


# `sbatch --test-only` submits nothing, so it is the real one unless the script asks for it.
TEST_ONLY = 'case " $* " in *" --test-only "*) exec $REAL "$@" ;; esac'
HANG = "read -rt 60 <> <(:)"  # in a shim: without a child, which would live on


def shim(place: Path, name: str, script: str, *, also_test_only: bool = False) -> str:
    """A PATH with a script before the real `name`. It can exec the real one as $REAL."""
    folder = place / "shims"
    folder.mkdir(exist_ok=True)
    first = "" if also_test_only else f"{TEST_ONLY}\n"
    (folder / name).write_text(f"#!/bin/bash\nREAL=/usr/bin/{name}\n{first}{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin:/usr/sbin"
