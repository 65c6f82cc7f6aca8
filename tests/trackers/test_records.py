"""What of a run's metrics is new, over requeues, kills and other numbers."""

import json
import math
import random

import pytest
from tracked_study import TrainedRun, counted, make_runs

from furnace_hpc.tables.reading.run_files import ListedRun, list_run
from furnace_hpc.trackers.records import NewRecords, Position, all_records, read_new
from furnace_hpc.trackers.run_info import read_info, settled_step
from furnace_hpc.trackers.tracker import Start


def listed(run: TrainedRun) -> ListedRun:
    found = list_run(str(run.folder.path))
    assert found
    return found


def begun(tmp_path) -> TrainedRun:
    _, [run] = make_runs(tmp_path, 1)
    run.begin()
    return run


def points(records) -> dict:
    return {
        (name, record.step): value
        for record in records
        for name, value in record.values.items()
        if name != "step_time_s"
    }


def wanted(run: TrainedRun) -> dict:
    return {key: value for key, value in counted(run.folder).items() if key[0] != "step_time_s"}


def test_only_complete_lines_are_read(tmp_path):
    run = begun(tmp_path)
    run.train(20)
    path = run.folder.metrics(1)
    with path.open("a") as file:
        file.write('{"step": 30, "kind": "train", "train/lo')
    first = read_new(listed(run), None)
    assert [record.step for record in first.records] == [10, 20]
    with path.open("a") as file:
        file.write('ss": 0.5}\n')
    second = read_new(listed(run), first.position)
    assert (second.start, [record.values for record in second.records]) == (
        Start.APPEND,
        [{"train/loss": 0.5}],
    )
    assert second.records[0].time_s == first.records[-1].time_s


def test_repeated_steps_are_not_new(tmp_path):
    run = begun(tmp_path)
    run.train(110)
    first = read_new(listed(run), None)
    run.end("preempted")
    run.begin()
    assert run.step == 80
    run.train(50)
    second = read_new(listed(run), first.position)
    assert second.start is Start.APPEND
    assert [record.step for record in second.records] == [120, 130]
    assert read_new(listed(run), second.position).records == []


def test_a_record_keeps_its_time_over_a_requeue(tmp_path):
    """So a point that a killed pass has sent is equal to the one that is sent again."""
    run = begun(tmp_path)
    run.train(110)
    before = read_new(listed(run), None).records
    run.end("preempted")
    run.begin()
    run.train(60)
    after = read_new(listed(run), None)
    assert after.start is Start.FIRST
    assert after.records[: len(before)] == before


def test_other_numbers_replace_all(tmp_path):
    run = begun(tmp_path)
    run.train(110)
    first = read_new(listed(run), None)
    run.end("preempted")
    run.scale = 2.0
    run.begin()
    run.train(20)
    second = read_new(listed(run), first.position)
    assert second.start is Start.REPLACE
    assert points(second.records) == wanted(run)
    assert read_new(listed(run), None).start is Start.REPLACE


def test_nan_is_equal_to_itself(tmp_path):
    run = begun(tmp_path)
    run.scale = math.nan
    run.train(110)
    first = read_new(listed(run), None)
    run.end("preempted")
    run.begin()
    run.train(50)
    second = read_new(listed(run), first.position)
    assert (second.start, len(second.records)) == (Start.APPEND, 2)


def test_another_run_of_the_same_name_replaces_all(tmp_path):
    run = begun(tmp_path)
    run.train(100)
    first = read_new(listed(run), None)
    run.folder.metrics(1).unlink()
    run.attempt = run.saved = 0
    run.begin()
    run.train(200)
    second = read_new(listed(run), first.position)
    assert second.start is Start.REPLACE
    assert points(second.records) == wanted(run)


def test_settled_records_are_below_the_checkpoint(tmp_path):
    run = begun(tmp_path)
    run.train(110)
    assert settled_step(listed(run)) == 80
    first = read_new(listed(run), None, below=80)
    assert {record.step for record in first.records} == set(range(10, 80, 10))
    run.end("preempted")
    run.scale = 3.0
    run.begin()
    run.train(20)
    second = read_new(listed(run), first.position, below=settled_step(listed(run)))
    assert (second.start, second.records) == (Start.APPEND, [])
    run.train(400)
    run.finish()
    assert settled_step(listed(run)) is None
    third = read_new(listed(run), second.position, below=None)
    assert third.start is Start.APPEND
    assert points([*first.records, *third.records]) == wanted(run)


def test_a_position_survives_json(tmp_path):
    run = begun(tmp_path)
    run.train(100)
    position = read_new(listed(run), None, below=50).position
    assert Position.from_json(json.loads(json.dumps(position.as_json()))) == position


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_events_gives_what_counts(tmp_path, seed):
    """A pass may be lost at any time: its records are sent, and its position is not stored."""
    dice, run = random.Random(seed), begun(tmp_path)
    shown: dict = {}
    position: Position | None = None
    for _ in range(25):
        match dice.choice(["train", "train", "pass", "pass", "lost pass", "requeue"]):
            case "train":
                run.train(10 * dice.randint(1, 8))
            case "requeue":
                run.end("preempted")
                run.scale += dice.choice([0, 0, 0, 1.0])
                run.begin()
            case found:
                new = read_new(listed(run), position)
                receive(shown, new)
                if found == "pass":
                    position = new.position
                    assert [shown[key] for key in sorted(shown)] == all_records(
                        listed(run), position
                    )
    receive(shown, read_new(listed(run), position))
    assert points(shown.values()) == wanted(run)


def receive(shown: dict, new: NewRecords) -> None:
    """Keep records as a tracker that shows equal points once."""
    if new.start is Start.REPLACE:
        shown.clear()
    for record in new.records:
        before = shown.setdefault((record.step, record.kind), record)
        assert before == record, "two points of one step"


def test_costs_wait_for_the_end_of_the_attempt(tmp_path):
    """The host notes the end after the ranks have written the result."""
    run = begun(tmp_path)
    run.train(500)
    run.finish()
    path = run.folder.attempt(1)
    ended = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in ended.items() if key[:3] != "end"}))
    assert "cost/gpu_hours" not in read_info(listed(run), "study").summary
    path.write_text(json.dumps(ended))
    info = read_info(listed(run), "study", "report.html")
    assert info.summary["cost/gpu_hours"][1] == pytest.approx(
        (run.clock_s - run.begun_s) * 2 / 3600
    )
    assert info.labels == ["grid:study", "variant:base", "seed:0"]
    assert (info.tags["state"], info.tags["report"]) == ("done", "report.html")
    assert info.config["optimizer.lr"] > 0
