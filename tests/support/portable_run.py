"""The run whose bits are recorded for every machine, and its packed data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid, load_grid
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.host import lifecycle

REFERENCE = Path(__file__).with_name("portable_reference.json")
STEPS = 100
FULL = {"train": 240, "val": 60, "test": 90}
TINY = {"train": 24, "val": 8, "test": 8}
LOSSES = {"loss.alpha": 0.5, "loss.beta": 0.3}
TINY_MODEL = {
    "model.width": 16,
    "model.num_heads": 2,
    "model.feedforward": 32,
    "model.text_layers": 1,
    "global_batch_size": 8,
}
# Variables that choose other code paths on the same CPU. `fix_instructions` replaces the first two.
CODE_PATHS = {
    "OpenBLAS for Sandy Bridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "numpy without AVX2": {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F"},
    "C library without FMA and AVX2": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2"},
    "numba without AVX": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}
PACK = """
import json, sys
sys.executable = sys.argv[2] or sys.executable
from pathlib import Path
from furnace_hpc.data.packing.instructions import fix_instructions
fix_instructions()
from furnace_hpc.data.sets.tridigits.pack import pack
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs
pack(TriDigitsKnobs(**json.loads(sys.argv[3])), Path(sys.argv[1]), lambda *_: None, workers=1)
"""


def pack(
    out: Path,
    knobs: dict[str, Any],
    emulator: list[str] | None = None,
    python: str = "",
    **variables: str,
) -> dict[str, str]:
    """Pack TriDigits in a new process. Return the hash of each file, and the fingerprint.

    Args:
        out: folder of the pack.
        knobs: sizes, and source of speech.
        emulator: command in front of Python.
        python: program by which the process starts espeak. Empty: this Python.
        variables: set in the environment of the process.
    """
    words = [sys.executable, "-c", PACK, str(out), python, json.dumps(knobs)]
    run([*(emulator or []), *words], out.parent, **variables)
    manifest = read_manifest(out)
    hashes = {name: file.xxh3_128 for name, file in manifest.files.items()}
    return hashes | {"fingerprint": manifest.fingerprint}


def make_grid(steps: int = STEPS, portable: bool = True, **changes: Any) -> Grid:
    """The demo's row with all losses and its first seed. The last step is selected."""
    grid = load_grid("ablation")
    base = grid.base | {
        "steps": steps,
        "evaluation": {"every": steps, "select": "last"},
        "checkpoint_every": steps,
        "portable": portable,
    }
    return grid.model_copy(
        update={"base": base, "variants": {"base": LOSSES | changes}, "seeds": (0,)}
    )


def make_run(root: Path, data: Path, grid: Grid) -> Path:
    """Make the run folder of the grid's only run, for `furnace train`. Return the folder."""
    spec = expand(grid, {"tridigits": read_manifest(data).fingerprint})[0]
    folder = root / "runs" / grid.name / spec.run_id
    lifecycle.write_spec(str(folder), spec.model_dump_json())
    return folder


def train(folder: Path, data_root: Path, *before: str) -> dict[str, Any]:
    """Train the run with `furnace train` in a new process. Return its result."""
    words = [sys.executable, "-m", "furnace_hpc.train", str(folder), "--data-root", str(data_root)]
    run([*before, *words], folder.parent)
    return result_of(folder)


def result_of(folder: Path) -> dict[str, Any]:
    """The result of a finished run."""
    return dict(json.loads((folder / "result.json").read_text()))


def run(command: list[str], place: Path, **variables: str) -> str:
    """Run a command without the variables that decide bits. Return its output."""
    place.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "ONEDNN_"))}
    kept.pop("ATEN_CPU_CAPABILITY", None)
    done = subprocess.run(
        command,
        cwd=place,
        env=kept | {"DS_ACCELERATOR": "cpu"} | variables,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[:4]} exits with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
