"""Stop requests by real signals to this process."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from make import make_config, make_context

from furnace_hpc.engine.loop import Progress
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import Stopped, StopRequest
from furnace_hpc.host.lifecycle import STOP_SIGNALS

ALONE = Processes(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def stop():
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    request = StopRequest()
    request.install()
    yield request
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signal(stop: StopRequest, number: int):
    stop.check(ALONE)
    assert stop.receive(ALONE, 3) == (None, 3)
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        stop.check(ALONE)
    assert stop.receive(ALONE, 0) == (signal.Signals(number).name, 0)


def test_heartbeat_or_stop(stop: StopRequest):
    """The watchdog gets the heartbeat before the stop request is checked."""
    context = replace(make_context(make_config(), engine=None), stop=stop)
    beats: list[str] = []
    context.watchdog.heartbeat = beats.append
    context.heartbeat_or_stop("batch 0")
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        context.heartbeat_or_stop("batch 1")
    assert beats == ["batch 0", "batch 1"]


def test_stopped_evaluation_stays_due():
    config = make_config(evaluation__every=4)  # 12 steps
    due = [step for step in range(13) if Progress(step=step).is_evaluation_due(config)]
    assert due == [4, 8, 12]
    assert not Progress(step=8, evaluated=8).is_evaluation_due(config)
    assert Progress(step=8, evaluated=4).is_evaluation_due(config)
