"""Notifications to a webhook: what is sent, once, and what happens if it cannot be sent."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from login_study import CODE, begin, command, dead_holder, end, finish, grid, planned, specs
from tables_study import result_of
from web_server import serving

from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.webhook_file import masked_url, read_webhook
from furnace_hpc.host import gpu_check
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.notices import outbox
from furnace_hpc.runs.notices.delivery import deliver
from furnace_hpc.runs.records.result import write_result

SECRET = "topsecret0123456789"


@pytest.fixture
def webhook(tmp_path) -> Path:
    """The file with the URL. It is private, and a test writes the URL."""
    path = tmp_path / "webhook"
    path.touch(mode=0o600)
    return path


@pytest.fixture
def folder(tmp_path, webhook) -> GridFolder:
    """A grid whose profile has `notify`. Three of its runs are done, and one has crashed."""
    profile = ClusterProfile(name="c", executor="slurm", notify=str(webhook))
    write_submission(planned(tmp_path / "runs", grid(), profile))
    folder = GridFolder(tmp_path / "runs" / "study")
    for spec, accuracy in zip(specs()[:3], (0.80, 0.82, 0.85), strict=True):
        write_result(finish(spec, folder), result_of(spec, accuracy=accuracy, code_hash=CODE))
    end(begin(specs()[3], folder), "crash")
    return folder


NOTHING_LEFT = """
import sys
from pathlib import Path
from furnace_hpc import follow_up
follow_up._submit_rest = lambda *_: False  # it asks Slurm
follow_up.main(Path(sys.argv[1]))
"""


def follow_up(folder: GridFolder, code: int = 0, script: str = NOTHING_LEFT) -> str:
    """Run a follow-up job, by default one that finds no run to submit. Return all it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(submission(folder))],
        cwd=folder.path.parent.parent,
        env=dict(os.environ) | {"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def submission(folder: GridFolder) -> Path:
    return folder.submissions / "1"


def test_what_is_sent(folder, webhook, tmp_path):
    """Counts, the table, the report, and a text. A second follow-up job sends nothing."""
    with serving() as server:
        webhook.write_text(f"{server.url}\n")
        said = follow_up(folder) + follow_up(folder)
        [sent] = server.received
    report = tmp_path / "results/study/report.html"
    assert (sent["event"], sent["grid"], sent["settings"]) == ("grid_ended", "study", {})
    assert sent["runs"] == {"done": 3, "failed": 1}
    assert (sent["metric"], sent["reference"]) == ("test/digit/accuracy", "base")
    assert (sent["report"], report.exists()) == (str(report), True)
    base, full = sent["table"]
    assert (base["row"], base["n"], base["n_expected"], base["verdict"]) == ("base", 2, 2, None)
    assert base["mean"] == pytest.approx(0.81)
    assert base["low"] < base["mean"] < base["high"]
    assert (full["row"], full["n"], full["n_expected"]) == ("full", 1, 2)
    assert full["low"] is full["high"] is None
    assert full["difference"] is not None
    assert full["verdict"] == "undecided"
    assert sent["text"].startswith("Furnace: grid study has ended: 3 done, 1 failed.")
    assert "full" in sent["text"]
    assert sent["text"].endswith(f"Report: {sent['host']}:{report}")
    assert "WARNING" not in said
    stored = "".join(p.read_text("utf-8", "replace") for p in folder.path.rglob("*.json"))
    assert SECRET not in said + stored


def test_a_grid_without_a_result(tmp_path, webhook):
    """The table cannot be made, and the notification says why."""
    profile = ClusterProfile(name="c", executor="slurm", notify=str(webhook))
    write_submission(planned(tmp_path / "runs", grid(), profile))
    folder = GridFolder(tmp_path / "runs" / "study")
    for spec in specs():
        end(begin(spec, folder), "crash")
    with serving() as server:
        webhook.write_text(server.url)
        follow_up(folder)
        [sent] = server.received
    assert sent["runs"] == {"failed": 4}
    assert sent["text"].startswith("Furnace: grid study has ended: 4 failed.")
    assert all(row["mean"] is None for row in sent["table"])


@pytest.mark.parametrize(
    ("answers", "requests", "problem"),
    [
        ([200], 1, ""),
        ([204], 1, ""),
        ([500], 2, ""),
        ([429, 503], 3, ""),
        (["close"], 2, ""),
        (["hang", "close"], 3, ""),
        ([500, 502, 503], 3, "answered 503 Service Unavailable"),
        ([404], 1, "answered 404 Not Found"),
        ([302], 1, "answered 302 Found"),
        ([308], 1, "answered 308 Permanent Redirect"),
        (["hang"] * 3, 3, "did not answer within 0.3 s"),
        (["close"] * 3, 3, "broke the connection: Remote end closed connection without response"),
    ],
)
def test_answers_of_the_server(answers, requests, problem):
    """Failures that may pass are retried twice. A redirect is not followed."""
    with serving(*answers) as server:
        found = deliver(server.url, b'{"text": "x"}', (0.0, 0.0), 0.3)
        assert server.paths == [f"/in/{SECRET}"] * requests
        server.released.set()
    wanted = f"http://127.0.0.1:{server.server_port}/[masked] {problem}" if problem else ""
    assert found == wanted


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:1/hooks/x", "cannot be reached: [Errno 111] Connection refused"),
        ("http://nowhere.invalid/x", "cannot be reached: "),
        ("https://127.0.0.1:1/x", "cannot be reached: [Errno 111] Connection refused"),
    ],
)
def test_an_unreachable_server(url, problem):
    found = deliver(url, b"{}", (), 5.0)
    assert found.startswith(f"{masked_url(url)} {problem}")


def test_a_compute_node_without_network(folder, webhook):
    """The follow-up job prints one warning, and `furnace status` sends the text later, once."""
    with serving() as server:
        webhook.write_text(server.url)
        url, port = server.url, server.server_port
    said = follow_up(folder)  # the server is down
    assert said.count("WARNING") == 1
    assert f"http://127.0.0.1:{port}/[masked] cannot be reached" in said
    assert SECRET not in said
    place = folder.path.parent.parent
    with serving() as server:
        webhook.write_text(server.url)
        assert url != server.url
        assert command("status", place, "--grid", "study").stderr == ""  # tried a moment ago
        content = json.loads((submission(folder) / "notice.json").read_text())
        write_json(
            submission(folder) / "notice.json", content | {"tried_unix_s": time.time() - 700}
        )
        assert command("status", place, "--grid", "study", "--json").stderr == ""
        assert server.received == []
        done = command("status", place, "--grid", "study")
        assert done.stderr == "sent the notification that the follow-up job could not send\n"
        assert command("status", place, "--grid", "study").stderr == ""
        [sent] = server.received
    assert sent["runs"] == {"done": 3, "failed": 1}


CANNOT_GO_ON = """
import sys
from furnace_hpc import follow_up
from furnace_hpc.cli import run_command
follow_up.PATIENCE_S = 0
run_command(follow_up.main, [sys.argv[1]])
"""


@pytest.fixture
def waiting(tmp_path, webhook) -> GridFolder:
    """A grid whose four runs wait for a follow-up job."""
    profile = ClusterProfile(name="c", executor="slurm", notify=str(webhook))
    write_submission(planned(tmp_path / "runs", grid(settings={"steps": 20}), profile))
    return GridFolder(tmp_path / "runs" / "study")


def test_a_follow_up_job_that_cannot_continue(waiting, webhook):
    """It sends the reason, once. The end of the runs is sent all the same."""
    with serving() as server:
        webhook.write_text(server.url)
        said = follow_up(waiting, 1, CANNOT_GO_ON)
        assert "WARNING" not in said
        [sent] = server.received
        follow_up(waiting, 1, CANNOT_GO_ON)
        assert server.received == [sent]
        follow_up(waiting)
        assert [notice["event"] for notice in server.received] == ["grid_stuck", "grid_ended"]
        assert len({notice["id"] for notice in server.received}) == 2
    reason = next(line for line in said.splitlines() if line.startswith("error: "))
    assert sent["reason"] == reason.removeprefix("error: ")
    assert (sent["grid"], sent["settings"]) == ("study", {"steps": "20"})
    assert sent["runs"] == {"new": 4}
    command_line = f"submit --grid {waiting.grid} --set steps=20"
    assert command_line in sent["command"]
    assert sent["text"].startswith(
        f"Furnace: grid study with steps=20 cannot continue: {sent['reason']}.  Runs: 4 new."
    )
    assert sent["text"].endswith(sent["command"])


def test_sbatch_refuses_the_next_follow_up_job(waiting, webhook):
    """The wave was submitted, and no job would submit the next one."""
    one = Submission(submission(waiting))
    submitted = NOTHING_LEFT.replace("False", "True")
    with serving() as server:
        webhook.write_text(server.url)
        for name, event in (("first", "submitted"), ("second", "refused")):
            one.note("intent", name=name, kind="follow-up", base=0, rows=[], cluster="c")
            one.note(event, name=name, job_id="7", error="no")
            follow_up(waiting, script=submitted)
        [sent] = server.received
    assert sent["event"] == "grid_stuck"
    assert sent["reason"] == "sbatch refused the next follow-up job"


def test_status_sends_that_it_cannot_continue(waiting, webhook, tmp_path):
    """Not after a newer submission, which continues."""
    webhook.write_text("http://127.0.0.1:1/x")
    assert follow_up(waiting, 1, CANNOT_GO_ON).count("WARNING") == 1
    path = submission(waiting) / "stuck.json"
    write_json(path, json.loads(path.read_text()) | {"tried_unix_s": time.time() - 700})
    with serving() as server:
        webhook.write_text(server.url)
        profile = ClusterProfile(name="c", executor="slurm", notify=str(webhook))
        newer = write_submission(planned(tmp_path / "runs", grid(settings={"steps": 20}), profile))
        assert list(outbox.send_missing(waiting)) == []
        assert server.received == []
        shutil.rmtree(newer.path)
        assert len(list(outbox.send_missing(waiting))) == 1
        assert list(outbox.send_missing(waiting)) == []
        [sent] = server.received
    assert sent["event"] == "grid_stuck"


def test_gpus_that_cannot_be_used_are_the_reason(waiting, webhook):
    """Then no further run starts. The notification of the end says why."""
    record = {"usable": False, "run_id": "base-s0-1", "job_id": "7", "host": "n1", "error": "ECC"}
    assert gpu_check._write(str(submission(waiting)), record)
    with serving() as server:
        webhook.write_text(server.url)
        follow_up(waiting)
        [sent] = server.received
    assert sent["event"] == "grid_ended"
    assert sent["reason"].startswith("not started: torch cannot use the GPUs (base-s0-1, job 7")
    assert f"  Some runs were {sent['reason']}." in sent["text"]


def test_old_notifications_are_not_sent(folder, webhook):
    with serving() as server:
        webhook.write_text(server.url)
        outbox.put(submission(folder), {"text": "x"})
        content = json.loads((submission(folder) / "notice.json").read_text())
        old = {"made_unix_s": time.time() - 4 * 86400}
        write_json(submission(folder) / "notice.json", content | old)
        assert list(outbox.send_missing(folder)) == []
        assert server.received == []


def test_two_processes_send_it_once(folder, webhook):
    """The second one finds the lock of the first, which waits for a slow server."""
    with serving(0.5) as server:
        webhook.write_text(server.url)
        outbox.put(submission(folder), {"text": "x"})
        problems = list[str]()
        senders = [
            threading.Thread(target=lambda: problems.append(outbox.send(submission(folder))))
            for _ in range(4)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert len(server.received) == 1
    assert problems == [""] * 4
    assert not outbox.is_unsent(submission(folder))


def test_killed_while_it_sends(folder, webhook):
    """The next command finds the lock of a dead process, and sends the text."""
    with serving("hang") as server:
        webhook.write_text(server.url)
        outbox.put(submission(folder), {"text": "x"})
        code = "import sys, pathlib\nfrom furnace_hpc.runs.notices.outbox import send\n"
        code += "send(pathlib.Path(sys.argv[1]))"
        words = [sys.executable, "-c", code, str(submission(folder))]
        sender = subprocess.Popen(words)
        deadline_s = time.monotonic() + 60
        while not server.received:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        sender.kill()
        sender.wait()
        assert (submission(folder) / "notice.lock").exists()
        assert outbox.send(submission(folder)) == ""
        assert len(server.received) == 2
    assert not outbox.is_unsent(submission(folder))
    assert not (submission(folder) / "notice.lock").exists()


def test_a_lock_of_another_host(folder, webhook):
    """It counts for two minutes."""
    lock = submission(folder) / "notice.lock"
    with serving() as server:
        webhook.write_text(server.url)
        outbox.put(submission(folder), {"text": "x"})
        write_json(lock, dead_holder() | {"host": "elsewhere"})
        assert outbox.send(submission(folder)) == ""
        assert server.received == []
        os.utime(lock, (time.time() - 130,) * 2)
        assert outbox.send(submission(folder)) == ""
        assert len(server.received) == 1


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (None, 0o600, "cannot be read (No such file or directory). Write the webhook's URL"),
        ("https://a.org/x", 0o640, "other users can read or change"),
        ("https://a.org/x", 0o602, "other users can read or change"),
        ("", 0o600, "has no URL, wanted one line that begins with https:// or http://"),
        ("ftp://a.org/x", 0o600, "has no URL"),
        ("https://", 0o600, "has no URL"),
        ("https://a.org/x\nhttps://b.org", 0o600, "has no URL"),
        ("https://a.org:port/x", 0o600, "has no URL"),
        ("x" * 5000, 0o600, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path, text, mode, problem):
    """The error comes before anything is submitted, and does not show the URL."""
    path = tmp_path / "webhook"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    (tmp_path / "c.yaml").write_text(f"name: c\nexecutor: slurm\nnotify: {path}\n")
    with pytest.raises(ConfigError) as refused:
        load_profile(str(tmp_path / "c.yaml"))
    assert str(refused.value).startswith("notify: ")
    assert problem in str(refused.value)
    assert "a.org" not in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("notify: https://a.org/in/SECRET", "notify: got a URL, which would be copied"),
        ("notify: https://hooks.slack.com/services/T0/B0/SECRETSECRET", "looks like a secret"),
        ("notify: webhook", "notify: got 'webhook', wanted the absolute path of a file"),
        ("notify: /a\nfollow_up: false", "notify needs follow_up: true"),
    ],
)
def test_profiles_that_are_refused(tmp_path, lines, problem):
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nexecutor: slurm\n{lines}\n")
    with pytest.raises(ConfigError) as refused:
        load_profile(str(path))
    assert problem in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_urls_are_masked(webhook):
    webhook.write_text("https://me:pw@a.org:8443/hooks/x?token=y\n")
    url = read_webhook(str(webhook))
    assert masked_url(url) == "https://a.org:8443/[masked]"
    assert masked_url("nonsense") == "[masked]"


def test_numbers_that_json_lacks():
    from furnace_hpc.api.notice import _number

    assert [_number(value) for value in (math.nan, math.inf, None, 0.5)] == [None, None, None, 0.5]
