"""A run whose length is given in epochs trains the steps of its data."""

import json
from math import ceil
from pathlib import Path

import pytest
from killed_ranks import run_attempt
from killed_run import new_run

from furnace_hpc.config.manifest import read_manifest


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_train_the_steps_of_the_epochs(small_data: Path, tmp_path: Path):
    """Even if spec.json has another number of steps. Every sample is seen at least once."""
    samples = read_manifest(small_data).splits["train"]
    changes = {"epochs": 1.0, "global_batch_size": 64, "micro_batch_size": 32, "steps": 1}
    folder = new_run(tmp_path / "place", small_data, stage=1, size=2, steps=1, changes=changes)
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["stopped_early"]) == (ceil(samples / 64), False)
    seen = {
        index
        for path in (folder / "order").glob("*.jsonl")
        for line in path.read_text().splitlines()
        for index in json.loads(line)[3:]
    }
    assert seen == set(range(samples))
