"""`furnace track`: what it prints, refuses and follows."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from login_study import begin, grid, planned, without_controller
from login_study import specs as study_specs
from tracked_study import TrainedRun

from furnace_hpc.config.cluster import ClusterProfile, TrackerTarget
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import results_name
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.trackers import mirror as mirror_module
from furnace_hpc.trackers.cursor import locked
from furnace_hpc.trackers.mirror import mirror
from furnace_hpc.trackers.mirror_all import mirror_to_all, reports_of

TENSORBOARD = TrackerTarget(to="tensorboard")


def track(tmp_path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "furnace_hpc", "track", "--grid", "study", *options],
        cwd=tmp_path,
        env=without_controller(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def submitted(tmp_path) -> tuple[GridFolder, TrainedRun]:
    """A submitted grid with one run that has ended."""
    write_submission(planned(tmp_path / "runs", grid()))
    folder = GridFolder(tmp_path / "runs" / "study")
    spec = study_specs()[0]
    run = TrainedRun(spec, folder.run(spec.run_id))
    run.begin()
    run.train(50)
    run.finish()
    return folder, run


def test_it_says_what_was_sent(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, run = submitted(tmp_path)
    options = ("--to", "tensorboard")
    first = track(tmp_path, *options)
    assert (first.returncode, first.stderr) == (0, "")
    place = folder.trackers.relative_to(tmp_path) / "tensorboard"
    assert first.stdout == (
        f"tensorboard: sent 6 records of 1 run; see tensorboard --logdir {place}\n"
    )
    assert track(tmp_path, *options).stdout == "tensorboard: nothing new in 1 run\n"
    again = track(tmp_path, *options, "--again")
    assert "sent 6 records of 1 run" in again.stdout
    other = track(tmp_path, *options, "--at", "elsewhere")
    assert other.stdout.endswith("see tensorboard --logdir elsewhere\n")
    assert run.folder.run_id in {path.name for path in (tmp_path / "elsewhere").iterdir()}


def test_no_run_changes_its_files(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, run = submitted(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")}
    mirror(folder, TENSORBOARD)
    assert {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")} == before


def test_a_missing_library_names_the_install_line(tmp_path, monkeypatch):
    folder, _ = submitted(tmp_path)
    monkeypatch.setattr("furnace_hpc.trackers.choice.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        mirror(folder, TrackerTarget(to="trackio"))
    assert str(caught.value) == (
        "--to trackio needs the package trackio, which is not installed. Run pip install "
        "'furnace-hpc[trackio]'"
    )


def test_two_mirrors_of_one_target_are_refused(tmp_path):
    folder, _ = submitted(tmp_path)
    name = mirror_module._file_name(TENSORBOARD)
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from furnace_hpc.trackers.cursor import locked\n"
        "with locked(Path(sys.argv[1]), 'x'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    path = folder.trackers / f"{name}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            ConfigError,
            match=rf"furnace track --to tensorboard is running already: process {holder.pid} on .*"
            r"Wait until it ends, or stop it",
        ):
            mirror(folder, TENSORBOARD)
    finally:
        holder.kill()
        holder.communicate()
    with locked(path, "x"):  # a kill leaves no lock
        pass


def test_follow_ends_with_the_grid(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    submitted(tmp_path)
    done = track(tmp_path, "--to", "tensorboard", "--follow")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sent 6 records" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_follow_cleanly(tmp_path, number):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, _ = submitted(tmp_path)
    spec = study_specs()[1]
    begin(spec, folder, lifecycle.holder())
    words = ["--grid", "study", "--to", "tensorboard", "--follow", "--every", "1"]
    child = subprocess.Popen(
        [sys.executable, "-m", "furnace_hpc", "track", *words],
        cwd=tmp_path,
        env=without_controller(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "sent" in child.stdout.readline()
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, "stopped. Run the same command to continue\n")
    [cursor] = folder.trackers.glob("*.json")
    assert len(json.loads(cursor.read_text())["runs"]) == 2


def test_a_run_links_the_report_of_its_own_table(tmp_path, monkeypatch):
    """Runs of `--set` have a table of their own. A run in two tables has the newest report."""
    monkeypatch.chdir(tmp_path)
    plans = [
        planned(tmp_path / "runs", grid(settings=settings))
        for settings in ({}, {"steps": 20}, {"steps": 40}, {"resources.nodes": 1})
    ]
    folder = plans[0].folder
    for plan in plans:
        write_submission(plan)
    base, short, same, resources = (
        {run.folder.run_id for run in plan.runs if not run.folder.result.is_file()}
        for plan in plans
    )
    assert base == same == resources
    assert not base & short
    pages = {}
    for name, plan in zip(("base", "short", "same"), plans, strict=False):
        page = tmp_path / "results" / results_name(plan.grid) / "report.html"
        pages[name] = str(page)
        assert reports_of(folder).keys() == {"base": set(), "short": base}.get(name, base | short)
        page.parent.mkdir(parents=True)
        page.write_text("<p>report")
    assert len(set(pages.values())) == 3
    assert {reports_of(folder)[run] for run in short} == {pages["short"]}
    assert {reports_of(folder)[run] for run in base} == {pages["base"]}
    Path(pages["base"]).unlink()
    assert {reports_of(folder)[run] for run in base} == {pages["same"]}


def test_the_tracker_gets_the_report_of_the_run(tmp_path, monkeypatch, capsys):
    """A new report of another table sends nothing again."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    plan = planned(tmp_path / "runs", grid(settings={"steps": 20}))
    write_submission(planned(tmp_path / "runs", grid()))
    write_submission(plan)
    run = TrainedRun(plan.runs[0].spec, plan.runs[0].folder)
    run.begin()
    run.train(20)
    run.finish()
    results = tmp_path / "results"
    pages = [results / name / "report.html" for name in (results_name(plan.grid), "study")]
    sent = []
    for page in pages:
        page.parent.mkdir(parents=True)
        page.write_text("<p>report")
        mirror_to_all([TENSORBOARD], plan.folder)
        sent.append(capsys.readouterr().out)
    assert sent[0].startswith("tensorboard: sent 2 records of 1 run")
    assert sent[1] == "tensorboard: nothing new in 1 run\n"
    events = reader.EventAccumulator(
        str(plan.folder.trackers / "tensorboard" / run.folder.run_id)
    ).Reload()
    texts = [
        event.tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        for event in events.Tensors(tag)
        if event.tensor_proto.string_val
    ]
    assert any(f"| report | {pages[0]} |" in text for text in texts), texts


OLD_POSITIONS = """{"format": 1, "runs": {"%s": {"files": "0123456789abcdef", "info": "%s",
"position": {"files": {"1": [%d, %d]}, "reached": {"train": 50, "val": 50}, "time_s": %r,
"below": null}, "state": %s}}}"""


def test_positions_of_an_older_version_are_read(tmp_path):
    """The text is that of format 1. What was sent is not sent again."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, run = submitted(tmp_path)
    mirror(folder, TENSORBOARD)
    [file] = folder.trackers.glob("*.json")
    [(name, entry)] = json.loads(file.read_text())["runs"].items()
    position = entry["position"]
    numbers = (*position["files"]["1"], position["time_s"])
    file.write_text(OLD_POSITIONS % (name, entry["info"], *numbers, json.dumps(entry["state"])))
    assert mirror(folder, TENSORBOARD).num_changed == 0
    assert json.loads(file.read_text())["runs"][name] == entry
    run.metrics = MetricsFile(run.folder.metrics(1))
    run.train(10)
    assert mirror(folder, TENSORBOARD).num_records == 1


def test_positions_of_a_newer_version_are_kept(tmp_path):
    """Otherwise all records would be sent again, and the newer version would do so too."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, _ = submitted(tmp_path)
    mirror(folder, TENSORBOARD)
    [file] = folder.trackers.glob("*.json")
    file.write_text(newer := file.read_text().replace('"format": 1', '"format": 2'))
    done = track(tmp_path, "--to", "tensorboard")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {file.relative_to(tmp_path)} has format 2, and this Furnace reads format 1. Use "
        "the newer Furnace that wrote it\n"
    )
    assert file.read_text() == newer


def test_a_failing_tracker_is_only_a_warning(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder, _ = submitted(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mirror_to_all([TrackerTarget(to="mlflow", project="mine"), TENSORBOARD], folder)
    said = capsys.readouterr()
    assert said.out.startswith("tensorboard: sent 6 records of 1 run")
    [line] = said.err.splitlines()
    assert line.startswith("warning: the runs were not sent to mlflow: the address of MLflow is ''")
    assert line.endswith("--to mlflow --project mine")
    assert "server. Start one with `mlflow server`" in line
    assert " track --grid study " in line


def test_the_key_of_a_profile():
    content = {"name": "mine", "executor": "slurm"}
    given = [{"to": "mlflow", "at": "http://host:5000"}, {"to": "wandb", "offline": True}]
    profile = validate(ClusterProfile, content | {"trackers": given}, "mine.yaml")
    assert [target.to for target in profile.trackers] == ["mlflow", "wandb"]
    assert validate(ClusterProfile, content, "mine.yaml").trackers == ()
    with pytest.raises(ConfigError, match="trackers need follow_up: true"):
        validate(ClusterProfile, content | {"trackers": given, "follow_up": False}, "mine.yaml")
    local = {"name": "mine", "executor": "local", "follow_up": False, "trackers": given}
    assert len(validate(ClusterProfile, local, "mine.yaml").trackers) == 2
    for wrong, problem in (
        ({"to": "aim"}, "'tensorboard', 'wandb', 'mlflow' or 'trackio'"),
        ({"to": "mlflow", "offline": True}, "offline needs wandb, not mlflow"),
        ({"to": "mlflow", "at": "http://me:geheim123@host"}, "contains a password"),
        ({"to": "tensorboard", "project": "x"}, "tensorboard has no projects"),
    ):
        with pytest.raises(ConfigError, match=problem):
            validate(ClusterProfile, content | {"trackers": [wrong]}, "mine.yaml")
