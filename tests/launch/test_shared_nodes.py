"""Several runs per node: the plan, the arrays, the batch script, the local queue."""

import shlex
import subprocess

import pytest
from login_study import command, grid, pack, planned, specs, write_grid

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.batch_script import sbatch_flags
from furnace_hpc.launch.local_queue import Slots, describe_sharing, find_slots
from furnace_hpc.launch.planning.node_exclusion import failing_nodes
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.launch.planning.shared_nodes import (
    gpus_of_run,
    local_runs_per_gpu,
    local_width,
    on_own_gpus,
    runs_per_gpu,
    runs_per_node,
    unshared,
)
from furnace_hpc.launch.shape_checks import note_shared_cores
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import Attempt

SHARED = Shape(1, 1, 60, None, runs_per_node=4)
NODE = {
    "name": "big",
    "executor": "slurm",
    "gpus_per_node": 8,
    "gpu_type": "a100",
    "cpus_per_task": 4,
    "mem_gb": 480,
    "runs_per_node": 4,
}


def profile(**changes) -> ClusterProfile:
    return ClusterProfile.model_validate(NODE | changes)


@pytest.mark.parametrize(
    ("changes", "asked", "number"),
    [
        ({}, {}, 4),
        ({"runs_per_node": None}, {}, 1),
        ({"runs_per_node": "auto"}, {}, 8),
        ({"runs_per_node": "auto"}, {"processes_per_node": 3}, 2),
        ({"runs_per_node": "auto"}, {"processes_per_node": 8}, 1),
        ({}, {"runs_per_node": 2}, 2),
        ({}, {"runs_per_node": "auto"}, 8),
        ({}, {"nodes": 2}, 1),
        ({"executor": "local"}, {}, 1),
        ({"gpus_per_node": None}, {}, 4),
        ({"gpus_per_node": 0}, {"runs_per_node": 32}, 32),
    ],
)
def test_runs_of_a_node(changes, asked, number):
    assert runs_per_node(profile(**changes), Resources(**asked)) == number


@pytest.mark.parametrize(
    ("changes", "asked", "places", "per_gpu"),
    [
        ({"runs_per_node": None}, {"runs_per_gpu": 2}, 16, 2),
        ({"runs_per_node": "auto", "runs_per_gpu": 3}, {}, 24, 3),
        ({"runs_per_gpu": 3}, {"runs_per_gpu": 1}, 4, 1),
        ({"runs_per_gpu": 3}, {}, 4, 1),  # enough GPUs for all
        ({"runs_per_gpu": 3}, {"runs_per_node": 16}, 16, 2),
        ({"runs_per_gpu": 3}, {"runs_per_node": 1}, 1, 1),
        ({"runs_per_node": None, "gpus_per_node": None}, {"runs_per_gpu": 2}, 2, 2),
        ({"gpus_per_node": None, "runs_per_gpu": 2}, {}, 4, 2),
        # collectives of two runs could wait for each other
        ({"runs_per_gpu": 2, "runs_per_node": "auto"}, {"processes_per_node": 2}, 4, 1),
        ({"runs_per_gpu": 2, "runs_per_node": None}, {"nodes": 2}, 1, 1),
        ({"runs_per_gpu": 2, "executor": "local"}, {}, 1, 2),
    ],
)
def test_runs_of_a_gpu(changes, asked, places, per_gpu):
    site, resources = profile(**changes), Resources(**asked)
    assert (runs_per_node(site, resources), runs_per_gpu(site, resources)) == (places, per_gpu)


def test_a_gpu_that_is_not_there_is_refused():
    resources = Resources(runs_per_gpu=2)
    with pytest.raises(ConfigError, match="runs_per_gpu 2 needs GPUs.*gpus_per_node 0 .*remove"):
        runs_per_gpu(profile(gpus_per_node=0), resources)
    none = {"gpus_per_node": None, "gpu_flag": None}
    with pytest.raises(ConfigError, match="gpus_per_node None and gpu_flag null: set"):
        runs_per_gpu(profile(**none), resources)
    few = "runs_per_node 20 with 1 rank per run and runs_per_gpu 2 needs 10 GPUs.*at most 16"
    with pytest.raises(ConfigError, match=few):
        runs_per_node(profile(runs_per_node=20), resources)


def test_a_node_with_too_few_gpus_is_refused():
    wanted = "runs_per_node 4 with 4 ranks per run needs 16 GPUs, and cluster 'big' has "
    with pytest.raises(ConfigError, match=f"{wanted}gpus_per_node 8: use at most 2"):
        runs_per_node(profile(), Resources(processes_per_node=4))
    with pytest.raises(ConfigError, match="auto divides the GPUs of a node.*as a number"):
        runs_per_node(profile(runs_per_node="auto", gpus_per_node=0), Resources())


def test_a_run_is_billed_its_share(tmp_path):
    """The node-hours count a node once."""
    plan = planned(tmp_path, grid(), profile())
    assert {run.attempt.gpus for run in plan.runs} == {2}
    assert {run.attempt.runs_per_node for run in plan.runs} == {4}
    assert plan.gpu_hours[0] == 8.0
    assert plan.node_hours == 1.0
    alone = planned(tmp_path, grid(), profile(runs_per_node=1))
    assert (alone.gpu_hours[0], alone.node_hours) == (32.0, 4.0)


def test_a_run_is_billed_its_part_of_a_gpu(tmp_path):
    """Three runs on two GPUs pay for both."""
    two = {"gpus_per_node": 2, "runs_per_gpu": 2}
    plan = planned(tmp_path, grid(), profile(**two))
    assert {(run.attempt.gpus, run.attempt.runs_per_gpu) for run in plan.runs} == {(0.5, 2)}
    assert (plan.gpu_hours[0], plan.node_hours) == (2.0, 1.0)
    [shape] = plan.shapes
    assert str(shape.describe(4)).startswith("4 runs in 1 job of 4, 2 per GPU, each 1 node x 1")
    [alone] = planned(tmp_path, grid(), profile(**two, runs_per_node=2)).shapes
    assert gpus_of_run(profile(**two), alone) == 1
    assert "per GPU" not in alone.describe(4)
    three = profile(**two, runs_per_node=3)
    [shape] = planned(tmp_path, grid(), three).shapes
    assert gpus_of_run(three, shape) == pytest.approx(2 / 3)
    assert Shape.read(list(shape)) == shape
    assert Shape.read(list(shape)[:6]).runs_per_gpu == 1  # a row of an older version


def test_runs_of_several_ranks_share_no_gpu(tmp_path):
    plan = planned(tmp_path, grid(), profile(runs_per_gpu=2, processes_per_node=2))
    assert on_own_gpus(plan) == "runs_per_gpu does not apply to 4 runs of more than one rank"
    assert on_own_gpus(planned(tmp_path, grid(), profile(runs_per_gpu=2))) == ""


def test_runs_of_several_nodes_are_named(tmp_path):
    plan = planned(tmp_path, grid(), profile(nodes=2))
    assert unshared(plan) == "runs_per_node does not apply to 4 runs of more than one node"
    assert unshared(planned(tmp_path, grid(), profile())) == ""


def test_an_index_has_several_rows():
    alone = Shape(1, 1, 60, None)
    shapes = {SHARED: [9, 0, 1, 2, 3, 4, 7], alone: [5, 6]}
    shared, other = next_wave(shapes, Limits())
    assert (shared.rows, shared.indices) == ((0, 1, 2, 3, 4, 7, 9), [0, 1])
    assert shared.shared_rows == ["0-4,7,9", "4"]
    assert (other.rows, other.indices, other.shared_rows) == ((5, 6), [5, 6], [])


def test_limits_count_jobs_and_not_runs():
    """Every row is sent once, also by waves of few jobs."""
    rows = list(range(100))
    assert [len(array.rows) for array in next_wave({SHARED: rows}, Limits(10))] == [40, 40, 20]
    [wave] = next_wave({SHARED: rows}, Limits(1001, free_jobs=3))
    assert (wave.rows, wave.indices) == (tuple(range(12)), [0, 1, 2])
    sent: list[int] = []
    while rows:
        for array in next_wave({SHARED: rows}, Limits(5, free_jobs=7)):
            sent += array.rows
        rows = [row for row in range(100) if row not in sent]
    assert sorted(sent) == list(range(100))


def test_the_journal_names_the_job_of_each_row(tmp_path):
    made = Submission(tmp_path)
    made.note("intent", name="a", kind="array", base=0, rows=[3, 0, 8, 9, 5], runs_per_node=2)
    made.note("submitted", name="a", job_id="12")
    [call] = made.sbatch_calls()
    assert call.elements == {0: "12_0", 3: "12_0", 5: "12_1", 8: "12_1", 9: "12_2"}


def test_rows_of_older_submissions_are_read():
    assert Shape.read([2, 4, 60, "gpu"]) == Shape(2, 4, 60, "gpu", (), 1)
    assert Shape.read([1, 1, 60, None, [["hint", "x"]], 4]) == Shape(
        1, 1, 60, None, (("hint", "x"),), 4
    )
    assert str(SHARED) == "1 node x 1 rank, 60 min"
    assert SHARED.describe(41) == "41 runs in 11 jobs of 4, each 1 node x 1 rank, 60 min"
    assert Shape(1, 1, 60, None).describe(1) == "1 run of 1 node x 1 rank, 60 min"


def test_the_script_starts_the_runner(tmp_path):
    asked = profile(srun_args=["--mpi=none"], processes_per_node=2)
    plan = planned(tmp_path, grid(), asked, snapshot="abc")
    [array] = next_wave(plan.shapes, Limits())
    script = batch_text(plan, array, tmp_path / "study/submissions/1")
    lines = script.splitlines()
    for flag in ("array=0%1", "ntasks-per-node=8", "gpus-per-node=a100:8", "mem=480GB"):
        assert f"#SBATCH --{flag}" in lines
    assert not [line for line in lines if line.startswith("srun")]
    assert "begin-row" not in script
    [line] = [line for line in lines if "runner.py" in line]
    words = shlex.split(line)
    assert words[:2] == ["python3", "-S"]
    assert words[4:6] == ["furnace-study-TOKEN", "4"]
    options = words[words.index("--srun") + 1 : words.index("--ranks")]
    assert options == ["--cpus-per-task=4", "--kill-on-bad-exit=1", "--wait=60", "--mpi=none"]
    assert words[-2:] == ["furnace_hpc.launch.rank_main", str(tmp_path / "study/submissions/1")]
    assert "launch" in words[words.index("--ranks") :]
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--ntasks-per-node=8" in sbatch_flags(asked, array.shape)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [("gres", "gres", "gpu:a100:8"), ("gpus_per_task", "gpus-per-task", "a100:2")],
)
def test_the_job_asks_for_the_gpus_of_all_runs(tmp_path, flag, name, value):
    plan = planned(tmp_path, grid(), profile(gpu_flag=flag), snapshot="abc")
    [array] = next_wave(plan.shapes, Limits())
    script = batch_text(plan, array, tmp_path / "study/submissions/1")
    assert f"#SBATCH --{name}={value}" in script.splitlines()


@pytest.mark.parametrize(
    ("flag", "lines"),
    [
        ("gres", ["--gres=gpu:a100:2", "--ntasks-per-node=4", "--cpus-per-task=4"]),
        ("gpus_per_task", ["--gpus-per-task=a100:1", "--ntasks-per-node=2", "--cpus-per-task=8"]),
    ],
)
def test_the_job_asks_for_shared_gpus_once(tmp_path, flag, lines):
    """--gpus-per-task needs a task for each GPU. The cores are the same."""
    site = profile(gpu_flag=flag, gpus_per_node=2, runs_per_gpu=2)
    plan = planned(tmp_path, grid(), site, snapshot="abc")
    [array] = next_wave(plan.shapes, Limits())
    script = batch_text(plan, array, tmp_path / "study/submissions/1")
    assert {f"#SBATCH {line}" for line in lines} <= set(script.splitlines())
    [shape] = plan.shapes
    assert set(lines) <= set(sbatch_flags(site, shape))


def test_a_local_gpu_has_several_runs(tmp_path, monkeypatch):
    """The first slots have different GPUs, and a free slot is on the least used one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    slots = find_slots(1, runs_per_gpu=2)
    assert slots.gpus == ((4,), (7,), (4,), (7,))
    assert slots.width == 4
    assert [slots.cost_of(slot) for slot in range(4)] == [0.5] * 4
    assert slots.best({1, 2, 3}) == 1
    assert slots.best({0, 1}) == 0
    assert slots.best({0, 2, 3}) == 0
    assert slots.best({0, 2}) == 0
    three = slots.limited(3)
    assert [three.cost_of(slot) for slot in range(3)] == [0.5, 1, 0.5]
    assert [slots.limited(2).cost_of(slot) for slot in range(2)] == [1, 1]
    here = profile(executor="local", gpus_per_node=None, runs_per_node=None, runs_per_gpu=2)
    plan = planned(tmp_path, grid(), here)
    assert local_runs_per_gpu(plan) == 2
    both = "up to 2 runs use one GPU at the same time, with time slicing"
    assert describe_sharing(plan, slots, False) == both
    alone = describe_sharing(plan, slots.limited(2), False)
    assert alone == "runs_per_gpu has no effect: each run has GPUs of its own"
    cores = describe_sharing(plan, Slots(2, 1, ()), False)
    assert cores == "runs_per_gpu has no effect: runs use the CPU here"
    assert "compute mode is Exclusive_Process" in describe_sharing(plan, slots, True)
    assert describe_sharing(planned(tmp_path, grid(), profile()), slots, False) == ""


def test_the_local_queue_runs_as_many_at_a_time(tmp_path):
    here = profile(executor="local", gpus_per_node=None, runs_per_node=2)
    assert local_width(planned(tmp_path, grid(), here)) == 2
    three = grid(resources={"runs_per_node": 3})
    assert local_width(planned(tmp_path, three, here)) == 3
    auto = profile(executor="local", runs_per_node="auto")
    assert local_width(planned(tmp_path, grid(), auto)) is None
    cores, gpus = Slots(8, 1, ()), Slots(2, 4, ((0,), (1,)))
    assert cores.limited(2).width == 2
    assert cores.limited(None) == cores
    assert gpus.limited(1).width == 1
    assert gpus.limited(5).width == 2  # each run has GPUs of its own


def test_the_key_changes_no_run():
    """Resources are not part of a run's identity."""
    ids = [spec.run_id for spec in specs(resources={"runs_per_node": 4})]
    assert ids == [spec.run_id for spec in specs()]


def test_a_dry_run_shows_jobs_and_node_hours(tmp_path):
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    (tmp_path / "c.yaml").write_text(
        "{name: c, executor: slurm, gpus_per_node: 4, runs_per_node: auto, "
        "setup: ['export DS_ACCELERATOR=cpu']}"
    )
    done = command("submit", tmp_path, "--grid", "study.yaml", "--cluster", "c.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "4 runs in 1 job of 4, each 1 node x 1 rank, 60 min" in done.stdout
    assert "at most 4.0 GPU-hours with one attempt per run" in done.stdout
    assert "at most 1.0 node-hours with one attempt per run" in done.stdout
    assert "# --- batch script of the array of 4 runs ---" in done.stdout
    assert "/shared_node/runner.py" in done.stdout


def test_a_dead_node_counts_once_for_all_its_runs():
    """Runs that share a node end together. Two starts of a job count twice."""
    first, second = {"host": "a", "pid": 1}, {"host": "a", "pid": 2}
    facts = {"attempt": 1, "nodelist": "a", "reason": "node_fail", "runs_per_node": 4}
    runs = [Attempt(**facts, holder=first) for _ in range(4)]
    assert failing_nodes(runs, 2) == ()
    assert failing_nodes([*runs, Attempt(**facts, holder=second)], 2) == ("a",)
    alone = [Attempt(**facts | {"runs_per_node": 1}, holder=first) for _ in range(2)]
    assert failing_nodes(alone, 2) == ("a",)


@pytest.mark.parametrize(
    ("changes", "flags", "runs", "note"),
    [
        ({}, (), 4, "asks for 1 CPU."),
        ({"cpus_per_task": 3}, (), 4, "asks for 3 CPUs."),
        ({"cpus_per_task": 4}, (), 4, ""),
        ({}, (("hint", "nomultithread"),), 4, ""),
        ({}, (("exclusive", ""),), 4, ""),
        ({}, (("cpus-per-gpu", "7"),), 4, ""),
        ({}, (), 1, ""),
        ({"partition": "whole"}, (), 4, ""),
    ],
)
def test_runs_cannot_share_a_core(tmp_path, monkeypatch, capsys, changes, flags, runs, note):
    """Slurm 22.05: two of four steps wait if a job of four CPUs has two cores."""
    lines = 'case "$*" in *=whole*) echo "whole|2|EXCLUSIVE" ;; *) echo "cpu|1|NO"; echo "p*|2+|NO"'
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{lines} ;; esac\n")
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    for name in ("sinfo", "sbatch"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    profile = ClusterProfile.model_validate({"name": "c", "executor": "slurm"} | changes)
    shape = Shape(1, 1, 60, None, sbatch=flags, runs_per_node=runs)
    note_shared_cores([shape], profile)
    printed = capsys.readouterr().err
    assert (note in printed) if note else not printed
    assert not note or "set cpus_per_task to a multiple of 2" in printed
