"""Check that `portable: true` gives the same bits on several CPUs, and measure what it costs.

    python benchmarks/portable.py              all: this CPU, emulated CPUs, packed data, cost
    python benchmarks/portable.py --machine    only this CPU: appends its hash to the results

The emulator is qemu-user (`apt-get install qemu-user`). Without it those rows are left out. Goals:
equal hashes, and at most 1.2 x of the training time.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import portable_run

from furnace_hpc.host.portable import ENVIRONMENT

CPUS = ("Haswell-v4", "EPYC-Rome")
ROUNDS, COST_GOAL = 3, 1.2
MACHINE = "run of 100 steps"
Row = dict[str, Any]


def main() -> None:
    """Compare hashes, measure the cost, and append the rows of this machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", action="store_true", help="only the hash of this CPU")
    only_machine = parser.parse_args().machine
    record.begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*_earlier_machines(), _this_machine(folder)]
        if not only_machine:
            rows += [_cost(folder)]
            if shutil.which("qemu-x86_64"):
                rows += _emulated(folder)
    note = "rows of other machines are kept; fingerprint is that of the packed data"
    record.write("portable", rows, note)
    wrong = [row for row in rows if row.get("reached") is False]
    sys.exit(1 if wrong else 0)


def _earlier_machines() -> list[Row]:
    path = record.RESULTS / "portable.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text())["rows"]
    here = _machine()
    return [r for r in rows if r["what"] == MACHINE and {k: r.get(k) for k in here} != here]


def _machine() -> Row:
    return {
        "cpu": record._cpu(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
        "numpy": version("numpy"),
    }


def _this_machine(folder: Path) -> Row:
    """Train the recorded run, and compare its hash with the recorded one."""
    hashes = portable_run.pack(folder / "data/tridigits", portable_run.FULL | {"speech": "bank"})
    found = _train(folder, "recorded")
    reference = json.loads(portable_run.REFERENCE.read_text())
    return {
        "what": MACHINE,
        **_machine(),
        "fingerprint": hashes["fingerprint"],
        "parameters_sha256": found["parameters_sha256"],
        "reached": found["parameters_sha256"] == reference["parameters_sha256"],
    }


def _cost(folder: Path) -> Row:
    """Alternate runs with and without portable, both with one thread."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS):
        for portable in (True, False):
            found = _train(folder, f"cost-{number}-{portable}", portable=portable)
            seconds[portable].append(found["train_s"])
    with_, without = (statistics.median(seconds[key]) for key in (True, False))
    return {
        "what": "training time, portable against not",
        "cpu": record._cpu(),
        "portable_s": [round(s, 2) for s in seconds[True]],
        "not_portable_s": [round(s, 2) for s in seconds[False]],
        "ratio": round(with_ / without, 3),
        "goal": COST_GOAL,
        "reached": with_ / without <= COST_GOAL,
    }


def _emulated(folder: Path) -> Iterator[Row]:
    """Compare the packed data and a short training of this CPU with those of emulated CPUs."""
    packs = {speech: portable_run.TINY | {"speech": speech} for speech in ("bank", "espeak")}
    native = {s: portable_run.pack(folder / f"tiny-{s}/tridigits", k) for s, k in packs.items()}
    wanted = _train(folder, "tiny-native", "tiny-bank", steps=3)["parameters_sha256"]
    for cpu in CPUS:
        emulator = ["qemu-x86_64", "-cpu", cpu]
        row = {"what": "run of 3 steps", "cpu": f"qemu {cpu}", "torch": version("torch")}
        try:
            found = _train(folder, f"tiny-{cpu}", "tiny-bank", *emulator, steps=3)
            sha256 = found["parameters_sha256"]
            yield row | {"parameters_sha256": sha256, "reached": sha256 == wanted}
        except RuntimeError as error:
            yield row | _failed(error)
        for speech, knobs in packs.items():
            out = folder / f"{cpu}-{speech}/tridigits"
            row = {"what": f"pack, speech {speech}", "cpu": f"qemu {cpu}"}
            try:
                with _script(folder, emulator) as python:
                    hashes = portable_run.pack(out, knobs, emulator, python)
            except RuntimeError as error:
                yield row | _failed(error)
                continue
            differing = sorted(k for k, v in hashes.items() if native[speech][k] != v)
            yield row | {"differing": differing, "reached": not differing}


def _failed(error: RuntimeError) -> Row:
    """What a row says if the process ended with an error. qemu-user may crash in threads."""
    last = str(error).strip().splitlines()[-1]
    return {"error": last[:200], "reached": False}


@contextmanager
def _script(folder: Path, emulator: list[str]) -> Iterator[str]:
    """A program that is this Python under the emulator, for children of an emulated process."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {" ".join(emulator)} {sys.executable} "$@"\n')
    path.chmod(0o755)
    yield str(path)


def _train(
    folder: Path, name: str, data: str = "data", *before: str, portable: bool = True, steps: int = 0
) -> Row:
    """Train the demo's last row. With `steps` it is a tiny network. Return the result."""
    grid = portable_run.make_grid(portable=portable)
    if steps:
        grid = portable_run.make_grid(steps, portable, **portable_run.TINY_MODEL)
    run = portable_run.make_run(folder / name, folder / data / "tridigits", grid)
    thread = f"OMP_NUM_THREADS={ENVIRONMENT['OMP_NUM_THREADS']}"
    return portable_run.train(run, folder / data, "env", thread, *before)


if __name__ == "__main__":
    main()
