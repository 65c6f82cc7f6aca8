"""Fixtures that several test files share."""

import gc
import os
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from end_with import end_with_this_process
from hypothesis import HealthCheck, settings
from local_study import calm  # noqa: F401  fixture
from made_once import made_once
from slurm_cluster import cluster, quiet  # noqa: F401  fixtures
from xdist.scheduler import LoadScopeScheduling

# Until all tests are collected. All that is made before stays until the end.
gc.disable()
ENDS = end_with_this_process()
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Otherwise every rank compiles torch and DeepSpeed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
UMASK = os.umask(0o022)
os.umask(UMASK)
# Several ranks share two cores. One thread also gives the same bits on every machine.
os.environ["OMP_NUM_THREADS"] = "1"

# The fork server of multiprocessing starts once per worker, with what its first user names. Without
# these, each process of later tests would import other decoders, and the modules of other data
# sets, in up to a second of a core.
DECODERS = ("furnace_hpc.data.packing.rendering", "furnace_hpc.data.decode.images")
DECODERS += ("furnace_hpc.data.decode.audio", "librosa.feature.spectral", "soundfile")
DECODERS += ("furnace_hpc.data.table.cells", "furnace_hpc.data.table.plan")
DECODERS += ("furnace_hpc.data.sets.tridigits.pack",)
DECODERS += ("furnace_hpc.data.sets.mmimdb_hdf5", "furnace_hpc.data.sets.audioset")
set_preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda names: set_preload([*names, *DECODERS])

# Tests marked `fuzz` take their number of examples from here: always the same ones in CI, many new
# ones in benchmarks/fuzz.py. The slow tests run them with --hypothesis-profile=full.
GIVEN = os.environ.get("FURNACE_FUZZ_EXAMPLES")
for name, examples in (("fast", 20), ("full", 50)):
    settings.register_profile(
        name,
        max_examples=int(GIVEN or examples),
        derandomize=GIVEN is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
settings.load_profile("fast")


# The longest tests begin first, so that no worker ends late.
FIRST = ("test_documents", "test_drill", "test_local", "real_slurm", "engine", "test_xor")
FIRST += ("project", "launch")
# Every test of these files can run in another worker. They share what made_once makes.
ALONE = ("test_local", "test_full_disk", "test_portable_bits", "test_gpu_check")


def pytest_configure(config: pytest.Config) -> None:
    """A test run that a test starts is no worker of the outer one."""
    if not hasattr(config, "workerinput"):
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID"):
            os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests."""
    items.sort(key=lambda item: _place(item.path))


def pytest_collection_finish() -> None:
    """Collect garbage, from now on."""
    gc.freeze()
    gc.enable()


def _place(path: Path) -> int:
    names = {path.stem, path.parent.name}
    return next((place for place, name in enumerate(FIRST) if name in names), len(FIRST))


class _Groups(LoadScopeScheduling):
    """Keeps the tests of a file in one worker, and all of engine/, which share a server of ranks.

    pytest-xdist 3.8 ignores its own mark xdist_group under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        if path.stem in ALONE:
            return nodeid
        if path.parent.name == "engine" and path.stem != "test_watchdog":
            return "engine"
        return str(path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give groups of tests to workers."""
    return _Groups(config, log)


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays_mounted(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test mounts below its own folder is unmounted, however the tests end."""
    ENDS.write(bytes(tmp_path_factory.getbasetemp()))
    ENDS.flush()


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small real TriDigits: 240 / 60 / 90 samples."""
    from furnace_hpc.data.sets.tridigits.pack import pack
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    def make(root: Path) -> None:
        knobs = TriDigitsKnobs(train=240, val=60, test=90)
        pack(knobs, root / "tridigits", lambda what, done, total: None)

    return made_once(tmp_path_factory, "data", make)


@pytest.fixture(scope="session")
def small_data(small_root: Path) -> Path:
    """The folder of the small TriDigits."""
    return small_root / "tridigits"


@pytest.fixture(autouse=True)
def same_process_state() -> Iterator[None]:
    """Commands that a test calls as functions change it: the umask, and Python's safe path."""
    os.umask(UMASK)
    yield
    os.umask(UMASK)
    os.environ.pop("PYTHONSAFEPATH", None)  # else scripts of later tests find no module beside them


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
