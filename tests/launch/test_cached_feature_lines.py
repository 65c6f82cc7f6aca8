"""What `submit` says about the files of cached features, before anything is computed."""

import subprocess
import sys
from pathlib import Path

from encoder_folders import save_network
from login_study import without_controller, write_grid

CACHED = {"freeze": "all", "cache_features": True}


def dry_run(folder: Path, data_root: Path, **changes: object) -> list[str]:
    grid = write_grid(folder, **changes)
    command = [sys.executable, "-P", "-m", "furnace_hpc.submit", "--grid", str(grid)]
    command += ["--cluster", "local", "--data-root", str(data_root), "--dry-run"]
    environment = without_controller(folder)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("cached features")]


def test_submit_shows_the_size(small_root: Path, tmp_path: Path):
    """390 samples: 17 tokens of 64 fp32 values and a mask, or a trained encoder of 16 values."""
    weights = tmp_path / "vit"
    save_network("vit", weights)
    rows = {
        "base": {},
        "old": {"model.image_encoder": "vit", "model.image": CACHED},
        "hub": {"model.image": CACHED | {"encoder": str(weights)}},
        "bf16": {"model.text": CACHED, "deepspeed": "zero1"},
        "unknown": {"model.image": CACHED | {"encoder": "random:resnet"}},
    }
    lines = dry_run(tmp_path, small_root, variants=rows)
    mib = 390 * 17 / 2**20
    where = "in runs/study/features"
    text, old, hub, unknown = sorted(lines, key=len)
    assert text.startswith("cached features of text of tridigits: up to ")
    assert old == (
        f"cached features of image of tridigits: up to {mib * (64 * 2 + 1):.1f} MiB, for each "
        f"seed, {where}"
    )
    assert f"({weights}) of tridigits: up to {mib * (16 * 2 + 1):.1f} MiB, in" in hub + unknown
    assert "(random:resnet) of tridigits: size not known" in hub + unknown


def test_other_rows_say_nothing(small_root: Path, tmp_path: Path):
    assert dry_run(tmp_path, small_root, variants={"base": {"model.text": {"freeze": "all"}}}) == []
