"""Further flags of sbatch in batch scripts, follow-up jobs, --prepare and submissions."""

import json
import shlex
from types import SimpleNamespace

import pytest
from login_study import command, grid, pack, planned, read_rows, write_grid
from test_array import FULL, flags, text

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch import shape_checks, slurm_array
from furnace_hpc.launch.batch_script import follow_up_parameters, sbatch_flags
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.launch.planning.show_plan import print_batch_texts
from furnace_hpc.launch.shape_checks import AT_A_TIME, check_flag_names, find_refused, try_shapes
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.slurm.client import CommandResult

SITE = {
    "reservation": "big day",
    "exclusive": True,
    "hint": "nomultithread",
    "mail-type": "FAIL",
    "licenses": "a:1,b:2",
    "comment": "it's #1; $(reboot)",
    "gres": "nvme:1",
}
STARTS = "Job 1 to start at 2026-11-29T02:30:00 using 8 processors on nodes n1 in partition gpu"


def test_flags_are_in_the_batch_script(tmp_path):
    script = text(tmp_path, sbatch=SITE)
    found = flags(script)
    assert {name: found.get(name) for name in SITE} == SITE | {"exclusive": ""}
    assert found["gpus-per-node"] == "a100:4"
    # all of them are comments of the shell
    lines = script.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") or not line for line in lines[:last])


@pytest.mark.parametrize(
    ("gpu_flag", "gres", "per_node"),
    [("gres", "gpu:a100:4,nvme:1", None), ("gpus_per_node", "nvme:1", "a100:4")],
)
def test_gres_beside_gpus(tmp_path, gpu_flag, gres, per_node):
    found = flags(text(tmp_path, gpu_flag=gpu_flag, sbatch={"gres": "nvme:1"}))
    assert (found["gres"], found.get("gpus-per-node")) == (gres, per_node)


def test_all_memory_of_a_node(tmp_path):
    assert flags(text(tmp_path, mem_gb=0))["mem"] == "0GB"


def test_a_list_of_partitions(tmp_path):
    assert flags(text(tmp_path, partition=["a40", "a100"]))["partition"] == "a40,a100"
    profile = ClusterProfile.model_validate(FULL)
    plan = planned(tmp_path, grid(resources={"partition": ["x", "y"]}), profile)
    assert [shape.partition for shape in plan.shapes] == ["x,y"]


def test_rows_with_other_flags_are_another_array(tmp_path):
    profile = ClusterProfile.model_validate(FULL | {"sbatch": {"exclusive": True, "nice": 5}})
    row = {"loss.alpha": 0.5, "resources.sbatch": {"exclusive": None, "reservation": "x"}}
    plan = planned(tmp_path, grid(variants={"base": {}, "full": row}), profile)
    assert {shape.sbatch: rows for shape, rows in plan.shapes.items()} == {
        (("exclusive", ""), ("nice", "5")): [0, 1],
        (("nice", "5"), ("reservation", "x")): [2, 3],
    }
    assert str(plan.runs[2].shape) == "2 nodes x 4 ranks, 60 min --nice=5 --reservation=x"
    # run ids do not change
    other = planned(tmp_path, grid(), ClusterProfile.model_validate(FULL))
    assert [run.spec.run_id for run in plan.runs][:2] == [run.spec.run_id for run in other.runs][:2]


def test_shapes_are_read_from_the_rows(tmp_path):
    profile = ClusterProfile.model_validate(FULL | {"sbatch": SITE})
    plan = planned(tmp_path, grid(), profile)
    submission = write_submission(plan)
    for row in read_rows(submission.path):
        assert Shape.read(row["shape"]) == plan.runs[row["row"]].shape
    assert Shape.read(json.loads("[1, 2, 60, null]")) == Shape(1, 2, 60, None)
    assert slurm_array._shared_flags(submission) == set(plan.runs[0].shape.sbatch)


def test_follow_up_jobs_have_few_flags(tmp_path):
    shared = [("comment", "x"), ("exclusive", ""), ("licenses", "a"), ("reservation", "day")]
    place = tmp_path / "submissions/1"

    def found(**changes) -> dict:
        profile = ClusterProfile.model_validate(FULL | changes)
        made = follow_up_parameters(profile, "name", ["1"], place, tmp_path, shared)
        return made["additional_parameters"]

    assert found() == {"comment": "x", "reservation": "day", "requeue": True}
    assert found(follow_up_partition="cpu") == {"comment": "x", "requeue": True}


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({}, "a100&ib"),
        ({"follow_up_partition": "cpu"}, None),
        ({"constraint": "[rack1*2&rack2*2]"}, None),
        ({"constraint": None}, None),
    ],
)
def test_constraint_of_follow_up_jobs(tmp_path, changes, constraint):
    """Some sites refuse every job without a constraint."""
    profile = ClusterProfile.model_validate(FULL | changes)
    made = follow_up_parameters(profile, "name", ["1"], tmp_path / "submissions/1", tmp_path)
    assert made.get("constraint") == constraint


def test_prepare_prints_words_of_a_shell():
    profile = ClusterProfile.model_validate(FULL | {"sbatch": SITE})
    flags_of_site = tuple(sorted((name, "" if v is True else v) for name, v in SITE.items()))
    words = sbatch_flags(profile, Shape(2, 4, 60, None, sbatch=flags_of_site))
    assert {"--exclusive", "--gres=nvme:1", "--mail-type=FAIL", "--wckey=key"} <= set(words)
    assert f"--signal=USR2@{profile.signal_delay_s}" in words  # the template has 120 s
    assert shlex.split(" ".join(words)).count("--comment=it's #1; $(reboot)") == 1
    assert "--constraint=a100&ib" in shlex.split(" ".join(words))


def test_prepare_prints_flags_of_the_grid(tmp_path):
    write_grid(tmp_path, resources={"sbatch": {"reservation": "day", "exclusive": True}})
    pack(tmp_path / "data" / "tridigits")
    (tmp_path / "c.yaml").write_text("name: c\nexecutor: slurm\ngpu_flag: null\n")
    words = ("--grid", "study.yaml", "--cluster", str(tmp_path / "c.yaml"), "--prepare")
    done = command("submit", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert " --exclusive --reservation=day " in done.stdout


def test_an_unknown_flag_is_compared_with_sbatch(monkeypatch):
    shapes = [Shape(1, 1, 60, None, sbatch=(("reservatoin", "x"),))]
    options = frozenset({"site-flag", "account"})
    monkeypatch.setattr(shape_checks.client, "sbatch_options", lambda: options)
    monkeypatch.setattr(shape_checks.client, "has_slurm", lambda: True)
    with pytest.raises(ConfigError, match=r"no option --reservatoin; did you mean 'reservation'\?"):
        check_flag_names(shapes)
    check_flag_names([Shape(1, 1, 60, None, sbatch=(("site-flag", "x"), ("hint", "y")))])
    monkeypatch.setattr(shape_checks.client, "has_slurm", lambda: False)
    check_flag_names(shapes)


class Slurm:
    """Replaces `sbatch --test-only`. It refuses scripts that contain a text."""

    def __init__(self, patch: pytest.MonkeyPatch, refuses: str = "--no-such-text") -> None:
        self.calls, self.refuses = 0, refuses
        patch.setattr(slurm_array.client, "test_only", self.answer)
        patch.setattr(slurm_array.client, "longest_min", lambda partition: None)
        patch.setattr(slurm_array.client, "is_partition_up", lambda partition: True)
        patch.setattr(slurm_array.client, "lacks_nodes_now", lambda partition, nodes: False)

    def answer(self, script: str) -> CommandResult:
        self.calls += 1
        if self.refuses in script:
            return CommandResult(False, "", "allocation failure: Requested reservation is invalid")
        return CommandResult(True, "", f"sbatch: {STARTS}")


@pytest.mark.parametrize("rows", [{}, {"resources.sbatch": {"reservation": "old"}}])
def test_every_shape_is_tested_once_before_sbatch(tmp_path, monkeypatch, rows):
    refuses = "--reservation=old" if rows else "--ntasks-per-node"
    slurm = Slurm(monkeypatch, refuses)
    profile = ClusterProfile.model_validate(FULL)
    variants = {"base": {}, "full": {"loss.alpha": 0.5} | rows}
    plan = planned(tmp_path, grid(variants=variants), profile)
    with pytest.raises(ConfigError) as caught:
        slurm_array.submit_plan(plan, 0)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert "Requested reservation is invalid: `scontrol show reservation`" in str(caught.value)
    assert slurm.calls == len(plan.shapes) == 1 + bool(rows)
    assert not plan.folder.submissions.exists()


def test_a_qos_may_lift_the_time_limit(monkeypatch):
    """Slurm starts such a job, but the partition's limit is shorter."""
    client = shape_checks.client
    qualities = [["normal", "", "", ""], ["long", "", "", "PartitionTimeLimit"]]
    monkeypatch.setattr(client, "configuration", lambda: {"AccountingStorageType": client.SLURMDBD})
    monkeypatch.setattr(client, "_limits_of_accounting", lambda: ([], qualities))
    monkeypatch.setattr(client, "longest_min", lambda partition: 5)
    shapes = {Shape(1, 1, 60, "debug"): [0]}
    answers = dict.fromkeys(shapes, CommandResult(True, "", f"sbatch: {STARTS}"))
    profile = ClusterProfile.model_validate(FULL | {"qos": "long"})
    assert find_refused(shapes, answers, profile) == []
    [problem] = find_refused(shapes, answers, profile.model_copy(update={"qos": None}))
    assert "timeout_min 60 is more than partition debug allows (5)" in problem


@pytest.mark.parametrize("size", ["1001", "0"])
def test_a_site_without_arrays_is_refused(monkeypatch, size):
    settings = {"MaxArraySize": size, "SchedulerParameters": "max_array_tasks=50"}
    monkeypatch.setattr(slurm_array.client, "configuration", lambda: settings)
    monkeypatch.setattr(slurm_array.client, "submit_limit", lambda account, qos: None)
    profile = ClusterProfile.model_validate(FULL)
    if size != "0":
        assert slurm_array.site_limits(profile, 0).max_array_size == 50
        return
    with pytest.raises(ConfigError, match=r"no job arrays \(MaxArraySize = 0\)"):
        slurm_array.site_limits(profile, 0)


def test_a_dry_run_shows_the_arrays_of_the_site(tmp_path, monkeypatch, capsys):
    from furnace_hpc.launch.planning import show_plan

    Slurm(monkeypatch)
    monkeypatch.setattr(show_plan, "has_slurm", lambda: True)
    monkeypatch.setattr(show_plan, "cluster_name", lambda: "here")
    settings = {"MaxArraySize": "1001", "SchedulerParameters": "max_array_tasks=3"}
    monkeypatch.setattr(slurm_array.client, "configuration", lambda: settings)
    print_batch_texts(planned(tmp_path, grid(), ClusterProfile.model_validate(FULL), snapshot="a"))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("#SBATCH --array")] == [
        *("#SBATCH --array=0-2%3", "#SBATCH --array=0%1")
    ]


def test_a_dry_run_with_a_refused_shape_fails(tmp_path, monkeypatch, capsys):
    from furnace_hpc.launch.planning import show_plan

    slurm = Slurm(monkeypatch)
    monkeypatch.setattr(show_plan, "has_slurm", lambda: True)
    monkeypatch.setattr(show_plan, "cluster_name", lambda: "here")
    plan = planned(tmp_path, grid(), ClusterProfile.model_validate(FULL), snapshot="abc")
    print_batch_texts(plan)
    assert f"# sbatch --test-only: {STARTS}" in capsys.readouterr().out
    slurm.refuses = "--ntasks-per-node"
    with pytest.raises(ConfigError, match="sbatch would refuse 4 runs of 2 nodes x 4 ranks"):
        print_batch_texts(plan)
    assert "Requested reservation is invalid" in capsys.readouterr().out
    # the profile of another cluster is not tested
    profile = ClusterProfile.model_validate(FULL | {"cluster_name": "there"})
    print_batch_texts(planned(tmp_path, grid(), profile, snapshot="abc"))
    expected = "--test-only: not run, this is cluster here, and the profile is for there"
    assert expected in capsys.readouterr().out
    monkeypatch.setattr(show_plan, "cluster_name", lambda: None)
    print_batch_texts(plan)
    expected = "--test-only: not run, because Slurm's controller does not answer"
    assert expected in capsys.readouterr().out


def test_shapes_are_tested_side_by_side():
    import threading

    barrier = threading.Barrier(AT_A_TIME, timeout=20)
    shapes = {Shape(1, 1, minutes, None): [0] for minutes in range(1, AT_A_TIME + 1)}

    def test(array) -> CommandResult:
        barrier.wait()
        return CommandResult(True, "", str(array.shape.timeout_min))

    found = try_shapes(shapes, test)
    assert [answer.error for answer in found.values()] == list(map(str, range(1, AT_A_TIME + 1)))


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        (
            {"SBATCH_ACCOUNT": "x", "SLURM_HINT": "y", "SLURM_CONF": "z"},
            "SBATCH_ACCOUNT, SLURM_HINT",
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SBATCH_QOS": "x"}, "SBATCH_QOS"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, ""),
        ({"SLURM_CLUSTERS": "x", "HOME": "y"}, ""),
    ],
)
def test_dropped_variables_are_named_once(monkeypatch, capsys, variables, names):
    monkeypatch.setattr(shape_checks, "os", SimpleNamespace(environ=variables))
    shape_checks.note_dropped_variables()
    said = capsys.readouterr()
    expected = (
        f"jobs do not get {names}: set keys of the cluster profile instead\n" if names else ""
    )
    assert (said.out, said.err) == ("", expected)
