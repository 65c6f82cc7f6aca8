"""Measure an all-reduce between the ranks of a job, and print one line of JSON on rank 0.

`furnace doctor --two-nodes` starts it with srun, one rank on each of two nodes. The ranks meet as
those of a run do: same store, same backend, same variables.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from furnace_hpc.engine.ranks.distributed import Processes, RankInfo, init_process_group
from furnace_hpc.engine.ranks.link_speed import fastest_link

# 64 MB over gloo would take long on a slow network
NUMEL = {"cuda": 64 << 20, "cpu": 4 << 20}
ROUNDS, WARM_UP = 5, 2


def main(rendezvous: Path) -> None:
    """Print the facts of the measurement."""
    rank, local, world = (
        int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID", "NTASKS")
    )
    sys.stdout, stdout = sys.stderr, sys.stdout  # DeepSpeed prints
    processes = init_process_group(RankInfo(rank, local, world, rendezvous))
    facts = measure(processes, NUMEL[processes.device.type])
    facts["hosts"] = processes.gather(socket.gethostname())
    facts["links"] = processes.gather(fastest_link(processes.device.type == "cuda"))
    if processes.is_rank_zero:
        print(json.dumps(facts), file=stdout, flush=True)
    processes.barrier()
    os._exit(0)


def measure(processes: Processes, numel: int) -> dict[str, Any]:
    """Check the sum of an all-reduce of fp32 values, and measure its rate.

    The bus rate does not depend on the number of ranks: bytes / seconds x 2 (n - 1) / n, which is
    what each rank sends, and also what it receives.
    """
    size = processes.world_size
    values = torch.ones(numel, device=processes.device)
    for _ in range(WARM_UP):
        values.fill_(processes.rank + 1)
        dist.all_reduce(values)
    expected = size * (size + 1) / 2
    error = ""
    if not bool((values == expected).all()):
        error = f"the sum is wrong: {values[0].item()}, expected {expected}"
    values.zero_()
    _wait(processes)
    started_s = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(values)
    _wait(processes)
    seconds = (time.perf_counter() - started_s) / ROUNDS
    return {
        "error": error,
        "backend": dist.get_backend(),
        "ranks": size,
        "mb": numel * 4 / 1e6,
        "bus_gb_s": numel * 4 / 1e9 / seconds * 2 * (size - 1) / size,
    }


def _wait(processes: Processes) -> None:
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    processes.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
