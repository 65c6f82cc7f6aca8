"""Grid files for tests: write one, expand it, and read the error."""

from pathlib import Path

import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import read_grid, with_settings
from furnace_hpc.config.grids.row import GridRow

TOP = "name: study\nreference: base\nmetric: test/digit/accuracy\nseeds: [0]\n"
BASE = "base: {deepspeed: zero1, steps: 40, global_batch_size: 16}\n"
HEAD = TOP + BASE  # five lines
ROWS = "variants: {base: {}, full: {loss.alpha: 0.5}}\n"


def file(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "study.yaml"
    path.write_text(head + text)
    return path


def rows(folder: Path, text: str, *settings: str, head: str = HEAD) -> list[GridRow]:
    return expand_rows(with_settings(read_grid(file(folder, text, head)), list(settings)))


def problem(folder: Path, text: str, *settings: str, head: str = HEAD) -> str:
    with pytest.raises(ConfigError) as error:
        rows(folder, text, *settings, head=head)
    return str(error.value)
