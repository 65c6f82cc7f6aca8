"""The identity of a run, the arithmetic of its batches, and what a config refuses."""

import json
import random
import re

import pytest
from login_study import FINGERPRINT, GRID, grid, specs
from pydantic import TypeAdapter, ValidationError
from tables_study import result_of

from furnace_hpc.config.base import NAME_PATTERN, Name
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import load_grid
from furnace_hpc.config.identity import identity, identity_hash
from furnace_hpc.config.train_config import RunSpec, TrainConfig, accumulation_steps, run_ids
from furnace_hpc.runs.records.result import RunResult

# Another value for every field that decides numbers. A test below fails if a field is missing.
OTHER = {
    "data.name": "mmimdb",
    "data.sampling": "weighted",
    "tasks": [{"name": "digit"}, {"name": "parity"}],
    "model.modalities": ["text", "image"],
    "model.width": 32,
    "model.num_heads": 2,
    "model.feedforward": 64,
    "model.text_layers": 1,
    "model.fusion_layers": 2,
    "model.fusion": "gated",
    "model.rank": 4,
    "model.bottleneck_tokens": 2,
    "model.image_encoder": "vit",
    "model.image_layers": 1,
    "model.image_patch": 4,
    "model.audio_encoder": "transformer",
    "model.audio_layers": 1,
    "model.audio_patch": 4,
    "model.text_weights": "some/bert",
    "model.image_weights": "some/vit",
    "model.audio_weights": "some/ast",
    "model.modality_dropout": 0.3,
    "loss.info_nce": 0.1,
    "loss.projection_width": 8,
    "loss.temperature": 0.1,
    "loss.unimodal": 0.1,
    "loss.vicreg": 0.1,
    "loss.vicreg_invariance": 1.0,
    "loss.vicreg_variance": 1.0,
    "loss.vicreg_covariance": 2.0,
    "loss.vicreg_gamma": 2.0,
    "augment.image.crop": 0.5,
    "augment.image.flip": 0.5,
    "augment.image.colour": 0.2,
    "augment.audio.gain_db": 3.0,
    "augment.audio.noise": 0.1,
    "augment.audio.time_mask": 8,
    "augment.audio.time_masks": 2,
    "augment.audio.time_mask_fraction": 0.5,
    "augment.audio.frequency_mask": 4,
    "augment.audio.frequency_masks": 2,
    "augment.text.token_dropout": 0.1,
    "augment.mixup": 0.2,
    "ema": {"decay": 0.9},
    "model.image_tokens": 9,
    "model.audio_tokens": 5,
    "model.dropout": 0.2,
    "loss.alpha": 0.5,
    "loss.beta": 0.5,
    "optimizer.lr": 0.5,
    "optimizer.betas": [0.5, 0.999],
    "optimizer.eps": 0.5,
    "optimizer.weight_decay": 0.5,
    "optimizer.max_grad_norm": 0.5,
    "schedule.decay": "constant",
    "schedule.warmup_fraction": 0.5,
    "evaluation.every": 7,
    "evaluation.select": "last",
    "evaluation.metric": "val/digit/loss",
    "evaluation.frames": "mean",
    "evaluation.direction": "max",
    "optimizer.name": "radam",
    "optimizer.momentum": 0.5,
    "optimizer.nesterov": True,
    "optimizer.no_decay": ["norms"],
    "schedule.final_fraction": 0.1,
    "schedule.power": 3.0,
    "schedule.stable_fraction": 0.5,
    "deepspeed.zero_optimization.stage": 2,
    "deepspeed.zero_optimization.reduce_bucket_size": 1000,
    "deepspeed.bf16.enabled": False,
    "steps": 7,
    "init_from": {"model": "exported"},
    "early_stopping": {"patience": 3},
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "deterministic": False,
    "portable": True,
    "tf32": True,
    "compile": True,
}
NO_NUMBERS = {
    "log_every": 3,
    "checkpoint_every": 3,
    "keep_checkpoints": 3,
    "keep_every": 3,
    "checkpoint_in_background": False,
    "hang_timeout_s": 7,
    "evaluation.batch_size": 3,
    "resources.nodes": 2,
    "resources.processes_per_node": 2,
    "resources.timeout_min": 3,
    "resources.partition": "p",
    "resources.max_attempts": 3,
    "resources.max_idle_attempts": 5,
    "resources.max_gpu_hours": 0.5,
}
# A field that means something beside another one alone.
BESIDE = {
    "model.image_weights": {"model.image_encoder": "vit"},
    "model.audio_weights": {"model.audio_encoder": "transformer"},
    "optimizer.momentum": {"optimizer.name": "sgd"},
    "optimizer.nesterov": {"optimizer.name": "sgd"},
    "schedule.power": {"schedule.decay": "polynomial"},
    "schedule.stable_fraction": {"schedule.decay": "wsd"},
}


def run(overrides: dict, fingerprint: str = FINGERPRINT) -> RunSpec:
    study = grid(variants={"base": overrides}, seeds=[0])
    return expand(study, {"tridigits": fingerprint, "mmimdb": fingerprint})[0]


@pytest.mark.parametrize("key", OTHER)
def test_run_id_changes_with_identity_fields(key):
    beside = BESIDE.get(key, {})
    assert run(beside | {key: OTHER[key]}).run_id != run(beside).run_id


@pytest.mark.parametrize("key", NO_NUMBERS)
def test_run_id_ignores_other_fields(key):
    changed = run({key: NO_NUMBERS[key]})
    assert changed.run_id == run({}).run_id
    assert changed != run({})


def test_every_field_of_the_config_is_tried_above():
    known = {*OTHER, *NO_NUMBERS, "seed", "pack_seed"}
    known.add("epochs")  # config/test_epochs.py
    known |= {"own_code", "model.network"}  # own_code/test_grid_code.py
    known |= {"model.text", "model.image", "model.audio"}  # sections of encoders
    keys = flatten(run({}).config.model_dump())
    found = {key for key in keys if not key.startswith("deepspeed.")}
    assert found - known == set()


def test_run_ids_of_the_shipped_grids_stay():
    """Ids change only with a file of ds_configs/ that a grid uses.

    zero1 had fp32 accumulation and no overlap before. zero1_fp32 had copied gradients.
    """
    made = {
        "ablation": "base-s0-7db108d1",
        "fusion": "late-s0-65bda71e",
        "mmimdb": "text-s0-2ced055e",
    }
    made |= {"audioset": "image-s0-7e0fdc50", "smoke": "base_stage-1-s0-364dc39b"}
    for name, run_id in made.items():
        asked = load_grid(name)
        rows = expand_rows(asked)
        runs = expand(asked, {data: "0" * 16 for row in rows for data in row.packs}, rows)
        assert [runs[0].run_id, runs[0].run_id] == [run_id, run_ids(runs)[0]]
        assert run_ids(runs) == [spec.run_id for spec in runs]


@pytest.mark.parametrize("key", ["tf32", "compile"])
def test_defaults_of_later_keys_change_no_run_id(key):
    assert run({key: False}).run_id == run({}).run_id != run({key: True}).run_id


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"deepspeed": "zero3"}, "compile: true needs ZeRO stage 0, 1 or 2, got stage 3"),
        ({"deepspeed": "zero2_checkpointed"}, "does not work with activation_checkpointing"),
        ({"portable": True}, "does not work with portable: true"),
    ],
)
def test_compile_is_refused_with(beside, message):
    with pytest.raises(ConfigError, match=message):
        run(beside | {"compile": True})


def test_only_portable_true_is_part_of_run_ids():
    shipped, ids = load_grid("ablation"), {}
    for portable in ({}, {"portable": False}, {"portable": True}):
        base = {key: value for key, value in shipped.base.items() if key != "portable"}
        base |= {"steps": 500, "evaluation": {"every": 100, "select": "best"}}
        asked = shipped.model_copy(update={"base": base | portable})
        ids[str(portable)] = expand(asked, {"tridigits": "0" * 16})[0].run_id
    without, false, true = ids.values()
    assert without == false == "base-s0-f4163cdb"  # the key itself changes none
    assert true == "base-s0-c35462f9"


def test_a_field_added_later_counts_once_it_is_changed():
    plain, on = run({}), run({"loss.vicreg": 0.1})
    assert identity(plain.config)["loss"]["vicreg"] == 0.0  # tables still see it
    assert run({"loss.vicreg": 0.0}).run_id == plain.run_id != on.run_id
    assert run_ids([on, plain, on]) == [on.run_id, plain.run_id, on.run_id]


def test_run_id_has_variant_seed_and_data_hash():
    first = run({})
    assert re.fullmatch(r"base-s0-[0-9a-f]{8}", first.run_id)
    assert run({}, "0" * 16).run_id != first.run_id
    runs = specs(seeds=[0, 1, 2], variants={"base": {}})
    assert len({spec.run_id.rpartition("-")[2] for spec in runs}) == 3


def test_identity_ignores_order_and_notation():
    """The order of keys and `1` or `1.0` do not change it."""
    content = run({}).config.model_dump(mode="json")

    def turned(value):
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return [turned(item) for item in value] if isinstance(value, list) else value

    same = TrainConfig.model_validate(turned(content))
    assert list(turned(content)) != list(content)
    assert identity_hash(same, FINGERPRINT) == identity_hash(run({}).config, FINGERPRINT)
    assert run({"loss.alpha": 1}).run_id == run({"loss.alpha": 1.0}).run_id


def test_identity_is_plain_json_of_identity_fields():
    content = identity(run({}).config)
    assert json.loads(json.dumps(content)) == content
    assert "batch_size" not in content["evaluation"]
    assert not {"log_every", "checkpoint_every", "keep_checkpoints"} & content.keys()
    assert content["steps"] == GRID["base"]["steps"]


def test_spec_json_round_trip_is_equal():
    for key, value in (OTHER | NO_NUMBERS).items():
        spec = run(BESIDE.get(key, {}) | {key: value})
        again = RunSpec.model_validate_json(spec.model_dump_json(indent=2))
        assert again == spec
        assert again.run_id == spec.run_id


@pytest.mark.parametrize(
    "key", ["optimizer.lr", "loss.alpha", "optimizer.max_grad_norm", "optimizer.eps"]
)
def test_infinity_and_nan_are_refused(key):
    """JSON has neither."""
    for value in (float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"{key}: got .*, wanted a finite number"):
            run({key: value})


def test_a_result_may_hold_nan_and_comes_back():
    result = result_of(run({}), accuracy=float("nan"))
    again = RunResult.from_json(json.dumps(result.model_dump()))
    assert str(again.metrics["test/digit/accuracy"]) == "nan"
    assert again.model_dump(exclude={"metrics"}) == result.model_dump(exclude={"metrics"})


def test_configuration_is_frozen():
    spec = run({})
    with pytest.raises(ValidationError, match="frozen"):
        spec.config.steps = 3
    with pytest.raises(ValidationError, match="frozen"):
        spec.config.deepspeed.bf16.enabled = False
    with pytest.raises(ValidationError, match="frozen"):
        spec.resources.nodes = 3


@pytest.mark.parametrize(
    ("total", "micro", "world_size", "expected"),
    [
        (32, None, 1, (32, 1)),
        (32, None, 8, (4, 1)),
        (32, 4, 2, (4, 4)),
        (32, 32, 1, (32, 1)),
        (1, 1, 1, (1, 1)),
        (48, 8, 3, (8, 2)),
    ],
)
def test_accumulation_steps(total, micro, world_size, expected):
    config = run({"global_batch_size": total, "micro_batch_size": micro}).config
    assert accumulation_steps(config, world_size) == expected
    assert expected[0] * expected[1] * world_size == total


@pytest.mark.parametrize(
    ("total", "micro", "world_size", "numbers"),
    [
        (32, 5, 1, (32, 5, 6, 1)),
        (32, None, 5, (32, 6, 1, 5)),
        (8, 8, 2, (8, 8, 1, 2)),
        (2, None, 4, (2, 1, 1, 4)),
    ],
)
def test_sizes_that_do_not_divide_are_refused(total, micro, world_size, numbers):
    """The error has all four numbers."""
    config = run({"global_batch_size": total, "micro_batch_size": micro}).config
    with pytest.raises(ConfigError) as error:
        accumulation_steps(config, world_size)
    names = ("global_batch_size", "micro_batch_size", "gradient_accumulation_steps", "world_size")
    for name, number in zip(names, numbers, strict=True):
        assert f"{name} {number} " in str(error.value)
    assert f" = {numbers[1] * numbers[2] * numbers[3]}. " in str(error.value)


@pytest.mark.parametrize("place", ["name", "variant", "partition", "data"])
def test_names_outside_the_pattern_are_refused(place):
    draw = random.Random(place)
    bad = [*" \n\t/\\$;'\"`&|*%:=~#\0", "é", "³", "\u2028"]
    accepted = refused = 0
    for _ in range(300):
        name = "".join(draw.choices("aZ09._-", k=draw.choice([0, 1, 2, 3, 5, 64, 65])))
        if draw.random() < 0.5:
            at = draw.randint(0, len(name))
            name = name[:at] + draw.choice(bad) + name[at:]
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None
        changes = {
            "name": {"name": name},
            "variant": {"variants": {"base": {}, name: {"steps": 3}}},
            "partition": {"resources": {"partition": name}},
            "data": {"base": GRID["base"] | {"data": {"name": name}}},
        }[place]
        try:
            expand(grid(**changes), {"tridigits": FINGERPRINT, name: FINGERPRINT})
        except ValueError:
            refused += 1
            assert not fits, name
        else:
            accepted += 1
            assert fits, name
    assert accepted > 10 < refused


@pytest.mark.parametrize("name", ["a\n", "-a", ".a", "_a", "", "a" * 65, "a b", "ä"])
def test_name_pattern_refuses(name):
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)
    assert re.fullmatch(NAME_PATTERN, name) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.width": 10}, "width 10 is not a multiple of num_heads 4"),
        ({"model.image_tokens": 5}, "image_tokens 5 is not a square number"),
        (
            {"model.fusion_layers": 0},
            "fusion cross_attention got fusion_layers 0, wanted 1 or more",
        ),
        ({"model.fusion": "bottleneck"}, "fusion_layers 1 never combines modalities"),
        (
            {"model.image_weights": "some/vit"},
            "image_weights are for a ViT. Add image_encoder: vit",
        ),
        ({"model.audio_weights": "some/ast"}, "Add audio_encoder: transformer"),
        ({"loss.info_nce": 1, "model.modalities": ["text"]}, "loss.info_nce compares modalities"),
        ({"loss.vicreg": 1, "model.modalities": ["text"]}, "loss.vicreg compares modalities"),
        ({"tasks": [{"name": "consistency"}]}, "metrics of two modalities have this name"),
        (
            {
                "tasks": [{"name": "genre", "kind": "multi_label"}],
                "evaluation.metric": "val/genre/accuracy",
            },
            "unknown metric",
        ),
        ({"model.modalities": ["text", "text"]}, "an entry is a duplicate. Keep one"),
        ({"model.modalities": []}, "model.modalities: got [], wanted 1 or more entries"),
        ({"tasks": [{"name": "digit"}, {"name": "digit"}]}, "a name is a duplicate. Rename one"),
        ({"evaluation.metric": "test/digit/accuracy"}, "unknown metric 'test/digit/accuracy'"),
        ({"optimizer.lr": 0}, "optimizer.lr: got 0, wanted a number greater than 0"),
        (
            {"optimizer.betas": [0.9, 1.0]},
            "optimizer.betas.1: got 1.0, wanted a number less than 1",
        ),
        ({"steps": True}, "steps: got True, wanted a number"),
        ({"optimizer.lr": "0.1"}, "lr: got '0.1', wanted a number"),
        ({"steps": "many"}, "steps: got 'many', wanted a number"),
    ],
)
def test_values_that_cannot_train_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(overrides)
