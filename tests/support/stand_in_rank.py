"""A rank that does not train. The name of its run decides what it does.

ok...      ends with a result                crash...   ends with an exception
dies...    ends without a verdict            waits...   runs until GRID/release or a stop signal

Every start appends a line to GRID/starts: run, attempt, rank.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

RUN = Path(os.environ.get("FURNACE_RUN_DIR", "."))
ATTEMPT, RANK = os.environ.get("FURNACE_ATTEMPT", "0"), os.environ.get("SLURM_PROCID", "0")


def say(verdict: str, error: str = "") -> None:
    word = {"verdict": verdict, "step": 3, "error": error, "unix_s": time.time()}
    (RUN / "verdicts" / f"{ATTEMPT}-{RANK}.json").write_text(json.dumps(word))


def result() -> dict:
    spec = json.loads((RUN / "spec.json").read_text())
    record = json.loads((RUN / "attempts" / f"{ATTEMPT}.json").read_text())
    names = [
        f"{split}/digit/{metric}"
        for split in ("val", "test")
        for metric in ("accuracy", "f1_macro", "loss")
    ]
    zero = dict.fromkeys(("train_s", "wall_s", "samples_per_s", "peak_memory_gib"), 1.0)
    return zero | {
        "run_id": RUN.name,
        "variant": spec["variant"],
        "seed": spec["config"]["seed"],
        "steps": 3,
        "selected_step": 3,
        "metrics": dict.fromkeys(names, 0.5),
        "parameters_sha256": "",
        "num_parameters": 1,
        "world_size": record["world_size"],
        "num_threads": 1,
        "attempts": int(ATTEMPT),
        "device": "none",
        "precision": "bf16",
        "zero_stage": 1,
        "data_fingerprint": spec["data_fingerprint"],
        "code_hash": record["code_hash"],
        "commit": None,
        "versions": {},
    }


def main() -> int:
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _: stopped.append(number))
    # as the training does, when it can
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR2))
    with (RUN.parent / "starts").open("a") as file:
        file.write(f"{RUN.name} {ATTEMPT} {RANK}\n")
    say("entered")
    if RUN.name.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if RUN.name.startswith("crash"):
        say("crash", "ValueError: on purpose")
        return 1
    while RUN.name.startswith("waits") and not (RUN.parent / "release").exists():
        if stopped:
            say("stopped", f"stopped by {signal.Signals(stopped[0]).name}")
            return 85
        time.sleep(0.05)
    if RANK == "0":
        aside = RUN / ".result"
        aside.write_text(json.dumps(result()))
        aside.rename(RUN / "result.json")
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
