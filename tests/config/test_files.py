"""Read YAML and JSON files, look up names, and check all shipped files."""

import math
import re
from pathlib import Path

import pytest
from login_study import FINGERPRINT, grid, specs

from furnace_hpc.config.cluster import ClusterProfile, load_profile, profile_names
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.parsing.lookup import (
    FOLDERS,
    MAX_FILE_BYTES,
    find_file,
    parse_value,
    read_json,
    read_yaml,
)
from furnace_hpc.config.train_config import accumulation_steps

CHECKOUT = Path(__file__).resolve().parents[2]
GRIDS = sorted((CHECKOUT / FOLDERS["grid"]).glob("*.yaml"))
PROFILES = sorted((CHECKOUT / FOLDERS["cluster"]).glob("*.yaml"))


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3:1", "key 'a' is a duplicate in its mapping. Keep one"),
        ("a:\n  x: 1\n  x: 2\n", ":3:3", "key 'x' is a duplicate in its mapping. Keep one"),
        ("a: {x: 1, x: 2}\n", ":1:11", "key 'x' is a duplicate"),
        ("a: 1\na: 2 #\tb\n", ":2:1", "key 'a' is a duplicate in its mapping. Keep one"),
        ("a:\n\tb: 1\n", ":2:1", "a tab cannot indent YAML. Use spaces"),
        ("a: [1, 2\n", ":2:1", "did not find expected"),
        ("a: b: c\n", ":1:5", "mapping values are not allowed"),
        ("[1, 2]: x\n", ":1:1", "a key must be a word"),
        ("a: !!python/object:os.system x\n", ":1:4", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", ":2:1", "another document"),
    ],
)
def test_broken_yaml_is_refused_with_line_and_column(tmp_path, content, place, problem):
    path = written(tmp_path / "a.yaml", content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}{place}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_own_keys_override_merged_keys(tmp_path):
    path = written(tmp_path / "a.yaml", "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n")
    assert read_yaml(path) == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1, "a": 2}', ": key 'a' is a duplicate. Keep one"),
        ('{"b": {"a": 1, "a": 2}}', ": key 'a' is a duplicate. Keep one"),
        ('{"a": 1,\n x}', ":2:2: not valid JSON: "),
        ("", ":1:1: not valid JSON: "),
    ],
)
def test_broken_json_is_refused(tmp_path, content, problem):
    path = written(tmp_path / "a.json", content)
    with pytest.raises(ConfigError, match=re.escape(f"{path}{problem}")):
        read_json(path)


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_unreadable_files_are_refused(tmp_path, read):
    with pytest.raises(ConfigError, match="not UTF-8 text. Save it as UTF-8"):
        read(written(tmp_path / "latin", "a: \xfc".encode("latin-1")))
    with pytest.raises(ConfigError, match="larger than 1,000,000 bytes. Give a hand-written file"):
        read(written(tmp_path / "huge", b" " * (MAX_FILE_BYTES + 1)))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["3e-3", "3E-3", "+3e-03", "0.003", "3.e-3", "3.0e-3"])
def test_an_exponent_without_a_point_is_a_number(tmp_path, text):
    assert read_yaml(written(tmp_path / "a.yaml", f"a: {text}\n")) == {"a": 0.003}
    assert parse_value(text) == 0.003


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("true", True),
        ("null", None),
        ("[a, 2]", ["a", 2]),
        ("'3'", "3"),
        ("e3", "e3"),
        ("3e", "3e"),
        ("", None),
    ],
)
def test_values_of_settings_are_yaml(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_names_are_looked_up_here_then_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, name, suffix in (
        ("grid", "smoke", "yaml"),
        ("cluster", "local", "yaml"),
        ("DeepSpeed file", "zero1", "json"),
    ):
        assert find_file(kind, name) == CHECKOUT / FOLDERS[kind] / f"{name}.{suffix}"
        mine = written(tmp_path / FOLDERS[kind] / f"{name}.{suffix}", "{}")
        assert find_file(kind, name) == mine


def test_a_path_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "deep" / "mine.yaml", "{}")
    assert find_file("grid", str(path)) == path
    assert find_file("grid", "deep/mine.yaml") == Path("deep/mine.yaml")
    for absent in ("smoke.yaml", "experiments/smok.yaml", "./smoke"):
        with pytest.raises(
            ConfigError, match="there is no such file. Give a path to a file, or a name"
        ):
            find_file("grid", absent)


def test_an_unknown_name_lists_names_of_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "experiments" / "mine.yaml", "{}")
    with pytest.raises(ConfigError) as error:
        find_file("grid", "smoek")
    assert str(error.value).startswith("unknown grid 'smoek'; did you mean 'smoke'? (valid: ")
    assert {"mine", "smoke", "ablation"} <= set(
        re.findall(r"[\w-]+", str(error.value).partition("valid: ")[2])
    )


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_fit_every_shipped_profile(path, monkeypatch):
    """They expand, and their batch sizes divide."""
    monkeypatch.chdir(CHECKOUT)
    asked = read_grid(path)
    rows = expand_rows(asked)
    assert asked.name == path.stem
    assert rows
    for profile_path in PROFILES:
        profile = load_profile(str(profile_path))
        for row in rows:
            nodes, per_node = profile.shape(row.resources)
            micro, steps = accumulation_steps(row.config, nodes * per_node)
            assert micro * steps * nodes * per_node == row.config.global_batch_size


def test_shipped_grids_have_their_rows():
    rows = {
        row.name: row.config.loss
        for row in expand_rows(read_grid(CHECKOUT / "experiments" / "ablation.yaml"))
    }
    assert {name: (loss.alpha, loss.beta) for name, loss in rows.items()} == {
        "base": (0, 0),
        "consistency_only": (0.5, 0),
        "specific_only": (0, 0.3),
        "full": (0.5, 0.3),
    }
    smoke = [row.name for row in expand_rows(read_grid(CHECKOUT / "experiments" / "smoke.yaml"))]
    assert smoke == ["base_stage-1", "base_stage-2", "full_stage-1"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_load_under_their_own_name(path):
    assert load_profile(str(path)).name == path.stem
    assert path.stem in profile_names()


@pytest.mark.parametrize(
    "field", ["partition", "account", "qos", "constraint", "wckey", "cluster_name"]
)
@pytest.mark.parametrize("value", ["a\nrm -rf x", "a\r", "a\x00", "a\x7f"])
def test_control_characters_in_a_profile_are_refused(field, value):
    with pytest.raises(ValueError, match="contains a control character. Write it on one line"):
        ClusterProfile.model_validate({"name": "c", "executor": "slurm", field: value})


@pytest.mark.parametrize("field", ["setup", "srun_args"])
def test_control_characters_in_lists_are_refused(field):
    with pytest.raises(ValueError, match="contains a control character"):
        ClusterProfile.model_validate(
            {"name": "c", "executor": "slurm", field: ["module load x", "a\nb"]}
        )


def test_numbers_survive_yaml(tmp_path):
    for exponent in range(-12, 12):
        value = math.pi * 10.0**exponent
        assert parse_value(repr(value)) == value
    assert (
        grid(base={"deepspeed": "zero1", "optimizer.lr": parse_value("1e-5")}).base["optimizer.lr"]
        == 1e-5
    )
    assert specs()[0].data_fingerprint == FINGERPRINT
