"""Decide how the runs of a job share its GPUs: with MPS, by time slicing, or not at all.

Standard library only, syntax of Python 3.6.
"""

import subprocess
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from furnace_hpc.host.gpu_check import allocated_gpus
from furnace_hpc.host.shared_node.mps import Mps, MpsError, start_mps
from furnace_hpc.host.shared_node.steps import Share

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,compute_mode", "--format=csv,noheader")
QUERY_TIMEOUT_S = 60
MPS, TIME_SLICING = "MPS", "time slicing"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"

Record = Dict[str, Any]


class Division(NamedTuple):
    """What each run of a job gets."""

    share: Share
    facts: Record  # of each attempt, besides those of its row
    line: str = ""  # how runs share GPUs, for the job's log
    mps: Optional[Mps] = None
    variables: Dict[str, str] = {}  # of every process of the job that uses GPUs


class Card(NamedTuple):
    """A GPU as nvidia-smi lists it."""

    uuid: str
    compute_mode: str


def divide(
    places: int, runs_per_gpu: int, environment: Mapping[str, str], in_container: bool
) -> Division:
    """Divide a job's node among runs.

    Args:
        places: number of runs at a time.
        runs_per_gpu: the largest number of them on one GPU.
        environment: of the batch script.
        in_container: whether ranks run in a container.
    """
    gpus = _gpus_of_job(environment) if runs_per_gpu > 1 else []
    if not gpus:
        return Division(Share.of(places, environment), {})
    if len(gpus) >= places:  # the job has more GPUs than it asked for
        alone = {"gpus": len(gpus) // places, "runs_per_gpu": 1}
        return Division(Share.of(places, environment), alone)
    places = min(places, len(gpus) * runs_per_gpu)
    cards = list_cards(gpus)
    mps, why = None, ""
    if not environment.get(PIPE):
        mps, why = _start(cards, in_container)
    if why and are_exclusive(cards):
        line = f"one run per GPU: its compute mode is Exclusive_Process, and there is no MPS: {why}"
        facts = {"gpus": 1, "runs_per_gpu": 1, "gpu_sharing": line}
        return Division(Share.of(len(gpus), environment), facts, line)
    how = f"{TIME_SLICING}: {why}" if why else MPS
    variables = {}
    if mps:  # MPS gives its GPUs other numbers, so they are named by UUIDs
        gpus = [card.uuid for card in cards]
        variables = dict(mps.variables, CUDA_VISIBLE_DEVICES=",".join(gpus))
    line = f"up to {-(-places // len(gpus))} runs use one GPU at the same time, with {how}"
    share = Share.of_gpus(places, gpus, environment)
    return Division(share, {"gpu_sharing": how}, line, mps, variables)


def are_exclusive(cards: List[Card]) -> bool:
    """Whether one of the GPUs accepts one process only, unless MPS runs."""
    return any(card.compute_mode.startswith("Exclusive") for card in cards)


def _gpus_of_job(environment: Mapping[str, str]) -> List[str]:
    """The GPUs that Slurm gives the job, also if its ranks use the CPU."""
    without = {name: value for name, value in environment.items() if name != "DS_ACCELERATOR"}
    return [gpu for gpu in allocated_gpus(without).split(",") if gpu]


def _start(cards: List[Card], in_container: bool) -> Any:
    """MPS for these GPUs, and the reason if it cannot be used."""
    if in_container:
        return None, "ranks run in a container"
    if not cards:
        return None, "nvidia-smi does not list the job's GPUs"
    try:
        return start_mps([card.uuid for card in cards]), ""
    except MpsError as error:
        return None, str(error)


def list_cards(gpus: List[str]) -> List[Card]:
    """The GPUs of these numbers or UUIDs. Empty if nvidia-smi does not list all of them."""
    try:
        text = subprocess.check_output(
            QUERY, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=QUERY_TIMEOUT_S
        ).decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError):
        return []
    found = {}  # type: Dict[str, Card]
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3:
            found[words[0]] = found[words[1]] = Card(words[1], words[2])
    if not all(gpu in found for gpu in gpus):
        return []
    return [found[gpu] for gpu in gpus]
