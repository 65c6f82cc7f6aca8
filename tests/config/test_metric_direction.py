"""The directions of metrics, and the errors for a direction that contradicts its metric."""

import re

import pytest
import yaml
from aggregate_study import command, submit
from login_study import GRID, grid, refused, write_grid
from tables_study import finish, study

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.metrics import (
    CONSISTENCY,
    METRICS,
    checked_direction,
    metric_direction,
    metric_names,
)
from furnace_hpc.runs.folder import GridFolder

ALL = metric_names(
    {"digit": "single_label", "genres": "multi_label"}, ("text", "image"), ("val", "test")
)
MIN = {
    "loss",
    "cosine_mismatched",
    "median_rank_there",
    "median_rank_back",
    "alignment",
    "uniformity",
}
NEITHER = {
    "classes_scored",
    "threshold",
    "gap",
    "samples",
    "recall_at_1_chance",
    "recall_at_5_chance",
    "recall_at_10_chance",
}


def test_directions_of_all_metrics():
    for name in ALL:
        last = name.partition("@")[0].rsplit("/", 1)[-1]
        expected = dict.fromkeys(MIN, "min") | dict.fromkeys(NEITHER)
        assert metric_direction(name) == expected.get(last, "max"), name
    known = {*CONSISTENCY, *METRICS["single_label"], *METRICS["multi_label"]}
    assert known >= MIN | NEITHER


@pytest.mark.parametrize("name", ALL)
def test_a_direction_must_not_contradict_its_metric(name):
    """It may be left out if the metric has one."""
    own = metric_direction(name)
    for direction in ("max", "min"):
        if own in (None, direction):
            assert checked_direction(name, direction) == direction
        else:
            better = {"max": "higher", "min": "lower"}[own]
            problem = f"direction {direction} contradicts metric .*: {better} is better"
            with pytest.raises(ConfigError, match=problem):
                checked_direction(name, direction)
    if own:
        assert checked_direction(name, None) == own
    else:
        with pytest.raises(
            ConfigError, match="has no direction of its own. Write direction: max or min"
        ):
            checked_direction(name, None)


def test_a_grid_takes_the_direction_of_its_metric(tmp_path):
    assert grid(metric="test/digit/loss").direction == "min"
    assert grid(metric="test/digit/loss@text", direction="min").direction == "min"
    assert grid(metric="test/digit/accuracy").direction == "max"
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GRID | {"metric": "test/digit/loss"}) + "direction:\n")
    assert read_grid(path).direction == "min"


def test_submit_refuses_a_contradicting_direction(tmp_path):
    write_grid(tmp_path, metric="test/digit/loss", direction="max")
    assert refused(tmp_path, "study.yaml", "--dry-run", "--cluster", "local") == [
        "study.yaml: direction max contradicts metric 'test/digit/loss': lower is better. Remove "
        "the direction, or write min"
    ]


def test_an_unknown_metric_with_any_direction():
    for direction in ({}, {"direction": "max"}, {"direction": "min"}):
        with pytest.raises(
            ConfigError, match="unknown metric 'test/digit/los'; did you mean 'test/digit/loss'"
        ):
            expand_rows(grid(metric="test/digit/los", **direction))


def test_a_loss_without_direction_marks_the_lowest_row(tmp_path):
    """The caption, the mark and `aggregate --direction` follow the metric."""
    folder = GridFolder(tmp_path / "runs" / "study")
    asked, runs = study(metric="test/digit/loss")
    submit(asked, runs, folder)
    losses = {"base": 0.5, "consistency_only": 0.4, "specific_only": 0.7, "full": 0.6}
    for spec in runs:
        finish(
            spec,
            folder,
            metrics={"test/digit/loss": losses[spec.variant], "test/digit/accuracy": 0.5},
        )
    done = command(tmp_path, "--grid", "study", "--no-figures")
    assert (done.returncode, done.stderr) == (0, "")
    table = (tmp_path / "results/study/table.md").read_text()
    assert "lower is better" in table
    bold = [line for line in table.splitlines() if line.startswith("|") and "**" in line]
    assert [re.split(r"[|<]", line)[1].strip() for line in bold] == ["consistency_only"]
    wrong = command(tmp_path, "--grid", "study", "--no-figures", "--direction", "max")
    assert wrong.returncode == 2
    assert "direction max contradicts metric 'test/digit/loss'" in wrong.stderr
    other = command(tmp_path, "--grid", "study", "--no-figures", "--metric", "test/digit/los")
    assert other.returncode == 2
    assert "'test/digit/los' is in no result; did you mean 'test/digit/loss'" in other.stderr
