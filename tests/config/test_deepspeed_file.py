"""The files of ds_configs/, and the schema that refuses what DeepSpeed ignores silently."""

import json
import re
from pathlib import Path

import pytest
from login_study import specs

from furnace_hpc.config.deepspeed_file import OWNED_BY_THE_RUN, DeepSpeedFile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import read_json
from furnace_hpc.config.parsing.validation import validate

DEEPSPEED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
PLAIN = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_shipped_files_have_the_stage_of_their_name(path):
    content = validate(DeepSpeedFile, read_json(path), str(path))
    stage = int(re.fullmatch(r"zero(\d)(_offload|_fp32)?(_checkpointed)?", path.stem)[1])
    fp32 = stage == 0 or path.stem.endswith("fp32")
    assert content.zero_optimization.stage == stage
    assert content.precision == ("fp32" if fp32 else "bf16")
    assert (content.zero_optimization.offload_optimizer is not None) == ("offload" in path.stem)
    assert (content.activation_checkpointing is not None) == path.stem.endswith("_checkpointed")
    if not fp32:  # overlap begins early also for a model of 0.2 billion parameters
        assert content.zero_optimization.reduce_bucket_size == 50_000_000
        offloads = content.zero_optimization.offload_optimizer is not None
        assert content.bf16.check_grad_overflow is (None if offloads else False)
        assert content.zero_optimization.overlap_comm
    elif stage:  # a CPU adds up small buckets in its cache, and copies no gradient
        assert content.zero_optimization.reduce_bucket_size == 5_000_000
        assert content.zero_optimization.contiguous_gradients is False
    # fp32 accumulation at stage 1 would make DeepSpeed reduce gradients after backward
    if fp32 or stage == 1:
        assert content.data_types is None
    else:
        assert content.data_types.grad_accum_dtype == "fp32"
    found = specs(base={"deepspeed": path.stem})[0].config.deepspeed
    assert found == content


def deepspeed(**changes) -> DeepSpeedFile:
    return validate(DeepSpeedFile, PLAIN | changes, "zero.json")


@pytest.mark.parametrize("key", OWNED_BY_THE_RUN)
def test_keys_of_the_grid_are_refused(key):
    """The error names the key of the grid."""
    remedy = (
        f"key '{key}' does not belong in a DeepSpeed file. Set {OWNED_BY_THE_RUN[key]} in the grid"
    )
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        deepspeed(**{key: "auto"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": {"enabled": True}}, "unknown key 'fp16'; did you mean 'bf16'?"),
        ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "did you mean 'overlap_comm'?"),
        (
            {"zero_optimization": {"stage": 4}},
            "zero_optimization.stage: got 4, wanted 0, 1, 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": "auto"}},
            "zero_optimization.stage: got 'auto', wanted 0, 1, 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}},
            "got 'auto', wanted a whole number",
        ),
        (
            {"bf16": {"enabled": "auto"}},
            "bf16.enabled: got 'auto', wanted true or false",
        ),
        ({"bf16": {"enabled": 1}}, "bf16.enabled: got 1, wanted true or false"),
        ({"zero_optimization": {"stage": 0}}, "bf16 at stage 0 is not supported. Use stage 1"),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            "'partition_activations' is not supported: it divides",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpointing": True}},
            "key 'cpu_checkpointing' is not supported: it needs partition_activations",
        ),
    ],
)
def test_keys_that_deepspeed_ignores_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        deepspeed(**changes)


def test_a_missing_part_is_named():
    with pytest.raises(ConfigError, match=re.escape("zero.json: key 'bf16' is missing")):
        validate(DeepSpeedFile, {"zero_optimization": {"stage": 0}}, "zero.json")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["offload_optimizer", "offload_param"])
@pytest.mark.parametrize("force", [None, True, False])
def test_offload_needs_its_stage(stage, what, force):
    zero = {"stage": stage, what: {"device": "cpu"}}
    changes = {
        "zero_optimization": zero,
        "bf16": {"enabled": stage > 0},
        "zero_force_ds_cpu_optimizer": force,
    }
    if what == "offload_param":
        problem, works = f"offload_param needs stage 3, got stage {stage}", stage == 3
    elif stage < 2:
        problem, works = "offload_optimizer needs stage 2 or 3", False
    else:
        problem, works = "zero_force_ds_cpu_optimizer: false", force is False
    if works:
        assert getattr(deepspeed(**changes).zero_optimization, what).device == "cpu"
    else:
        with pytest.raises(ConfigError, match=problem):
            deepspeed(**changes)


AUTO = {
    "fp16": {"enabled": "auto"},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    "zero_optimization": {
        "stage": "auto",
        "overlap_comm": "auto",
        "reduce_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": "auto"},
    },
    "activation_checkpointing": {"partition_activations": "auto", "cpu_checkpointing": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
AUTO_KEYS = (
    "fp16",
    "bf16.enabled",
    "optimizer",
    "zero_optimization.stage",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.offload_optimizer.pin_memory",
    "partition_activations",
    "cpu_checkpointing",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
)


def test_all_auto_values_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        validate(DeepSpeedFile, AUTO, "zero.json")
    lines = str(error.value).splitlines()
    assert len(lines) == len(AUTO_KEYS)
    assert all(
        sum(key in line for line in lines) == 1
        for key in ("fp16'; did you mean", *AUTO_KEYS[1:2], *AUTO_KEYS[3:7])
    )
    fix = "'auto' is not supported. Write a value, or remove the key"
    assert sum(fix in line for line in lines) == 5
    path = tmp_path / "auto.json"
    path.write_text(json.dumps(AUTO))
    with pytest.raises(ConfigError) as error:
        specs(base={"deepspeed": str(path)})
    lines = str(error.value).splitlines()
    assert len(lines) == len(AUTO_KEYS)
    for line in lines:  # once for both rows, with the file
        assert line.startswith("grid 'study', row 'base' and 1 more: ")
        assert line.endswith(f" ({path})")


@pytest.mark.parametrize(
    ("content", "kind"), [('"zero1"', "str"), ("[1]", "list"), ("3", "int"), ("null", "NoneType")]
)
def test_a_file_without_a_mapping_is_refused(tmp_path, content, kind):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(
        ConfigError, match=f"a.json: got {kind}, wanted a DeepSpeed config in braces"
    ):
        specs(base={"deepspeed": str(tmp_path / "a.json")})


def test_true_is_not_a_stage():
    with pytest.raises(ConfigError, match="stage: got True, wanted 0, 1, 2 or 3"):
        deepspeed(zero_optimization={"stage": True})
