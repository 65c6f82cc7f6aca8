"""From a CSV of one's own to a printed table, with the commands that each step prints."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

ROWS = ("all", "only_text", "only_image", "concat", "twice_epochs")
SEEDS = 5
PROGRAMS = ("bash", "sh", "git", "env", "cat", "uname")


def write_animals(folder: Path, num_rows: int = 80) -> Path:
    """A CSV with captions, photographs and species, under a name with spaces."""
    rng = np.random.default_rng(5)
    colours = {"fox": (200, 90, 30), "owl": (120, 120, 140)}
    places = ("in the forest", "near a river", "at night", "on a hill", "behind the barn")
    rows = []
    (folder / "photos").mkdir(parents=True)
    for number in range(num_rows):
        species = ("fox", "owl")[number % 2]
        pixels = rng.normal(colours[species], 40, (48, 64, 3)).clip(0, 255).astype(np.uint8)
        photo = f"photos/P{number:04}.jpg"
        Image.fromarray(pixels).save(folder / photo)
        caption = f"seen {rng.choice(places)}, {rng.choice(places)}, sheet {number}"
        rows.append({"caption": caption, "photo": photo, "species": species})
    path = folder / "Field notes (final).csv"
    pl.DataFrame(rows).write_csv(path)
    return path


@pytest.fixture
def shell(tmp_path):
    """A function that runs a line in a shell, where `furnace` is found and Slurm is not."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "furnace").symlink_to(Path(sys.prefix) / "bin" / "furnace")
    for name in PROGRAMS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    drop = ("FURNACE_", "SLURM_", "VIRTUAL_ENV", "PATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    environment |= {"PATH": str(folder), "HOME": str(tmp_path), "COLUMNS": "160"}

    def run(line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def next_command(stdout: str) -> str:
    (line,) = re.findall(r"^then: (furnace .*)$", stdout, re.MULTILINE)
    return line


def shorter(found: re.Match[str]) -> str:
    """A hundredth of the epochs. One row has twice as many as the others."""
    return f"epochs: {int(found[0].split()[1]) / 100}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_commands_make_a_table(tmp_path, shell):
    """The second and the third command are those that the one before prints."""
    write_animals(tmp_path)
    packed = shell("furnace pack table --source 'Field notes (final).csv' --yes")
    second = next_command(packed)
    assert second == "furnace new Field_notes_final --data data/Field_notes_final"
    written = shell(second)
    third = next_command(written)
    grid = tmp_path / "experiments" / "Field_notes_final.yaml"
    grid.write_text(re.sub(r"epochs: \d+", shorter, grid.read_text()))
    assert third == "furnace submit --grid Field_notes_final"
    printed = shell(f"{third} --set evaluation.every=2")
    (results,) = (tmp_path / "results").iterdir()
    assert (results / "report.html").is_file()
    assert len(list((tmp_path / "runs" / "Field_notes_final").glob("*/result.json"))) == 25
    table = pl.read_csv(results / "table.csv")
    assert table["variant"].to_list() == list(ROWS)
    assert table["n"].to_list() == [SEEDS] * len(ROWS)
    _, _, shown = printed.rpartition("What does each modality add")  # the title of the table
    assert {row for row in ROWS if re.search(rf"^\W*{row}\W", shown, re.MULTILINE)} == {*ROWS}
    assert "accuracy" in shown
