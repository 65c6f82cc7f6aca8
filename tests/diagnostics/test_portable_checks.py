"""`furnace doctor --portable`: the recorded hash, another one, another torch, no AVX2."""

import subprocess

import pytest

from furnace_hpc.diagnostics import portable

[(TORCH, RECORDED)] = portable.EXPECTED.items()


@pytest.mark.parametrize(
    ("torch", "found", "level", "text"),
    [
        (TORCH, RECORDED, "ok", "the recorded ones"),
        (f"{TORCH}+cpu", RECORDED, "ok", f"({RECORDED[:12]})"),
        (TORCH, "0" * 64, "fail", f"hash 000000000000, not {RECORDED[:12]}"),
        ("9.9.0", RECORDED, "warn", f"hashes are recorded for {TORCH} only"),
    ],
)
def test_judge(torch, found, level, text):
    check = portable.judge(torch, found)
    assert check.level == level
    assert text in check.found
    assert bool(check.hint) == (level != "ok")


def test_a_cpu_without_avx2_starts_no_torch(monkeypatch):
    monkeypatch.setattr(portable, "missing_instructions", lambda: "the CPU has no avx2. Use more")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    [check] = portable.portable_checks()
    assert (check.level, check.found, check.hint) == ("fail", "the CPU has no avx2", "Use more")


def test_the_error_of_the_child_is_shown(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "warning\nOSError: libtorch.so is missing\n")
    monkeypatch.setattr(portable, "missing_instructions", lambda: "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    [check] = portable.portable_checks()
    assert (check.level, check.found) == ("fail", "OSError: libtorch.so is missing")


@pytest.mark.slow
def test_this_machine_has_the_recorded_bits():
    [check] = portable.portable_checks()
    assert check.level == "ok", check
