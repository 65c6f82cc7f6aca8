"""The full-size studies made small, with the commands of experiments/README.md."""

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import forked_commands
import pytest
from raw_sets import CLIPS, write_audioset, write_avmnist, write_mmimdb, write_vocab

from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.parsing.lookup import find_file

STUDIES = ("mmimdb", "avmnist", "audioset")
# Additional options for the raw files of the tests, which have another vocabulary, eight classes,
# and clips without sound or frames.
OF_THE_FIXTURE = {
    "mmimdb": "--tokenizer vocab --image-size 64",
    "avmnist": "",
    "audioset": "--num-classes 8 --image-size 64 --val-fraction 0.4 --max-refused 0.5",
}


def documented(name: str, what: str) -> list[str]:
    """The words of README's first command that begins with `what`."""
    readme = find_file("grid", name).with_name("README.md")
    text = readme.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(f"furnace {what}")]
    return shlex.split(lines[0], comments=True)


def settings_of(words: list[str]) -> dict[str, str]:
    return dict(words[place + 1].split("=") for place, word in enumerate(words) if word == "--set")


def marked_small(name: str) -> dict[str, str]:
    """Dotted key -> the value that a comment of the grid's file calls small."""
    found, parent = {}, ""
    for line in find_file("grid", name).read_text(encoding="utf-8").splitlines():
        if not (key := re.match(r"( *)(\w+):", line)):
            continue
        path = f"{parent}.{key[2]}"
        if len(key[1]) == 2:
            parent = path = key[2]
        if small := re.search(r"#.*\bsmall: (\S+)$", line):
            found[path] = small[1]
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_readme_sets_the_values_marked_small(name):
    settings = settings_of(documented(name, f"submit --grid {name} "))
    assert marked_small(name) == {
        key: value
        for key, value in settings.items()
        if key not in ("evaluation.every", "resources.nodes")
    }
    head = find_file("grid", name).read_text(encoding="utf-8")
    assert f"#   {shlex.join(documented(name, f'pack {name} '))}" in head


def run(place: Path, words: list[str], more: str = "") -> str:
    assert words[0] == "furnace"
    command = [sys.executable, "-m", f"furnace_hpc.{words[1]}", *words[2:], *shlex.split(more)]
    done = forked_commands.run(command, cwd=place, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


WRITE = {"mmimdb": write_mmimdb, "avmnist": write_avmnist, "audioset": write_audioset}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: the working directory after README's commands of a study."""
    place = tmp_path_factory.mktemp("studies")
    write_vocab(place / "vocab")

    @cache
    def study(name: str) -> Path:
        WRITE[name](place / name)
        said = run(place, documented(name, f"pack {name} "), f"{OF_THE_FIXTURE[name]} --workers 1")
        (place / f"{name}-packed.txt").write_text(said)
        (place / f"{name}.txt").write_text(run(place, documented(name, f"submit --grid {name} ")))
        return place

    return study


@pytest.mark.slow
def test_pack_reports_counts_of_each_split(studied):
    said = (studied("audioset") / "audioset-packed.txt").read_text()
    assert re.search(r"split +listed +found +packed +refused +incomplete\n", said)
    counts = {
        row[0]: [int(n) for n in row[1:]]
        for row in re.findall(r"^ +(\w+)" + r" +(\d+)" * 5 + "$", said, re.M)
    }
    assert list(counts) == ["train", "val", "test"]
    assert sum(row[0] for row in counts.values()) == len(CLIPS)
    assert sum(row[1] for row in counts.values()) == len(CLIPS) - 1  # one clip's files are gone
    assert "audio missing 1" in said
    assert "data/audioset/refused.jsonl has a line for each of them" in said


@pytest.mark.parametrize(
    "name",
    ["avmnist", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mmimdb", "audioset"))],
)
def test_a_study_trains_on_a_few_raw_files(studied, name):
    place = studied(name)
    grid = read_grid(find_file("grid", name))
    (path,) = (place / "runs" / name).glob("*-s0-*/result.json")
    result = json.loads(path.read_text())
    assert (result["variant"], result["steps"], result["world_size"]) == (grid.reference, 4, 1)
    measured = result["metrics"][grid.metric]
    assert 0 <= measured <= 1
    (table,) = (place / "results").glob(f"{name}-*/table.csv")
    row = next(row for row in csv.DictReader(table.open()) if row["variant"] == grid.reference)
    assert (row["metric"], row["n"]) == (grid.metric, "1")
    assert float(row["mean"]) == pytest.approx(measured)
    output = (place / f"{name}.txt").read_text()
    assert re.search(rf"^{re.escape(grid.metric)}: mean", output, re.MULTILINE)
