"""benchmarks/loader.py --memory-limit: cgroups, rows, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import loader_files  # noqa: E402
import loader_limit  # noqa: E402
import loader_memory  # noqa: E402
import loader_process  # noqa: E402
from loader_limit import Measured  # noqa: E402
from loader_memory import MB, MemoryGroup, NoMemoryGroupError, Place  # noqa: E402

VERSION_1 = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
IN_CONTAINER = "9 8 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("mounts", "own", "expected"),
    [
        (VERSION_1, "4:memory:/jobs/7\n0::/\n", ["1 memory/jobs/7", "1 memory/jobs", "1 memory"]),
        (VERSION_2, "0::/user.slice/one.scope\n", ["2 user.slice/one.scope", "2 user.slice"]),
        (IN_CONTAINER, "4:memory:/docker/abc/x\n", ["1 memory/x", "1 memory"]),
        ("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", "", []),
    ],
)
def test_places_are_searched_from_the_nearest(mounts, own, expected):
    found = [
        f"{place.version} {place.path.relative_to('/sys/fs/cgroup')}"
        for place in loader_memory.places(mounts, own)
    ]
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


def fake_group(folder, files, version):
    """A folder with the files that the kernel makes in a cgroup."""
    group = MemoryGroup(Place(folder, version), 200)
    group.path.mkdir()
    for name, content in files.items():
        (group.path / name).write_text(content)
    return group


def test_both_versions_are_read(tmp_path):
    one = {
        "memory.stat": f"cache 7\nrss 1\ntotal_rss {30 * MB}\ntotal_shmem {4 * MB}\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    }
    two = {
        "memory.stat": f"anon {30 * MB}\nfile {900 * MB}\nshmem {4 * MB}\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\n",
    }
    for version, files in ((1, one), (2, two)):
        group = fake_group(tmp_path, files, version)
        assert (group.own_mb(), group.kills()) == (34.0, 3)


def test_a_folder_without_controller_is_left_clean(tmp_path, monkeypatch):
    def refuse(path, text):
        raise PermissionError(f"no file {path.name}")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(loader_memory, "places", lambda *_: [Place(tmp_path, 2)])
    with pytest.raises(NoMemoryGroupError, match="Run this as root, or with version 2"):
        loader_memory.find_place()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def place():
    """Where this machine allows a memory cgroup."""
    try:
        return loader_memory.find_place()
    except NoMemoryGroupError as error:
        pytest.skip(str(error))


def in_group(group, program):
    """Run a Python program in the cgroup."""
    return subprocess.run(
        [sys.executable, "-c", program], preexec_fn=lambda: loader_memory.join(group.path)
    )


def test_the_kernel_kills_what_needs_more(place):
    with MemoryGroup(place, 60) as group:
        assert in_group(group, "bytearray(30_000_000)").returncode == 0
        assert group.kills() == 0
        assert in_group(group, "bytearray(100_000_000)").returncode == -9
        assert group.kills() == 1
        sleeper = subprocess.Popen(
            [sys.executable, "-c", "import time; x = bytearray(20_000_000); time.sleep(60)"]
        )
        (group.path / "cgroup.procs").write_text(str(sleeper.pid))
    assert sleeper.wait(10) == -9  # nothing is left in the cgroup
    assert not group.path.exists()


def test_files_larger_than_the_limit_do_not_stay(place, tmp_path):
    data = tmp_path / "set"
    data.write_bytes(b"x" * (120 * MB))
    assert loader_process.drop_caches(tmp_path)
    with MemoryGroup(place, 60) as group:
        program = f"file = open({str(data)!r}, 'rb')\nwhile file.read({MB}): pass"
        assert in_group(group, program).returncode == 0
        shown = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", str(data)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert 0 < int(shown.stdout) <= 60 * MB
        assert group.kills() == 0


STOPPED = """
import signal, sys
sys.path.insert(0, "benchmarks")
from pathlib import Path
import loader_memory
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
with loader_memory.MemoryGroup(loader_memory.Place(Path(sys.argv[1]), int(sys.argv[2])), 60) as one:
    print(one.path, flush=True)
    signal.pause()
"""


def test_a_stop_signal_removes_the_cgroup(place):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(place.path), str(place.version)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    made = Path(process.stdout.readline().strip())
    assert made.is_dir()
    process.terminate()
    assert process.wait(60) == 143
    assert not made.exists()


def test_rows_have_limit_sizes_and_kills():
    good = [Measured([100.0, 200.0], 50.4, 0), Measured([120.0, 180.0], 61.0, 0)]
    assert loader_limit.row("packed bytes", good, 310.2, 200) == {
        "way": "packed bytes",
        "limit_mb": 200,
        "set_mb": 310,
        "own_memory_mb": 61,
        "killed": 0,
        "first_pass_per_s": 110,
        "first_pass_range": [100, 120],
        "second_pass_per_s": 190,
        "second_pass_range": [180, 200],
    }
    killed = loader_limit.row("litdata", [good[0], Measured([90.0], 199.0, 2)], 310.2, 200)
    assert killed["killed"] == 2
    assert killed["missing"].startswith("killed because of the limit")
    assert "first_pass_per_s" not in killed


def test_ratio_is_of_both_passes_and_the_best_peer():
    measured = {
        "packed bytes": [Measured([100.0, 300.0], 1, 0)],  # 150 together
        "webdataset, 0 workers": [Measured([75.0, 75.0], 1, 0)],
        "litdata, 0 workers": [Measured([200.0, 40.0], 1, 0)],  # 67 together
        "hf datasets, bytes": [Measured([900.0], 1, 1)],  # killed, so it does not count
    }
    killed, ratio = loader_limit.ratios(measured)
    assert (killed["measured"], killed["reached"]) == (0, True)
    assert (ratio["against"], ratio["measured"]) == ("webdataset, 0 workers", 2.0)
    killed, ratio = loader_limit.ratios(measured | {"packed bytes": [Measured([], 1, 1)]})
    assert (killed["measured"], killed["reached"]) == (1, False)
    assert "missing" in ratio


@pytest.mark.parametrize("limit_mb", [0, -1, 311])
def test_a_limit_must_be_below_the_set(limit_mb, monkeypatch):
    monkeypatch.setattr(loader_files, "SAMPLES", 1536)
    loader_limit.check(310)
    with pytest.raises(ValueError, match="less than the set of 310 MB"):
        loader_limit.check(limit_mb)


@pytest.mark.slow
def test_a_set_that_fits_is_refused():
    done = subprocess.run(
        [sys.executable, "benchmarks/loader.py", "--memory-limit", "99"],
        cwd=ROOT,
        env=os.environ | {"RECORD": "no", "SAMPLES": "128"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --memory-limit 99: wanted 1 or more, and less than the set of 26 MB. Give less, or "
        "more samples with the environment variable SAMPLES\n"
    )
