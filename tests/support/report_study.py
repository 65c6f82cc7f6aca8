"""Studies whose reports the tests open in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tables_study import fail, finish, study

from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.table import Ablation

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
ERROR = "RuntimeError: </script><b>cheese</b>"
SUBSETS = ("audio", "image", "text+image+audio", "text+image", "text")  # not sorted


def make(root: Path) -> GridFolder:
    """Twenty runs with scores of subsets and pairs. One has crashed. The others ran in a job."""
    _, runs = study()
    folder = GridFolder(root / "runs" / "study")
    for spec in runs:
        if (spec.variant, spec.config.seed) == ("specific_only", 3):
            fail(spec, folder, ERROR)
            continue
        value = 0.8 + 0.01 * spec.config.seed
        scores = {f"test/digit/accuracy@{name}": value / len(name) for name in SUBSETS}
        scores |= {
            f"test/consistency/{name}@text+image": value
            for name in ("gap", "auc", "cosine_matched")
        }
        run = finish(
            spec,
            folder,
            metrics={"test/digit/accuracy": value + len(spec.variant) / 1000, **scores},
        )
        write_json(run.attempt(1), lifecycle.read_attempt(str(run.path), 1) | {"job_id": "17_3"})
    return folder


@contextmanager
def open_browser() -> Iterator[Any]:
    """A real browser. Without one the test is skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def noisy(root: Path, **changes) -> Ablation:
    """Rows that are worse, equivalent and better, with other metrics, logs and a sesoi."""
    grid, runs = study(sesoi=1.0, **changes)
    folder = GridFolder(root / "runs" / "study")
    gains = {"specific_only": -0.03, "full": 0.03}
    for spec in runs:
        seed, salt = spec.config.seed, sum(spec.variant.encode())
        value = 0.8 + gains.get(spec.variant, 0.0) + 0.001 * ((seed * 7 + salt * seed * seed) % 5)
        metrics = {"test/digit/accuracy": value, "test/digit/loss": 1 - value}
        metrics |= {f"test/digit/accuracy@{name}": value / len(name) for name in SUBSETS}
        run = finish(spec, folder, metrics=metrics)
        if spec.variant == "full":
            run.log(1, 0).parent.mkdir(exist_ok=True)
            run.log(1, 0).write_text("rank 0 writes this")
    return collect(grid, runs, folder)


def overlap(one: dict, other: dict) -> bool:
    """Whether two boxes of a page have a common part."""
    sides = (("x", "width"), ("y", "height"))
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in sides
    )
