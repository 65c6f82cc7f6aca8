"""`furnace diff`: what differs between two runs, as a table, lines and JSON."""

import io
import json
import math

import pytest
from login_study import CODE, begin, command, end, finish, grid, pack, planned, specs
from tables_study import result_of

from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.comparison.differences import (
    MISSING,
    Difference,
    as_json,
    differences,
    picture,
    plain,
)
from furnace_hpc.runs.comparison.facts import Section, read_facts
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.result import write_result

BASE0, BASE1, FULL0, FULL1 = RUNS = [spec.run_id for spec in specs()]


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    write_submission(planned(tmp_path / "runs", grid()))
    return GridFolder(tmp_path / "runs" / "study")


def rewrite(run: RunFolder, row: int, **changes) -> None:
    write_result(run, result_of(specs()[row], **{"code_hash": CODE} | changes))


def found(first: RunFolder, second: RunFolder, *only: Section) -> dict[str, tuple]:
    """Key -> both values, of the differences in these sections."""
    pair = differences(read_facts(first), read_facts(second), only or tuple(Section))
    return {f"{one.section.value}.{one.key}": (one.left, one.right) for one in pair}


def give(folder: GridFolder, *arguments: str) -> tuple[int, str, str]:
    done = command("diff", folder.path.parent.parent, *arguments)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def test_config_and_metrics(folder):
    first, second = finish(specs()[0], folder), finish(specs()[2], folder)
    assert found(first, second, Section.CONFIG) == {
        "config.loss.alpha": (0.0, 0.5),
        "config.loss.beta": (0.0, 0.3),
    }
    rewrite(first, 0, accuracy=0.8)
    rewrite(second, 2, accuracy=0.825, selected_step=300)
    assert found(first, second, Section.METRICS) == {
        "metrics.test/digit/accuracy": (0.8, 0.825),
        "metrics.val/digit/accuracy": (0.81, 0.835),
        "metrics.selected_step": (400, 300),
    }
    change = Difference(Section.METRICS, "x", 0.8, 0.825).change
    assert change == pytest.approx(0.025)
    assert Difference(Section.CONFIG, "x", 1, 2).change is None


def test_equal_runs(folder):
    """Times and the number of attempts are not compared, and NaN equals NaN."""
    first, second = finish(specs()[0], folder), finish(specs()[0], GridFolder(folder.path / "x"))
    rewrite(first, 0, accuracy=math.nan)
    rewrite(second, 0, accuracy=math.nan, train_s=1.0, wall_s=9.0, attempts=3)
    assert found(first, second) == {}
    code, said, complaint = give(folder, f"study/{BASE0}", f"runs/study/x/{BASE0}")
    assert (code, complaint) == (0, "")
    assert said.splitlines()[-1] == "no difference"


def test_overrides_of_the_last_attempt(folder):
    """A micro-batch that was halved after an out-of-memory error is part of the config."""
    first, second = finish(specs()[0], folder), finish(specs()[1], folder)
    record = json.loads(second.attempt(1).read_text())
    write_json(second.attempt(1), record | {"overrides": {"micro_batch_size": 4}})
    assert found(first, second, Section.CONFIG) == {
        "config.micro_batch_size": (None, 4),
        "config.seed": (0, 1),
    }


def test_code(folder):
    """The hash, the commit, and the files of two snapshots."""
    first = begin(specs()[0], folder, snapshot="aaa")
    second = begin(specs()[1], folder, code="c0dec0dec0df", snapshot="bbb")
    for name, more in {"aaa": "", "bbb": "\n"}.items():
        place = folder.code / name
        write_json(place / "snapshot.json", {"commit": f"{name}+dirty"})
        write_atomically(place / "furnace_hpc/same.py", "x")
        write_atomically(place / "furnace_hpc/loop.py", f"x{more}")
        write_atomically(place / f"furnace_hpc/{name}.py", "x")
    files = found(first, second, Section.CODE)
    assert {key: files.pop(f"code.{key}") for key in ("commit", "code_hash", "snapshot")} == {
        "commit": ("aaa+dirty", "bbb+dirty"),
        "code_hash": (CODE, "c0dec0dec0df"),
        "snapshot": ("aaa", "bbb"),
    }
    assert sorted(files) == [f"code.furnace_hpc/{name}.py" for name in ("aaa", "bbb", "loop")]
    code, said, _ = give(folder, "study/base-s0", "study/base-s1", "--only", "code")
    assert code == 1
    sha256 = "2d711642b726"  # of the text x
    assert f"code: furnace_hpc/aaa.py: {sha256} | {MISSING}" in said.splitlines()


def test_data(folder, tmp_path):
    """Fingerprints, and what differs between the manifests of both packs."""
    for name, fingerprint in {"one": "feedfeedfeedfeed", "two": "feedfeedfeedfee2"}.items():
        pack(tmp_path / name, fingerprint=fingerprint, vocab_size=100 + len(fingerprint[:-1]) % 2)
    other = [spec.model_copy(update={"data_fingerprint": "feedfeedfeedfee2"}) for spec in specs()]
    pack(tmp_path / "three", fingerprint="feedfeedfeedfee2", vocab_size=7)
    first = begin(specs()[0], folder, data_dir=str(tmp_path / "one"))
    second = begin(other[0], folder, data_dir=str(tmp_path / "three"))
    assert first.path != second.path
    assert found(first, second, Section.DATA) == {
        "data.fingerprint": ("feedfeedfeedfeed", "feedfeedfeedfee2"),
        "data.pack.vocab_size": (101, 7),
    }
    (tmp_path / "three/manifest.json").unlink()
    assert [*found(first, second, Section.DATA)] == ["data.fingerprint"]


def test_environment(folder):
    first, second = finish(specs()[0], folder), finish(specs()[1], folder)
    rewrite(second, 1, versions={"torch": "2.14.0", "numpy": "2"}, device="H200", world_size=4)
    record = json.loads(second.attempt(1).read_text())
    write_json(second.attempt(1), record | {"nodelist": "gpu[1-2]", "partition": "long"})
    machine = found(first, second, Section.ENVIRONMENT)
    assert machine.pop("environment.hosts")[1] == "gpu[1-2]"
    assert machine.pop("environment.versions.numpy")[1] == "2"
    assert machine == {
        "environment.partition": (None, "long"),
        "environment.device": ("a CPU", "H200"),
        "environment.world_size": (2, 4),
        "environment.versions.torch": ("2.13.0", "2.14.0"),
    }


def test_unfinished_runs(folder):
    """The metrics are those of the newest evaluation, and a note says so."""
    first, second = finish(specs()[0], folder), begin(specs()[1], folder)
    metrics = MetricsFile(second.metrics(1))
    for step in (100, 200):
        metrics.write({"step": step, "kind": "val", "val/digit/accuracy": step / 1000})
    metrics.close()
    scores = found(first, second, Section.METRICS)
    assert scores["metrics.val/digit/accuracy"][1] == 0.2
    assert scores["metrics.steps"] == (500, 200)
    lines = plain(read_facts(first), read_facts(second), [])
    note = "right: has no result yet: its metrics are those of its newest evaluation"
    assert note in lines
    end(second, "crash")
    assert give(folder, "study/base-s0", "study/full-s0") == (
        2,
        "",
        f"error: run {FULL0} has no spec.json, because it has not started. Compare it later\n",
    )


def test_json(folder):
    """One object with every difference. NaN is text, and a missing key has no value."""
    first, second = finish(specs()[0], folder), finish(specs()[0], GridFolder(folder.path / "x"))
    rewrite(first, 0, metrics={"test/digit/accuracy": math.nan, "a": 1.0})
    rewrite(second, 0, metrics={"test/digit/accuracy": 0.5})
    code, said, complaint = give(folder, f"study/{BASE0}", f"runs/study/x/{BASE0}", "--json")
    assert (code, complaint) == (1, "")
    assert json.loads(said) == {
        "left": f"runs/study/{BASE0}",
        "right": f"runs/study/x/{BASE0}",
        "is_equal": False,
        "differences": [
            {
                "section": "metrics",
                "key": "test/digit/accuracy",
                "left": "nan",
                "right": 0.5,
            },
            {"section": "metrics", "key": "a", "left": 1.0},
        ],
    }
    assert json.loads(as_json(read_facts(first), read_facts(first), []))["is_equal"] is True


def test_metrics_have_six_digits(folder):
    """Two numbers that would look equal have all their digits."""
    facts = read_facts(finish(specs()[0], folder))
    pairs = {
        "a": (0.67475112777369, 0.7836517318560811),
        "b": (0.12345678, 0.12345679),
        "c": (7, 9),
    }
    found = [Difference(Section.METRICS, key, *pair) for key, pair in pairs.items()]
    assert plain(facts, facts, found)[-4:-1] == [
        "metrics: a: 0.674751 | 0.783652 (+0.1089)",
        "metrics: b: 0.12345678 | 0.12345679 (+1e-08)",
        "metrics: c: 7 | 9 (+2)",
    ]
    exact = json.loads(as_json(facts, facts, found))["differences"][0]
    assert (exact["left"], exact["right"]) == pairs["a"]


def test_nothing_is_cut_at_80_columns(folder):
    """Long keys and values are folded: each character is on the screen."""
    from rich.console import Console

    one = Difference(Section.ENVIRONMENT, "k" * 150, "q" * 230, "z" * 231)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    facts = read_facts(finish(specs()[0], folder))
    for part in picture(facts, facts, [one]):
        console.print(part)
    text = console.file.getvalue()
    table = [line for line in text.splitlines() if "q" in line or "z" in line]
    assert max(map(len, table)) <= 80
    assert [text.count(letter) for letter in "kqz"] == [150, 230, 231]


def test_control_characters_are_escaped(folder):
    first, second = finish(specs()[0], folder), finish(specs()[0], GridFolder(folder.path / "x"))
    rewrite(second, 0, device="\x1b[31mred")
    lines = plain(
        read_facts(first), read_facts(second), differences(*map(read_facts, (first, second)))
    )
    assert "environment: device: a CPU | \\x1b[31mred" in lines
    assert lines[-1] == "different: 1 in environment"
