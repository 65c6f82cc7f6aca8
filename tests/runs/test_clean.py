"""`furnace clean`: what is freed, what stays, and that nothing that is needed is lost."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from login_study import begin, command, dead_holder, end, finish, grid, planned, specs, tree

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.adopted import link
from furnace_hpc.runs.cleaning.free import free
from furnace_hpc.runs.cleaning.plan import make_clean_plan
from furnace_hpc.runs.cleaning.sizes import Kind, show, size_of, sizes
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.checkpoint_files import complete, describe, newest_step, steps_of
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import read_status
from furnace_hpc.tables.reading.run_files import list_runs

BASE0, BASE1, FULL0, FULL1 = RUNS = [spec.run_id for spec in specs()]
SELECTED = 400  # the step that `finish` writes into the result
HOUR_AGO_S = 3700


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    write_submission(planned(tmp_path / "runs", grid()))
    return GridFolder(tmp_path / "runs" / "study")


def save(run: RunFolder, *steps: int, best: int = 0) -> None:
    """Checkpoints as the saver leaves them."""
    for step in steps:
        temporary = run.checkpoints / f"step-{step}.tmp-x"
        (temporary / "zero").mkdir(parents=True)
        (temporary / "zero" / "part.pt").write_bytes(bytes(1000 + step))
        name = "zero/part.pt"
        facts = {
            "state": {"best_step": best},
            "world_size": 1,
            "zero_stage": 1,
            "code_hash": "",
            "versions": {},
        }
        complete(temporary, run.checkpoint(step), facts, {name: describe(temporary / name)})


def done(spec, folder: GridFolder, *steps: int) -> RunFolder:
    run = finish(spec, folder)
    save(run, *steps)
    return run


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - HOUR_AGO_S,) * 2)


def give(folder: GridFolder, *arguments: str) -> tuple[int, str, str]:
    place = folder.path.parent.parent
    shown = command("clean", place, "--grid", "study", *arguments)
    assert "Traceback" not in shown.stdout + shown.stderr
    return shown.returncode, shown.stdout, shown.stderr


def clean(folder: GridFolder, *keep: str, also=(), get_status=read_status) -> None:
    plan = make_clean_plan(folder, get_status, keep or ("best",), also)
    assert [problem for _, problem in free(folder, plan.to_delete) if problem] == []


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ((), [SELECTED]),
        (("best",), [SELECTED]),
        (("last",), [500]),
        (("best", "last"), [SELECTED, 500]),
        (("none",), []),
    ],
)
def test_checkpoints_of_a_finished_run(folder, keep, left):
    run = done(specs()[0], folder, 300, SELECTED, 450, 500)
    clean(folder, *keep)
    assert steps_of(run) == left
    assert all(newest_step(run) for _ in left)
    assert not [path for path in run.checkpoints.iterdir() if path.name[0] == "."]


def test_unfinished_runs_keep_all(folder):
    """Failed, interrupted, running and queued runs, and one of an unknown state."""
    crashed = begin(specs()[0], folder)
    save(crashed, 10, 20, 30, best=10)
    end(crashed, "crash")
    killed = begin(specs()[1], folder, dead_holder())
    running = begin(specs()[2], folder)
    away = begin(specs()[3], folder, {"host": "elsewhere", "pid": 1})
    for run in (killed, running, away):
        save(run, 10, 20, best=10)
    states = [read_status(folder.run(name)).state for name in RUNS]
    assert states == ["failed", "interrupted", "running", "unknown"]
    before = tree(folder.path)
    clean(folder, "none", also=("features",))
    assert tree(folder.path) == before


def test_a_run_whose_processes_are_ending(folder):
    """The result is there, and the process that holds the attempt lives."""
    run = done(specs()[0], folder, 10, SELECTED)
    record = lifecycle.read_attempt(str(run.path), 1)
    write_json(run.attempt(1), record | {"end_unix_s": None, "holder": lifecycle.holder()})
    clean(folder, "none")
    assert steps_of(run) == [10, SELECTED]


def test_a_missing_best_step_keeps_all(folder):
    """So does one whose file is cut off."""
    run, other = done(specs()[0], folder, 10, 20), done(specs()[1], folder, 10, SELECTED)
    (other.checkpoint(SELECTED) / "zero/part.pt").write_bytes(b"short")
    clean(folder)
    assert (steps_of(run), steps_of(other)) == ([10, 20], [10, SELECTED])


def test_what_was_left_behind(folder):
    """Unfinished and damaged checkpoints, temporary files, and those of a run that can resume."""
    run, stopped = done(specs()[0], folder, SELECTED), begin(specs()[1], folder, dead_holder())
    save(stopped, 10)
    for path in (run.checkpoints / "aside-step-5.1", run.checkpoints / "step-9.tmp-3"):
        (path / "zero").mkdir(parents=True)
    for path in (stopped.checkpoints / "step-11.tmp-1", stopped.checkpoints / "aside-step-9.1"):
        path.mkdir()
    fresh, old = run.path / ".result.json.01234567", run.path / ".spec.json.89abcdef"
    snapshot, own = folder.code / ".0123456789ab.01234567", folder.path / ".mine.20240101"
    for path in (fresh, old, own):
        path.write_text("x")
    snapshot.mkdir()
    for path in (stopped.checkpoints / "step-11.tmp-1", old, snapshot, own):
        make_old(path)
    clean(folder)
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{SELECTED}"]
    assert sorted(path.name for path in stopped.checkpoints.iterdir()) == [
        "aside-step-9.1",
        "step-10",
    ]
    assert [path.exists() for path in (fresh, old, snapshot, own)] == [True, False, False, True]


def test_links_are_not_followed(folder, tmp_path):
    """A folder of checkpoints, a checkpoint, and caches that lead out of the grid's folder."""
    run, other = done(specs()[0], folder, SELECTED), done(specs()[1], folder, SELECTED)
    place = tmp_path / "scratch"
    run.checkpoints.rename(place)
    run.checkpoints.symlink_to(place)
    save(RunFolder(tmp_path / "kept"), 7)
    other.checkpoint(7).symlink_to(tmp_path / "kept/checkpoints/step-7")
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches/mine.parquet").write_text("x")
    folder.tables_cache.symlink_to(tmp_path / "caches")
    before = tree(place) | tree(tmp_path / "kept") | tree(tmp_path / "caches")
    clean(folder, "none", also=("caches", "features", "replaced"))
    assert tree(place) | tree(tmp_path / "kept") | tree(tmp_path / "caches") == before
    assert not other.checkpoint(7).exists()
    assert sizes(folder)[Kind.CHECKPOINTS].files == 1  # the link


def test_sources_of_other_runs_stay(folder, tmp_path, monkeypatch):
    """A row of this grid, a run in another grid's file, and a run that another grid took over."""
    monkeypatch.chdir(tmp_path)
    first, second, third, fourth = (done(spec, folder, 10, SELECTED) for spec in specs())
    weights = {"full": {"init_from": [{"variant": "base"}]}, "base": {}}
    write_submission(planned(tmp_path / "runs", grid(variants=weights)))
    other = GridFolder(tmp_path / "runs" / "other")
    path = f"runs/study/{third.run_id}"
    write_atomically(other.grid, f"name: other\nbase: {{init_from: {{run: {path}}}}}\n")
    clean(folder, "last")
    left = [steps_of(run) for run in (first, second, third, fourth)]
    assert left == [[SELECTED]] * 4  # the last step is the selected one
    clean(folder, "none")
    left = [steps_of(run) for run in (first, second, third, fourth)]
    assert left == [[SELECTED], [SELECTED], [SELECTED], []]
    shutil.rmtree(other.path)
    other.path.mkdir()
    link(other.run("renamed-s0-01234567"), third.path)
    clean(folder, "none")
    assert steps_of(third) == [SELECTED]
    other.run("renamed-s0-01234567").path.unlink()
    clean(folder, "none")
    assert steps_of(third) == []


def test_more_kinds(folder):
    """Caches, features and replaced runs are freed if the user wants it."""
    done(specs()[0], folder, SELECTED)
    write_atomically(folder.tables_cache / "a.parquet", "x" * 50)
    write_atomically(folder.slurm_cache, "{}")
    write_atomically(folder.features / "0123" / "0.part", "x" * 70)
    write_atomically(folder.replaced / f"{BASE1}.1" / "result.json", "x" * 90)
    found = sizes(folder)
    assert {kind: found[kind] for kind in (Kind.FEATURES, Kind.REPLACED, Kind.CACHES)} == {
        Kind.FEATURES: (1, 70),
        Kind.REPLACED: (1, 90),
        Kind.CACHES: (2, 52),
    }
    clean(folder)
    assert sizes(folder) == found
    begin(specs()[1], folder)  # it may read the features
    clean(folder, also=("features",))
    assert sizes(folder)[Kind.FEATURES] == (1, 70)
    end(folder.run(BASE1), "stopped")
    clean(folder, also=("features", "caches", "replaced"))
    assert not {Kind.FEATURES, Kind.REPLACED, Kind.CACHES} & sizes(folder).keys()


def test_every_place_of_a_grid_has_a_kind(folder):
    """And aggregate takes none of them for a file of another program."""
    places = [name for name, place in vars(GridFolder).items() if isinstance(place, property)]
    assert {"trackers", "features", "tables_cache", "lock"} <= {*places}
    for place in (*(getattr(folder, name) for name in places), folder.path / "logs"):
        if not place.suffix:
            place.mkdir(exist_ok=True)
            place /= "x"
        place.touch()
    assert Kind.OTHER not in sizes(folder)
    assert list_runs(folder.path) == ([], [])
    left = folder.tables_cache / f".{32 * '0'}.rows.0123abcd"
    left.touch()
    make_old(left)
    clean(folder)
    assert not left.exists()


@pytest.mark.parametrize("seed", range(3))
def test_table_and_runs_are_as_before(folder, tmp_path, seed):
    """Random states and options: the same table, and every run is finished or resumes as before."""
    chance = random.Random(seed)
    for spec in specs():
        steps = [*sorted(chance.sample(range(10, 390, 10), 3)), SELECTED]
        match chance.choice(["done", "done", "crash", "killed", "new"]):
            case "done":
                done(spec, folder, *steps)
            case "crash":
                run = begin(spec, folder)
                save(run, *steps, best=steps[0])
                end(run, "crash")
            case "killed":
                save(begin(spec, folder, dead_holder()), *steps, best=steps[1])

    def table(name: str) -> dict[str, str]:
        command("aggregate", tmp_path, "--grid", "study", "--out", name, "--no-figures")
        return tree(tmp_path / name)

    def resumes(run: RunFolder) -> int | None:
        return newest_step(run, needs_best=True)

    unfinished = [folder.run(name) for name in RUNS if not folder.run(name).result.exists()]
    if len(unfinished) == len(RUNS):
        done(specs()[0], folder, SELECTED)
        unfinished = [run for run in unfinished if run.run_id != BASE0]
    before, steps = table("before"), [resumes(run) for run in unfinished]
    also = [word for name in ("caches", "features") for word in ("--also", name)]
    keep = chance.choice([[], ["--keep", "last"], ["--keep", "none"], ["--keep", "best"]])
    code, said, complaint = give(folder, "--yes", *also, *keep)
    assert (code, complaint) == (0, "")
    assert "freed" in said
    assert table("after") == before
    assert [resumes(run) for run in unfinished] == steps
    finished = [folder.run(name) for name in RUNS if folder.run(name).result.exists()]
    wanted = [] if "none" in keep else [SELECTED]
    assert [steps_of(run) for run in finished] == [wanted] * len(finished)
    assert give(folder, "--yes", *keep)[1].splitlines()[-1] == "nothing to delete"


def test_killed_midway(folder):
    """A kill at any moment leaves whole checkpoints and folders that the next clean deletes."""
    run = done(specs()[0], folder, *range(10, 300, 10), SELECTED)
    chance = random.Random(1)
    for _ in range(12):
        child = os.fork()
        if not child:
            clean(folder)
            os._exit(0)
        time.sleep(chance.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for step in steps_of(run):
            assert size_of(run.checkpoint(step)).files == 2
    clean(folder)
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{SELECTED}"]
    assert read_result(run).selected_step == SELECTED


def test_what_the_next_clean_finishes(folder, monkeypatch):
    """A clean was killed after the rename: the folder is freed at once, whatever its age."""
    run = done(specs()[0], folder, 10, SELECTED)

    def killed(path):
        (path / "zero/part.pt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(folder)
    monkeypatch.undo()
    assert steps_of(run) == [SELECTED]
    assert len(list(run.checkpoints.iterdir())) == 2
    clean(folder)
    assert len(list(run.checkpoints.iterdir())) == 1


def test_what_the_command_prints(folder):
    """Sizes by kind, reasons, what is deleted. Nothing is deleted without a terminal and --yes."""
    done(specs()[0], folder, 10, SELECTED)
    save(begin(specs()[1], folder), 10)
    before = tree(folder.path)
    code, said, complaint = give(folder)
    assert (code, complaint, tree(folder.path)) == (0, "", before)
    lines = said.splitlines()
    manifests = size_of(folder.run(BASE0).checkpoint(10)).num_bytes - 1010
    assert lines[0].split() == ["kind", "files", "size", "to", "free"]
    assert lines[1].split()[:2] == ["checkpoints", "6"]
    assert lines[1].split()[4:] == show(1010 + manifests).split()
    assert lines[-4:] == [
        f"keep:   checkpoints of {BASE0}, {show(1400 + manifests)}: the selected step",
        f"keep:   checkpoints of {BASE1}, {show(1010 + manifests)}: it is running",
        f"delete: {BASE0}/checkpoints/: step-10 ({show(1010 + manifests)})",
        "nothing was deleted. Add --yes to delete",
    ]
    assert give(folder, "--dry-run")[1].splitlines() == lines[:-1]
    code, said, _ = give(folder, "--yes")
    assert (code, said.splitlines()[-1]) == (0, f"freed {show(1010 + manifests)}")
    assert give(folder, "--yes")[1].splitlines()[-1] == "nothing to delete"


def test_refused(folder):
    done(specs()[0], folder, 10, SELECTED)
    assert give(folder, "--keep", "none", "--keep", "best")[::2] == (
        2,
        "error: --keep none is given with other values. Give none alone, or remove it\n",
    )


def test_what_cannot_be_deleted(folder, monkeypatch):
    """The problem is reported, and the other checkpoints are freed."""
    run = done(specs()[0], folder, 10, 20, SELECTED)
    real = shutil.rmtree

    def failing(path):
        if "step-10" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(shutil, "rmtree", failing)
    plan = make_clean_plan(folder, read_status, ["best"], [])
    problems = [problem for _, problem in free(folder, plan.to_delete)]
    assert len(problems) == 2
    assert problems[0].endswith("Permission denied")
    assert problems[1] == ""
    assert steps_of(run) == [SELECTED]


def test_export_finds_its_checkpoint(folder):
    """The checks of `furnace export` accept the run after a clean."""
    from furnace_hpc.inference.source import check_checkpoint, find_checkpoint

    run = done(specs()[0], folder, 10, SELECTED, 450)
    clean(folder)
    found = find_checkpoint(run.path, None)
    assert (found.step, check_checkpoint(found)) == (SELECTED, 1)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (15 * 2**20, "15.0 MiB"),
        (999 * 2**30, "999 GiB"),
        (5 * 2**50, "5,120 TiB"),
    ],
)
def test_sizes_are_readable(num_bytes, text):
    assert show(num_bytes) == text
