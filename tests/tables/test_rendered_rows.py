"""Rows that did not change are not rendered again, and no byte of an output depends on it."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tables_study import fail, finish, study

from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.large import rendered
from furnace_hpc.tables.large.rendered import rendered_rows
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.table import Ablation

ACTIONS = (
    *("finish", "change", "change", "remove", "fail", "log", "no log", "nothing"),
    *("metric", "description", "code", "flip a byte", "cut", "other content", "no cache"),
)
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 19)), min_size=3, max_size=8)


class Study:
    """A grid whose runs and settings change, and its tables."""

    def __init__(self, root: Path) -> None:
        self.grid, self.runs = study()
        self.folder = GridFolder(root / "runs" / "study")
        self.out = root / "results" / "study"
        for spec in self.runs[:12]:
            finish(spec, self.folder)

    def act(self, action: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = self.runs[number]
        log = self.folder.run(spec.run_id).log(1, 0)
        match action:
            case "finish":
                finish(spec, self.folder)
            case "change":
                finish(spec, self.folder, accuracy=0.5 + number / 100, train_s=number + 1.0)
            case "remove":
                shutil.rmtree(self.folder.run(spec.run_id).path, ignore_errors=True)
            case "fail":
                shutil.rmtree(self.folder.run(spec.run_id).path, ignore_errors=True)
                fail(spec, self.folder, f"RuntimeError: {number}")
            case "log":
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text("a log")
            case "no log":
                log.unlink(missing_ok=True)
            case "metric":
                name = ("test/digit/accuracy", "val/digit/accuracy")[number % 2]
                self.grid = self.grid.model_copy(update={"metric": name})
            case "description":
                self.grid = self.grid.model_copy(update={"description": f"number {number}"})
            case "code":
                monkeypatch.setattr(rendered, "_code", lambda: f"version {number}")
            case _:
                self.spoil(action, number)

    def spoil(self, action: str, number: int) -> None:
        """Damage the cache, or remove it."""
        for path in self.folder.tables_cache.glob("*.rows"):
            content = bytearray(path.read_bytes())
            if action == "flip a byte":
                content[number * len(content) // 20] ^= 1
            if action == "cut":
                content = content[: number * len(content) // 20]
            if action == "other content":  # a sound file under a digest that is not its own
                path.rename(path.with_name(f"{number:032x}.rows"))
            elif action == "no cache":
                path.unlink()
            elif action != "nothing":
                path.write_bytes(content)

    def table(self) -> Ablation:
        return collect(self.grid, self.runs, self.folder)

    def written(self) -> dict[str, bytes]:
        ablation = self.table()
        write_results(ablation, self.out, figures=False)
        self.num_rendered = rendered_rows(ablation).num_rendered
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}

    def written_in_full(self) -> dict[str, bytes]:
        """The same without any cache."""
        aside = self.out.parent.with_name("aside")
        self.folder.tables_cache.rename(aside)
        found = self.written()
        shutil.rmtree(self.folder.tables_cache)
        aside.rename(self.folder.tables_cache)
        return found


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a step takes a tenth of a second, so shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_kept_rows_change_no_byte(tmp_path_factory, steps):
    """Over new, changed, removed and failed runs, other settings and code, and a damaged cache."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(rendered, "MIN_RUNS", 1)
        made = Study(tmp_path_factory.mktemp("study"))
        made.written()
        for action, number in steps:
            made.act(action, number, monkeypatch)
            assert made.written() == made.written_in_full(), (action, number)


def test_only_changed_rows_are_rendered(tmp_path, monkeypatch):
    """Each row has two texts: its lines of runs.csv, and its data in the report."""
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path)

    def num_rendered() -> int:
        made.written()
        return made.num_rendered

    assert num_rendered() == 8
    assert num_rendered() == 0
    made.act("change", 0, monkeypatch)
    assert num_rendered() == 2
    made.act("log", 0, monkeypatch)
    assert num_rendered() == 1  # runs.csv has no link
    made.act("description", 1, monkeypatch)
    assert num_rendered() == 0  # it is in no row
    made.act("code", 1, monkeypatch)
    assert num_rendered() == 8
    made.act("flip a byte", 7, monkeypatch)
    assert num_rendered() == 8
    made.act("finish", 19, monkeypatch)
    assert num_rendered() == 2


def test_the_signature_has_all_of_the_code(tmp_path, monkeypatch):
    """A change in any file of Furnace renders all rows again."""
    package = tmp_path / "furnace_hpc"
    (package / "tables").mkdir(parents=True)
    (package / "tables" / "one.py").write_text("a = 1")
    monkeypatch.setattr(rendered, "PACKAGE", package)
    code = rendered._code.__wrapped__
    first = code()
    assert code() == first
    (package / "tables" / "one.py").write_text("a = 2")
    second = code()
    (package / "tables" / "one.py").rename(package / "one.py")
    assert len({first, second, code()}) == 3


def test_without_a_writable_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path)
    expected = made.written()
    shutil.rmtree(made.folder.tables_cache)
    made.folder.tables_cache.write_text("a file")
    assert made.written() == expected


def test_a_run_that_changes_after_the_listing(tmp_path, monkeypatch):
    """Its text is not kept, because the stamps of its files are older than its content."""
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path)
    made.act("remove", 3, monkeypatch)
    ablation = made.table()
    finish(made.runs[3], made.folder)
    late = collect(made.grid, made.runs, made.folder, records=ablation.records)
    write_results(late, made.out, figures=False)
    assert late.runs[3].result is not None
    assert made.written() == made.written_in_full()


def test_no_row_can_be_kept(tmp_path, monkeypatch):
    """In each row a run has ended since the listing. The kept rows of the last table stay."""
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path)
    made.act("remove", 0, monkeypatch)
    made.act("remove", 5, monkeypatch)
    made.written()
    kept = sorted(made.folder.tables_cache.glob("*.rows"))
    records = made.table().records
    for number in (0, 5, 12, 15):  # one per row
        finish(made.runs[number], made.folder)
    late = collect(made.grid, made.runs, made.folder, records=records)
    write_results(late, made.out, figures=False)
    assert rendered_rows(late).num_rendered == 8
    assert sorted(made.folder.tables_cache.glob("*.rows")) == kept
    assert made.written() == made.written_in_full()


def test_a_run_that_began_after_the_listing(tmp_path, monkeypatch):
    """It has ended without a usable result. The listing has no stamps of its attempts."""
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path)
    made.act("remove", 3, monkeypatch)
    records = made.table().records
    run = finish(made.runs[3], made.folder)
    for job_id in ("first", "other"):
        run.result.write_text("damaged")
        write_json(run.attempt(1), {"attempt": 1, "job_id": job_id})
        late = collect(made.grid, made.runs, made.folder, records=records)
        write_results(late, made.out, figures=False)
        assert f'[1,"{job_id}",' in (made.out / "report.html").read_text()


def test_a_path_that_is_not_utf8(tmp_path, monkeypatch):
    """A cache of texts cannot have the path of a log."""
    monkeypatch.setattr(rendered, "MIN_RUNS", 1)
    made = Study(tmp_path / os.fsdecode(b"\xe9"))
    made.act("log", 0, monkeypatch)
    made.written()
    assert made.num_rendered == 8
    assert made.written() == made.written_in_full()
