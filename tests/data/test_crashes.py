"""Decoders that crash, hang or raise any error lose one file. Real processes get real signals."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from crash_work import make_plan
from test_packing import contents

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode import child_process
from furnace_hpc.data.packing.pack import pack_files

GOOD = ("", "")


def good(count: int) -> dict[str, tuple[str, str]]:
    return {f"good{number}": GOOD for number in range(count)}


def pack(plan, out: Path, num_workers: int = 2, max_refused: float = 1.0):
    pack_files(
        plan, out, lambda *_: None, workers=num_workers, max_refused=max_refused, force=False
    )
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    return open_columns(out, verify=True), lines


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("segfault", "the process that read it crashed (SIGSEGV)"),
        ("abort", "the process that read it crashed (SIGABRT)"),
        ("kill", "the process that read it was killed, probably because memory was full"),
        ("exit", "the process that read it crashed (exit code 3)"),
        ("memory", "MemoryError"),
        ("recursion", "RecursionError: maximum recursion depth exceeded"),
        ("odd error", "OddError"),
    ],
)
def test_a_failing_decoder_loses_its_modality(tmp_path, how, detail):
    files = good(3) | {"bad1": (how, ""), "bad2": (how, how)} | good(9)
    columns, lines = pack(make_plan(tmp_path / "raw", files), tmp_path / "set")
    train = columns.split("train")
    assert len(train["present"]) == len(files) - 1
    assert train["source_id"].tolist() == [name.encode() for name in files if name != "bad2"]
    assert train["present"].tolist() == [
        [int(name != "bad1"), 1] for name in files if name != "bad2"
    ]
    assert [(line["sample"], line["modality"], line["file"], line["kept"]) for line in lines] == [
        ("bad1", "image", "bad1.image", True),
        ("bad2", "image", "bad2.image", False),
        ("bad2", "audio", "bad2.audio", False),
        ("bad2", None, "", False),
    ]
    assert [line["reason"] for line in lines] == ["unreadable"] * 3 + ["nothing left"]
    assert all(line["detail"].startswith(detail) for line in lines[:3])


@pytest.mark.parametrize(
    ("how", "limit", "detail"),
    [
        ("spin", "MAX_CPU_S", "reading it took more than 1 s of processor time"),
        ("sleep", "MAX_WALL_S", "reading it took more than 1 s"),
    ],
)
def test_a_hung_decoder_loses_its_modality(tmp_path, monkeypatch, how, limit, detail):
    monkeypatch.setattr(child_process, limit, 1.0)
    columns, lines = pack(
        make_plan(tmp_path / "raw", good(2) | {"bad": ("", how)}), tmp_path / "set"
    )
    assert columns.split("train")["present"].tolist() == [[1, 1], [1, 1], [1, 0]]
    [line] = lines
    assert (line["sample"], line["file"], line["detail"]) == ("bad", "bad.audio", detail)


@pytest.mark.parametrize("name", ["crash outside", "crash before"])
def test_a_crash_outside_of_files_loses_the_sample(tmp_path, name):
    columns, lines = pack(make_plan(tmp_path / "raw", good(5) | {name: GOOD}), tmp_path / "set")
    assert len(columns.split("train")["present"]) == 5
    [line] = lines
    assert (line["sample"], line["modality"], line["reason"], line["kept"]) == (
        name,
        None,
        "unreadable",
        False,
    )
    assert "SIGSEGV" in line["detail"]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_kill_from_outside_changes_no_byte(tmp_path, num_workers):
    files = good(9) | {"once": ("", "killed once")} | {f"more{number}": GOOD for number in range(9)}
    undisturbed = make_plan(tmp_path / "raw", files)
    (tmp_path / "raw" / "killed").touch()
    pack(undisturbed, tmp_path / "a")
    (tmp_path / "raw" / "killed").unlink()
    _, lines = pack(undisturbed, tmp_path / "b", num_workers)
    assert (tmp_path / "raw" / "killed").exists()
    assert lines == []
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_repeated_kills_of_all_workers(tmp_path):
    """Every process is killed as soon as it is seen, for a second. Then the pack ends as usual."""
    plan = make_plan(tmp_path / "raw", good(200))
    stop = time.monotonic() + 1
    known = {child.pid for child in psutil.Process().children(recursive=True)}
    killed = []

    def kill() -> None:
        while time.monotonic() < stop:
            for child in psutil.Process().children(recursive=True):
                if child.pid not in known and child.ppid() != os.getpid():
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    # a process may be killed before it reads a file, more often than allowed
    with suppress(ConfigError):
        pack(plan, tmp_path / "set", 3)
    thread.join()
    assert killed
    if not (tmp_path / "set").exists():
        pack(plan, tmp_path / "set", 3)
    columns = open_columns(tmp_path / "set", verify=True)
    lines = [
        json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()
    ]
    num_refused = sum(line["modality"] is None for line in lines)
    assert len(columns.split("train")["present"]) + num_refused == 200


def test_an_error_of_the_machine_ends_the_pack(tmp_path):
    """The error names the file, and the pack can be resumed."""
    plan = make_plan(tmp_path / "raw", good(9) | {"bad": ("no descriptors", "")})
    with pytest.raises(
        ConfigError, match="file 'bad.image' cannot be read: Too many open files. Fix it"
    ):
        pack(plan, tmp_path / "set")
    (tmp_path / "raw" / "bad.image").write_text("")
    columns, lines = pack(plan, tmp_path / "set")
    assert (len(columns.split("train")["present"]), lines) == (10, [])


def test_an_error_of_the_program_ends_the_pack(tmp_path):
    """The error names the sample, and no process is left."""
    plan = make_plan(tmp_path / "raw", good(9) | {"bug": GOOD})
    with pytest.raises(
        RuntimeError, match=r"(?s)train: sample 'bug' cannot be rendered:.*KeyError: 'a bug'"
    ):
        pack(plan, tmp_path / "set")
    assert not [
        child for child in psutil.Process().children(recursive=True) if child.ppid() != os.getpid()
    ]


def test_too_many_crashes_are_counted_as_refused(tmp_path):
    plan = make_plan(tmp_path / "raw", good(4) | {"bad": ("abort", "")})
    with pytest.raises(
        ConfigError,
        match=r"1 of 7 samples have a file that could not be read.*image unreadable 1",
    ):
        pack(plan, tmp_path / "set", max_refused=0.05)


def test_a_sample_id_that_is_not_unicode_is_refused(tmp_path):
    name = os.fsdecode(b"x\xe9")
    plan = make_plan(tmp_path / "raw", good(1))
    plan.rows["train"].append(name)
    with pytest.raises(ConfigError, match=r"train: sample id 'x\\udce9' is not valid Unicode"):
        pack(plan, tmp_path / "set")


def test_an_empty_split_is_found_before_reading(tmp_path):
    plan = make_plan(tmp_path / "raw", good(1) | {"bug": GOOD})
    plan.rows["val"].clear()
    with pytest.raises(
        ConfigError, match="split 'val' is empty: 1 samples are listed, and none of them has a file"
    ):
        pack(plan, tmp_path / "set")
    assert not (tmp_path / "set.packing").exists()


def test_a_split_without_usable_sample_has_reasons(tmp_path):
    plan = make_plan(tmp_path / "raw", good(3) | {"bad": ("recursion", "recursion")})
    for modality in ("image", "audio"):
        (tmp_path / "raw" / f"t.{modality}").unlink()
    with pytest.raises(ConfigError) as caught:
        pack(plan, tmp_path / "set")
    reasons = "(audio missing 1, image missing 1, sample nothing left 1)"
    assert str(caught.value).startswith(f"split 'test' has no usable sample {reasons}")
