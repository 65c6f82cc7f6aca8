"""The config keys in which rows differ: only unequal sections are compared key by key."""

import pytest
from tables_study import study

from furnace_hpc.config.train_config import run_ids
from furnace_hpc.tables.large.changes import changes_of, differences, flat_identity
from furnace_hpc.tables.large.run_names import ids_of

UPDATES = (
    *({}, {"seed": 3}, {"steps": 77}, {"log_every": 99}, {"steps": 77, "global_batch_size": 8}),
    *({"epochs": 2.0}, {"epochs": 2.0, "steps": 77}, {"epochs": 3.0, "steps": 77}),
)


@pytest.mark.parametrize("ours", UPDATES, ids=str)
@pytest.mark.parametrize("theirs", UPDATES, ids=str)
def test_changes_equal_those_of_all_keys(ours, theirs):
    config = study()[1][0].config
    for other in {id(spec.config): spec.config for spec in study()[1]}.values():
        one, reference = config.model_copy(update=ours), other.model_copy(update=theirs)
        expected = changes_of(flat_identity(one), flat_identity(reference))
        assert differences(one, reference) == expected


def test_ids_are_those_of_the_given_runs():
    """Also after other runs, fewer runs, equal runs, and a caller that changes the list."""
    runs = study()[1]
    copies = [run.model_copy(update={"data_fingerprint": "0" * 16}) for run in runs]
    for asked in (runs, runs[:3], [], runs, copies, runs[::-1], runs):
        found = ids_of(asked)
        assert found == run_ids(asked)
        found.clear()
