"""Try hostile names, YAML files, profiles, manifests and records. Nothing may run, leak or crash.

    python benchmarks/fuzz.py [--cases 10500] [--examples 5000]

hypothesis makes every input from a fixed seed. An accepted input becomes a batch script, which
`bash -n` checks. The script is executed with replacements for all commands. The inputs contain
canary commands, and inputs and environment contain planted tokens. Goal: no executed canary, no
leaked token, no traceback.

Then the tests marked `fuzz` (one per parser and decoder) run with `--examples` new inputs each.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fuzz_work import Fuzz, Tally
from hostile import (
    GRID,
    KINDS,
    MANIFEST_OF_DATA,
    PLANTED,
    PROFILE,
    TOKEN,
    canaries,
    events,
    hostile_text,
    hostile_value,
    hostile_yaml,
    mutated,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent


def fuzz(place: Path, cases: int) -> Tally:
    """Try at least this many hostile inputs. They are the same each time."""
    tally = Tally(place)
    work = Fuzz(tally)
    share = -(-cases // len(KINDS))
    text, value = hostile_text(place), hostile_value(place)
    keys = (
        "grid",
        "variant",
        "name",
        "partition",
        "account",
        "qos",
        "constraint",
        "wckey",
        "gpu_type",
        "python",
        "scratch",
    )
    keys += ("network_interface", "srun_args", "cluster_name", "follow_up_partition")
    manifest = st.one_of(
        mutated(MANIFEST_OF_DATA, place), value, st.dictionaries(text, value, max_size=3)
    )
    line = st.one_of(
        value.map(json.dumps),
        text,
        events(place).map(json.dumps),
        st.sampled_from(["[" * 9000, "9" * 5000, "{}", "[]"]),
    )
    made = {
        "names": ((text, st.sampled_from(keys)), work.names),
        "yaml": ((hostile_yaml(place),), work.yaml),
        "profiles": (
            (mutated(PROFILE | {"setup": [], "mem_gb": 4, "shared_folders": []}, place),),
            work.profiles,
        ),
        "manifests": (
            (manifest, st.lists(text.filter(lambda name: "\ud800" not in name), max_size=3)),
            work.manifests,
        ),
        "records": ((st.lists(line, min_size=1, max_size=4),), work.records),
    }
    before = Path.cwd()
    os.chdir(place)
    planted = {"MY_SECRET_TOKEN": PLANTED, "HF_TOKEN": TOKEN}
    saved = {name: os.environ.get(name) for name in planted}
    os.environ.update(planted)
    try:
        for kind, (strategies, function) in made.items():
            _drive(tally.counted(kind, function), strategies, share)
    finally:
        os.chdir(before)
        for name, was in saved.items():
            os.environ.pop(name) if was is None else os.environ.__setitem__(name, was)
    return tally


def _drive(
    function: Callable[..., None], strategies: tuple[st.SearchStrategy[Any], ...], cases: int
) -> None:
    """Call the function with this many inputs of hypothesis.

    The function never raises, so hypothesis shrinks nothing.
    """
    calm = settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    calm(given(st.tuples(*strategies))(lambda inputs: function(*inputs)))()


def commands(place: Path, number: int) -> list[str]:
    """Try hostile inputs with the real commands. Count tracebacks and tokens in stderr."""
    draw, bad = random.Random(7), []
    words = canaries(place)
    for _ in range(number):
        word = draw.choice(words).replace("\x00", "")
        file = place / "hostile.yaml"
        file.write_text(yaml.safe_dump(GRID | {draw.choice([*GRID]): word}))
        choices = [
            ["submit", "--dry-run", "--grid", str(file)],
            ["submit", "--dry-run", "--grid", word],
            ["status", "--grid", word],
        ]
        choices += [
            ["aggregate", "--grid", word],
            ["submit", "--dry-run", "--grid", "smoke", "--cluster", word],
            ["cancel", "--grid", word],
        ]
        command = [
            sys.executable,
            "-m",
            f"furnace_hpc.{(chosen := draw.choice(choices))[0]}",
            *chosen[1:],
        ]
        done = subprocess.run(
            command,
            cwd=place,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
        said = done.stdout + done.stderr
        if (
            "Traceback" in said
            or done.returncode not in (0, 1, 2)
            or (TOKEN in said and TOKEN not in chosen)
        ):
            bad.append(f"{chosen}: exit code {done.returncode}: {said[-300:]}")
    return bad


def parsers(examples: int) -> int:
    """Run the tests marked `fuzz` with this many new inputs each. Return the exit code."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "fuzz",
        "-q",
        "--timeout=3600",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"FURNACE_FUZZ_EXAMPLES": str(examples)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> None:
    """Try all inputs and write the figures."""
    from record import begin, write

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_500)
    parser.add_argument("--commands", type=int, default=60)
    parser.add_argument("--examples", type=int, default=5_000)
    options = parser.parse_args()
    begin()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        tally = fuzz(place, options.cases)
        bad = commands(place, options.commands)
        ran = len([entry for entry in tally.leaks if "canary" in entry]) + tally.canary.exists()
        row = {
            "inputs": sum(tally.cases.values()),
            "by_kind": dict(tally.cases),
            "readings_without_complaint": dict(tally.accepted),
            "real_commands": options.commands,
            "scripts_run": tally.scripts,
            "canaries_run": ran,
            "leaks": len(tally.leaks) - ran,
            "tracebacks": len(tally.tracebacks) + len(bad),
            "scripts_that_bash_refuses": len(tally.bad_scripts),
            "goal": "0 of each in 10,000 inputs",
        }
    failed = parsers(options.examples)
    row |= {
        "examples_per_parser": options.examples,
        "parser_tests": "passed" if failed == 0 else f"exit code {failed}",
    }
    for problem in [*tally.tracebacks[:10], *tally.leaks[:10], *tally.bad_scripts[:10], *bad[:10]]:
        print(problem, file=sys.stderr)
    write("fuzz", [row])


if __name__ == "__main__":
    main()
