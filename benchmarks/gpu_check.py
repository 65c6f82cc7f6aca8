"""Check the GPU path on one GPU, in about six minutes.

    python benchmarks/gpu_check.py --data DATA [--out OUT]     on a GPU
    python benchmarks/gpu_check.py --small                     tiny sizes on any device

Each part runs in a child process, because an error of CUDA breaks its process, and so that peaks of
memory are its own. A part prints `ok`, `FAIL`, `info` or `skip`, each with a figure or a reason. A
part that fails does not stop the others. The exit code is the number of FAILs. OUT gets
gpu_check.json, and the log of each part that failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check_meters
import gpu_check_parts
import gpu_check_runs

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "machine": gpu_check_parts.machine,
    "bound_rank": gpu_check_parts.bound_rank,
    "hardware_errors": gpu_check_parts.hardware_errors,
    "attention": gpu_check_parts.attention,
    "waits": gpu_check_parts.waits,
    "host_copy": gpu_check_parts.host_copy,
    "stage": gpu_check_parts.stage,
    "same_bits": gpu_check_parts.same_bits,
    "fill": gpu_check_parts.fill,
    "meters": gpu_check_meters.meters,
    "auto": gpu_check_meters.auto,
    "out_of_memory": gpu_check_meters.out_of_memory,
    "collectives": gpu_check_meters.collectives,
    "step_time": gpu_check_runs.step_time,
    "resumes": gpu_check_runs.resumes,
}
PARTS = (
    ("machine", ""),
    ("bound_rank", ""),
    ("hardware_errors", ""),
    ("attention", ""),
    ("waits", "zero1"),
    ("waits", "zero2"),
    ("host_copy", ""),
    ("stage", "zero0"),
    ("stage", "zero1"),
    ("stage", "zero2"),
    ("stage", "zero3"),
    ("stage", "zero3_offload"),
    ("same_bits", "zero1"),
    ("same_bits", "zero3"),
    ("fill", ""),
    ("meters", "zero1"),
    ("auto", ""),
    ("out_of_memory", ""),
    ("collectives", ""),
    ("step_time", "zero1"),
    ("resumes", "zero1"),
    ("resumes", "zero2"),
)
PART_S = {False: 120, True: 600}  # the longest time of one part; a busy CPU needs more
LEAST_S = 15  # no part begins with less time left


def main() -> None:
    """Run all parts, or the part of a child."""
    options = _options()
    if options.part:
        FUNCTIONS[options.part](options)
        return
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        options.runs = folder
        options.data = options.data or _pack(Path(folder) / "tridigits")
        rows = _run_parts(options, out, time.monotonic() + options.limit_s)
    (out / "gpu_check.json").write_text(json.dumps(rows, indent=1))
    sys.exit(min(100, sum(row["level"] == "FAIL" for row in rows)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of a packed TriDigits [a small one is packed]")
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu_check"), help="output folder")
    parser.add_argument("--small", action="store_true", help="tiny sizes, also for a CPU")
    parser.add_argument("--limit-s", type=float, default=3600, help="time for all parts")
    parser.add_argument("--only", nargs="+", help="only parts whose name contains one of these")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--runs", help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _pack(folder: Path) -> str:
    sys.path.insert(0, str(ROOT))
    from furnace_hpc.data.sets.tridigits.pack import pack
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    pack(TriDigitsKnobs(train=400, val=100, test=100), folder, lambda what, done, total: None)
    return str(folder)


def _run_parts(options: argparse.Namespace, out: Path, deadline_s: float) -> list[dict[str, Any]]:
    rows = []
    for part, argument in PARTS:
        if options.only and not any(only in f"{part} {argument}" for only in options.only):
            continue
        started_s = time.monotonic()
        left_s = min(deadline_s - started_s, PART_S[options.small])
        if left_s < LEAST_S:
            found = [_row("skip", f"{part} {argument}", "no time is left")]
        else:
            found = _run_part(options, out, part, argument, left_s)
        for row in found:
            row["s"] = round(time.monotonic() - started_s, 1)
            print(
                f"{row['level']:4s}  {row['name']:40s} {row['found']}  [{row['s']} s]", flush=True
            )
        rows += found
    return rows


def _run_part(
    options: argparse.Namespace, out: Path, part: str, argument: str, limit_s: float
) -> list[dict[str, Any]]:
    """Run one part in a child. Return what it has printed, and a FAIL if it has ended badly."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part]
    command += ["--argument", argument, "--data", str(options.data), "--out", str(out)]
    command += ["--runs", options.runs]
    if options.small:
        command.append("--small")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a session of its own, so that a part's own children can be killed with it
    child = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        output, error = child.communicate(timeout=limit_s)
        lines, code = output.splitlines(), child.returncode
    except BaseException as problem:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if not isinstance(problem, subprocess.TimeoutExpired):
            raise
        lines, error, code = [], f"no answer within {limit_s:.0f} s", 124
    found = [json.loads(line) for line in lines if line.startswith('{"level"')]
    if code or not found:
        last = " | ".join(error.strip().splitlines()[-2:])[-300:]
        found.append(_row("FAIL", f"{part} {argument}", f"exit {code}: {last}"))
    if any(row["level"] == "FAIL" for row in found):
        (out / f"{part}-{argument}.log").write_text(error[-20000:])
    return found


def _row(level: str, name: str, found: str) -> dict[str, Any]:
    return {"level": level, "name": name, "found": found}


if __name__ == "__main__":
    main()
