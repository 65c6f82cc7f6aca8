"""A rank with a watchdog that hangs in a given way: hang_work.py RUN_DIR HOW TIMEOUT_S START_S."""

import ctypes
import faulthandler
import sys
import time
from pathlib import Path

from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import RankVerdict


def hang(how: str) -> None:
    if how == "holds":  # PyDLL keeps the interpreter lock
        ctypes.PyDLL(None).sleep(60)
    time.sleep(60)


def main(folder: RunFolder, how: str, timeout_s: float, start_s: float) -> None:
    with RankVerdict(folder, 1, 0) as verdict:
        with Watchdog(timeout_s, verdict, start_s) as watchdog:
            for step in range(0 if how == "start" else 8):
                watchdog.heartbeat(f"step {step + 1}")
                verdict.at(step)
                watchdog.end_start()
                time.sleep(timeout_s / 4)
            if how not in ("works", "saves"):
                print(f"hangs at {time.time()}", flush=True)
                hang(how)
        if how == "saves":  # the watchdog must not fire after its context
            time.sleep(timeout_s + 5)
        verdict.done()


if __name__ == "__main__":
    faulthandler.enable()
    main(RunFolder(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
