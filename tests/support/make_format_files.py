"""Write the files of a format that later versions of Furnace must read: a pack, runs, a model.

python tests/support/make_format_files.py tests/runs/format_1.tar.xz

Run it with the last version that writes a format, before the number of the format changes. Stored
archives are never written again: tests/runs/test_old_formats.py reads each of them.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

GRID = """
name: study
base:
  data: {name: tiny}
  model: {width: 8, num_heads: 1, feedforward: 8, text_layers: 1}
  deepspeed: zero1_fp32
  steps: 4
  global_batch_size: 4
  evaluation: {every: 2}
  checkpoint_every: 2
  log_every: 1
seeds: [0, 1]
reference: base
metric: test/digit/accuracy
variants: {base: {}, full: {loss.alpha: 0.5}}
"""
LEFT_OUT = ("code", "logs", "cache", "submit.lock")  # large, or made again when needed


def main(archive: str) -> None:
    """Make the files in a temporary folder, and archive them."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "study.yaml").write_text(GRID)
        _furnace(place, "pack", "tridigits", "--out", "data/tiny", *_sizes(20, 6, 10))
        _furnace(place, "submit", "--grid", "study.yaml", "--cluster", "local")
        [run] = place.glob("runs/study/base-s0-*")
        _furnace(place, "export", str(run.relative_to(place)), "--out", "model")
        with tarfile.open(archive, "w:xz") as tar:
            for name in ("study.yaml", "data", "runs", "model"):
                tar.add(place / name, name, filter=_kept)


def _sizes(train: int, val: int, test: int) -> list[str]:
    return ["--train", str(train), "--val", str(val), "--test", str(test)]


def _furnace(place: Path, *words: str) -> None:
    command = [sys.executable, "-m", "furnace_hpc", *words]
    subprocess.run(command, cwd=place, check=True, timeout=600)


def _kept(file: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is not needed, such as checkpoints of all runs but one, and the user."""
    path = Path(file.name)
    other = "checkpoints" in path.parts and not path.parts[2].startswith("base-s0-")
    if path.name in LEFT_OUT or path.suffix == ".out" or other:
        return None
    file.uid = file.gid = 0
    file.uname = file.gname = ""
    return file


if __name__ == "__main__":
    main(sys.argv[1])
