"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import forked_commands
import pytest
from end_with import end_with_this_process
from hypothesis import HealthCheck, settings
from slurm_cluster import cluster, quiet  # noqa: F401  fixtures

ENDS = end_with_this_process()
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Otherwise every rank compiles torch and DeepSpeed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Several ranks share two cores. One thread also gives the same bits on every machine.
os.environ["OMP_NUM_THREADS"] = "1"

# Tests marked `fuzz` take their number of examples from here: few and always the same ones in CI,
# many new ones in benchmarks/fuzz.py.
EXAMPLES = int(os.environ.get("FURNACE_FUZZ_EXAMPLES", "50"))
settings.register_profile(
    "furnace",
    max_examples=EXAMPLES,
    derandomize="FURNACE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("furnace")


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays_mounted(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test mounts below its own folder is unmounted, however the tests end."""
    ENDS.write(bytes(tmp_path_factory.getbasetemp()))
    ENDS.flush()


@pytest.fixture(scope="session", autouse=True)
def _servers_end() -> Iterator[None]:
    """The servers of forked commands end with the tests."""
    yield
    forked_commands.end()


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small real TriDigits: 240 / 60 / 90 samples."""
    from furnace_hpc.data.sets.tridigits.pack import pack
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    root = tmp_path_factory.mktemp("data")
    pack(
        TriDigitsKnobs(train=240, val=60, test=90),
        root / "tridigits",
        lambda what, done, total: None,
    )
    return root


@pytest.fixture(scope="session")
def small_data(small_root: Path) -> Path:
    """The folder of the small TriDigits."""
    return small_root / "tridigits"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the roots and the Slurm job of the person who runs the tests."""
    for name in (
        "FURNACE_RUNS",
        "FURNACE_DATA",
        "FURNACE_SCRATCH",
        *(n for n in os.environ if n.startswith(("SLURM_", "SUBMITIT_"))),
    ):
        monkeypatch.delenv(name, raising=False)
