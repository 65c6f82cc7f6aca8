"""Print facts about torch and the GPUs as one line of JSON.

`furnace doctor` starts this as a child process.
The ranks of the all-reduce are forked before CUDA is initialised, because CUDA does not survive a
fork.
"""

import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

STARTED_S = time.perf_counter()

import torch  # noqa: E402  # the duration of this import is one of the facts
import torch.distributed as dist  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED_S

from furnace_hpc.config.hardware.nvml import Gpu  # noqa: E402

NUMEL, ROUNDS, TIMEOUT_S = 4 << 20, 5, 60
COPY_BYTES = 1 << 30


def main() -> None:
    """Print all facts."""
    num_gpus = torch.cuda.device_count()  # asks NVML and creates no CUDA context
    reductions = [all_reduce("gloo", 2)]
    if num_gpus > 1:
        reductions.append(all_reduce("nccl", num_gpus))
    built = "CPUs"
    if torch.version.cuda:
        built = f"CUDA {torch.version.cuda}"
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "import_s": IMPORT_S,
        "built": built,
        "all_reduce": reductions,
        "cuda_error": "",
        "driver": _driver(),
        "gpus": [],
    }
    try:
        if torch.cuda.is_available():
            facts |= _cuda()
    except RuntimeError as error:
        facts["cuda_error"] = str(error).splitlines()[0]
    facts["deepspeed"] = _deepspeed()
    print(json.dumps(facts), flush=True)


def all_reduce(backend: str, ranks: int) -> dict[str, Any]:
    """Measure an all-reduce in forked processes. Return its rate in GB/s, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, ranks, backend, Path(folder)) for rank in range(ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*"))]
    errors = [answer["error"] for answer in answers if "error" in answer]
    errors += [f"a rank ended with exit code {code}" for code in codes if code]
    facts = {"backend": backend, "ranks": ranks, "error": "", "gb_s": 0.0}
    if errors:
        return facts | {"error": errors[0]}
    return facts | {"gb_s": min(answer["gb_s"] for answer in answers)}


def _fork(rank: int, ranks: int, backend: str, folder: Path) -> int:
    """Start one rank. It writes its answer into a file and exits."""
    child = os.fork()
    if child:
        return child
    answer: dict[str, Any] = {}
    code = 1
    try:
        answer["gb_s"] = _rank(rank, ranks, backend, folder)
        code = 0
    except BaseException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        answer["error"] = lines[0][:300]
    (folder / f"rank-{rank}").write_text(json.dumps(answer))
    os._exit(code)


def _rank(rank: int, ranks: int, backend: str, folder: Path) -> float:
    """Check the sum of an all-reduce and return its rate in GB/s."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    values = torch.full((NUMEL,), float(rank + 1), device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"the sum is wrong: {values[0].item()}, expected {expected}")
    started_s = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rate = NUMEL * 4 * ROUNDS / 1e9 / (time.perf_counter() - started_s)
    dist.destroy_process_group()
    return round(rate, 4)


def _cuda() -> dict[str, Any]:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    return {"gpus": gpus, "cuda": torch.version.cuda, "nccl": nccl}


def _gpu(index: int) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    nvml = Gpu.of_uuid(str(properties.uuid))
    if nvml:
        nvml.watch_xids()
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        size = min(COPY_BYTES, free // 4)
        source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        target.copy_(source)
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for _ in range(10):
            target.copy_(source)
        slowdowns = nvml.slowdowns() if nvml else []  # while it works
        torch.cuda.synchronize()
        # each byte is read and written
        gb_s = 10 * 2 * size / 1e9 / (time.perf_counter() - started_s)
    return {
        "index": index,
        "name": properties.name,
        "free_gib": free / 2**30,
        "total_gib": total / 2**30,
        "bf16": bf16,
        "gb_s": gb_s,
        "health": {**nvml.facts(), "slowdowns": slowdowns, "xids": nvml.xids()} if nvml else None,
    }


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _deepspeed() -> str:
    """DeepSpeed's version, or `!` and the error of its import."""
    stdout = os.dup(1)  # DeepSpeed logs to stdout, which must contain only the JSON
    os.dup2(2, 1)
    try:
        import deepspeed

        return str(deepspeed.__version__)
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)


if __name__ == "__main__":
    main()
