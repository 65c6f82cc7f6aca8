"""Files that would take long, or end with a traceback, are refused."""

import re
import time

import pytest
from grid_files import HEAD, ROWS, file, problem
from login_study import GRID, refused

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, read_grid, with_settings
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.lookup import parse_value, read_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "description: 0x" + "1" * 3700,
            "0x1111111111...111111 is a number of 3,702 characters. Put it in quotes",
        ),
        (
            "description: " + "9" * 5000,
            "is a number of 5,000 characters. Put it in quotes if it is text",
        ),
        ("description: " + "9" * 20, "99999999999999999999 does not fit in 64 bits"),
        ("description: 1e" + "9" * 500, "is a number of 502 characters"),
        ("description: !!int 1" + ":1" * 90_000, "is a number of 180,001 characters"),
        ("description: !!int 1:1", "'1:1' is not an integer"),
        ("description: !!timestamp 2026-11-28", "could not determine a constructor"),
        ("? " + "a." * 400_000 + "\n: 1", "has 800,000 characters, more than 500. Shorten it"),
        ("description: !" + "a" * 800_000 + " x", "could not determine a constructor"),
    ],
)
def test_a_small_hostile_file_is_refused_fast(tmp_path, text, message):
    """The error is one short line."""
    error = problem(tmp_path, ROWS + text + "\n")
    assert message in error
    assert "\n" not in error
    assert len(error) < 500


def test_long_text_with_colons_is_text_in_linear_time(tmp_path):
    def seconds(length: int) -> float:
        path = file(tmp_path, ROWS + "description: " + "1:" * length + "1\n")
        start = time.process_time()
        assert len(read_grid(path).description) == 2 * length + 1
        return time.process_time() - start

    seconds(1000)
    # quadratic would be 100 times, and more
    assert seconds(100_000) < 60 * max(seconds(10_000), 0.01)
    message = problem(tmp_path, f"{ROWS}resources: {{timeout_min: {'1:' * 100_000}1}}\n")
    assert "wanted a number of minutes, without `:` and `-`" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "variants:\n  base:\n" + "".join(f"  r{n}: {{steps: 0{n + 1}}}\n" for n in range(2000)),
            "got '01', wanted",
        ),
        ("".join(f"k{n}: 1\n" for n in range(3000)), "unknown key 'k0'"),
        (
            "axes: {" + "".join(f"loss.a{n}: [1], " for n in range(3000)) + "}",
            "3,000 keys are swept, more than 100",
        ),
        (
            "exclude: [" + "{steps: 1}, " * 9000 + "]\naxes: {steps: [" + "1, " * 9000 + "]}",
            "9,000 entries of exclude",
        ),
        (
            "ablate: {mode: leave_one_out, factors: {"
            + "".join(f"f{n}: , " for n in range(300))
            + "}}",
            "at most 200",
        ),
        (
            "settings: {" + "".join(f"loss.a{n}: 1, " for n in range(300)) + "}",
            "at most 200 entries",
        ),
        (
            "variants: {base: {" + "".join(f"loss.a{n}: 1, " for n in range(2000)) + "}}",
            "the row has 2,003 keys, more than 1,000",
        ),
    ],
)
def test_many_problems_are_cut(tmp_path, text, message):
    error = problem(tmp_path, text)
    assert message in error
    assert len(error.splitlines()) <= 102


def test_a_setting_with_many_dots_is_refused():
    grid = Grid.model_validate(GRID)
    with pytest.raises(ConfigError, match="has more than 32 dots. No config is so deep"):
        expand_rows(with_settings(grid, ["a." * 5000 + "a=1"]))


def test_merged_keys_are_not_duplicates():
    text = "x: &base {x: 0}\ntop:\n  deep:\n    a: &a {<<: *base, x: 1}\nb: {<<: *a}\n"
    assert strict_yaml.load(text) == {
        "x": {"x": 0},
        "top": {"deep": {"a": {"x": 1}}},
        "b": {"x": 1},
    }


def test_a_setting_must_be_valid_unicode():
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_value("\udc80")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 4200 + "}", "999999999999...999999 does not fit in 64 bits"),
        ('{"a": NaN}', "NaN is not valid JSON. Give a number"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested more than 32 deep. Use fewer levels"),
        (
            "{" + "".join(f'"k{n}": 1, ' for n in range(50_000)) + '"k49999": 1}',
            "key 'k49999' is a duplicate",
        ),
    ],
)
def test_json_beyond_the_limits_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_json(tmp_path / "a.json")
    (tmp_path / "study").mkdir()
    file(tmp_path / "study", ROWS)
    assert message in problem(tmp_path / "study", ROWS, f"deepspeed={tmp_path}/a.json")


def test_a_file_of_windows_is_read(tmp_path):
    """It has a byte-order mark and CRLF."""
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "study.yaml").write_bytes(
        b"\xef\xbb\xbf" + (HEAD + ROWS).replace("\n", "\r\n").encode()
    )
    names = [row.name for row in expand_rows(load_grid(str(tmp_path / "study.yaml")))]
    assert names == ["base", "full"]


def test_submit_refuses_a_hostile_file(tmp_path):
    file(tmp_path, f"{ROWS}description: 0x{'1' * 3700}\nresources: {{timeout_min: 1:00:00}}\n")
    assert refused(tmp_path, "study.yaml", "--dry-run", "--cluster", "local") == [
        "study.yaml:7:14: 0x1111111111...111111 is a number of 3,702 characters. Put it in quotes "
        "if it is text"
    ]
