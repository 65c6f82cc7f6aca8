"""A short run of benchmarks/fuzz.py, hostile files, and secrets in texts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import load_grid, with_settings
from furnace_hpc.config.parsing.lookup import parse_value, read_json, read_yaml
from furnace_hpc.config.parsing.text_safety import MASK, find_secret, masked, printable
from furnace_hpc.runs.journal import Submission

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz

HF = "hf_" + "abcdEFGH1234" * 3


def test_hostile_inputs_are_refused(tmp_path):
    """They run nothing, show no secret and give no traceback."""
    tally = fuzz.fuzz(tmp_path.resolve(), 150)
    assert (tally.tracebacks, tally.leaks, tally.bad_scripts) == ([], [], [])
    assert not tally.canary.exists()
    assert min(tally.cases.values()) >= 30
    assert tally.scripts > 5


def test_real_commands_refuse_hostile_names(tmp_path):
    assert fuzz.commands(tmp_path, 3) == []


def test_the_fuzz_detects_a_script_that_runs(tmp_path):
    work = fuzz.Fuzz(tally := fuzz.Tally(tmp_path))
    work._script("names", f"#!/bin/bash\n/usr/bin/touch {tmp_path}/canary\n", {})
    work._script("names", "#!/bin/bash\nif\n", {})
    tally.attempt("names", lambda: {}["no"])
    assert [len(found) for found in (tally.leaks, tally.bad_scripts, tally.tracebacks)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        (
            "a: &a [x]\n"
            + "\n".join(
                f"b{n}: &b{n} [{', '.join(['*' + (f'b{n - 1}' if n else 'a')] * 9)}]"
                for n in range(9)
            ),
            "with aliases expanded",
        ),
        ("a: &a [*a]", "an alias is inside of the value"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: !!bool x", "a value cannot be read"),
        ("a: " + "9" * 5000, "is a number of 5,000 characters. Put it in quotes"),
        ("a: 1\n--- \nb: 2", "found another document"),
        (f"a: 1\nb: {HF}", ":2: this line looks like a secret"),
        ("setup: ['export WANDB_API_KEY=0123456789abcdef']", ":1: this line looks like a secret"),
    ],
)
def test_yaml_beyond_the_limits_is_refused(tmp_path, text, problem):
    """The error is one line and shows no secret."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem) as refused:
        read_yaml(tmp_path / "a.yaml")
    assert HF not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_few_aliases_are_accepted(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}


def test_json_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="nested more than 32 deep"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 4000, "9" * 5000, "&a [*a]"])
def test_hostile_settings_are_refused(text):
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_value(text)


@pytest.mark.parametrize(
    "text",
    [
        HF,
        "export HF_TOKEN=0123456789ab",
        "password: 'hunter2hunter2'",
        "https://me:hunter2@host/x",
        "AKIAABCDEFGHIJKLMNOP",
        "https://hooks.slack.com/services/T0/B0/abcdEFGH1234",
        "https://discord.com/api/webhooks/123/abcdEFGH1234",
        "https://chat.example.org/hooks/abcdefgh1234abcdefgh1234ab",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_secrets_are_found_and_masked(text):
    assert find_secret(f"words before {text}") is not None
    assert find_secret(masked(f"before {text} after")) is None
    assert MASK in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer: bert-base-uncased",
        "max_tokens: 128",
        "export HF_TOKEN=$(cat ~/.token)",
        "token_file: /home/me/.token",
        "secret: $MY_SECRET",
        "the token of a modality",
        "https://host/path?x=1",
        "https://host/hooks/list",
    ],
)
def test_other_words_are_not_masked(text):
    assert find_secret(text) is None
    assert masked(text) == text


def test_values_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert masked("it said correct-horse-battery; false") == f"it said {MASK}; false"


@pytest.mark.parametrize(
    "name", ["DB_PASS", "MYSQL_PWD", "GH_PAT", "SLURM_JWT", "WANDB_KEY", "MY_PASSPHRASE"]
)
def test_variables_with_a_secret_name_are_masked(monkeypatch, name):
    monkeypatch.setenv(name, "correct-horse-battery")
    assert masked("it said correct-horse-battery") == f"it said {MASK}"


@pytest.mark.parametrize(
    "name", ["OLDPWD", "PWD", "PASSED", "PATH_MARK", "TOKENIZERS_PARALLELISM", "KEYBOARD"]
)
def test_other_variables_are_not_masked(monkeypatch, name):
    monkeypatch.setenv(name, "correct-horse-battery")
    assert masked("it said correct-horse-battery") == "it said correct-horse-battery"


def test_a_setting_that_looks_like_a_secret_is_refused(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    for value in (HF, "correct-horse-battery", "https://me:hunter2@host/x"):
        with pytest.raises(ConfigError, match="looks like a secret") as refused:
            with_settings(load_grid("smoke"), [f"model.text_weights={value}"])
        assert value not in str(refused.value)


SPEAKS = """
import logging, os, sys, threading, warnings
from pathlib import Path
from furnace_hpc.launch.rank_main import Rank, _write_to
_write_to(Path(sys.argv[1]), Rank(0, 0, 1, 0))
secret = os.environ["MY_API_KEY"]
print("first", secret, sep="=")
print("api_key", "=", sep="", end="")
print("0123456789abcdef")
sys.stderr.write(secret[:7]); sys.stderr.write(secret[7:] + "\\r50 %"); sys.stderr.flush()
print()
logging.warning("logged %s", secret)
warnings.warn("warned " + secret)
thread = threading.Thread(target=lambda: print("thread", secret)); thread.start(); thread.join()
print("grün", sys.stdout.encoding, sys.stdout.fileno(), flush=True)
raise RuntimeError("raised " + secret)
"""


def test_logs_of_ranks_are_masked(tmp_path):
    """Also what libraries print."""
    log = tmp_path / "logs" / "1-0.log"
    environment = os.environ | {"MY_API_KEY": "correct-horse-battery"}
    done = subprocess.run(
        [sys.executable, "-u", "-c", SPEAKS, log], env=environment, capture_output=True, check=False
    )
    text = log.read_text()
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert "correct-horse-battery" not in text
    assert "0123456789abcdef" not in text
    lines = text.splitlines()
    assert lines[0] == f"first={MASK}"
    assert lines[1] == f"api_key={MASK}"
    for words in ("logged", "warned", "thread", "raised"):
        assert f"{words} {MASK}" in text
    assert "50 %" in lines
    assert "grün utf-8 1" in text


def test_untrusted_text_moves_no_cursor():
    assert printable("grün, 5 % 日本") == "grün, 5 % 日本"
    assert printable("\x1b[2Ja\nb\r\x9bc\u202ed\ud800") == "\\x1b[2Ja\\nb\\r\\x9bc\\u202ed\\ud800"


def test_invalid_lines_of_a_journal_are_ignored(tmp_path):
    bad = [
        {"event": "cancelled", "name": [], "runs": []},
        {"event": "intent", "name": "a"},
        {"event": "cancelled", "runs": [{}]},
    ]
    good = {"event": "cancelled", "runs": ["base-s0-1"]}
    (tmp_path / "journal.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*bad, good])
    )
    assert (Submission(tmp_path).sbatch_calls(), Submission(tmp_path).cancelled()) == (
        [],
        {"base-s0-1"},
    )
