"""Planner, journal, follow-up jobs and host code on a simulated Slurm, in virtual time."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from scale import furnace, in_arrays
from scale_runs import Work
from scale_slurm import Clock, Element, Rates, Slurm, read_array

QUICK_REPAIR = {"repair_median_days": 0.01, "repair_mean_days": 0.02}
WORK = Work(tuple(float(hours * 3600) for hours in (4, 6, 8, 5, 7) * 3))


@pytest.mark.parametrize(
    ("faults", "preemptions", "profile", "num_sbatch"),
    [
        pytest.param(0, 0, {}, 2, id="quiet"),
        pytest.param(3000, 2.0, {}, 2, id="faults and preemptions"),
        pytest.param(1000, 0, {"max_submit_jobs": 7}, 6, id="waves of six"),
    ],
)
def test_every_run_ends_once_and_the_table_follows(faults, preemptions, profile, num_sbatch):
    rates = Rates(faults, preemptions, **QUICK_REPAIR)
    outcome = furnace(WORK, 6, rates, **profile)
    assert outcome.done == len(WORK.train_s)
    assert math.isfinite(outcome.hours)
    assert outcome.slurm_calls["sbatch"] == num_sbatch
    useful = 8 * sum(WORK.train_s) / 3600
    startup = 8 * len(WORK.train_s) * WORK.startup_s / 3600
    if faults == 0:
        assert outcome.attempts == len(WORK.train_s)
        assert outcome.used_gpu_h == pytest.approx(useful + startup)
    else:
        assert outcome.attempts > len(WORK.train_s)
        # each attempt repeats at most what was trained since its last checkpoint
        lost = outcome.used_gpu_h - useful
        most = WORK.startup_s + WORK.checkpoint_every_s
        assert startup < lost <= 8 * outcome.attempts * most / 3600


def test_the_same_faults_cost_more_without_checkpoints():
    rates = Rates(3000, 2.0, **QUICK_REPAIR)
    plain = in_arrays(WORK, 6, rates)
    assert plain.done == len(WORK.train_s)
    assert plain.missing_at_first > 0  # their jobs failed, and nothing submitted them again
    assert plain.used_gpu_h > 1.2 * furnace(WORK, 6, rates).used_gpu_h


class Sleeper:
    """Jobs that sleep for an hour."""

    def __init__(self):
        self.order = []

    def begin(self, element: Element) -> float:
        self.order.append(element.job_id)
        return 3600.0

    def end(self, element: Element, cause: str) -> str:
        return "done"


def test_the_simulated_slurm_keeps_order_and_limits():
    clock, runner = Clock(0.0), Sleeper()
    slurm = Slurm(clock, runner, 3, Rates(0), seed=1)
    first = slurm.submit("#SBATCH --array=0-3%2\n#SBATCH --job-name=a\n").split()[-1]
    then = slurm.submit(f"#SBATCH --job-name=b\n#SBATCH --dependency=afterany:{first}\n")
    free = slurm.submit("#SBATCH --job-name=c\n").split()[-1]
    clock.run_until(lambda: slurm.is_idle)
    last = then.split()[-1]
    elements = [f"{first}_{index}" for index in range(4)]
    assert runner.order == [*elements[:2], free, *elements[2:], last]
    assert clock.now_s == pytest.approx(3 * 3600, abs=10)
    assert {line.split("|")[1] for line in slurm.accounting({first}, "|").splitlines()} == {
        "COMPLETED"
    }


def test_array_flags_are_read():
    assert read_array("0-3,7%2") == ([0, 1, 2, 3, 7], 2)
    assert read_array("5") == ([5], 10**9)
