"""What YAML 1.1 would guess is read as it is meant, or refused with what was typed, its place and what to write."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from login_study import GRID, command, refused

from furnace_hpc.config.cluster import load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, read_grid, with_settings
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.lookup import parse_value, read_json
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.launch.submission import _yaml

TOP = "name: study\nreference: base\nmetric: test/digit/accuracy\nseeds: [0]\n"
BASE = "base: {deepspeed: zero1, steps: 40, global_batch_size: 16}\n"
HEAD = TOP + BASE  # five lines
ROWS = "variants: {base: {}, full: {loss.alpha: 0.5}}\n"


def file(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "study.yaml"
    path.write_text(head + text)
    return path


def rows(folder: Path, text: str, *settings: str, head: str = HEAD):
    return expand_rows(with_settings(read_grid(file(folder, text, head)), list(settings)))


def problem(folder: Path, text: str, *settings: str, head: str = HEAD) -> str:
    with pytest.raises(ConfigError) as error:
        rows(folder, text, *settings, head=head)
    return str(error.value)


# --- names of rows and other keys ---


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("yes", "true or false"),
        ("no", "true or false"),
        ("On", "true or false"),
        ("1", "a number"),
        ("010", "a number"),
        ("1:30", "a number"),
        ("1_000", "a number"),
        ("0x1F", "a number"),
        ("1e3", "a number"),
        (".5", "a number"),
        ("2026-11-28", "a date"),
        ("~", "null"),
        ("null", "null"),
    ],
)
def test_a_key_that_is_no_text_is_refused_as_typed(tmp_path, typed, kind):
    message = problem(tmp_path, f"variants:\n  base: {{}}\n  {typed}: {{loss.alpha: 1}}\n")
    start = f"{tmp_path}/study.yaml:8:3: key {typed} is {kind} to YAML: put it in quotes to make it text, '{typed}'"
    assert message.startswith(start)


@pytest.mark.parametrize("typed", ["yes", "no", "1", "010", "1e3", "2026-11-28", "null"])
def test_a_key_in_quotes_is_a_row_as_typed(tmp_path, typed):
    found = rows(tmp_path, f"variants: {{base: {{}}, '{typed}': {{loss.alpha: 1}}}}\n")
    assert [row.name for row in found] == ["base", typed]


def test_a_name_that_cannot_be_is_told_with_what_a_name_is(tmp_path):
    message = problem(tmp_path, "variants: {base: {}, '1:30': {loss.alpha: 1}}\n")
    assert message.endswith(
        "variants.1:30: got '1:30', wanted a name: 1 to 64 letters, digits, '.', '_' or '-', and a letter or digit "
        "first (line 6)"
    )


def test_an_empty_row_and_empty_sections_mean_nothing_in_them(tmp_path):
    text = "variants:\n  base:\n  full: {loss.alpha: 0.5}\naxes:\nexclude:\nresources:\nsettings:\n"
    assert [row.name for row in rows(tmp_path, text)] == ["base", "full"]


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 0100", "steps: got '0100', wanted a number: write 100, without leading zeros"),
        ("steps: -007", "steps: got '-007', wanted a number: write -7, without leading zeros"),
        ("steps: 0o17", "steps: got '0o17', wanted a number"),
        ("steps: 1:30", "steps: got '1:30', wanted a number, without `:`"),
        ("steps: '40'", "steps: got '40', wanted a number: write 40, without quotes"),
        ("steps: yes", "steps: got yes (read as true), wanted a number"),
        ("steps: 2026-11-28", "steps: got '2026-11-28', wanted a number"),
        ("steps:", "steps: got nothing: input should be a valid integer"),
        ("steps: 1e400", "steps: got 1e400 (read as inf): input should be a finite number"),
        (
            "optimizer.lr: .inf",
            "optimizer.lr: got .inf (read as inf): input should be a finite number",
        ),
        ("optimizer.lr: 1,5", "optimizer.lr: got '1,5', wanted a number"),
        (
            "optimizer.betas: [0.9, '0.5']",
            "optimizer.betas.1: got '0.5', wanted a number: write 0.5, without quotes",
        ),
        (
            "hang_timeout_s: 0:10:00",
            "hang_timeout_s: got '0:10:00', wanted a number of seconds: write 600",
        ),
        (
            "hang_timeout_s: 10:00",
            "hang_timeout_s: got '10:00', wanted a number of seconds, without `:` and `-`",
        ),
        (
            "model.text_weights: no",
            "model.text_weights: got no (read as false), wanted text: put it in quotes, 'no'",
        ),
        (
            "model.text_weights: 1_0",
            "model.text_weights: got 1_0 (read as 10), wanted text: put it in quotes, '1_0'",
        ),
        ("model.fusion: off", "model.fusion: got off (read as false): input should be 'concat', "),
        (
            "deepspeed.zero_optimization.stage: yes",
            "stage: got yes (read as true), wanted 0, 1, 2 or 3",
        ),
        (
            "tasks: [{name: NO}]",
            "tasks.0.name: got NO (read as false), wanted text: put it in quotes, 'NO'",
        ),
    ],
)
@pytest.mark.parametrize("where", ["variants", "base", "axes", "ablate"])
def test_a_value_is_refused_as_typed_with_its_place(tmp_path, text, message, where):
    key, _, value = text.partition(":")
    text, head, line = {
        "variants": (f"variants:\n  base: {{}}\n  full:\n    {text}\n", HEAD, 9),
        "base": (f"variants: {{base: }}\nbase:\n  deepspeed: zero1\n  {text}\n", TOP, 8),
        "axes": (f"axes:\n  {key}:\n    - 1\n    - {value}\nzip: []\n", HEAD, 9),
        "ablate": (f"ablate:\n  mode: one_at_a_time\n  factors:\n    a:\n      {text}\n", HEAD, 10),
    }[where]
    lines = [one for one in problem(tmp_path, text, head=head).splitlines() if message in one]
    assert len(lines) == 1
    assert lines[0].endswith(f"({tmp_path}/study.yaml:{line})")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *(
            ("1_000", 1000),
            ("0x1F", 31),
            ("0b11", 3),
            ("1e3", 1000.0),
            (".5", 0.5),
            ("-.5", -0.5),
            ("+5", 5),
            ("1.", 1.0),
        ),
        *(
            ("01.5", 1.5),
            ("-0", 0),
            (".5e1", 5.0),
            ("yes", True),
            ("Off", False),
            ("~", None),
            ("", None),
        ),
        *(
            (word, word)
            for word in (
                "010",
                "0o17",
                "1:30",
                "1:00:00",
                "2026-11-28",
                "2001-99-99",
                "y",
                "inf",
                "=",
                "<<",
            )
        ),
        *(
            (word, word)
            for word in (
                "1__0",
                "1_",
                "08",
                "1-00:00:00",
                "2001-12-14t21:59:43.10-05:00",
                "0x",
                "+",
                "1.2.3",
            )
        ),
    ],
)
def test_a_plain_value_means_what_it_looks_like(typed, value):
    read = strict_yaml.load(f"a: {typed}")["a"]
    assert (read, type(read)) == (value, type(value))


# --- times, lists, seeds ---


@pytest.mark.parametrize(
    ("typed", "minutes"),
    [("1:00:00", 60), ("01:00:00", 60), ("1-00:00:00", 1440), ("1-12", 2160), ("0:00:30", 0.5)],
)
def test_a_time_as_slurm_writes_it_is_refused_with_its_number(tmp_path, typed, minutes):
    message = problem(tmp_path, f"{ROWS}resources: {{timeout_min: {typed}}}\n")
    assert message == (
        f"grid 'study', row 'base' and 1 more: resources: timeout_min: got '{typed}', wanted a number of minutes: "
        f"write {minutes} ({tmp_path}/study.yaml:7)"
    )
    (tmp_path / "dev.yaml").write_text(
        f"name: dev\nexecutor: slurm\nsignal_delay_s: {typed}\nqos: on\nsetup:\n"
    )
    with pytest.raises(ConfigError) as error:
        load_profile(str(tmp_path / "dev.yaml"))
    assert sorted(str(error.value).replace(f"{tmp_path}/dev.yaml: ", "").splitlines()) == [
        "qos: got on (read as true), wanted text: put it in quotes, 'on' (line 4)",
        f"signal_delay_s: got '{typed}', wanted a number of seconds: write {minutes * 60:g} (line 3)",
    ]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (
            "5",
            "seeds: got 5, wanted a list: write seeds: [0, 1, 2, 3, 4] for 5 seeds, or [5] for seed 5 (line 4)",
        ),
        ("42", "seeds: got 42, wanted a list: write seeds: [42] for seed 42 (line 4)"),
        ("[010]", "seeds.0: got '010', wanted a number: write 10, without leading zeros (line 4)"),
        ("[1:30]", "seeds.0: got '1:30', wanted a number, without `:` (line 4)"),
        ("[yes]", "seeds.0: got yes (read as true), wanted a number (line 4)"),
        ("['3']", "seeds.0: got '3', wanted a number: write 3, without quotes (line 4)"),
    ],
)
def test_seeds_are_told_what_is_wanted(tmp_path, seeds, message):
    head = HEAD.replace("seeds: [0]", f"seeds: {seeds}")
    assert problem(tmp_path, ROWS, head=head) == f"{tmp_path}/study.yaml: {message}"


def test_a_seed_option_follows_the_rules_of_the_file(tmp_path):
    file(tmp_path, ROWS)
    done = command(
        "submit",
        tmp_path,
        "--grid",
        "study.yaml",
        "--dry-run",
        "--cluster",
        "local",
        "--seed",
        "010",
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "got '010', wanted a whole number: write 10, without leading zeros" in " ".join(
        done.stderr.split()
    )
    assert [whole_number(text) for text in ("0", "12", "1_000")] == [0, 12, 1000]
    for text in ("010", "-1", "1.0", "\u0663", "", "1_", "9" * 19, "yes"):
        with pytest.raises(ConfigError, match="wanted a whole number"):
            whole_number(text)


def test_values_of_set_are_refused_as_typed(tmp_path):
    settings = ("steps=0100", "resources.timeout_min=1:00:00", "resources.partition=no")
    message = problem(tmp_path, ROWS, *settings)
    assert message.replace("grid 'study', row 'base' and 1 more: ", "").splitlines() == [
        "steps: got '0100', wanted a number: write 100, without leading zeros (--set)",
        "resources: timeout_min: got '1:00:00', wanted a number of minutes: write 60 (--set)",
        "resources: partition: got no (read as false), wanted text: put it in quotes, 'no' (--set)",
    ]
    assert rows(tmp_path, ROWS, "resources.partition=010")[0].resources.partition == "010"
    assert rows(tmp_path, ROWS, "deterministic=no")[0].config.deterministic is False


# --- exclude ---


@pytest.mark.parametrize(
    ("key", "written", "asked", "matches"),
    [
        ("loss.alpha", "0.0", "no", False),
        ("loss.alpha", "1", "true", False),
        ("loss.alpha", "1", "1.0", True),
        ("loss.alpha", "1.0", "1", True),
        ("loss.alpha", "1", "'1'", False),
        ("deterministic", "false", "0", False),
        ("deterministic", "false", "no", True),
        ("deterministic", "true", "1", False),
        ("model.modalities", "[text, image]", "[text, image]", True),
        ("model.modalities", "[text, image]", "[text]", False),
        ("optimizer.betas", "[0, 0.5]", "[false, 0.5]", False),
        ("evaluation.metric", "null", "no", False),
        ("evaluation.metric", "null", "~", True),
    ],
)
def test_exclude_matches_values_of_one_kind(tmp_path, key, written, asked, matches):
    text = f"variants: {{base: {{steps: 3}}, full: {{{key}: {written}}}}}\nexclude: [{{{key}: {asked}}}]\n"
    if matches:
        assert [row.name for row in rows(tmp_path, text)] == ["base"]
    else:
        assert "exclude[0] {" in (message := problem(tmp_path, text))
        assert " matches no row (" in message
        assert (f"; {asked} (read as" in message) == (asked in {"no", "~"})


# --- files that would take long, or end with a traceback ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "description: 0x" + "1" * 3700,
            "0x1111111111...111111 is a number of 3,702 characters: put it in quotes",
        ),
        (
            "description: " + "9" * 5000,
            "is a number of 5,000 characters: put it in quotes if it is text",
        ),
        ("description: " + "9" * 20, "99999999999999999999 is beyond 64 bits"),
        ("description: 1e" + "9" * 500, "is a number of 502 characters"),
        ("description: !!int 1" + ":1" * 90_000, "is a number of 180,001 characters"),
        ("description: !!int 1:1", "'1:1' is not an integer"),
        ("description: !!timestamp 2026-11-28", "could not determine a constructor"),
        ("? " + "a." * 400_000 + "\n: 1", "has 800,000 characters, more than 500: shorten it"),
        ("description: !" + "a" * 800_000 + " x", "could not determine a constructor"),
    ],
)
def test_a_small_file_costs_little_and_gives_one_sentence(tmp_path, text, message):
    told = problem(tmp_path, ROWS + text + "\n")
    assert message in told
    assert "\n" not in told
    assert len(told) < 500


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
        ("settings: {" + "".join(f"loss.a{n}: 1, " for n in range(300)) + "}", "at most 200 items"),
        (
            "variants: {base: {" + "".join(f"loss.a{n}: 1, " for n in range(2000)) + "}}",
            "no config has more than 1,000",
        ),
    ],
)
def test_many_problems_are_cut(tmp_path, text, message):
    told = problem(tmp_path, text)
    assert message in told
    assert len(told.splitlines()) <= 102


def test_a_dotted_setting_without_end_is_refused():
    grid = Grid.model_validate(GRID)
    with pytest.raises(ConfigError, match="has more than 32 dots: no config is so deep"):
        expand_rows(with_settings(grid, ["a." * 5000 + "a=1"]))


def test_merged_keys_deep_in_a_file_are_no_duplicates():
    text = "x: &base {x: 0}\ntop:\n  deep:\n    a: &a {<<: *base, x: 1}\nb: {<<: *a}\n"
    assert strict_yaml.load(text) == {
        "x": {"x": 0},
        "top": {"deep": {"a": {"x": 1}}},
        "b": {"x": 1},
    }


def test_a_setting_that_is_no_unicode_is_one_sentence():
    with pytest.raises(ConfigError, match="is not YAML: quote it"):
        parse_value("\udc80")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 4200 + "}", "999999999999...999999 is beyond 64 bits"),
        ('{"a": NaN}', "NaN is not valid JSON: give a number"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested too deep: at most 32 levels are read"),
        (
            "{" + "".join(f'"k{n}": 1, ' for n in range(50_000)) + '"k49999": 1}',
            "key 'k49999' stands twice",
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


def test_a_file_of_an_editor_on_windows_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "study.yaml").write_bytes(
        b"\xef\xbb\xbf" + (HEAD + ROWS).replace("\n", "\r\n").encode()
    )
    assert [row.name for row in expand_rows(load_grid(str(tmp_path / "study.yaml")))] == [
        "base",
        "full",
    ]


def test_a_command_refuses_the_file_without_a_traceback(tmp_path):
    file(tmp_path, f"{ROWS}description: 0x{'1' * 3700}\nresources: {{timeout_min: 1:00:00}}\n")
    assert refused(tmp_path, "study.yaml", "--dry-run", "--cluster", "local") == [
        "study.yaml:7:14: 0x1111111111...111111 is a number of 3,702 characters: put it in quotes if it is text"
    ]


# --- fuzz ---

PLAIN = [
    "yes",
    "no",
    "on",
    "off",
    "true",
    "false",
    "null",
    "~",
    ".inf",
    ".nan",
    "inf",
    "0x",
    "0b",
    "<<",
    "=",
    "y",
    "NO",
]
WORDS = st.sampled_from(PLAIN)
NUMBERISH = st.one_of(st.text("0123456789_:.-+eExXbBoO~", min_size=1, max_size=12), WORDS)
YAMLISH = st.text("ab01 :-_.,'\"[]{}&*!|>%@#?~\n\t<=\\/\u00e9\u2028\ud7ff\U0001f600", max_size=60)


@pytest.mark.fuzz
@given(typed=NUMBERISH)
def test_number_like_text_is_read_right_or_shown_as_typed(tmp_path_factory, typed):
    folder = tmp_path_factory.getbasetemp()
    for key, section in (("partition", "resources"), ("max_attempts", "resources")):
        try:
            found = getattr(
                rows(folder, f"{ROWS}{section}: {{{key}: {typed}}}\n")[0].resources, key
            )
        except ConfigError as error:
            told = str(error)
            assert typed in told or ":7:" in told or "read as null" in told, told
            continue
        if key == "partition":
            assert found in (typed, None)
        else:
            assert found == (
                int(typed, 0) if typed[:3].lstrip("+-")[:2] in {"0x", "0b"} else float(typed)
            )


@pytest.mark.fuzz
@given(text=YAMLISH | st.text(max_size=60))
def test_any_text_is_plain_data_or_one_sentence(text):
    try:
        content = strict_yaml.load(text)
    except yaml.YAMLError:
        with pytest.raises(ConfigError) as error:
            parse_value(text)
        assert "\n" not in str(error.value)
        return
    assert parse_value(text) == content or "nan" in str(content)
    json.dumps(content)
    assert all(entry[3] >= 1 for entry in strict_yaml.entries(text))


@pytest.mark.fuzz
@given(text=st.one_of(NUMBERISH, st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_text_that_is_written_comes_back(text):
    content = {"a": text, "b": [text], text: 1}
    written = strict_yaml.dump(content)
    assert strict_yaml.load(written) == content
    assert yaml.safe_load(written) == content


@pytest.mark.fuzz
@given(content=st.binary(max_size=80) | YAMLISH.map(str.encode))
def test_any_json_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    told = ""
    try:
        json.dumps(read_json(path))
    except ConfigError as error:
        told = str(error)
    assert told == "" or told.startswith(str(path))


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), NUMBERISH, st.just("auto"))
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NUMBERISH, inner, max_size=3)
)
KEYS = (
    "steps",
    "loss",
    "loss.alpha",
    "model.modalities",
    "deepspeed",
    "deepspeed.bf16",
    "tasks",
    "data",
    "resources",
)
SECTIONS = (
    "seeds",
    "variants",
    "axes",
    "zip",
    "exclude",
    "resources",
    "ablate",
    "settings",
    "packs",
    "by",
    "reference",
)


@pytest.mark.fuzz
@given(
    section=st.dictionaries(st.sampled_from(SECTIONS), VALUE, max_size=2),
    base=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=2),
    row=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=2),
    settings=st.lists(
        st.tuples(st.sampled_from(KEYS), YAMLISH | NUMBERISH).map("=".join), max_size=1
    ),
)
def test_any_grid_is_expanded_or_refused(tmp_path_factory, section, base, row, settings):
    content = GRID | {"base": GRID["base"] | base, "variants": {"base": {}, "full": row}} | section
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(strict_yaml.dump(content))
    try:
        grid = read_grid(path)
        found = expand_rows(with_settings(grid, settings))
    except ConfigError:
        return
    again = Grid.model_validate(strict_yaml.load(_yaml(grid)))
    assert found
    assert again.model_dump() == grid.model_dump()
