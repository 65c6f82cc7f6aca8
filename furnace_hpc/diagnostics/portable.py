"""Check in a child process that this machine gives the bits of portable runs."""

from furnace_hpc.diagnostics.probe import ProbeError, run_probe
from furnace_hpc.diagnostics.report import Check, fail, ok, warn
from furnace_hpc.host.portable import ENVIRONMENT, missing_instructions

NAME = "portable bits"
TIMEOUT_S = 300  # torch from a cold network file system takes a minute
# version of torch -> hash of the parameters after the steps of engine/portable_probe.py
EXPECTED = {"2.13.0": "140d8318cc29cc61f8f6d0fca0c8096386ff54e53517ec9d62e79a2e761a2f98"}
PINNED = "install the pinned versions (constraints.txt)"


def portable_checks() -> list[Check]:
    """Run `engine/portable_probe.py`, and compare its hash with the recorded one."""
    if problem := missing_instructions():  # torch would crash
        return [fail(NAME, *problem.split(". ", 1))]
    variables = ENVIRONMENT | {"DS_ACCELERATOR": "cpu"}
    try:
        facts = run_probe("furnace_hpc.engine.portable_probe", TIMEOUT_S, variables)
    except TimeoutError as error:
        return [fail(NAME, str(error), "try `python -c 'import torch'`")]
    except ProbeError as error:
        return [fail(NAME, str(error), "set portable: false in grids for this machine")]
    return [judge(facts["torch"], facts["parameters_sha256"])]


def judge(torch: str, found: str) -> Check:
    """Compare the probe's hash with the one that is recorded for this version of torch."""
    wanted = EXPECTED.get(torch.partition("+")[0])
    if wanted is None:
        recorded = ", ".join(EXPECTED)
        return warn(NAME, f"torch {torch}: hashes are recorded for {recorded} only", PINNED)
    if found != wanted:
        problem = f"the parameters of a short training have hash {found[:12]}, not {wanted[:12]}: "
        problem += "portable runs differ from those of other machines"
        return fail(NAME, problem, f"{PINNED}; if they are, report this CPU")
    return ok(NAME, f"the recorded ones for torch {torch} ({found[:12]})")
