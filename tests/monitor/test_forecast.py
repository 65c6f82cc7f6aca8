"""Forecasts by hand: times of attempts, their spread, time limits, cost and end of a grid."""

import pytest
from login_study import GRID, specs
from measured_runs import (
    END_S,
    EVALUATION_S,
    LAUNCH_S,
    SAVE_S,
    START_S,
    STARTUP_S,
    STEP_S,
    measured,
)

from furnace_hpc.monitor.forecast import attempt_times
from furnace_hpc.monitor.forecast.attempt_times import AttemptTimes, times_of
from furnace_hpc.monitor.forecast.cost import RunCost, TimeLimit, Work, on_ladder
from furnace_hpc.monitor.forecast.recorded import (
    Forecast,
    RunForecast,
    RunNow,
    compared,
    last_end,
)
from furnace_hpc.monitor.forecast.spread import Spread, quantile, spread_of
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.records.attempts import read_attempt

BASE = GRID["base"] | {"steps": 40, "evaluation": {"every": 20}}


def test_quantiles_and_least_spread():
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([10, 20, 30, 40, 50], 0.1) == pytest.approx(14)
    assert quantile([7], 0.9) == 7
    assert spread_of([], 3) == Spread(0, 0, 0)
    # One run: at least 15 % on each side. Four runs: at least 7.5 %.
    assert spread_of([2.0, 2.0], 1) == Spread(pytest.approx(1.7), 2.0, pytest.approx(2.3))
    assert spread_of([2.0], 4) == Spread(pytest.approx(1.85), 2.0, pytest.approx(2.15))
    wide = spread_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 4)
    assert (wide.low, wide.mid, wide.high) == (2, 6, 10)


def test_times_of_a_finished_attempt(tmp_path):
    run = measured(specs()[0], GridFolder(tmp_path), 40, every=20)
    times = times_of(run, read_attempt(run, 1))
    assert times is not None
    assert times.launch_s == pytest.approx(LAUNCH_S)
    assert times.startup_s == pytest.approx(STARTUP_S)
    assert times.step_s == pytest.approx((STEP_S,) * 3)
    assert times.evaluation_s == pytest.approx((EVALUATION_S,))
    assert times.end_s == pytest.approx(END_S)
    assert times.save_s == (SAVE_S,)
    assert times.peak_gib == 5.25


def test_a_long_file_is_read_at_both_ends(tmp_path, monkeypatch):
    """Between beginning and end there is a gap, which is no interval."""
    run = measured(specs()[0], GridFolder(tmp_path), 2000, every=500)
    whole = times_of(run, read_attempt(run, 1))
    size = run.metrics(1).stat().st_size
    monkeypatch.setattr(attempt_times, "HEAD_BYTES", size // 10)
    monkeypatch.setattr(attempt_times, "TAIL_BYTES", size // 3)
    times = times_of(run, read_attempt(run, 1))
    assert times is not None
    assert whole is not None
    assert 50 < len(times.step_s) < 100 < len(whole.step_s) == 199
    assert times.step_s == pytest.approx((STEP_S,) * len(times.step_s))
    assert times.startup_s == pytest.approx(STARTUP_S)
    assert times.end_s == pytest.approx(END_S)
    assert (len(times.evaluation_s), len(whole.evaluation_s)) == (1, 3)


def test_a_failed_attempt_measures_nothing(tmp_path):
    run = measured(specs()[0], GridFolder(tmp_path), 40, reason="crash")
    assert times_of(run, read_attempt(run, 1)) is None
    other = measured(specs()[1], GridFolder(tmp_path), 0, reason="stopped")
    assert times_of(other, read_attempt(other, 1)) is None


def test_times_of_a_canary(tmp_path):
    """Its evaluation of 100 samples took 2 s, and 6 s with subsets. The test split has 200."""
    run = measured(specs()[0], GridFolder(tmp_path), 20, reason="canary", every=50)
    ended_s = read_attempt(run, 1).end_unix_s or 0
    timed = {"attempt": 1, "evaluation_s": 2.0, "with_subsets_s": 6.0, "val_samples": 100}
    write_json(run.canary, timed | {"test_samples": 200, "unix_s": ended_s - 1.5})
    times = times_of(run, read_attempt(run, 1))
    assert times is not None
    assert times.evaluation_s == (2.0,)
    assert times.end_s == pytest.approx(2 * 2 + 6 * 200 / 100 + 1.5)
    write_json(run.canary, timed | {"attempt": 2})
    again = times_of(run, read_attempt(run, 1))
    assert again is not None
    assert (again.evaluation_s, again.end_s) == ((), None)


def test_start_of_a_resumed_attempt(tmp_path):
    """It began after step 20, so its first record at step 30 is of ten steps."""
    run = measured(specs()[0], GridFolder(tmp_path), 20, reason="stopped")
    second = {"attempt": 2, "start_unix_s": START_S, "end_unix_s": 1100.0, "reason": "stopped"}
    write_json(run.attempt(2), second)
    record = '{"step": 30, "kind": "train", "step_time_s": 0.5, "time_unix_s": 1020.0}\n'
    run.metrics(2).write_text(record)
    times = times_of(run, read_attempt(run, 2))
    assert times is not None
    assert times.startup_s == pytest.approx(20 - 10 * 0.5)
    assert times.step_s == (0.5,)


COST = RunCost(
    launch=Spread(1, 2, 3),
    startup=Spread(9, 10, 11),
    step=Spread(0.4, 0.5, 0.6),
    evaluation=Spread(2, 3, 4),
    end=Spread(6, 8, 10),
    save=Spread(1, 2, 3),
    num_runs=2,
    longest_launch_s=30,
    peak_gib=5.25,
)


def test_time_and_limit_of_a_run():
    work = Work(steps=1000, evaluations=9, least_steps=1000, save_every=100)
    assert COST.time_of(work) == Spread(434, 547, 660)
    assert COST.time_of(work, is_launched=False) == Spread(433, 545, 657)
    assert COST.first_launch.mid == 30
    # 1.25 x 660 s, and 120 s + 60 s from the signal to the end: 1005 s, so 20 minutes
    # one start and 100 steps with an evaluation: 1.25 x 78 s + 180 s, so 5 minutes
    assert COST.time_limit(work, 120, None) == TimeLimit(20, 1, 5)
    assert COST.time_limit(work, 120, 20) == TimeLimit(20, 1, 5)
    # Of 10 minutes an attempt trains 600 - 180 - 12 s, and 535 s are needed.
    assert COST.time_limit(work, 120, 10) == TimeLimit(10, 2, 5)
    # Saves of 3 s need less than the signal's 120 s. Saves of 200 s need 400 s.
    slow = RunCost(**{**vars(COST), "save": Spread(100, 150, 200)})
    assert slow.time_limit(work, 120, None).minutes == on_ladder(-(-(660 * 1.25 + 460) // 60))


def test_a_limit_leaves_time_for_a_checkpoint():
    """A run with one step left still gets a start, a checkpoint interval and twice the signal."""
    work = Work(steps=1, evaluations=0, least_steps=1, save_every=1)
    assert COST.time_limit(work, 120, None).minutes == 5
    assert COST.time_limit(work, 600, None).minutes == 20
    long = Work(steps=10_000, evaluations=0, least_steps=10_000, save_every=5000)
    limit = COST.time_limit(long, 120, 30)
    assert limit.minutes == 30
    assert limit.least_min == 66  # 1.25 x (14 + 3000 + 4) s + 180 s
    assert limit.attempts == 4  # 5,008 s of work in parts of 1,608 s


def test_work_of_runs(tmp_path):
    config = specs(base=BASE)[0].config
    assert Work.of_run(config, 0) == Work(40, 1, 40, 40)
    assert Work.of_run(config, 20) == Work(20, 0, 20, 20)
    early = config.model_validate(
        config.model_dump() | {"early_stopping": {"patience": 0 + 1}, "steps": 100}
    )
    work = Work.of_run(early, 0)
    assert work == Work(100, 4, 40, 100)
    # Early stopping lowers the low end alone: 10 + 0.4 x (0.4 x 100 + 2 x 4) + 6.
    assert COST.time_of(work).low == pytest.approx(35.2)
    assert COST.time_of(work).mid == pytest.approx(12 + 50 + 12 + 8)


def test_pooled_costs_name_what_is_missing():
    times = [
        AttemptTimes(1.0, 9.0, (1.0, 2.0, 3.0), (), None, (), 4.0),
        AttemptTimes(2.0, 18.0, (2.0,), (), None, (), 6.0),
    ]
    cost = RunCost.pooled(times, 2)
    assert cost is not None
    assert (cost.start.mid, cost.step.mid, cost.peak_gib) == (15.0, 2.0, 6.0)
    assert cost.unmeasured == ("evaluation", "end", "save")
    assert cost.describe() == (
        "start 15 s, 2 s per step, peak 6 GiB, from 2 measured runs (not measured: evaluation and "
        "end of a run)"
    )
    assert RunCost.pooled([], 0) is None


@pytest.mark.parametrize(("minutes", "limit"), [(1, 5), (5, 5), (16, 20), (1441, 2880)])
def test_limits_are_usual_ones(minutes, limit):
    assert on_ladder(minutes) == limit


def forecast(**changes) -> Forecast:
    runs = {
        name: RunForecast(seconds=(3600, 5400, 7200), nodes=2, gpus=8, group=0) for name in "abc"
    }
    content = {"made_unix_s": 1000.0, "runs": runs, "parallel": (2,), "measured_runs": 1}
    return Forecast.model_validate(content | changes)


def test_the_end_of_a_grid():
    """Three runs of 1.5 h on two places end after 3 h."""
    assert last_end([5, 1, 1, 1], 2) == 5
    assert last_end([], 3) == 0
    assert forecast().elapsed == Spread(7200, 10800, 14400)
    assert forecast(parallel=(3,)).elapsed.mid == 5400
    assert forecast().total("gpus").mid == 3 * 8 * 5400
    assert forecast(num_unknown=2).describe() == (
        "36.0 GPU-hours (24.0 to 48.0), 9.0 node-hours (6.0 to 12.0), earliest end in 3.0 h (2.0 "
        "to 4.0), from 1 measured run; 2 runs of kinds without a measured run not included"
    )


def test_forecast_and_reality():
    """After 2 h: one run took 2 h instead of 1.5 h, one is at a half, one waits."""
    now = [
        RunNow(run_id="a", spent_s=7200, step=10, steps=10, has_ended=True, is_done=True),
        RunNow(run_id="b", spent_s=3600, step=5, steps=10),
        RunNow(run_id="c", steps=10),
        RunNow(run_id="of another submission", spent_s=1e9),
    ]
    # b needs another hour, and c two hours at once, on the other place
    assert compared(forecast(), now, 1000.0 + 7200) == (
        "3.0 h (2.0 to 4.0) until the last run ends, now expected 4.0 h; 36.0 GPU-hours (24.0 to "
        "48.0), now expected 48.0"
    )


def test_a_forecast_that_is_over():
    ended = {"spent_s": 5400, "has_ended": True, "is_done": True}
    now = [
        RunNow(run_id=name, end_unix_s=1000 + 5400 * (1 + (name == "c")), **ended) for name in "abc"
    ]
    assert compared(forecast(), now, 1e6) == (
        "3.0 h (2.0 to 4.0) until the last run ends, it took 3.0 h; 36.0 GPU-hours (24.0 to 48.0), "
        "used 36.0"
    )
