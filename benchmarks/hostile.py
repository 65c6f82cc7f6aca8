"""Strategies for hostile inputs of everything that reads files of users or of others."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

TOKEN = "hf_" + "Q7planted" * 4
PLANTED = "correct-horse-battery"  # of the environment
KINDS = ("names", "yaml", "profiles", "manifests", "records")
GRID: dict[str, Any] = {
    "name": "study",
    "base": {"deepspeed": "zero1", "steps": 40, "global_batch_size": 16},
    "seeds": [0],
    "reference": "base",
    "metric": "test/digit/accuracy",
    "variants": {"base": {}, "full": {"loss.alpha": 0.5}},
}
PROFILE: dict[str, Any] = {"name": "c", "executor": "slurm", "nodes": 1, "processes_per_node": 1}
MANIFEST_OF_DATA: dict[str, Any] = {
    "format": 1,
    "dataset": "tridigits",
    "modalities": ["text"],
    "splits": {"train": 8, "val": 8, "test": 8},
    "columns": {"label.digit": {"dtype": "uint8", "shape": []}},
    "files": {"train/x.npy": {"num_bytes": 1, "xxh3_128": "0" * 32}},
    "labels": {"digit": {"kind": "single_label", "classes": ["0", "1"]}},
    "statistics": {},
    "vocab_size": 100,
    "preprocessing": {},
    "versions": {},
    "fingerprint": "feedfeedfeedfeed",
}


def canaries(place: Path) -> list[str]:
    """Words that would make the canary file if they were run, or read as a path or format."""
    touch = f"/usr/bin/touch {place}/canary"
    words = [
        "a\n{}",
        "a;{}",
        "$({})",
        "`{}`",
        "a\r\n{} #",
        "a && {}",
        "'; {}; '",
        '"; {}; "',
        "a\x00{}",
        "|{}",
        "\x1b]0;{}\x07",
    ]
    words += [
        "a\n#SBATCH --wrap={}",
        "\u2028{}",
        "\x85{}",
        "${{IFS}}{}",
        "%j{}",
        "--wrap={}",
        "&{}&",
        ">{}",
    ]
    fixed = [
        "../../etc",
        "/etc/passwd",
        "..",
        ".",
        "-rf",
        "~root",
        "%a",
        "\\",
        "a" * 300,
        "",
        " ",
        "\x7f",
        "é",
        "a\tb",
        TOKEN,
    ]
    return (
        [word.format(touch) for word in words]
        + fixed
        + [f"token={TOKEN}", f"HF_TOKEN={TOKEN} x", f"export API_KEY={TOKEN}"]
    )


def hostile_text(place: Path) -> st.SearchStrategy[str]:
    """Planted words, any Unicode, and both joined together."""
    planted = st.sampled_from(canaries(place))
    anything = st.text(max_size=40)
    return st.one_of(
        planted,
        anything,
        st.tuples(anything, planted).map("".join),
        st.from_regex(r"[A-Za-z0-9._-]{1,70}", fullmatch=True),
    )


def hostile_value(place: Path) -> st.SearchStrategy[Any]:
    """Values of every kind, nested."""
    text = hostile_text(place)
    huge = st.sampled_from([2**63, -(2**63), 10**400, float("inf"), float("nan"), 1e308, -0.0])
    leaf = st.one_of(text, st.integers(), st.floats(), st.none(), st.booleans(), huge)
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )


def hostile_yaml(place: Path) -> st.SearchStrategy[str]:
    """Text that is YAML, almost YAML, or hard for a parser."""
    command = f"/usr/bin/touch {place}/canary"
    tags = [
        f"a: !!python/object/apply:os.system ['{command}']",
        f"!!python/object/new:subprocess.Popen [['sh', '-c', '{command}']]",
        f"a: !!python/name:os.system ''\nb: !!python/module:os ''\nc: !shell {command}",
        "a: &a [x]\n"
        + "\n".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]"
            for n in range(12)
        ),
        "a: &a [*a]",
        "&a a: {<<: *a}",
        "[" * 5000,
        "{a: " * 2000,
        "- " * 3000,
        "a: 2001-99-99",
        "a: " + "9" * 5000,
        "a: !!binary '%%%'",
        "a: !!int x",
        "a: !!timestamp never",
        "a: !!set {a, b}\nb: !!omap [a: 1]",
        "? [a, b]\n: c",
        "a: 1:99:99.5",
        "a: 0x\nb: 0b\nc: .inf",
        "--- a\n--- b",
        "%YAML 9.9\n---\na",
        "\ufeffa: 1",
        "a: '\\ud800'",
        f"name: {TOKEN}",
        f"description: my api_key={TOKEN}\nname: a",
    ]
    dumped = hostile_value(place).map(
        lambda value: yaml.safe_dump({"name": "study", "base": value})
    )
    cut = st.tuples(st.just(yaml.safe_dump(GRID)), st.integers(0, 150), st.text(max_size=8)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )
    return st.one_of(st.sampled_from(tags), dumped, cut, st.text(max_size=200))


def mutated(content: dict[str, Any], place: Path) -> st.SearchStrategy[dict[str, Any]]:
    """A valid mapping in which some keys have hostile values."""
    return st.dictionaries(
        st.sampled_from([*content, "more"]), hostile_value(place), min_size=1, max_size=3
    ).map(lambda changes: content | changes)


def events(place: Path) -> st.SearchStrategy[dict[str, Any]]:
    """Lines like those of a journal, metrics or verdicts, with hostile values."""
    words = ["intent", "submitted", "cancelled", "refused"]
    value = hostile_value(place)
    keys = [
        "name",
        "kind",
        "base",
        "rows",
        "runs",
        "unix_s",
        "step",
        "verdict",
        "job_id",
        "end_unix_s",
        "reason",
        "holder",
        "error",
    ]
    return st.tuples(
        st.sampled_from(words), st.dictionaries(st.sampled_from(keys), value, max_size=6)
    ).map(lambda parts: {"event": parts[0]} | parts[1])
