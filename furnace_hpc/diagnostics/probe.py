"""Run a module that imports torch in a child process, and read the facts that it prints."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class ProbeError(Exception):
    """A probe printed no facts. The message is its last error."""


def run_probe(
    module: str, timeout_s: float, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module`, and return the JSON object on the last line of its output.

    Args:
        module: the module's full name.
        timeout_s: seconds that it may take.
        variables: environment variables, in addition to those of this process.

    Raises:
        TimeoutError: it did not end within `timeout_s`.
        ProbeError: it printed no JSON.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            env=os.environ | dict(variables or {}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    try:
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ProbeError(errors[-1]) from None
    return facts
