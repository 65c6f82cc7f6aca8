"""The key `sbatch`: names, values, what Furnace owns, and how grids change flags."""

import pytest
from login_study import GRID

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, with_settings
from furnace_hpc.config.parsing.sbatch_flags import OF_FOLLOW_UPS, OTHERS, OWNED, merged
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.sections.resources import Resources


def read(flags: dict, model: type = Resources) -> dict:
    """The flags as they are stored."""
    more = {"name": "c", "executor": "slurm"} if model is ClusterProfile else {}
    return validate(model, {"sbatch": flags, **more}, "file", lambda path, value: None).sbatch


def problem(flags: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        read(flags)
    return str(caught.value)


@pytest.mark.parametrize("model", [Resources, ClusterProfile])
def test_names_and_values_are_stored_in_one_form(model):
    flags = {
        "reservation": "x y",
        "exclusive": True,
        "mail_type": ["END", "FAIL"],
        "gres": ["nvme:1", "mps:5"],
        "nice": 100,
        "hold": False,
        "licenses": None,
        "a_flag_of_a_plugin": "1",
    }
    assert read(flags, model) == {
        "reservation": "x y",
        "exclusive": True,
        "mail-type": "END,FAIL",
        "gres": "nvme:1,mps:5",
        "nice": "100",
        "hold": None,
        "licenses": None,
        "a-flag-of-a-plugin": "1",
    }


def test_a_profile_survives_its_json():
    profile = ClusterProfile(name="c", executor="slurm", sbatch={"exclusive": True, "nice": 5})
    assert ClusterProfile.model_validate_json(profile.model_dump_json()) == profile


@pytest.mark.parametrize("name", sorted(OWNED))
def test_flags_that_furnace_owns_are_refused(name):
    for written in (name, name.replace("-", "_")):
        text = problem({written: "1"})
        assert f"sbatch.{written}: " in text
        assert OWNED[name].format(name) in text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("account", "the key account"),
        ("partition", "the key partition"),
        ("time", "the key timeout_min"),
        ("ntasks-per-node", "the key processes_per_node"),
        ("gpus", "the keys gpus_per_node, gpu_flag and gpu_type"),
        ("mem", "the key mem_gb"),
        ("signal", "the key signal_delay_s"),
        ("array", "Furnace sets array itself"),
        ("export", "lines of setup"),
    ],
)
def test_the_error_names_the_key_to_use(name, key):
    assert key in problem({name: "1"})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a\nsrun rm -rf ~", "contains a control character"),
        (["a", "b\r"], "contains a control character"),
        ("a\x7f", "contains a control character"),
        ("a\\b", "contains a backslash"),
        (1.5, "wanted text, a whole number, a list of these, true"),
        ("", "wanted text"),
        ([], "wanted text"),
        ([True], "wanted text"),
        ({"a": 1}, "wanted text"),
        ("x" * 1001, "at most 1,000 characters"),
    ],
)
def test_values_that_sbatch_cannot_have(value, wanted):
    assert wanted in problem({"comment": value})


@pytest.mark.parametrize("name", ["--exclusive", "Exclusive", "x y", "x\n", "", 3, "x=1", "-w"])
def test_names_that_are_no_long_options(name):
    assert "wanted a long option of sbatch without --" in problem({name: True})


@pytest.mark.parametrize(
    "gres", ["gpu:4", "nvme:1,gpu:a100:2", "gres/gpu:1", "gpu", ["gres:gpu:1"]]
)
def test_gpus_are_not_requested_by_gres(gres):
    assert "gres asks for GPUs. Use the keys gpus_per_node" in problem({"gres": gres})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gres/gpu:1", "asks for GPUs. Use the keys gpus_per_node"),
        ("cpu=4,gres/gpu:a100=1", "asks for GPUs"),
        ("cpu:8", "asks for cores. Use the key cpus_per_task"),
    ],
)
def test_gpus_and_cores_are_not_tres_per_task(value, words):
    assert f"tres-per-task {words}" in problem({"tres_per_task": value})
    assert ClusterProfile.model_validate(
        {"name": "c", "executor": "slurm", "sbatch": {"tres-per-task": "gres/nvme:1"}}
    )


def test_a_grid_replaces_and_removes_flags():
    profile = {"reservation": "week", "exclusive": True, "nice": "5"}
    changes = Resources(sbatch={"reservation": "day", "exclusive": None, "hint": "nomultithread"})
    assert merged(profile, changes.sbatch) == (
        ("hint", "nomultithread"),
        ("nice", "5"),
        ("reservation", "day"),
    )
    assert merged({}, {"exclusive": True}) == (("exclusive", ""),)


def test_rows_and_settings_override_single_flags():
    grid = Grid.model_validate(
        GRID
        | {
            "resources": {"sbatch": {"reservation": "week", "mail-type": "END"}},
            "variants": {
                "base": {},
                "full": {"loss.alpha": 0.5, "resources.sbatch.mail_type": "FAIL"},
                "free": {"loss.alpha": 0.7, "resources.sbatch.reservation": None},
            },
        }
    )
    rows = {row.name: row.resources.sbatch for row in expand_rows(grid)}
    assert rows == {
        "base": {"reservation": "week", "mail-type": "END"},
        "full": {"reservation": "week", "mail-type": "FAIL"},
        "free": {"reservation": None, "mail-type": "END"},
    }
    changed = with_settings(grid, ["resources.sbatch.qos_extra=high"])
    assert {row.resources.sbatch["qos-extra"] for row in expand_rows(changed)} == {"high"}


def test_a_wrong_flag_of_a_row_is_an_error():
    row = {"loss.alpha": 0.5, "resources.sbatch.account": "mine"}
    grid = Grid.model_validate(GRID | {"variants": {"base": {}, "full": row}})
    with pytest.raises(ConfigError, match="row 'full': resources: sbatch.account: .*key account"):
        expand_rows(grid)


def test_names_are_in_one_list():
    assert not OTHERS & OWNED.keys()
    assert set(OF_FOLLOW_UPS) <= OTHERS
