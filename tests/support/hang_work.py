"""A rank that hangs, with a watchdog: python hang_work.py RUN_DIR HOW TIMEOUT_S START_S."""

import ctypes
import faulthandler
import sys
import time
from pathlib import Path

from furnace_hpc.engine.watchdog import Watchdog
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import Verdict


def stand_still(how: str) -> None:
    if how == "holds":  # the interpreter's lock: PyDLL does not give it up
        ctypes.PyDLL(None).sleep(60)
    time.sleep(60)


def main(folder: RunFolder, how: str, timeout_s: float, start_s: float) -> None:
    with Verdict(folder, 1, 0) as verdict:
        with Watchdog(timeout_s, verdict, start_s) as watchdog:
            for step in range(0 if how == "start" else 8):
                watchdog.heartbeat(f"step {step + 1}")
                verdict.at(step)
                time.sleep(timeout_s / 4)
            if how not in ("works", "saves"):
                print(f"still {time.time()}", flush=True)
                stand_still(how)
        if how == "saves":  # after its end nothing fires
            time.sleep(timeout_s + 5)
        verdict.done()


if __name__ == "__main__":
    faulthandler.enable()
    main(RunFolder(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
