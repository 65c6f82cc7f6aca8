"""The local queue starts a run again whose micro-batch was halved, and no other."""

from collections import deque
from types import SimpleNamespace

import pytest
from login_study import begin, dead_holder, specs

from furnace_hpc.host import lifecycle
from furnace_hpc.launch.local_queue import Queue, Running
from furnace_hpc.runs.folder import GridFolder, write_json


@pytest.mark.parametrize(("verdict", "waiting"), [({"half_micro_batch_size": 4}, [1]), ({}, [])])
def test_out_of_memory_in_the_queue(tmp_path, verdict, waiting):
    run = begin(specs()[1], GridFolder(tmp_path), who=dead_holder(), world_size=1)
    content = {"verdict": "oom", "step": 0, "error": "", "unix_s": 1.0}
    write_json(run.verdict(1, 0), content | verdict)
    planned = SimpleNamespace(folder=run)
    queue = Queue.__new__(Queue)
    queue._plan = SimpleNamespace(runs=(SimpleNamespace(folder=None), planned))
    said, ended = [], []
    queue._progress = SimpleNamespace(
        ended=lambda run, attempt: ended.append(attempt), print=said.append
    )
    queue._waiting = deque()
    job = SimpleNamespace(poll=lambda: None, exit_code=1)
    queue._running = [Running(planned, 1, 0, job)]
    queue._reap()
    assert (list(queue._waiting), queue._running) == (waiting, [])
    reason = lifecycle.read_attempt(str(run.path), 1)["reason"]
    if not waiting:
        assert (reason, ended, said) == ("oom", [1], [])
        return
    assert (reason, ended) == ("oom_halved", [])
    [text] = said
    assert text.endswith("; retried with micro_batch_size 4")
