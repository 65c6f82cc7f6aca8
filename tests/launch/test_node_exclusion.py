"""Nodes with repeated hardware or launch failures get no more runs of a grid."""

import pytest
from login_study import begin, grid, planned, specs

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.planning.node_exclusion import excluded_nodes, failing_nodes
from furnace_hpc.launch.planning.show_plan import print_plan
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.records.attempts import Attempt, AttemptHistory
from furnace_hpc.slurm.nodelist import node_names

SITE = ClusterProfile(name="c", executor="slurm", cluster_name="big", gpu_flag=None)


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("", []),
        ("node7", ["node7"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("n[08-10],login,gpu-[2]", ["n08", "n09", "n10", "login", "gpu-2"]),
        ("r[1-2]n[0-1]", ["r1n0", "r1n1", "r2n0", "r2n1"]),
    ],
)
def test_node_names(nodelist, names):
    assert node_names(nodelist) == names


def attempt(nodelist: str, reason: str, *blamed: str) -> Attempt:
    return Attempt(attempt=1, nodelist=nodelist, reason=reason, blamed=blamed)


@pytest.mark.parametrize(
    ("attempts", "after", "found"),
    [
        ([attempt("a", "hang")], 2, ()),
        ([attempt("a", "hang"), attempt("a", "node_fail"), attempt("b", "done")], 2, ("a",)),
        ([attempt("a", "crash"), attempt("a", "preempted"), attempt("a", "killed")], 1, ()),
        (
            [
                attempt("[a]", "done"),
                attempt("n[1-2]", "hang", "n2"),
                attempt("n[2-3]", "infrastructure"),
            ],
            2,
            ("n2",),
        ),
        ([attempt("n[1-2]", "gpu", "n2"), attempt("n[2-3]", "gpu", "n2")], 2, ("n2",)),
        ([attempt("n[1-2]", "peer_lost")] * 2, 1, ()),
        ([attempt("n[1-2]", "node_fail"), attempt("n[1-2]", "hang", "another")], 2, ("n1", "n2")),
        # all nodes seen: the cause is elsewhere
        ([attempt("a", "hang")] * 2 + [attempt("b", "hang")] * 2, 2, ()),
        (
            [attempt("a", "hang")] * 2 + [attempt("b", "hang")] * 2 + [attempt("n[1-2]", "done")],
            2,
            ("a", "b"),
        ),
        ([attempt("", "hang")] * 3, 2, ()),
    ],
)
def test_a_node_is_excluded_after_repeated_failures(attempts, after, found):
    attempts = [a.model_copy(update={"nodelist": a.nodelist.replace("[a]", "a")}) for a in attempts]
    assert failing_nodes(attempts, after) == found


def test_the_next_submission_excludes_the_node(tmp_path, monkeypatch, capsys):
    """The batch script excludes it, and the plan names it."""
    folder, spec = GridFolder(tmp_path / "study"), specs()[0]
    for number, node in enumerate(("node7", "node[7-8]"), 1):
        monkeypatch.setenv("SLURM_JOB_NODELIST", node)
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
        if number == 1:
            run = begin(spec, folder)  # only a job has nodes
            write_json(
                run.attempt(1),
                lifecycle.read_attempt(str(run.path), 1) | {"end_unix_s": 1.0, "reason": "stopped"},
            )
        lifecycle.begin(str(run.path), {"job_id": f"5_{number}"})
        lifecycle.close(str(run.path), number + 1, "a node failed", "node_fail")
    assert lifecycle.read_attempt(str(run.path), 1).get("nodelist") is None
    assert lifecycle.read_attempt(str(run.path), 3)["nodelist"] == "node[7-8]"
    plan = planned(tmp_path, grid(), SITE)
    assert plan.exclude == ("node7",)
    [array] = next_wave(plan.shapes, Limits())
    assert "#SBATCH --exclude=node7\n" in batch_text(plan, array, tmp_path / "submission")
    print_plan(plan)
    said = capsys.readouterr().out
    assert "excluded nodes: node7, where at least 2 attempts hung, did not start, had a" in said
    for change in (
        {"exclude_after_failures": None},
        {"exclude_after_failures": 3},
        {"cluster_name": "small"},
    ):
        assert excluded_nodes([AttemptHistory.read(run)], SITE.model_copy(update=change)) == ()
