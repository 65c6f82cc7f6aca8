"""The parts of gpu_check.py. Each runs in a process of its own and prints lines of JSON."""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
NO_GPU = "needs a GPU"
ATTENTION_KERNELS = ("flash", "fmha", "efficient", "cudnn_generated", "sdpa")


def say(level: str, name: str, found: str, **more: Any) -> None:
    """Print one line for the parent."""
    print(json.dumps({"level": level, "name": name, "found": found} | more), flush=True)


def check(is_right: bool, name: str, found: str, **more: Any) -> None:
    """Print `ok` or `FAIL`."""
    level = "FAIL"
    if is_right:
        level = "ok"
    say(level, name, found, **more)


def has_gpu() -> bool:
    """Whether torch can use a GPU, and none forbids it."""
    import torch

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if has_gpu():
        torch.cuda.synchronize()


def machine(options: argparse.Namespace) -> None:
    """Versions and the facts that `furnace doctor` reads."""
    import torch

    from furnace_hpc.diagnostics.probe import run_probe

    device = "CPU"
    if has_gpu():
        device = torch.cuda.get_device_name()
    say("info", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, {device}")
    facts = run_probe("furnace_hpc.engine.ranks.device_probe", 300)
    gpus = [f"{gpu['name']} {gpu['gb_s']:.0f} GB/s" for gpu in facts["gpus"]]
    found = f"DeepSpeed {facts['deepspeed']}, GPUs {gpus}"
    check(not facts["deepspeed"].startswith("!"), "device probe", found, facts=facts)


def bound_rank(options: argparse.Namespace) -> None:
    """A rank of --gpus-per-task: local rank 3, one visible GPU."""
    from make import make_config, make_inputs, make_model

    from furnace_hpc.engine.deepspeed_engine import build_engine
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group

    processes = init_process_group(RankInfo(0, 3, 1, None))
    model = make_model().to(processes.device)
    engine = build_engine(model, make_config("zero1"), processes)
    inputs, lengths, present = make_inputs()
    moved = [
        {name: value.to(processes.device) for name, value in part.items()}
        for part in (inputs, lengths)
    ]
    engine(*moved, present.to(processes.device))
    device = next(engine.module.parameters()).device
    say("ok", "local rank 3 that sees one GPU", f"trains on {device}")


def hardware_errors(options: argparse.Namespace) -> None:
    """The verdicts of a real out-of-memory and of a real device-side assert."""
    import torch

    from furnace_hpc.runs.records.verdict import verdict_of

    if not has_gpu():
        say("skip", "verdicts of CUDA errors", NO_GPU)
        return
    try:
        torch.empty(1 << 44, dtype=torch.uint8, device="cuda")
    except Exception as error:
        found = verdict_of(error)
        check(found == "oom", "out of memory", f"{type(error).__name__}: {found}")
    try:
        torch.zeros(2, device="cuda")[torch.tensor([9], device="cuda")].item()
    except Exception as error:
        found = verdict_of(error)
        check(found == "crash", "index out of range", f"{type(error).__name__}: {found}")


def make_step(
    stage_name: str, options: argparse.Namespace, **changes: Any
) -> tuple[Callable[[], Any], Any]:
    """A step over a fixed random batch with the product's set-up, and its engine."""
    import gpu_step
    import torch

    from furnace_hpc.engine.deepspeed_engine import build_engine
    from furnace_hpc.engine.ranks.distributed import Processes, RankInfo, init_process_group
    from furnace_hpc.engine.setup import set_up_torch
    from furnace_hpc.model.losses import total_loss

    size = gpu_step.BASE
    if options.small:
        size = gpu_step.TINY
    config = gpu_step.config_of(stage_name, size, **changes)
    set_up_torch(config)
    if not torch.distributed.is_initialized():
        init_process_group(RankInfo(0, 0, 1, None))
    device = torch.device("cpu")
    if has_gpu():
        device = torch.device("cuda", 0)
    processes = Processes(0, 0, 1, device)
    batch = gpu_step.make_batch(config, device)
    lengths = torch.randint(20, gpu_step.TOKENS, (config.global_batch_size,), device=device)
    engine = build_engine(gpu_step.make_model(config).to(device), config, processes)

    def step() -> Any:
        output = engine(batch["inputs"], {"text": lengths}, batch["present"])
        parts = total_loss(output, batch["labels"], batch["present"], config.loss, config.tasks)
        engine.backward(parts["loss"])
        engine.step()
        return parts["loss"].detach()

    return step, engine


def seconds_per_step(step: Callable[[], Any], steps: int) -> float:
    """Mean seconds, after three steps that are not counted."""
    for _ in range(3):
        step()
    synchronize()
    started_s = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - started_s) / steps


def stage(options: argparse.Namespace) -> None:
    """Time, peak memory, launches and host waits of a step at one stage. Losses must fall."""
    import torch

    step, engine = make_step(options.argument, options)
    losses = [step() for _ in range(5)]
    synchronize()
    seconds = []
    for _ in range(4 if options.small else 15):
        started_s = time.perf_counter()
        losses.append(step())
        synchronize()
        seconds.append(time.perf_counter() - started_s)
    values = torch.stack(losses).tolist()
    step_ms = 1e3 * statistics.median(seconds)
    found = f"{type(engine.optimizer).__name__}: {step_ms:.1f} ms per step"
    more: dict[str, Any] = {"step_ms": step_ms, "losses": values}
    if has_gpu():
        more |= _gpu_figures(step)
        found += (
            f", peak {more['peak_gib']:.1f} GiB, {more['launches']:.0f} launches, "
            f"{more['waits']:.0f} host waits, GPU busy {more['gpu_busy_ms']:.1f} ms"
        )
    falls = all(value == value for value in values) and values[-1] < values[0]
    check(falls, f"stage {options.argument}", found, **more)


def _gpu_figures(step: Callable[[], Any]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    figures: dict[str, Any] = {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            step()
        synchronize()
    events = seen.key_averages()
    launches = [e.count for e in events if e.key.startswith(("cudaLaunchKernel", "cuLaunchKernel"))]
    figures["launches"] = sum(launches) / 3
    figures["waits"] = sum(event.count for event in events if "Synchronize" in event.key) / 3
    figures["gpu_busy_ms"] = sum(event.self_device_time_total for event in events) / 1e3 / 3
    names = [event.key for event in events]
    is_attention = [any(word in name.lower() for word in ATTENTION_KERNELS) for name in names]
    figures["kernels"] = [name for name, is_one in zip(names, is_attention, strict=True) if is_one][
        :8
    ]
    return figures


def same_bits(options: argparse.Namespace) -> None:
    """Make six steps twice from the same seeds, in one process, with deterministic: true."""
    from furnace_hpc.engine.checkpoint.random_state import seed_everything
    from furnace_hpc.engine.deepspeed_engine import full_fp32_parameters, parameters_sha256

    found = []
    for _ in range(2):
        seed_everything(7)
        step, engine = make_step(options.argument, options, model__dropout=0.1)
        seed_everything(7)
        for _ in range(6):
            step()
        found.append(parameters_sha256(full_fp32_parameters(engine))[:12])
    name = f"same bits twice, {options.argument}"
    check(len(set(found)) == 1, name, f"{found[0]} and {found[1]}")


def fill(options: argparse.Namespace) -> None:
    """The cost of filling new memory, which torch does by default in deterministic mode."""
    import torch

    if not has_gpu():
        say("skip", "cost of filling new memory", NO_GPU)
        return
    step, _ = make_step("zero2", options)
    took_ms = {}
    for on in (True, False):
        torch.utils.deterministic.fill_uninitialized_memory = on
        took_ms[on] = 1e3 * seconds_per_step(step, 10)
    found = f"filled {took_ms[True]:.1f} ms, not filled {took_ms[False]:.1f} ms per step"
    say("info", "cost of filling new memory", found)


def waits(options: argparse.Namespace) -> None:
    """Train the product's own steps, in which the host must not wait for the GPU.

    On a GPU torch raises an error at each wait, in any library. On a CPU the calls that would wait
    are recorded. DeepSpeed makes one small tensor on the device in each step of stage 3.
    """
    import torch

    name = f"host waits in a step, {options.argument}"
    with _product_step(options) as step:
        for number in range(3):
            step(number)
        if not has_gpu():
            check(*_reads_on_the_cpu(step, name))
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(3, 8):
                step(number)
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
            check(False, name, f"{str(error).splitlines()[0]} in {' > '.join(places)}")
            return
        finally:
            torch.cuda.set_sync_debug_mode("default")
    check(True, name, "none in five steps")


@contextmanager
def _product_step(options: argparse.Namespace) -> Iterator[Callable[[int], Any]]:
    """A step of the training loop over the packed data, as a run makes it between two records."""
    from make import make_config
    from rank_work import model_of, reader_of

    from furnace_hpc.engine.deepspeed_engine import build_engine
    from furnace_hpc.engine.loop import train_batches, train_step
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group
    from furnace_hpc.engine.setup import set_up_torch
    from furnace_hpc.engine.speed.gradient_check import GradientCheck

    losses = {"alpha": 0.5, "beta": 0.3, "info_nce": 0.1, "vicreg": 0.1, "unimodal": 0.1}
    keys: dict[str, Any] = {f"loss__{key}": value for key, value in losses.items()}
    keys |= {"model__image_encoder": "vit", "model__audio_encoder": "transformer"}
    keys |= {"model__modality_dropout": 0.1, "model__dropout": 0.1, "micro_batch_size": 4}
    config = make_config(options.argument, steps=10_000, **keys)
    set_up_torch(config)
    processes = init_process_group(RankInfo(0, 0, 1, None))
    model = model_of(config, options.data).to(processes.device)
    engine = build_engine(model, config, processes)
    gradients = GradientCheck()
    with train_batches(
        engine, reader_of(options.data, "train", processes), config, processes
    ) as batches:

        def step(number: int) -> None:
            train_step(engine, batches, config, number)
            gradients.add(engine, number)

        yield step
    gradients.check()


def _reads_on_the_cpu(step: Callable[[int], Any], name: str) -> tuple[bool, str, str]:
    """Verdict, name and places of a step in which the host reads values back."""
    from host_reads import HostReads

    with HostReads() as reads:
        step(3)
    # the check of inputs is for the CPU alone
    places = sorted({place for place in reads.places if "network.py" not in place})
    return not places, name, f"recorded calls on a CPU: {', '.join(places) or 'none'}"


def attention(options: argparse.Namespace) -> None:
    """The attention kernel with and without a mask, and the time of each."""
    import torch
    from torch.nn import functional

    if not has_gpu():
        say("skip", "attention kernels", NO_GPU)
        return
    for num_tokens in (128, 325):
        shape = (64, 12, num_tokens, 64)
        query = torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(64, 1, 1, num_tokens, dtype=torch.bool, device="cuda")
        for name, given in (("no mask", None), ("bool mask", mask)):
            backend = torch._fused_sdp_choice(query, query, query, given)

            def once(query: Any = query, given: Any = given) -> None:
                attended = functional.scaled_dot_product_attention(query, query, query, given)
                attended.sum().backward()

            took_ms = 1e3 * seconds_per_step(once, 20)
            found = f"backend {backend} (1 flash, 2 efficient, 3 cuDNN, 0 math), {took_ms:.2f} ms"
            say("info", f"attention, {num_tokens} tokens, {name}", found)


def host_copy(options: argparse.Namespace) -> None:
    """Copy a checkpoint's content into host memory three times."""
    import torch

    from furnace_hpc.engine.checkpoint.host_copy import HostCopy

    device, size = "cpu", 300_000_000
    if has_gpu():
        device = "cuda"
    if options.small:
        size = 1 << 20
    state = {name: torch.randn(size, device=device) for name in ("a", "b")}
    copy, rates, got = HostCopy(), [], {}
    for _ in range(3):
        started_s = time.perf_counter()
        got = copy.copy(state)
        rates.append(8 * size / 1e9 / (time.perf_counter() - started_s))
    is_same = all(torch.equal(got[name], value.cpu()) for name, value in state.items())
    found = f"{rates[0]:.1f}, {rates[1]:.1f}, {rates[2]:.1f} GB/s for {8 * size / 2**30:.2f} GiB"
    if has_gpu():
        found += ", pinned"
    found += f", buffers of {copy.num_bytes / 2**30:.2f} GiB"
    check(is_same and copy.num_bytes == 8 * size, "host copy", found)
