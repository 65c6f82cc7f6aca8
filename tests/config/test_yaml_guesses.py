"""What YAML 1.1 would guess is read as typed, or refused with its place and what to write."""

import pytest
from grid_files import HEAD, ROWS, TOP, file, problem, rows
from login_study import command

from furnace_hpc.config.cluster import load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.numbers import whole_number


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
def test_a_key_that_is_not_text_is_refused(tmp_path, typed, kind):
    message = problem(tmp_path, f"variants:\n  base: {{}}\n  {typed}: {{loss.alpha: 1}}\n")
    fix = f"Write it in quotes: '{typed}'"
    if typed in {"1:30", ".5", "~"}:  # a name cannot contain these
        fix = (
            "Choose another key. It has letters, digits, '.', '_' or '-', and begins with a letter "
            "or digit"
        )
    assert message == f"{tmp_path}/study.yaml:8:3: key {typed} is {kind} in YAML. {fix}"


@pytest.mark.parametrize("typed", ["yes", "no", "1", "010", "1e3", "2026-11-28", "null"])
def test_a_key_in_quotes_is_text(tmp_path, typed):
    found = rows(tmp_path, f"variants: {{base: {{}}, '{typed}': {{loss.alpha: 1}}}}\n")
    assert [row.name for row in found] == ["base", typed]


def test_an_invalid_name_is_refused(tmp_path):
    message = problem(tmp_path, "variants: {base: {}, '1:30': {loss.alpha: 1}}\n")
    assert message.endswith(
        "variants.1:30: got '1:30', wanted a name. It has 1 to 64 letters, digits, '.', '_' or "
        "'-', and begins with a letter or digit (line 6)"
    )


def test_empty_rows_and_sections_are_accepted(tmp_path):
    text = "variants:\n  base:\n  full: {loss.alpha: 0.5}\naxes:\nexclude:\nresources:\nsettings:\n"
    assert [row.name for row in rows(tmp_path, text)] == ["base", "full"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 0100", "steps: got '0100', wanted a number. Write 100, without leading zeros"),
        ("steps: -007", "steps: got '-007', wanted a number. Write -7, without leading zeros"),
        ("steps: 0o17", "steps: got '0o17', wanted a number"),
        ("steps: 1:30", "steps: got '1:30', wanted a number, without `:`"),
        ("steps: '40'", "steps: got '40', wanted a number. Write 40, without quotes"),
        ("steps: yes", "steps: got yes (read as true), wanted a number"),
        ("steps: 2026-11-28", "steps: got '2026-11-28', wanted a number"),
        ("steps:", "steps: got nothing, wanted a whole number"),
        ("steps: 1e400", "steps: got 1e400 (read as inf), wanted a finite number"),
        (
            "optimizer.lr: .inf",
            "optimizer.lr: got .inf (read as inf), wanted a finite number",
        ),
        ("optimizer.lr: 1,5", "optimizer.lr: got '1,5', wanted a number"),
        (
            "optimizer.betas: [0.9, '0.5']",
            "optimizer.betas.1: got '0.5', wanted a number. Write 0.5, without quotes",
        ),
        (
            "hang_timeout_s: 0:10:00",
            "hang_timeout_s: got '0:10:00', wanted a number of seconds. Write 600",
        ),
        (
            "hang_timeout_s: 10:00",
            "hang_timeout_s: got '10:00', wanted a number of seconds, without `:` and `-`",
        ),
        (
            "model.text_weights: no",
            "model.text_weights: got no (read as false), wanted text. Write 'no'",
        ),
        (
            "model.text_weights: 1_0",
            "model.text_weights: got 1_0 (read as 10), wanted text. Write '1_0'",
        ),
        ("model.fusion: off", "model.fusion: got off (read as false), wanted text"),
        (
            "deepspeed.zero_optimization.stage: yes",
            "stage: got yes (read as true), wanted 0, 1, 2 or 3",
        ),
        (
            "tasks: [{name: NO}]",
            "tasks.0.name: got NO (read as false), wanted text. Write 'NO'",
        ),
    ],
)
@pytest.mark.parametrize("where", ["variants", "base", "axes", "ablate"])
def test_a_wrong_value_is_shown_as_typed_with_its_line(tmp_path, text, message, where):
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


TEXTS = "010 0o17 1:30 1:00:00 2026-11-28 2001-99-99 y inf = << 1__0 1_ 08 1-00:00:00 0x + 1.2.3"
PLAIN = {
    "1_000": 1000,
    "0x1F": 31,
    "0b11": 3,
    "1e3": 1000.0,
    ".5": 0.5,
    "-.5": -0.5,
    "+5": 5,
    "1.": 1.0,
    "01.5": 1.5,
    "-0": 0,
    ".5e1": 5.0,
    "yes": True,
    "Off": False,
    "~": None,
    "": None,
    "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00",
} | {text: text for text in TEXTS.split()}


@pytest.mark.parametrize(("typed", "value"), PLAIN.items())
def test_plain_values(typed, value):
    read = strict_yaml.load(f"a: {typed}")["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("typed", "minutes"),
    [("1:00:00", 60), ("01:00:00", 60), ("1-00:00:00", 1440), ("1-12", 2160), ("0:00:30", 0.5)],
)
def test_slurms_times_are_refused(tmp_path, typed, minutes):
    """The error has the number to write."""
    message = problem(tmp_path, f"{ROWS}resources: {{timeout_min: {typed}}}\n")
    assert message == (
        f"grid 'study', row 'base' and 1 more: resources: timeout_min: got '{typed}', wanted a "
        f"number of minutes. Write {minutes} ({tmp_path}/study.yaml:7)"
    )
    (tmp_path / "dev.yaml").write_text(
        f"name: dev\nexecutor: slurm\nsignal_delay_s: {typed}\nqos: on\nsetup:\n"
    )
    with pytest.raises(ConfigError) as error:
        load_profile(str(tmp_path / "dev.yaml"))
    assert sorted(str(error.value).replace(f"{tmp_path}/dev.yaml: ", "").splitlines()) == [
        "qos: got on (read as true), wanted text. Write 'on' (line 4)",
        f"signal_delay_s: got '{typed}', wanted a number of seconds. Write {minutes * 60:g} "
        "(line 3)",
    ]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (
            "5",
            "seeds: got 5, wanted a list. Write seeds: [0, 1, 2, 3, 4] for 5 seeds, or seeds: [5] "
            "for seed 5 (line 4)",
        ),
        ("42", "seeds: got 42, wanted a list. Write seeds: [42] for seed 42 (line 4)"),
        ("0-4", "seeds: got '0-4', wanted a list. Write seeds: [0, 1, 2, 3, 4] (line 4)"),
        ("1..3", "seeds: got '1..3', wanted a list. Write seeds: [1, 2, 3] (line 4)"),
        ("[0-4]", "seeds: got ['0-4'], wanted a list. Write seeds: [0, 1, 2, 3, 4] (line 4)"),
        (
            "0-99",
            "seeds: got '0-99', wanted a list. Write seeds: [0, 1, 2, ...] with each seed (line 4)",
        ),
        ("0", "seeds: got 0, wanted a list. Write seeds: [0] for seed 0 (line 4)"),
        ("'0, 1'", "seeds: got '0, 1', wanted a list. Write [0, 1] (line 4)"),
        ("[010]", "seeds.0: got '010', wanted a number. Write 10, without leading zeros (line 4)"),
        ("[1:30]", "seeds.0: got '1:30', wanted a number, without `:` (line 4)"),
        ("[yes]", "seeds.0: got yes (read as true), wanted a number (line 4)"),
        ("['3']", "seeds.0: got '3', wanted a number. Write 3, without quotes (line 4)"),
    ],
)
def test_wrong_seeds_are_refused(tmp_path, seeds, message):
    """The error has the list to write."""
    head = HEAD.replace("seeds: [0]", f"seeds: {seeds}")
    assert problem(tmp_path, ROWS, head=head) == f"{tmp_path}/study.yaml: {message}"


def test_a_seed_option_follows_the_rules_of_the_file(tmp_path):
    file(tmp_path, ROWS)
    words = ["--grid", "study.yaml", "--dry-run", "--cluster", "local", "--seed", "010"]
    done = command("submit", tmp_path, *words)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    error = " ".join(done.stderr.split())
    assert "got '010', wanted a whole number. Write 10, without leading zeros" in error
    assert [whole_number(text) for text in ("0", "12", "1_000")] == [0, 12, 1000]
    for text in ("010", "-1", "1.0", "\u0663", "", "1_", "9" * 19, "yes"):
        with pytest.raises(ConfigError, match="wanted a whole number"):
            whole_number(text)


def test_wrong_values_of_set_are_shown_as_typed(tmp_path):
    settings = ("steps=0100", "resources.timeout_min=1:00:00", "resources.partition=no")
    message = problem(tmp_path, ROWS, *settings)
    assert message.replace("grid 'study', row 'base' and 1 more: ", "").splitlines() == [
        "steps: got '0100', wanted a number. Write 100, without leading zeros (--set)",
        "resources: timeout_min: got '1:00:00', wanted a number of minutes. Write 60 (--set)",
        "resources: partition: got no (read as false), wanted text. Write 'no' (--set)",
    ]
    assert rows(tmp_path, ROWS, "resources.partition=010")[0].resources.partition == "010"
    assert rows(tmp_path, ROWS, "deterministic=no")[0].config.deterministic is False


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
def test_exclude_compares_values_of_one_kind(tmp_path, key, written, asked, matches):
    text = f"variants: {{base: {{steps: 3}}, full: {{{key}: {written}}}}}\n"
    text += f"exclude: [{{{key}: {asked}}}]\n"
    if matches:
        assert [row.name for row in rows(tmp_path, text)] == ["base"]
    else:
        assert "exclude[0] {" in (message := problem(tmp_path, text))
        assert " matches no row. Correct its values, or remove it (" in message
        assert (f"; {asked} (read as" in message) == (asked in {"no", "~"})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("variants: {base: {}, b: {loss.alpha: 1, loss: {alpha: 2}}}\n", "variants.b"),
        ("variants: {base: {}, b: {loss: {alpha: 1}, loss.alpha: 1}}\n", "variants.b"),
        (
            "ablate: {mode: one_at_a_time, factors: {f: {loss.alpha: 1, loss: {alpha: 2}}}}\n",
            "ablate.factors.f",
        ),
    ],
)
def test_a_key_has_one_spelling(tmp_path, text, place):
    """Of `a.b: 1` and `a: {b: 2}` one would win silently."""
    fix = "has two values of 'loss.alpha', one with dots and one nested. Keep one"
    assert f"{place} {fix}" in problem(tmp_path, text)
    base = "base: {deepspeed: zero1, optimizer.lr: 1, optimizer: {lr: 2}}\n"
    assert "base has two values of 'optimizer.lr'" in problem(tmp_path, ROWS, head=TOP + base)


def test_dotted_and_nested_keys_may_be_mixed(tmp_path):
    found = rows(
        tmp_path, "variants: {base: {}, b: {optimizer.lr: 1, optimizer: {weight_decay: 2}}}\n"
    )
    assert (found[1].config.optimizer.lr, found[1].config.optimizer.weight_decay) == (1, 2)
