"""The cache of the tables: it is never trusted, and never changes an output."""

import json
import random
import shutil

import pytest
from tables_study import FINGERPRINT, finish, notes, study, troubled

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import run_ids
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import read_metrics
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.reading.cache import read_records
from furnace_hpc.tables.reading.run_files import parse_lines, read_record


def some_runs(path, number=4):
    """A grid with some finished runs."""
    grid, runs = study()
    folder = GridFolder(path / "study")
    made = [finish(spec, folder) for spec in runs[:number]]
    return grid, runs, folder, made


def written(grid, runs, folder, out):
    write_results(collect(grid, runs, folder), out, figures=False)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def content(folder):
    """The content of all run files."""
    frame = read_records(folder).frame
    return frame.drop("files").to_dicts()


def test_the_cache_changes_no_byte_of_the_outputs(
    tmp_path,
):
    """Nor does the order in which the files were created."""
    seen = []
    for order in (0, 1):
        root = tmp_path / str(order) / "runs"
        ablation = troubled(root, order)
        grid, runs = ablation.grid, [run.spec for run in ablation.runs]
        folder = GridFolder(root / "study")
        spoil(folder.run(runs[5].run_id))
        shutil.rmtree(folder.tables_cache)
        for number in range(3):  # no cache, a complete one, an incomplete one
            seen.append(written(grid, runs, folder, root / f"out{number}"))
            if number == 1:
                shutil.rmtree(folder.tables_cache)
                moved = folder.run(runs[0].run_id).path.rename(root / "moved")
                read_records(folder)
                moved.rename(folder.run(runs[0].run_id).path)
    tables = {"effects.csv", "runs.csv", "table.csv", "table.md", "table.tex"}
    assert set(seen[0]) == tables | {"report.html"}
    assert all(files == seen[0] for files in seen[1:])
    assert b"1 incomplete line of metrics skipped" in seen[0]["table.md"]


def spoil(run):
    """Leave an incomplete line, a foreign file and a temporary file."""
    with run.metrics(1).open("ab") as file:
        file.write(b'{"step": 510, "kind": "tr')
    (run.path / "metrics" / "plot.png").write_bytes(b"")
    (run.path / "attempts" / ".1.json.abc").write_bytes(b"")  # being written


def test_incomplete_lines_and_foreign_files_are_noted(tmp_path):
    grid, runs, folder, made = some_runs(tmp_path)
    spoil(made[2])
    (folder.path / "notes").mkdir()
    text = notes(collect(grid, runs, folder))
    assert f"1 incomplete line of metrics skipped in the curves: {made[2].run_id} (1)" in text
    foreign = f"{made[2].run_id}/metrics/plot.png, notes"
    assert f"ignored 2 files that no run has written: {foreign}" in text
    again = collect(grid, runs, folder)
    assert again.records.num_read == 0
    assert notes(again) == text


def test_only_changed_runs_are_read_again(tmp_path):
    _, runs, folder, made = some_runs(tmp_path)

    def num_read():
        return read_records(folder).num_read

    assert [num_read(), num_read()] == [4, 0]
    with made[1].metrics(1).open("a") as file:
        file.write('{"step": 510, "kind": "train", "train/loss": 1.0}\n')
    assert [num_read(), num_read()] == [1, 0]
    # in place, of the same size
    made[0].result.write_bytes(made[0].result.read_bytes().replace(b"0.5", b"0.6"))
    made[2].result.unlink()
    write_json(made[3].attempt(2), {"attempt": 2})
    assert [num_read(), num_read()] == [3, 0]
    finish(runs[4], folder)
    shutil.rmtree(made[1].path)
    records = read_records(folder)
    assert records.num_read == 1
    assert sorted(records.by_run) == sorted(
        run.run_id for run in (made[0], made[2], made[3], folder.run(runs[4].run_id))
    )
    assert records.by_run[made[2].run_id].result is None
    assert b"0.6" in records.by_run[made[0].run_id].result


def test_a_damaged_or_older_cache_is_removed(tmp_path):
    _, _, folder, _ = some_runs(tmp_path)
    truth = content(folder)
    (good,) = folder.tables_cache.iterdir()
    whole = good.read_bytes()
    random_ = random.Random(0)
    spoilt = [b"", whole[:-1], whole[: len(whole) // 2], b"PAR1", b"\0" * len(whole)]
    for _ in range(20):
        at = random_.randrange(len(whole))
        spoilt.append(
            whole[:at] + bytes([whole[at] ^ (1 << random_.randrange(8))]) + whole[at + 1 :]
        )
    for number, bad in enumerate(spoilt):
        good.write_bytes(bad)
        records = read_records(folder)
        assert records.num_read == 4, number
        assert content(folder) == truth
        assert [path.name for path in folder.tables_cache.iterdir()] == [good.name]
    good.rename(good.with_name(f"0{good.name[1:]}"))  # an older format
    assert read_records(folder).num_read == 4
    assert read_records(folder).num_read == 0


def test_tables_without_a_writable_cache(tmp_path):
    grid, runs, folder, _ = some_runs(tmp_path)
    folder.tables_cache.write_text("a file")
    assert read_records(folder).num_read == 4
    assert len(collect(grid, runs, folder).missing) == 16


def test_the_newest_attempt_wins(tmp_path):
    """For a step and a kind, its line replaces those of older attempts."""
    _, _, folder, made = some_runs(tmp_path, 1)
    logged = {
        1: [(10, "train", 1.0), (20, "train", 2.0), (20, "val", 2.5), (30, "train", 3.0)],
        2: [(20, "train", 4.0), (30, "train", float("nan"))],
        10: [(30, "train", 5)],
    }
    for number, lines in logged.items():
        records = (
            {"step": step, "kind": kind, f"{kind}/loss": value, "lr": 1}
            for step, kind, value in lines
        )
        write_atomically(
            made[0].metrics(number), "".join(json.dumps(record) + "\n" for record in records)
        )
    records = read_records(folder)
    points = records.points([made[0].run_id], ["train/loss", "val/loss"]).rows()
    expected = [(10, "train", 1.0), (20, "train", 4.0), (20, "val", 2.5), (30, "train", 5.0)]
    assert points == [(0, f"{kind}/loss", step, value) for step, kind, value in expected]
    assert points == [  # as `read_metrics` reads a single run
        (0, f"{r['kind']}/loss", r["step"], r[f"{r['kind']}/loss"]) for r in read_metrics(made[0])
    ]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_lines_cost_no_other_line(seed):
    random_ = random.Random(seed)
    lines = [
        json.dumps({"step": n, "kind": "train", "train/loss": random_.random()}).encode()
        for n in range(20)
    ]
    whole = b"\n".join(lines) + b"\n"
    assert parse_lines(whole) == ([json.loads(line) for line in lines], 0)
    assert parse_lines(b"") == ([], 0)
    for at in range(0, len(whole), 7):
        good, torn = parse_lines(whole[:at])
        assert good == [json.loads(line) for line in lines[: len(good)]]
        assert len(good) + torn == whole[:at].count(b"\n") + (
            not whole[:at].endswith(b"\n") and at > 0
        )
        assert torn <= 1
    broken = list(lines)
    spoilt = {
        3: b"",
        7: b"{},{}",
        8: b"\xff",
        12: b'{"step": 1e3, "kind": "a"}',
        15: b"7",
        17: b"[",
    }
    for place, bad in spoilt.items():
        broken[place] = bad
    good, torn = parse_lines(b"\n".join(broken) + b"\n")
    assert ([line["step"] for line in good], torn) == ([n for n in range(20) if n not in spoilt], 6)


def test_a_run_that_ends_during_reading_is_done(tmp_path):
    grid, runs, folder, made = some_runs(tmp_path)
    kept = made[0].result.read_bytes()
    made[0].result.unlink()
    records = read_records(folder)
    made[0].result.write_bytes(kept)
    ablation = collect(grid, runs, folder, records=records)
    assert made[0].run_id not in {run.run_id for run in ablation.missing}


def test_files_that_are_not_json(tmp_path):
    _, _, folder, made = some_runs(tmp_path)
    made[0].spec.write_bytes(b"[1]")
    made[1].attempt(1).write_bytes(b"")
    made[2].metrics(1).write_bytes(
        b'{"step": 99999999999999999999, "kind": "a"}\n{"step": 1, "kind": ["a"]}\n\xff\n'
    )
    by_run = read_records(folder).by_run
    assert by_run[made[0].run_id].data is None
    assert [attempt.end_unix_s for attempt in by_run[made[1].run_id].ledger()] == [None]
    assert by_run[made[2].run_id].torn == 3
    assert read_record(made[2]) == by_run[made[2].run_id]
    assert read_record(folder.run("none")).result is None


@pytest.mark.parametrize("change", [{"steps": "500"}, {"wall_s": "80"}, {"attempts": True}])
def test_no_value_of_a_result_is_converted(tmp_path, change):
    grid, runs, folder, (first, *_) = some_runs(tmp_path)
    write_json(first.result, json.loads(first.result.read_bytes()) | change)
    (run,) = [run for run in collect(grid, runs, folder).runs if run.run_id == first.run_id]
    assert run.result is None
    assert run.status.reason == "result.json was written by another version of the code"


def test_run_ids_of_many_runs():
    content = {
        "base": {"deepspeed": "zero1", "steps": 500},
        "seeds": [3, 0, 12],
        "variants": {"base": {}},
    }
    content |= {"name": "many", "reference": "base", "metric": "test/digit/accuracy"}
    content["variants"] |= {"other": {"data.name": "another"}, "third": {"loss.alpha": 0.5}}
    runs = expand(Grid.model_validate(content), {"tridigits": FINGERPRINT, "another": "a" * 16})
    other_data = [spec.model_copy(update={"data_fingerprint": "b" * 16}) for spec in runs[:2]]
    mixed = [*runs, *other_data, runs[7], runs[0]]
    assert run_ids(mixed) == [spec.run_id for spec in mixed]
    assert len(set(run_ids(runs))) == 9
