"""Mistakes in a grid file are reported at once, each with its place and the nearest valid name."""

import pytest
import yaml
from login_study import GRID, specs

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import load_grid, read_grid


def refused(**changes) -> str:
    with pytest.raises(ConfigError) as error:
        specs(**changes)
    return str(error.value)


def test_all_problems_of_a_file_are_reported_at_once(tmp_path):
    """Each has its key and the nearest valid name."""
    content = GRID | {
        "seed": [0],
        "direction": "up",
        "zip": [{"steps": [1, 2], "loss.alpha": [1]}],
        "seeds": "0",
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        read_grid(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("unknown key 'seed'; did you mean 'seeds'?" in line for line in lines)
    assert any("direction: got 'up', wanted 'max' or 'min'" in line for line in lines)
    assert any("seeds: got '0', wanted a list. Write [0]" in line for line in lines)
    assert len(lines) == 3


def test_problems_of_several_rows():
    variants = {
        "base": {"optimzer.lr": 1},
        "b": {"optimizer.lr": -1, "model.widht": 8},
        "c": {"deepspeed": "zero7"},
    }
    lines = refused(variants=variants).splitlines()
    assert len(lines) == 4
    assert "row 'base': unknown key 'optimzer'; did you mean 'optimizer'?" in lines[0]
    assert any(
        "row 'b': unknown key 'model.widht'; did you mean 'width'?" in line for line in lines
    )
    assert any(
        "row 'b': optimizer.lr: got -1, wanted a number greater than 0" in line for line in lines
    )
    assert "row 'c': unknown DeepSpeed file 'zero7'; did you mean 'zero" in lines[3]
    assert "(valid: zero0, zero1, zero1_fp32, zero2, zero2_checkpointed, zero3, " in lines[3]


def test_a_mistake_of_the_base_is_reported_once():
    lines = refused(base=GRID["base"] | {"stepps": 3}).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "grid 'study', row 'base' and 1 more: unknown key 'stepps'; did you mean 'steps'?"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "got a list, wanted a mapping"),
        ("word\n", "got text, wanted a mapping"),
        ("", "got nothing, wanted a mapping"),
    ],
)
def test_a_file_without_a_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_grid(str(path))


def test_a_list_in_place_of_a_mapping_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GRID | {"variants": ["base", "full"]}))
    with pytest.raises(ConfigError, match=r"variants: got .*'base', 'full'.*, wanted a mapping"):
        load_grid(str(path))
    assert "loss: got [1, 2]" in refused(variants={"base": {"loss": [1, 2]}})
