"""Which parts of an encoder are trained, and at which rate."""

import sys
from typing import Any

import pytest
import torch
from make import make_config, make_inputs, make_model
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.optimization.groups import parameter_groups
from furnace_hpc.engine.optimization.optimizers import make_optimizer
from furnace_hpc.model.fine_tuning import (
    checkpoint_encoders,
    layers_of,
    network_of,
    rate_multipliers,
)
from furnace_hpc.model.network import FusionModel

VIT = {"image_encoder": "vit", "image_layers": 2}


def frozen_names(model: FusionModel, modality: str) -> set[str]:
    encoder = model.encoders[modality]
    return {name for name, value in encoder.named_parameters() if not value.requires_grad}


def kept_bytes(model: FusionModel) -> int:
    """Bytes that autograd keeps of a forward pass in training, without parameters."""
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        inputs, lengths, present = make_inputs(pixels=64)
        output = model(inputs, lengths, present)["logits"]["digit"].sum()
    found = sum(kept.values())
    output.backward()
    return found


def activations_of(model: FusionModel, modality: str) -> int:
    """Bytes that autograd keeps of one encoder."""
    whole = kept_bytes(model)
    encoder = model.encoders[modality]
    original = encoder.forward

    def without_gradient(*arguments: Any) -> Any:
        with torch.no_grad():
            return original(*arguments)

    encoder.forward = without_gradient
    rest = kept_bytes(model)
    encoder.forward = original
    return whole - rest


def test_freezing_layers_and_embeddings():
    model = make_model(text_layers=3, text={"freeze": 2}, image={"freeze": "embeddings"}, **VIT)
    frozen = frozen_names(model, "text")
    assert {name.split(".")[1] for name in frozen} == {"embeddings", "encoder"}
    assert {name.split(".")[3] for name in frozen if ".layer." in name} == {"0", "1"}
    assert all(".embeddings." in name for name in frozen_names(model, "image"))
    assert frozen_names(model, "image")
    assert not frozen_names(model, "audio")


def test_frozen_layers_have_no_dropout():
    """In training, too. The other layers keep theirs."""
    model = make_model(
        dropout=0.5, text_layers=2, text={"freeze": 1}, image={"freeze": "all"}, **VIT
    )
    model.train()
    bert, vit = network_of(model.encoders["text"]), network_of(model.encoders["image"])
    assert not any(part.training for part in [*bert.embeddings.modules()])
    assert [layer.training for layer in bert.encoder.layer] == [False, True]
    assert not any(part.training for part in vit.modules())
    image = torch.randn(2, 1, 32, 32)
    assert torch.equal(vit(image).last_hidden_state, vit(image).last_hidden_state)
    assert model.fusion.training
    assert not model.eval().fusion.training


def test_frozen_encoder_keeps_no_activations():
    whole = activations_of(make_model(**VIT), "image")
    frozen = activations_of(make_model(image={"freeze": "all"}, **VIT), "image")
    half = activations_of(make_model(image={"freeze": 1}, **VIT), "image")
    assert frozen == 0
    assert 0.3 * whole < half < 0.7 * whole
    assert whole > 100_000


def test_frozen_parameters_get_no_gradient():
    model = make_model(text={"freeze": "all"}).train()
    inputs, lengths, present = make_inputs()
    model(inputs, lengths, present)["logits"]["digit"].sum().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert {name for name in without if name.startswith("encoders.")} == {
        f"encoders.text.{name}" for name in frozen_names(model, "text")
    }


def test_gradient_checkpointing_recomputes_layers():
    """Of the named encoder alone. The gradient stays the same."""
    gradients, calls = [], []
    for is_on in (False, True):
        model = make_model(text_layers=2, text={"gradient_checkpointing": is_on}, **VIT).train()
        config = make_config(model__text__gradient_checkpointing=is_on).model
        checkpoint_encoders(model.encoders, config)
        text, image = (network_of(model.encoders[name]) for name in ("text", "image"))
        counts = [count_calls(text.encoder.layer[0].output), count_calls(image.layers[0].mlp)]
        inputs, lengths, present = make_inputs()
        model(inputs, lengths, present)["logits"]["digit"].sum().backward()
        calls.append([len(count) for count in counts])
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert calls == [[1, 1], [2, 1]]
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name]), name


def count_calls(module: nn.Module) -> list[int]:
    """A list that gets an entry with each call."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_rates_by_layer():
    """Of L layers, layer k learns at decay^(L + 1 - k). The projection is new: it has rate 1."""
    changes = {"text_layers": 2, "text": {"layer_decay": 0.5, "lr_multiplier": 0.1}}
    model = make_model(**changes)
    config = make_config(model__text_layers=2, model__text=changes["text"])
    found = rate_multipliers(model.encoders, config.model)
    names = dict(model.encoders.named_parameters())
    by_part = {
        "embeddings.word_embeddings.weight": 0.1 * 0.125,
        "encoder.layer.0.output.dense.weight": 0.1 * 0.25,
        "encoder.layer.1.output.dense.weight": 0.1 * 0.5,
    }
    for name, value in by_part.items():
        assert found[names[f"text.bert.{name}"]] == pytest.approx(value)
    assert {name.split(".")[0] for name, value in names.items() if value in found} == {"text"}


def test_layers_of_other_shapes():
    """Convolutions before the layers are input. Names show positions after them."""

    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleList(nn.Conv1d(1, 1, 3) for _ in range(7))
            self.encoder = nn.Module()
            self.encoder.layers = nn.ModuleList(nn.Linear(9, 9) for _ in range(4))
            self.encoder.rel_embeddings = nn.Embedding(3, 3)
            self.encoder.norm = nn.LayerNorm(9)

    layers = layers_of(Sound(), "model.audio.freeze")
    assert layers.number == 4
    assert layers.depths["features.6.weight"] == 0
    assert layers.depths["encoder.layers.3.bias"] == 4
    assert layers.depths["encoder.rel_embeddings.weight"] == 0
    assert layers.depths["encoder.norm.weight"] == 5


def test_groups_by_rate_and_decay():
    settings: dict[str, Any] = {"model__text": {"lr_multiplier": 0.1}}
    config = make_config(**settings, optimizer__no_decay=["norms", "biases"])
    model = make_model(text={"lr_multiplier": 0.1})
    groups = parameter_groups(model, config)
    assert {(group["lr_multiplier"], group["weight_decay"]) for group in groups} == {
        *((0.1, 0.01), (0.1, 0.0), (1.0, 0.01), (1.0, 0.0))
    }
    names = {id(value): name for name, value in model.named_parameters()}
    decayed = {
        names[id(value)] for group in groups if group["weight_decay"] for value in group["params"]
    }
    assert not any(name.endswith("bias") or "norm" in name.lower() for name in decayed)
    assert "encoders.text.bert.embeddings.word_embeddings.weight" in decayed
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_no_decay_without_decay_makes_no_group():
    """Two groups that are alike would have one name in the metrics."""
    changes = {"no_decay": ["norms", "biases"], "weight_decay": 0.0}
    config = make_config("zero1", **{f"optimizer__{key}": value for key, value in changes.items()})
    assert len(parameter_groups(make_model(), config)) == 1


def test_usual_config_has_one_group_without_more_keys():
    """So that checkpoints and numbers of other runs stay the same."""
    model = make_model()
    [group] = parameter_groups(model, make_config())
    assert list(group) == ["params"]
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))


def test_adapters_are_all_that_is_trained():
    model = make_model(text={"lora": {"rank": 3, "targets": ["query", "value"]}})
    before = make_model()
    trained = {
        name for name, value in model.encoders["text"].named_parameters() if value.requires_grad
    }
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    assert {name.split(".")[-4] for name in trained} == {"query", "value"}
    shapes = {
        tuple(value.shape)
        for name, value in model.encoders["text"].named_parameters()
        if name in trained
    }
    assert shapes == {(3, 32), (32, 3)}
    # They start at zero, so the network computes what it would without them.
    given = make_inputs()
    assert torch.equal(model(*given)["logits"]["digit"], before(*given)["logits"]["digit"])


def test_clear_errors_of_adapters(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"model.text.lora.targets \['nothing'\] cannot get"):
        make_model(text={"lora": {"targets": ["nothing"]}})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"model.text.lora needs the package peft.*furnace-hpc\["):
        make_model(text={"lora": {}})


def test_clear_errors_of_layers():
    with pytest.raises(
        ConfigError, match="model.text.freeze is 3, and the encoder BertModel has 2"
    ):
        make_model(text_layers=2, text={"freeze": 3})
    with pytest.raises(ValueError, match="image.layer_decay needs an encoder with layers"):
        make_model(image={"layer_decay": 0.5})


CACHED = {"model__text": {"freeze": "all", "cache_features": True}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__text": {"freeze": 0}}, "freeze is 0. Write all, embeddings, or a number"),
        ({"model__text": {"freeze": True}}, "freeze is True"),
        ({"model__text": {"freeze": "all", "lr_multiplier": 0.5}}, "leaves nothing to train"),
        ({"model__text": {"freeze": 1, "lora": {}}}, "lora already freezes"),
        ({"model__text": {"cache_features": True}}, "and freeze is not set. Write freeze: all"),
        ({"model__text": {"freeze": 2, "cache_features": True}}, "and freeze is 2. Write"),
        ({"model__text": {"lora": {}, "cache_features": True}}, "and lora trains adapters in it"),
        (CACHED | {"model__network": "a.b:Net"}, "and network is your own, which may read"),
        (CACHED | {"augment__text": {"token_dropout": 0.1}}, "augment.text changes the samples"),
        ({"optimizer__momentum": 0.5}, "momentum is for the optimizers sgd and rmsprop"),
        ({"optimizer__nesterov": True}, "nesterov needs optimizer sgd"),
        ({"optimizer__name": "adafactor"}, "needs whole matrices, and ZeRO stage 1"),
        ({"optimizer__name": "adagrad"}, "adafactor"),
        ({"optimizer__no_decay": ["norms", "norms"]}, "duplicate"),
        (
            {"optimizer__name": "sgd", "portable": True},
            "portable: true is made for optimizer adamw",
        ),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_optimizers_get_their_settings():
    group = [{"params": [nn.Parameter(torch.ones(2))]}]

    def made(**changes: Any) -> Any:
        settings = {f"optimizer__{key}": value for key, value in changes.items()}
        return make_optimizer(group, make_config("zero0", **settings).optimizer)

    assert isinstance(made(), torch.optim.AdamW)
    sgd = made(name="sgd", nesterov=True)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    assert made(name="sgd", momentum=0).defaults["momentum"] == 0
    assert made(name="rmsprop", betas=[0.9, 0.99]).defaults["alpha"] == 0.99
    assert made(name="radam").defaults["decoupled_weight_decay"]
    assert isinstance(made(name="adafactor"), torch.optim.Adafactor)


def test_norm_of_relative_positions_is_of_the_input():
    """All layers of DeBERTa read it. If it were trained, frozen layers would keep activations."""
    from transformers import DebertaV2Config, DebertaV2Model

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    relative = {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
    settings = DebertaV2Config(vocab_size=9, num_hidden_layers=2, **sizes, **relative)
    depths = layers_of(DebertaV2Model(settings), "key").depths
    assert depths["encoder.LayerNorm.weight"] == depths["encoder.rel_embeddings.weight"] == 0
    assert depths["encoder.layer.1.output.LayerNorm.weight"] == 2


def test_layers_of_a_divided_network_are_the_same():
    """At ZeRO stage 3 tensors are empty, and `ds_numel` has the numbers of the whole parameter."""
    network = nn.Module()
    network.front = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    network.layers = nn.ModuleList(nn.Linear(9, 9) for _ in range(3))
    whole = layers_of(network, "key")
    assert whole.number == 3
    for parameter in network.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.data = torch.empty(0)
    assert layers_of(network, "key") == whole
