"""The settings that DeepSpeed gets from a run's config."""

import pytest
from make import make_config

from furnace_hpc.engine.deepspeed_engine import deepspeed_config


@pytest.mark.parametrize(
    ("chosen", "on_gpu", "pinned"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_host_memory_is_page_locked_on_gpus(chosen, on_gpu, pinned):
    key = "deepspeed__zero_optimization__offload_optimizer__pin_memory"
    config = make_config("zero3_offload", **{key: chosen})
    zero = deepspeed_config(config, 1, on_gpu)["zero_optimization"]
    assert zero["offload_optimizer"]["pin_memory"] is pinned
    assert zero["offload_param"]["pin_memory"] is on_gpu
