"""What torch says of this machine, as one line of JSON: `furnace doctor` starts this as a child.

Ranks of the all-reduce are forked before CUDA is touched, which does not survive a fork.
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

import torch  # noqa: E402  # how long this takes is one of the answers
import torch.distributed as dist  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED_S
NUMEL, ROUNDS, PATIENCE_S = 4 << 20, 5, 60
COPY_BYTES = 1 << 30


def main() -> None:
    """Print all facts."""
    gpus = torch.cuda.device_count()  # by NVML: no context is made
    ways = [all_reduce("gloo", 2)]
    if gpus > 1:
        ways.append(all_reduce("nccl", gpus))
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "import_s": IMPORT_S,
        "built": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs",
        "all_reduce": ways,
        "cuda_error": "",
        "gpus": [],
    }
    try:
        facts |= _cuda() if torch.cuda.is_available() else {}
    except RuntimeError as error:
        facts["cuda_error"] = str(error).splitlines()[0]
    facts["deepspeed"] = _deepspeed()
    print(json.dumps(facts), flush=True)


def all_reduce(backend: str, ranks: int) -> dict[str, Any]:
    """Run it in forked processes; how fast it was, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, ranks, backend, Path(folder)) for rank in range(ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        words = [path.read_text() for path in sorted(Path(folder).glob("rank-*"))]
    error = next(
        (word for word in words if not word.replace(".", "").replace("e-", "").isdigit()), ""
    )
    if any(codes) and not error:
        error = f"a rank ended with exit code {next(code for code in codes if code)}"
    return {
        "backend": backend,
        "ranks": ranks,
        "error": error,
        "gb_s": 0.0 if error else min(map(float, words)),
    }


def _fork(rank: int, ranks: int, backend: str, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        (folder / f"rank-{rank}").write_text(_rank(rank, ranks, backend, folder))
        code = 0
    except BaseException as error:
        (folder / f"rank-{rank}").write_text(
            (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        )
    os._exit(code)


def _rank(rank: int, ranks: int, backend: str, folder: Path) -> str:
    """GB/s of an all-reduce whose sum is right."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    store = f"file://{folder}/meeting"
    dist.init_process_group(
        backend,
        init_method=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=PATIENCE_S),
    )
    values = torch.full((NUMEL,), float(rank + 1), device=device)
    dist.all_reduce(values)
    wanted = ranks * (ranks + 1) / 2
    if not bool((values == wanted).all()):
        raise RuntimeError(f"the sum is wrong: {values[0].item()}, wanted {wanted}")
    started_s = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rate = NUMEL * 4 * ROUNDS / 1e9 / (time.perf_counter() - started_s)
    dist.destroy_process_group()
    return f"{rate:.4f}"


def _cuda() -> dict[str, Any]:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    return {"gpus": gpus, "cuda": torch.version.cuda, "driver": _driver(), "nccl": nccl}


def _gpu(index: int) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        size = min(COPY_BYTES, free // 4)
        source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        target.copy_(source)
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for _ in range(10):
            target.copy_(source)
        torch.cuda.synchronize()
        gb_s = 10 * 2 * size / 1e9 / (time.perf_counter() - started_s)  # read and written
    facts = {
        "index": index,
        "name": properties.name,
        "free_gib": free / 2**30,
        "total_gib": total / 2**30,
    }
    return facts | {"bf16": bf16, "gb_s": gb_s}


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _deepspeed() -> str:
    """Its version; with a ! before it, what its import says."""
    saved = os.dup(1)  # DeepSpeed's log goes to stdout
    os.dup2(2, 1)
    try:
        import deepspeed

        return str(deepspeed.__version__)
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)


if __name__ == "__main__":
    main()
