"""One run on a shared node: a job step with its own GPUs, cores and memory.

Slurm gives a GPU to one step, unless steps overlap. Overlapping steps get all GPUs and cores of the
job. So if runs share GPUs, variables name the part of each rank, to which it keeps (part.py).
Standard library only, syntax of Python 3.6.
"""

import os
import signal
import subprocess
import time
from typing import Any, Collection, Dict, List, Mapping, NamedTuple

from furnace_hpc.host.gpu_check import allocated_gpus
from furnace_hpc.host.shared_node.cores import cores_of_places
from furnace_hpc.host.shared_node.part import CORES, GPU, RUNS
from furnace_hpc.host.steps.guard import LOOK_S, Guard, end_srun

Record = Dict[str, Any]
# What the job asked for. srun would ask for the same again, for one run.
OF_WHOLE_JOB = (
    "SLURM_GPUS",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_MEM_PER_NODE",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TRES_PER_TASK",
)
# With these, an overlapping step would get the first cores of the job only, as all others.
OF_EXACT_STEPS = (
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
    "SLURM_THREADS_PER_CORE",
    "SLURM_HINT",
    "SLURM_EXACT",
)
NOT_OF_OVERLAPPING = ("--cpus-per-task", "--cpu-bind", "--exact", "--threads-per-core", "--hint")


class Share(NamedTuple):
    """What each run gets of the node."""

    places: int
    options: List[str]  # of srun
    gpus: List[str]  # numbers of the node's GPUs, if Slurm does not divide them
    cpus: int = 0  # cores of each run; 0 if that is unknown
    overlaps: bool = False  # runs share GPUs: each step has all of them
    cores: List[str] = []  # of each place, if steps overlap and Slurm keeps the job on its cores

    @classmethod
    def of(cls, places: int, environment: Mapping[str, str]) -> "Share":
        """Divide a job's node, from the environment of its batch script."""
        options: List[str] = ["--exact", "--nodes=1"]
        gpus: List[str] = []
        count = environment.get("SLURM_GPUS_ON_NODE", "")
        if count.isdigit() and int(count) >= places:
            options.append(f"--gres=gpu:{int(count) // places}")
        else:
            gpus = [gpu for gpu in allocated_gpus(environment).split(",") if gpu]
        options += _memory(places, environment)
        cpus = environment.get("SLURM_CPUS_ON_NODE", "")
        return cls(places, options, gpus, int(cpus) // places if cpus.isdigit() else 0)

    @classmethod
    def of_gpus(cls, places: int, gpus: List[str], environment: Mapping[str, str]) -> "Share":
        """Divide a node whose GPUs have several runs each."""
        options: List[str] = ["--overlap", "--nodes=1"]
        count = environment.get("SLURM_GPUS_ON_NODE", "")
        if count.isdigit() and int(count):
            options.append(f"--gres=gpu:{count}")
        options += _memory(places, environment)
        cores = cores_of_places(places, environment)
        return cls(places, options, gpus, overlaps=True, cores=cores)

    def free_place(self, taken: Collection[int]) -> int:
        """A free place: if runs share GPUs, one on a GPU with the fewest runs."""
        free = [place for place in range(self.places) if place not in taken]
        if not self.overlaps:
            return free[0]
        busy = [place % len(self.gpus) for place in taken]
        return min(free, key=lambda place: (busy.count(place % len(self.gpus)), place))

    def variables(self, place: int) -> Dict[str, str]:
        """Variables of the run in this place, from 0."""
        if self.overlaps:
            return self._variables_of_part(place)
        width = len(self.gpus) // self.places
        if not width:
            return {}
        mine = self.gpus[place * width : (place + 1) * width]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}

    def _variables_of_part(self, place: int) -> Dict[str, str]:
        count = len(self.gpus)
        gpu = self.gpus[place % count]
        # srun replaces CUDA_VISIBLE_DEVICES, so the rank gets the GPU under another name too
        found = {"CUDA_VISIBLE_DEVICES": gpu, GPU: gpu, RUNS: str(-(-self.places // count))}
        if self.cores:
            # cores beside each other for runs on one GPU: these are mostly near to it
            in_order = sorted(range(self.places), key=lambda other: (other % count, other))
            found[CORES] = self.cores[in_order.index(place)]
        return found


def _memory(places: int, environment: Mapping[str, str]) -> List[str]:
    """The option of srun for an equal part of the job's memory."""
    memory_mb = environment.get("SLURM_MEM_PER_NODE", "")
    if memory_mb.isdigit() and int(memory_mb) >= places:
        return [f"--mem={int(memory_mb) // places}M"]
    if not environment.get("SLURM_MEM_PER_CPU"):
        return ["--mem=0"]  # the first step would take all memory of the job
    return []


class Step:
    """The srun of one attempt."""

    def __init__(self, row: Record, attempt: int, place: int, process: Any) -> None:
        self.row, self.attempt, self.place = row, attempt, place
        self.started_unix_s = time.time()
        self.cancelled_unix_s = 0.0  # 0: it was not cancelled
        self._process = process
        self._guard = Guard(row["run_dir"], attempt)
        self._looked_s = time.monotonic()
        self._signalled_unix_s = 0.0

    def exit_code(self) -> Any:
        """The exit code as a shell gives it. None while srun runs."""
        code = self._process.poll()
        if code is not None and code < 0:
            return 128 - code
        return code

    def end_if_outlived(self) -> None:
        """End srun if it outlives its ranks, or if a newer attempt has replaced this one."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        try:
            reason = self._guard.reason(now_s, time.time())
        except (OSError, ValueError, TypeError, KeyError) as error:
            # Such as a stale handle of the shared disk. The neighbours must not end.
            print(f"attempt {self.attempt} of {self.row['run_id']} is not watched: {error}")
            return
        if reason:
            print(f"srun of attempt {self.attempt} of {self.row['run_id']} is ended: {reason}")
            end_srun(self._process.pid, keep_helper=not self._guard.is_replaced())

    def ask_to_stop(self, again_s: float) -> None:
        """Send a stop signal to the ranks. srun passes USR2 on.

        srun drops a signal before its ranks run. So it is repeated after `again_s`.
        """
        now = time.time()
        if now - self._signalled_unix_s >= again_s:
            self._signalled_unix_s = now
            self._process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        """Kill the ranks. srun does that when it gets TERM."""
        self._process.send_signal(signal.SIGTERM)


def start_step(
    command: List[str], environment: Mapping[str, str], row: Record, attempt: int, place: int
) -> Step:
    """Start srun."""
    dropped = OF_WHOLE_JOB + (OF_EXACT_STEPS if "--overlap" in command else ())
    kept = {name: value for name, value in environment.items() if name not in dropped}
    process = subprocess.Popen(command, env=kept, stdin=subprocess.DEVNULL)
    return Step(row, attempt, place, process)


def srun_command(
    share: Share, row: Record, output: str, options: List[str], ranks: List[str]
) -> List[str]:
    """The command line of a run's srun.

    Args:
        share: what the run gets.
        row: its row of the submission.
        output: the file of the ranks' output before they open their own log.
        options: further options of srun, from the profile.
        ranks: the command of a rank.
    """
    count = int(row["facts"].get("processes_per_node") or 1)
    if share.overlaps:
        options = [one for one in options if not one.startswith(NOT_OF_OVERLAPPING)]
        options.append("--cpu-bind=none")  # the rank keeps to its cores
    tasks = [f"--ntasks={count}", f"--ntasks-per-node={count}"]
    if share.cpus > count and not any(o.startswith("--cpus-per-task") for o in options):
        tasks.append(f"--cpus-per-task={share.cpus // count}")
    return ["srun", f"--output={output}"] + share.options + tasks + options + ranks


def environment_of(row: Record, attempt: int, portable: Mapping[str, str]) -> Dict[str, str]:
    """The environment of a run's ranks."""
    path = os.environ.get("PYTHONPATH", "")
    return dict(
        os.environ,
        FURNACE_RUN_DIR=row["run_dir"],
        FURNACE_ATTEMPT=str(attempt),
        FURNACE_CODE=row["code"],
        PYTHONPATH=row["code"] + (f":{path}" if path else ""),
        PYTHONSAFEPATH="1",
        **portable,
    )
