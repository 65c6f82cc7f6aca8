"""Whether ranks are told early enough before a time limit, by the saves that were measured.

From the signal to the end of the last save there is a step to finish, maybe a batch of an evaluation, a save that is on
its way already, and the last one itself.
"""

import json
from contextlib import suppress
from dataclasses import dataclass

from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempt

SAVES = 2  # one on its way, and the last one


@dataclass
class LeadTime:
    """What an attempt knows of the time that it will be given; says once, on standard output, when it is short."""

    lead_s: float | None
    """Seconds from the signal to the time limit; None: there is no limit."""

    @classmethod
    def of_attempt(cls, folder: RunFolder, number: int) -> "LeadTime":
        """Under Slurm as its submission asked for it; the local queue has no time limit."""
        attempt = read_attempt(folder, number)
        return cls(attempt.signal_delay_s if attempt.job_id else None)

    def check(self, took_s: float) -> None:
        """Look at a save that took so long."""
        if self.lead_s is not None and (words := too_short(took_s, self.lead_s)):
            # a log that cannot be written is no reason to lose a checkpoint
            with suppress(OSError):
                print(f"WARNING: {words}", flush=True)
            self.lead_s = None


def too_short(took_s: float, lead_s: float) -> str:
    """What is wrong with so short a lead time; empty when nothing is."""
    if SAVES * took_s <= lead_s:
        return ""
    wanted_s = round(1.5 * SAVES * took_s)
    return (
        f"a save takes {took_s:.0f} s and ranks are told to stop {lead_s:.0f} s before the time limit, in which "
        f"{SAVES} must fit (one may be on its way): give the profile signal_delay_s {wanted_s} or more"
    )


def slowest_save_s(folder: RunFolder) -> float:
    """The longest of the run's saves so far, in seconds; 0: none was measured."""
    slowest = 0.0
    try:
        lines = read_regular_text(folder.saved, errors="replace").splitlines()
    except FileNotFoundError:
        return slowest
    for line in lines:
        try:
            slowest = max(slowest, float(json.loads(line)["took_s"]))
        except (ValueError, TypeError, KeyError):  # a torn line
            continue
    return slowest
