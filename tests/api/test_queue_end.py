"""What follows a queue on this machine: the notification and the mirrors, from Python as well."""

from pathlib import Path

import pytest
from login_study import command, finish, pack, specs, write_grid
from web_server import serving

import furnace_hpc as furnace
from furnace_hpc.launch.grids.background import own_queue
from furnace_hpc.runs.folder import GridFolder

PROFILE = """
name: mine
executor: local
notify: {webhook}
trackers: [{{to: tensorboard}}]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid with packed data, a profile with `notify` and `trackers`, and no Slurm."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    (tmp_path / "webhook").touch(mode=0o600)
    (tmp_path / "mine.yaml").write_text(PROFILE.format(webhook=tmp_path / "webhook"))
    monkeypatch.chdir(tmp_path)
    for name in ("FURNACE_RUNS", "FURNACE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return tmp_path


def events(place: Path) -> int:
    return len(list((place / "runs/study/trackers/tensorboard").glob("*/events*")))


@pytest.mark.parametrize("way", ["python", "command"])
def test_what_follows_the_queue(place: Path, way: str):
    """Here all runs are done already, so that the queue ends at once."""
    folder = GridFolder(place / "runs" / "study")
    for spec in specs():
        finish(spec, folder)
    with serving() as server:
        (place / "webhook").write_text(server.url)
        if way == "python":
            study = furnace.load_grid("study.yaml")
            assert study.submit("./mine.yaml").counts == {"skip": 4}
            assert own_queue(study.folder).process.wait(100) == 0
            assert not (place / "results").exists()
        else:
            done = command("submit", place, "--grid", "study.yaml", "--cluster", "./mine.yaml")
            assert "tensorboard: sent 4 records of 4 runs" in done.stdout
        [sent] = server.received
    assert (sent["event"], sent["runs"]) == ("grid_ended", {"done": 4})
    assert events(place) == 4


def test_a_submission_to_slurm_has_not_ended(place: Path):
    """A local submission with nothing to do comes while jobs wait. The follow-up job sends it."""
    folder = GridFolder(place / "runs" / "study")
    for spec in specs():
        finish(spec, folder)
    words = ("submit", place, "--grid", "study.yaml", "--cluster", "./mine.yaml")
    with serving() as server:
        (place / "webhook").write_text(server.url)
        assert command(*words).returncode == 0
        profile, notice = (
            folder.submissions / "1" / name for name in ("profile.json", "notice.json")
        )
        notice.unlink()
        profile.write_text(
            profile.read_text().replace('"executor": "local"', '"executor": "slurm"')
        )
        assert command(*words).returncode == 0
        assert len(folder.all_submissions()) == 1
        assert not notice.exists()
        assert len(server.received) == 1


def test_a_table_that_fails_hides_nothing(place: Path):
    """No result has the metric: the command fails, and the notification is sent all the same."""
    path = place / "study.yaml"
    path.write_text(
        path.read_text().replace("metric: test/digit/accuracy", "metric: test/digit/loss@text")
    )
    folder = GridFolder(place / "runs" / "study")
    for spec in specs():
        finish(spec, folder)
    with serving() as server:
        (place / "webhook").write_text(server.url)
        done = command("submit", place, "--grid", "study.yaml", "--cluster", "./mine.yaml")
        [sent] = server.received
    assert done.returncode == 2
    assert "'test/digit/loss@text' is in no result" in done.stderr
    assert sent["verdict"].startswith("no table: ")
    assert events(place) == 4
