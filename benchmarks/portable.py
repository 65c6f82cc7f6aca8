"""Check that `portable: true` gives the same bits on several CPUs, and measure what it costs.

    python benchmarks/portable.py              all: this CPU, emulated CPUs, packed data, cost
    python benchmarks/portable.py --machine    only this CPU: appends its hash to the results
    python benchmarks/portable.py --packs      only the packed data; records nothing

The emulator is qemu-user (`apt-get install qemu-user`). Without it those rows are left out.
qemu 7.2 crashes in AVX2's gather instruction, which numpy uses for packed data. Versions 10 and 11
do not. Their Debian packages are statically linked: unpack one with `dpkg-deb -x`, and name the
program with `--emulator`.

Goals: equal hashes, and at most 1.2 x of the training time.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import portable_run

from furnace_hpc.host.portable import ENVIRONMENT

CPUS = ("Haswell-v4", "EPYC-Rome")
ROUNDS, COST_GOAL = 3, 1.2
MACHINE = "run of 100 steps"
FAILURES = (RuntimeError, subprocess.TimeoutExpired)
SPEECH = ("bank", *(["espeak"] if find_spec("espeakng_loader") else []))
Row = dict[str, Any]
Packs = dict[str, dict[str, str]]  # the hashes of the files of each source of speech


def main() -> None:
    """Compare hashes, measure the cost, and append the rows of this machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", action="store_true", help="only the hash of this CPU")
    parser.add_argument("--packs", action="store_true", help="only the packed data, unrecorded")
    parser.add_argument("--emulator", metavar="PROGRAM", help="another qemu-x86_64")
    options = parser.parse_args()
    emulator = shutil.which(options.emulator or "qemu-x86_64")
    if options.emulator and not emulator:
        parser.error(f"--emulator {options.emulator} is no program: give the path of qemu-x86_64")
    if options.packs:  # else the file would lose its other rows
        os.environ["RECORD"] = "no"
    record.begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.packs:
            rows = list(_packed(folder, emulator))
        else:
            rows = [*_earlier_machines(), _this_machine(folder)]
            if not options.machine:
                rows += [_cost(folder), *_packed(folder, emulator), *_trained(folder, emulator)]
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


def _packed(folder: Path, emulator: str | None) -> Iterator[Row]:
    """Compare a small pack of this CPU with those of other code paths and of emulated CPUs.

    librosa compiles functions by numba when it is imported. An emulated CPU needs minutes for that,
    so it reads what the code path "numba without AVX" left in the cache. Packing calls none.
    """
    native = {s: portable_run.pack(_pack_of(folder, "native", s), _knobs(s)) for s in SPEECH}
    cache = {"NUMBA_CACHE_DIR": str(folder / "numba")}
    for name, variables in portable_run.CODE_PATHS.items():
        for speech in SPEECH:
            out = _pack_of(folder, name, speech)
            hashes = portable_run.pack(out, _knobs(speech), **variables, **cache)
            yield _compared(speech, hashes, native) | {"cpu": record._cpu(), "with": name}
    variables = portable_run.CODE_PATHS["numba without AVX"] | cache
    for cpu in CPUS if emulator else ():
        command = [str(emulator), "-cpu", cpu]
        for speech in SPEECH:
            out = _pack_of(folder, cpu, speech)
            here = {"cpu": f"qemu {cpu}", "emulator": _version_of(command[0])}
            try:
                python = _program(folder / f"python-{cpu}", command)
                hashes = portable_run.pack(out, _knobs(speech), command, python, **variables)
                yield _compared(speech, hashes, native) | here
            except FAILURES as error:
                yield {"what": f"pack, speech {speech}"} | here | _failed(error)


def _trained(folder: Path, emulator: str | None) -> Iterator[Row]:
    """Compare a short training of this CPU with those of emulated CPUs."""
    if not emulator:
        return
    data = _pack_of(folder, "native", "bank").parent.name
    wanted = _train(folder, "tiny-native", data, steps=3)["parameters_sha256"]
    for cpu in CPUS:
        row = {"what": "run of 3 steps", "cpu": f"qemu {cpu}", "torch": version("torch")}
        row["emulator"] = _version_of(emulator)
        try:
            found = _train(folder, f"tiny-{cpu}", data, emulator, "-cpu", cpu, steps=3)
            sha256 = found["parameters_sha256"]
            yield row | {"parameters_sha256": sha256, "reached": sha256 == wanted}
        except FAILURES as error:
            yield row | _failed(error)


def _knobs(speech: str) -> Row:
    return portable_run.TINY | {"speech": speech}


def _pack_of(folder: Path, name: str, speech: str) -> Path:
    return folder / f"pack-{name}-{speech}".replace(" ", "-") / "tridigits"


def _compared(speech: str, hashes: dict[str, str], native: Packs) -> Row:
    """A row with the fingerprint, and the files that differ from those of this CPU."""
    differing = sorted(k for k, v in hashes.items() if native[speech][k] != v)
    return {
        "what": f"pack, speech {speech}",
        "fingerprint": hashes["fingerprint"],
        "differing": differing,
        "reached": not differing,
    }


def _version_of(emulator: str) -> str:
    printed = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=True)
    return printed.stdout.splitlines()[0]


def _failed(error: Exception) -> Row:
    """What a row says if the process ended with an error."""
    last = str(error).strip().splitlines()[-1]
    return {"error": last[:200], "reached": False}


def _program(path: Path, emulator: list[str]) -> str:
    """Make a program that is this Python under the emulator, for children of the process."""
    path.write_text(f'#!/bin/sh\nexec {" ".join(emulator)} {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


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
