"""Durable writers and readers of JSON lines."""

import os
from pathlib import Path

import pytest

from furnace_hpc.host import durable_files
from furnace_hpc.host.json_lines import last_lines, parse_line, read_json_lines, read_tail


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """Names of the files that are synced, in order."""
    names: list[str] = []

    def fsync(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


@pytest.mark.parametrize("durable", [True, False])
def test_replaced_file_is_complete(tmp_path, synced, durable):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with durable_files.replaced_file(path, durable) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert Path(file.name).name.startswith(".a.json.")
    assert path.read_bytes() == b"new"
    assert len(synced) == int(durable)
    assert names_in(tmp_path) == ["a.json"]


def test_failed_replacement_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with durable_files.replaced_file(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_bytes(), names_in(tmp_path)) == (b"old", ["a.json"])


@pytest.mark.parametrize("create", [durable_files.create_file, durable_files.create_complete_file])
def test_created_file_is_never_replaced(tmp_path, create):
    path = tmp_path / "a.json"
    create(path, b"first")
    with pytest.raises(FileExistsError):
        create(path, b"second")
    assert (path.read_bytes(), names_in(tmp_path)) == (b"first", ["a.json"])


def test_failed_creation_leaves_no_file(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        durable_files.create_file(tmp_path / "a.json", b"x")
    assert names_in(tmp_path) == []


def test_append_line_ends_a_torn_line(tmp_path, synced):
    path = tmp_path / "a.jsonl"
    durable_files.append_line(path, '{"n": 1}')
    path.write_bytes(path.read_bytes() + b'{"n": ')
    durable_files.append_line(path, '{"n": 2}')
    assert path.read_text() == '{"n": 1}\n{"n": \n{"n": 2}\n'
    assert list(read_json_lines(path)) == [{"n": 1}, {"n": 2}]
    assert synced == ["a.jsonl"] * 2


@pytest.mark.parametrize("line", ["", "[1]", "1", '{"a"', "\0", b"\xff", "[" * 100_000, "NaN"])
def test_torn_or_foreign_line_is_none(line):
    assert parse_line(line) is None


def test_end_of_a_file(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n\xff\n")
    assert read_tail(path, 6) == b"two\n\xff\n"
    assert read_tail(path, 600) == path.read_bytes()
    assert last_lines(path, 2) == "two\n\N{REPLACEMENT CHARACTER}\n"
