"""What a submission writes if it is refused."""

import time

import pytest
from login_study import grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch import slurm_array
from furnace_hpc.launch.arrays import Limits
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.runs.journal import submissions
from furnace_hpc.slurm.client import CommandResult

CLUSTER = ClusterProfile(name="c", executor="slurm", gpu_flag=None)
ACCEPTED = CommandResult(True, "", "")
REFUSED = CommandResult(False, "", "allocation failure: Invalid account or account/partition")


def pretend(monkeypatch, answer: CommandResult) -> None:
    monkeypatch.setattr(slurm_array.client, "test_only", lambda text: answer)
    monkeypatch.setattr(slurm_array.client, "longest_min", lambda partition: None)
    monkeypatch.setattr(slurm_array, "site_limits", lambda profile, live_jobs: Limits())


def test_a_refused_plan_writes_nothing(tmp_path, monkeypatch):
    """Else a follow-up job would find another grid, and the table a plan that never ran."""
    plan = planned(tmp_path, grid(), CLUSTER)
    pretend(monkeypatch, REFUSED)
    with pytest.raises(ConfigError, match="Invalid account"):
        slurm_array.submit_plan(plan, 0)
    assert list(plan.folder.path.iterdir()) == []


@pytest.mark.parametrize("answer", [REFUSED, ACCEPTED], ids=["refused", "accepted"])
def test_the_code_is_copied_while_slurm_is_asked(tmp_path, monkeypatch, answer):
    """A refusal removes the copy, and keeps the snapshot of an earlier submission."""
    plan = planned(tmp_path, grid(), CLUSTER)
    pretend(monkeypatch, answer)
    monkeypatch.setattr(slurm_array.client, "test_only", lambda text: answer_when(plan, answer))
    monkeypatch.setattr(slurm_array, "submit_wave", lambda *given: ["submitted"])
    if answer is ACCEPTED:
        assert slurm_array.submit_plan(plan, 0) == ["submitted"]
    else:
        with pytest.raises(ConfigError, match="Invalid account"):
            slurm_array.submit_plan(plan, 0)
        assert list(plan.folder.path.iterdir()) == []
        slurm_array.prepare(plan)
        with pytest.raises(ConfigError, match="Invalid account"):
            slurm_array.submit_plan(plan, 0)
    assert [path.name for path in plan.folder.code.iterdir()] == [plan.snapshot]
    assert len(submissions(plan.folder)) == 1


def answer_when(plan: Plan, answer: CommandResult) -> CommandResult:
    """Slurm's answer, given only when the code is being copied or is there."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if plan.folder.code.exists() and any(plan.folder.code.iterdir()):
            return answer
        time.sleep(0.01)
    raise AssertionError("nothing was copied before the answer")


def test_an_interrupt_removes_the_copy(tmp_path, monkeypatch):
    plan = planned(tmp_path, grid(), CLUSTER)
    pretend(monkeypatch, ACCEPTED)

    def interrupted(*given: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_array, "find_refused", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slurm_array.submit_plan(plan, 0)
    assert list(plan.folder.path.iterdir()) == []


def test_a_python_without_archive_withdraws(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir(mode=0o700)
    profile = ClusterProfile(
        name="c", executor="slurm", gpu_flag=None, stage_python=True, scratch="/tmp", python="/no"
    )
    plan = planned(tmp_path / "runs", grid(), profile)
    with pytest.raises(ConfigError, match="does not start here"):
        slurm_array.prepare(plan)
    assert submissions(plan.folder) == []
