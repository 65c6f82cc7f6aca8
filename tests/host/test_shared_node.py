"""The program of a batch script whose runs share a node, with a stand-in for srun."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from batch_study import stand_in
from login_study import begin, dead_holder, finish, grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import batch, lifecycle
from furnace_hpc.host.shared_node import rows as rows_file
from furnace_hpc.host.shared_node import runner as runner_file
from furnace_hpc.host.shared_node import steps as steps_file
from furnace_hpc.host.shared_node.rows import Pool, rows_of_call
from furnace_hpc.host.shared_node.runner import Job, Runner
from furnace_hpc.host.shared_node.steps import OF_WHOLE_JOB, Share, environment_of, srun_command
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.journal import Submission

# Its run's name decides what it does, as that of stand_in_rank.py. Arguments and attempt are noted.
SRUN = r"""
run=$(basename "$FURNACE_RUN_DIR")
echo "$run $FURNACE_ATTEMPT ${CUDA_VISIBLE_DEVICES:-none} $*" >> "$STAND_IN/sruns"
say() {
  printf '{"rank": 0, "verdict": "%s", "step": 5, "unix_s": %s%s}\n' "$1" "$(date +%s)" "${2:-}" \
    >> "$FURNACE_RUN_DIR/verdicts/$FURNACE_ATTEMPT-0.jsonl"
}
trap 'say stopped ", \"signal\": \"SIGUSR2\""; exit 85' USR2
say entered
case $run in
  crash*) say crash; exit 1 ;;
  broken*) say gpu; exit 1 ;;
  large*) [ "$FURNACE_ATTEMPT" = 1 ] && { say oom ', "half_micro_batch_size": 2'; exit 1; } ;;
  lost*) say peer_lost; exit 1 ;;
  waits*) while [ ! -e "$STAND_IN/release" ]; do sleep 0.02; done ;;
esac
say done
echo '{}' > "$FURNACE_RUN_DIR/result.json"
"""


class Element:
    """One array element of a submission with these rows, in this process."""

    def __init__(self, place: Path, monkeypatch, names: list[str], places: int = 2, **site) -> None:
        self.tools = place / "tools"
        self.tools.mkdir()
        stand_in(self.tools / "srun", SRUN)
        monkeypatch.setenv("PATH", f"{self.tools}:{os.environ['PATH']}")
        monkeypatch.setenv("STAND_IN", str(self.tools))
        monkeypatch.setattr(runner_file, "POLL_S", 0.02)
        monkeypatch.setattr(runner_file, "AGAIN_S", 0.2)
        monkeypatch.setattr(runner_file, "REQUEUED_S", 0)
        self.requeued: list[str] = []
        monkeypatch.setattr(batch, "requeue", self.requeued.append)
        rows = {name: {"loss.alpha": 0.01 * number} for number, name in enumerate(names)}
        self.grid = grid(variants=rows, reference=names[0], seeds=[0])
        site = {"gpu_flag": None, "runs_per_node": places, "signal_delay_s": 20} | site
        profile = ClusterProfile(name="c", executor="slurm", **site)
        self.plan = planned(place / "runs", self.grid, profile)
        self.folder, self.places = self.plan.folder, places
        self.submission = write_submission(self.plan)

    def runner(self, index: int = 0, left_s: float = 3600.0, restarted: bool = False) -> Runner:
        job, now = f"91_{index}", time.time()
        numbers = list(range(len(self.plan.runs)))
        pool = Pool(str(self.submission.path), numbers, index, self.places, job)
        if restarted:
            pool.take_over()
        share = Share(self.places, ["--exact"], ["0", "1"])
        path = str(self.submission.path)
        return Runner(Job(path, job, "", share, ["--wait=60"], ["rank"], now, now + left_s), pool)

    def work(self, index: int = 0, **how) -> bool:
        return self.runner(index, **how).work()

    @property
    def sruns(self) -> list[list[str]]:
        path = self.tools / "sruns"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def started(self) -> list[str]:
        return [words[0].partition("-")[0] for words in self.sruns]

    def reasons(self, name: str) -> list[str]:
        [run] = self.folder.path.glob(f"{name}-s0-*")
        numbers = lifecycle.attempt_numbers(str(run))
        return [lifecycle.read_attempt(str(run), number).get("reason") for number in numbers]

    def has_entered(self, name: str) -> bool:
        return any(self.folder.path.glob(f"{name}-s0-*/verdicts/1-0.jsonl"))

    def begun(self, name: str, job: str, **who) -> None:
        """An attempt that another job has begun."""
        [run] = [run for run in self.plan.runs if run.spec.variant == name]
        begin(run.spec, self.folder, job_id=job, **who)


@pytest.fixture
def element(tmp_path, monkeypatch):
    return lambda *names, **how: Element(tmp_path, monkeypatch, list(names), **how)


def test_a_failure_costs_no_neighbour(element):
    """Every free place gets the next row: own rows first, then those that would start last."""
    one = element("crash", "ok", "ok2", "ok3", "ok4")
    assert one.work() is False
    assert one.started[:2] in (["crash", "ok"], ["ok", "crash"])
    assert set(one.started[2:]) == {"ok2", "ok3", "ok4"}
    assert one.started[2] == "ok4"
    assert len(one.sruns) == 5
    assert one.reasons("crash") == ["crash"]
    assert all(one.reasons(name) == ["done"] for name in ("ok", "ok2", "ok3", "ok4"))
    assert one.requeued == []
    assert one.work(1) is True  # the other elements find nothing to do
    assert one.work(2) is True
    assert len(one.sruns) == 5


def test_a_fault_of_the_guard_ends_no_run(element, monkeypatch):
    def stale(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(steps_file, "LOOK_S", 0.0)
    monkeypatch.setattr(lifecycle, "read_verdicts", stale)
    step = steps_file.Step({"run_dir": "/nowhere", "run_id": "a-s0-1"}, 1, 0, None)
    step.end_if_outlived()


def test_a_journal_is_read_again_after_a_fault(element, monkeypatch):
    one = element("ok")
    one.submission.note("cancelled", runs=[])
    pool, real = one.runner()._pool, rows_file.read_json_lines

    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(rows_file, "LOOK_S", 0.0)
    monkeypatch.setattr(rows_file, "read_json_lines", stale)
    row = {"run_id": "ok-s0-1"}
    assert not pool.is_cancelled(row)
    monkeypatch.setattr(rows_file, "read_json_lines", real)
    assert pool.is_cancelled(row)


def test_each_run_has_its_own_place(element):
    one = element("ok", "ok2")
    one.work()
    assert {words[2] for words in one.sruns} == {"0", "1"}
    row = one.submission.rows[0]
    first = next(words for words in one.sruns if words[0] == row.run_id)
    output = f"--output={one.submission.path}/91_0-0_%n_log.out"
    assert first[3:] == [
        output,
        "--exact",
        "--ntasks=1",
        "--ntasks-per-node=1",
        "--wait=60",
        "rank",
    ]
    record = lifecycle.read_attempt(row.run_dir, 1)
    assert (record["job_id"], record["gpus"], record["runs_per_node"]) == ("91_0", 1, 2)
    assert record["time_limit_s"] == pytest.approx(3600, abs=60)


def test_out_of_memory_is_retried_in_its_place(element):
    one = element("large", "waits")
    (one.tools / "release").touch()
    assert one.work() is True
    assert one.reasons("large") == ["oom_halved", "done"]
    assert one.requeued == []


def test_a_lost_peer_is_retried_twice_in_the_job(element):
    """Then the run waits for the requeue, which comes once, after its neighbour."""
    one = element("lost", "ok", "ok2", "ok3")
    assert one.work() is False
    assert one.reasons("lost")[:2] == ["peer_lost", "peer_lost"]
    assert len(one.reasons("lost")) == 3
    assert len(one.requeued) <= 1


def test_a_broken_gpu_ends_the_job(element):
    """No row starts on its node any more. Its run is requeued, and the others stay for others."""
    one = element("broken", "waits", "ok", "ok2")
    (one.tools / "release").touch()
    assert one.work() is False
    assert sorted(one.started) == ["broken", "waits"]
    assert one.reasons("broken") == ["gpu"]
    assert one.requeued == ["91_0"]
    assert one.work(1) is True
    assert sorted(one.started) == ["broken", "ok", "ok2", "waits"]


def test_a_stop_signal_reaches_every_run(element):
    one = element("waits", "waits2", "ok")
    runner = one.runner()

    def stop(*_):
        if one.has_entered("waits") and one.has_entered("waits2"):
            runner.request_stop()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.1)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    assert runner.work() is False
    assert sorted(one.started) == ["waits", "waits2"]
    assert len(one.requeued) == 1
    assert all(len(one.reasons(name)) == 1 for name in ("waits", "waits2"))
    (one.tools / "release").touch()
    assert one.work(restarted=True) is True
    assert one.reasons("waits2")[1:] == ["done"]
    assert one.reasons("ok") == ["done"]


def test_all_runs_stop_before_the_time_limit(element):
    """The runner does not rely on a signal of Slurm."""
    one = element("waits", "waits2")
    runner = one.runner(left_s=30)
    left_s = runner._left_s
    entered = lambda: one.has_entered("waits") and one.has_entered("waits2")  # noqa: E731
    runner._left_s = lambda row: left_s(row) - 11 if entered() else 30.0
    assert runner.work() is False
    assert [one.reasons(name)[0] for name in ("waits", "waits2")] == ["time_limit", "time_limit"]
    assert one.requeued == ["91_0"]


def test_no_row_starts_shortly_before_the_time_limit(element):
    """It would be stopped before it trains. Its own job starts it. Every job starts its own."""
    one = element("ok", "ok2", "ok3", "ok4")
    assert one.work(left_s=100) is True
    assert sorted(one.started) == ["ok", "ok2"]
    assert one.requeued == []


def test_a_cancelled_run_ends_alone(element):
    one = element("waits", "waits2", "ok", "ok2")
    ids = {row.run_id.partition("-")[0]: row.run_id for row in one.submission.rows}
    one.submission.note("cancelled", runs=[ids["waits"], ids["ok"]])
    runner = one.runner()
    runner._pool._cancelled._asked_s = time.monotonic()  # it has looked just before the note
    deadline = time.monotonic() + 30

    def release(*_):
        if one.reasons("waits") == ["cancelled"] or time.monotonic() > deadline:
            (one.tools / "release").touch()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    signal.signal(signal.SIGALRM, release)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    assert runner.work() is True
    assert one.reasons("waits") == ["cancelled"]
    assert one.reasons("waits2") == ["done"]
    assert sorted(one.started) == ["ok2", "waits", "waits2"]


def test_a_row_of_another_element_is_left_alone(element):
    """Whether it runs there, failed there, or waits there for a requeue."""
    one = element("ok", "ok2", "ok3", "ok4")
    other = {"host": "elsewhere", "boot_id": "", "pid": 1, "pid_start": 1}
    one.begun("ok3", "91_1", who=other)
    one.begun("ok2", "91_1", who=other)
    finish(one.plan.runs[3].spec, one.folder)
    assert one.work() is True
    assert one.started == ["ok"]


def test_a_restarted_job_continues_the_rows_it_took(element):
    one = element("ok", "ok2", "ok3", "ok4", "ok5", "ok6")
    one.begun("ok6", "91_0", who=dead_holder())
    finish(one.plan.runs[0].spec, one.folder)
    finish(one.plan.runs[1].spec, one.folder)
    runner = one.runner(restarted=True)
    assert runner._pool._next[-1]["run_id"].startswith("ok6-")
    assert runner.work() is True
    assert one.reasons("ok6") == ["node_fail", "done"]
    assert sorted(one.started) == ["ok3", "ok4", "ok5", "ok6"]


def test_a_full_disk_costs_no_neighbour(element, monkeypatch):
    one = element("ok", "ok2", "ok3")
    begin_attempt = batch.begin_attempt

    def full(submission, row, job, pid):
        if row["run_id"].startswith("ok2-"):
            raise OSError(28, "No space left on device")
        return begin_attempt(submission, row, job, pid)

    monkeypatch.setattr(batch, "begin_attempt", full)
    assert one.work() is False
    assert sorted(one.started) == ["ok", "ok3"]


def test_code_that_others_can_change_is_not_run(element, capsys):
    one = element("ok", "ok2")
    one.folder.code.chmod(0o777)
    assert one.work() is False
    assert one.started == []
    assert "Nothing of it is run" in capsys.readouterr().out


def test_unusable_gpus_start_one_run(element, monkeypatch):
    """It reports what is wrong. The other rows do not start."""
    one = element("crash", "ok", "ok2")
    found = {
        "usable": False,
        "job_id": "91_0",
        "run_id": "crash",
        "host": "n",
        "error": "no driver",
    }
    (one.submission.path / "gpus.json").write_text(json.dumps(found))
    assert one.work() is False
    assert one.started == ["crash"]
    assert one.requeued == []


def test_a_node_is_divided_into_equal_shares():
    job = {"SLURM_GPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "4096", "CUDA_VISIBLE_DEVICES": "0,1"}
    options = ["--exact", "--nodes=1", "--gres=gpu:2", "--mem=2048M"]
    assert Share.of(2, job) == Share(2, options, [], 0)
    assert Share.of(4, job).options[2:] == ["--gres=gpu:1", "--mem=1024M"]
    # memory by core: the step takes that of its cores
    assert Share.of(4, {"SLURM_MEM_PER_CPU": "100"}).options == ["--exact", "--nodes=1"]
    assert Share.of(4, {}).options[2:] == ["--mem=0"]
    # a site whose partition gives GPUs without a flag
    alone = Share.of(2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert [alone.variables(place) for place in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert Share.of(2, job | {"DS_ACCELERATOR": "cpu"}).variables(0) == {}


def test_srun_asks_for_one_run():
    row = {"facts": {"processes_per_node": 2}, "run_dir": "/r", "code": "/c"}
    command = srun_command(Share(2, ["--exact"], []), row, "out", ["--wait=60"], ["python", "x"])
    tasks = ["--ntasks=2", "--ntasks-per-node=2"]
    assert command == ["srun", "--output=out", "--exact", *tasks, "--wait=60", "python", "x"]
    # a job with all cores of its node
    alone = Share.of(2, {"SLURM_CPUS_ON_NODE": "32"})
    assert "--cpus-per-task=8" in srun_command(alone, row, "out", [], ["python"])
    given = srun_command(alone, row, "out", ["--cpus-per-task=2"], ["python"])
    assert [word for word in given if "cpus" in word] == ["--cpus-per-task=2"]
    environment = environment_of(row, 3, {"OMP_NUM_THREADS": "1"})
    assert environment["FURNACE_ATTEMPT"] == "3"
    assert environment["PYTHONPATH"].split(":")[0] == "/c"
    assert "SLURM_NTASKS_PER_NODE" in OF_WHOLE_JOB


def test_rows_come_from_the_journal_or_the_command(tmp_path):
    Submission(tmp_path).note("intent", name="furnace-a-1", kind="array", base=0, rows=[4, 5, 9])
    assert rows_of_call(str(tmp_path), "furnace-a-1") == [4, 5, 9]
    assert rows_of_call(str(tmp_path), "furnace-a-2") == []
    assert rows_of_call(str(tmp_path), "0-2,7") == [0, 1, 2, 7]


def test_an_end_that_cannot_be_read_ends_no_runner(tmp_path, capsys, monkeypatch):
    """A shared disk may fail for a while. The run then waits for the requeue."""

    def fails(run_dir, number):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(lifecycle, "read_attempt", fails)
    assert runner_file._reason_of_end(str(tmp_path), 3) == ""
    assert "the end of attempt 3 of" in capsys.readouterr().out
