"""The order in which a local submission plans, runs its queue, and plans again."""

from types import SimpleNamespace

import pytest

from furnace_hpc.launch.grids import submit_grid
from furnace_hpc.launch.grids.messages import collected
from furnace_hpc.launch.grids.submit_grid import Hooks


def plan(name: str, num_later: int, to_do: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name=name, num_later=num_later, to_do=to_do, notes=(f"note of {name}",))


@pytest.mark.parametrize(
    ("later", "expected", "notes"),
    [
        ([plan("b", 0)], ["queue a", "show b", "queue b"], []),
        ([plan("b", 2)], ["queue a"], ["note of b"]),  # what waits cannot start
        ([plan("b", 1), plan("c", 0, to_do=False)], ["queue a", "show b", "queue b"], []),
    ],
)
def test_stages_follow_while_fewer_runs_wait(monkeypatch, later, expected, notes):
    events = []
    monkeypatch.setattr(submit_grid, "record", lambda one: events.append(f"record {one.name}"))
    monkeypatch.setattr(
        submit_grid, "_run_queue", lambda one, _: not events.append(f"queue {one.name}")
    )
    plans = iter(later)
    hooks = Hooks(show=lambda one: events.append(f"show {one.name}"))
    with collected() as lines:
        outcome = submit_grid._run_here(plan("a", 2), lambda: next(plans), hooks)
    if len(later) == 2:
        expected = [*expected, "show c", "record c"]
    assert events == expected
    assert lines == notes
    assert outcome.plan is later[-1]
    assert not outcome.is_stopped


def test_a_stopped_queue_ends_the_stages(monkeypatch):
    monkeypatch.setattr(submit_grid, "_run_queue", lambda *_: False)
    outcome = submit_grid._run_here(plan("a", 2), pytest.fail, Hooks())
    assert (outcome.plan.name, outcome.is_stopped) == ("a", True)
