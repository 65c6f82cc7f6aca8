"""The environment of portable runs: set before torch is imported, or refused."""

import subprocess
import sys

import pytest

from furnace_hpc.host import portable

CODE = """
import sys, types
if {torch}: sys.modules["torch"] = types.ModuleType("torch")
import os
from furnace_hpc.host import portable
print(portable.prepare() or "prepared")
print(*(os.environ.get(name) for name in portable.ENVIRONMENT))
print(portable.find_problem())
"""


def prepared(torch: bool = False, **variables: str) -> list[str]:
    """What `prepare` and `find_problem` answer in a new process with only these variables."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(torch=torch)],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def cpu(monkeypatch, tmp_path, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(portable, "CPUINFO", str(tmp_path / "cpuinfo"))


def test_a_new_process_gets_the_variables():
    """Values of the user's shell are replaced."""
    answers = prepared(OMP_NUM_THREADS="8", MKL_CBWR="AVX2")
    assert answers == ["prepared", "avx2 AVX2 COMPATIBLE 1", ""]


def test_torch_imported_before_is_a_problem():
    problem, values, _ = prepared(torch=True)
    assert problem.startswith("ATEN_CPU_CAPABILITY is not set in this process, wanted 'avx2'. ")
    assert values == "None None None None"


def test_torch_after_the_start_with_variables_is_none():
    answers = prepared(torch=True, **portable.ENVIRONMENT)
    assert answers == ["prepared", "avx2 AVX2 COMPATIBLE 1", ""]


def test_variables_set_after_torch_are_not_enough(monkeypatch):
    """A process with torch that only changes os.environ, such as a warm parent of ranks."""
    for name, value in portable.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(portable, "_prepared", [])
    assert portable.find_problem().startswith("this process imported torch before the variables")


@pytest.mark.parametrize("name", portable.ENVIRONMENT)
def test_the_problem_names_the_variable(monkeypatch, name):
    for other, value in portable.ENVIRONMENT.items():
        monkeypatch.setenv(other, value)
    monkeypatch.setenv(name, "wrong")
    wanted = f"{name} is 'wrong' in this process, wanted '{portable.ENVIRONMENT[name]}'. "
    assert portable.find_problem().startswith(wanted)


def test_a_cpu_without_avx2_is_refused(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "processor : 0\nflags\t\t: fpu sse sse4_2 avx avx512f\n")
    found = portable.prepare()
    assert "has no avx2 and no fma. Use an x86-64 CPU with AVX2" in found
    assert found == portable.find_problem()


def test_a_cpu_of_another_architecture_is_refused(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "processor : 0\nFeatures : fp asimd\n")
    assert "has no avx2" in portable.prepare()


def test_a_cpu_with_avx2_is_accepted(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "flags : fpu avx avx2 fma\n")
    assert portable.missing_instructions() == ""


def test_only_a_portable_spec_gets_variables():
    assert portable.environment_of({"config": {"portable": True}}) == portable.ENVIRONMENT
    assert portable.environment_of({"config": {"portable": False}}) == {}
    assert portable.environment_of({"config": {}}) == {}  # a spec from before the key existed
