"""Weights that were trained elsewhere: read from a folder or the hub's cache, and compared with the data."""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.model_config import ModelConfig
from furnace_hpc.config.pretrained_files import CONFIG, check_kind, not_found
from furnace_hpc.data.decode.tokenizer import shipped_vocabulary


def architectures(encoders: nn.ModuleDict, config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Modality -> transformers' configuration of each encoder that began with trained weights."""
    found = {}
    for name, part in (("text", "bert"), ("image", "vit"), ("audio", "ast")):
        if name in encoders and getattr(config, f"{name}_weights"):
            found[name] = json.loads(
                getattr(encoders[name], part).config.to_json_string(use_diff=False)
            )
    return found


def trained(
    kind: Any, modality: str, config: ModelConfig, made: Mapping[str, dict[str, Any]]
) -> Any:
    """A transformers model with the weights of a folder or of the hub's cache.

    Args:
        kind: class of the model.
        modality: whose weights the config names.
        config: the network's.
        made: modality -> configuration of an encoder whose weights come later: none are read then.

    Raises:
        ConfigError: they are not there, or are another model's.
    """
    key = f"{modality}_weights"
    name, more = (
        getattr(config, key),
        {} if kind.__name__ == "ASTModel" else {"add_pooling_layer": False},
    )
    if modality in made:
        return kind(kind.config_class.from_dict(made[modality]), **more)
    check_kind(key, name)
    try:
        model, loading = kind.from_pretrained(
            name,
            local_files_only=True,
            use_safetensors=True,  # its other format is a pickle
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            dtype=torch.float32,
            **dropout_of(config),
            **more,
        )
    except MemoryError:
        raise
    except Exception as error:  # config.json decides what is called: its values can raise anything
        said = " ".join(str(error).split())[:200]
        raise not_found(key, name, f"{type(error).__name__}: {said}") from None
    _check_tensors(key, name, kind, loading)
    return model


def _check_tensors(key: str, name: str, kind: Any, loading: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the weights are those of the model that their config.json describes."""
    about = f"model.{key} {name!r}"
    if lacking := sorted(loading["missing_keys"]):
        raise ConfigError(
            f"{about} lacks {len(lacking)} weights of {kind.__name__}, such as {lacking[0]}"
        )
    if others := sorted(loading["mismatched_keys"]):
        tensor, found, wanted = others[0]
        raise ConfigError(
            f"{about} has {len(others)} weights of another shape than its {CONFIG} describes, such as {tensor}: "
            f"{tuple(found)}, wanted {tuple(wanted)}. Take both files from the same model"
        )
    own = re.compile(
        rf"(?:{kind.base_model_prefix}\.)?(?:embeddings|encoder\.layer|layers)\.(?!position_ids$|mask_token$)"
    )
    if unused := sorted(tensor for tensor in loading["unexpected_keys"] if own.match(tensor)):
        raise ConfigError(
            f"{about} has {len(unused)} weights of its encoder that its {CONFIG} does not describe, such as "
            f"{unused[0]}: they would not be used. Take both files from the same model"
        )


def dropout_of(config: ModelConfig) -> dict[str, float]:
    """The config's dropout as transformers says it."""
    # None in attention: that keeps torch's fused attention, on CPU too.
    return {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}


def check_vocabulary(name: str, packed: str | None) -> None:
    """Raise ConfigError where the tokenizer beside the weights has other words than the data: ids would mean others."""
    shipped = shipped_vocabulary(name)
    if shipped and packed and shipped != packed:
        raise ConfigError(
            f"model.text_weights {name!r} comes with a tokenizer of vocabulary {shipped}, and the data set was packed "
            f"with {packed}, whose ids mean other words: pack it with --tokenizer {name}, or choose other weights"
        )


def check_fits(
    key: str, config: ModelConfig, what: str, found: int, made_for: int, exact: bool = False
) -> None:
    """Raise ConfigError where the data is not what trained weights were made for."""
    if found != made_for if exact else found > made_for:
        raise ConfigError(
            f"model.{key} {getattr(config, key)!r} is made for {made_for} {what}, and the data set has {found}: "
            f"choose other weights, or pack the data for these"
        )
