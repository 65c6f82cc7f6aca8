"""Compare the time that ranks get to stop before a time limit with the measured time of a save.

From the signal to the end of the last save there are two steps to finish, perhaps a batch of an
evaluation, a save that is in progress, and the last save.
"""

from contextlib import suppress
from dataclasses import dataclass

from furnace_hpc.host.json_lines import read_json_lines
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempt

SAVES = 2  # one in progress, and the last one


@dataclass
class LeadTime:
    """Warn once, on standard output, if the lead time of an attempt is too short to save."""

    lead_s: float | None
    """Seconds from the signal to the time limit. None if there is no limit."""

    @classmethod
    def of_attempt(cls, folder: RunFolder, number: int) -> "LeadTime":
        """The lead time that the submission asked Slurm for. The local queue has no time limit."""
        attempt = read_attempt(folder, number)
        return cls(attempt.signal_delay_s if attempt.job_id else None)

    def check(self, took_s: float) -> None:
        """Compare with a save that took this many seconds."""
        if self.lead_s is not None and (warning := too_short(took_s, self.lead_s)):
            # a log on a full disk must not cost a checkpoint
            with suppress(OSError):
                print(f"WARNING: {warning}", flush=True)
            self.lead_s = None


def too_short(took_s: float, lead_s: float) -> str:
    """A warning if the lead time is too short, else empty."""
    if SAVES * took_s <= lead_s:
        return ""
    wanted_s = round(1.5 * SAVES * took_s)
    return (
        f"a save takes {took_s:.0f} s, and ranks get the stop signal {lead_s:.0f} s before the "
        f"time limit. {SAVES} saves must fit into that time. Set signal_delay_s to {wanted_s} or "
        "more in the cluster profile"
    )


def slowest_save_s(folder: RunFolder) -> float:
    """Seconds of the run's slowest save so far. 0 if none was measured."""
    slowest = 0.0
    with suppress(FileNotFoundError):
        for line in read_json_lines(folder.saved):
            with suppress(ValueError, TypeError, KeyError):
                slowest = max(slowest, float(line["took_s"]))
    return slowest
