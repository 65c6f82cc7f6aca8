"""Being told to stop, by a real signal to this process."""

import os
import signal

import pytest
import torch
from make import make_config

from furnace_hpc.engine.distributed import Processes
from furnace_hpc.engine.loop import Progress
from furnace_hpc.engine.stop import Stopped, StopRequest
from furnace_hpc.host.lifecycle import STOP_SIGNALS

ALONE = Processes(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def stop():
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)  # nohup, for one, leaves SIGHUP ignored
    request = StopRequest()
    request.install()
    yield request
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_agreed_upon_and_ends_an_evaluation(stop: StopRequest, number: int):
    heartbeat: list[str] = []
    at_batch = stop.checked(ALONE, heartbeat.append)
    at_batch("batch 0")
    assert stop.agreed(ALONE, 3) == (None, 3)
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        at_batch("batch 1")
    assert heartbeat == ["batch 0", "batch 1"]
    assert stop.agreed(ALONE, 0) == (signal.Signals(number).name, 0)


def test_an_evaluation_that_was_left_is_due_until_it_is_made():
    config = make_config(evaluation__every=4)  # 12 steps
    due = [step for step in range(13) if Progress(step=step).is_to_be_evaluated(config)]
    assert due == [4, 8, 12]
    assert not Progress(step=8, evaluated=8).is_to_be_evaluated(config)
    assert Progress(step=8, evaluated=4).is_to_be_evaluated(config)
