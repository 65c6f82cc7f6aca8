"""A small file system is filled while others write to it, like in benchmarks/chaos.py."""

import os
import subprocess
import sys
from pathlib import Path

from small_disk import only, small_file_system

WRITER = """
import itertools, os, sys
for number in itertools.count():
    try:
        with open(f"{sys.argv[1]}/{os.getpid()}", "wb") as file:
            for _ in range(1 + number % 40):
                file.write(bytes(300_000))
                file.flush()
    except OSError:
        pass
"""


def test_filling_leaves_the_space_that_is_given(tmp_path: Path):
    with small_file_system(tmp_path / "small"):
        for free_kib in (64, 512):
            with only(tmp_path / "small", free_kib):
                space = os.statvfs(tmp_path / "small")
                assert space.f_bavail * space.f_bsize == free_kib * 1024
            assert list((tmp_path / "small").iterdir()) == []


def test_filling_continues_while_others_write(tmp_path: Path):
    with small_file_system(tmp_path / "small", "64m") as small:
        writers = [subprocess.Popen([sys.executable, "-S", "-c", WRITER, small]) for _ in range(3)]
        try:
            for _ in range(20):
                with only(small, free_kib=16):
                    assert (small / "ballast").stat().st_size > 0
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
