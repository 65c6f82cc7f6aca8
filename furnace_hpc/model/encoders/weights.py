"""Load trained weights from a folder or the hub's cache, and check that they fit the data."""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.pretrained_files import CONFIG, check_kind, not_found
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.data.decode.tokenizer import shipped_vocabulary
from furnace_hpc.model.encoders.hub import HubEncoder

# Attribute of an encoder that holds the transformers model.
INNER_MODELS = {"text": "bert", "image": "vit", "audio": "ast"}


def architectures(encoders: nn.ModuleDict, config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Modality -> transformers' configuration of each encoder that started from trained weights."""
    found = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, HubEncoder):
            network = None if encoder.is_random else encoder.network
        else:
            trained = name in INNER_MODELS and getattr(config, f"{name}_weights")
            network = getattr(encoder, INNER_MODELS[name]) if trained else None
        if network is not None:
            found[name] = json.loads(network.config.to_json_string(use_diff=False))
    return found


def load_trained(
    kind: Any, modality: str, config: ModelConfig, known: Mapping[str, dict[str, Any]]
) -> Any:
    """Load a transformers model with the weights of a folder or of the hub's cache.

    Args:
        kind: class of the model.
        modality: the config names its weights in "<modality>_weights".
        config: of the network.
        known: modality -> configuration of an encoder whose weights the caller loads itself. For
            these, no weights are read here.

    Raises:
        ConfigError: the weights are missing, or belong to another model.
    """
    key = f"{modality}_weights"
    name = getattr(config, key)
    options = {}
    if kind.__name__ != "ASTModel":  # which has no such option
        options["add_pooling_layer"] = False
    if modality in known:
        return kind(kind.config_class.from_dict(known[modality]), **options)
    check_kind(key, name)
    try:
        model, loading = kind.from_pretrained(
            name,
            local_files_only=True,
            use_safetensors=True,  # the other format is a pickle
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_tensors refuses them and names one
            dtype=torch.float32,
            **dropout_of(config),
            **options,
        )
    except MemoryError:
        raise
    except Exception as error:  # depending on config.json, any class of error can occur
        reason = " ".join(str(error).split())[:200]
        raise not_found(key, name, f"{type(error).__name__}: {reason}") from None
    _check_tensors(key, name, kind, loading)
    return model


def _check_tensors(key: str, name: str, kind: Any, loading: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the weights have the names and shapes of their config.json."""
    about = f"model.{key} {name!r}"
    same_model = f"Take weights and {CONFIG} from the same model"
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(
            f"{about} lacks {len(missing)} weights of {kind.__name__}, such as {missing[0]}. "
            f"{same_model}"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        tensor, found, wanted = mismatched[0]
        raise ConfigError(
            f"{about} has {len(mismatched)} weights of another shape than its {CONFIG} describes, "
            f"such as {tensor}: {tuple(found)}, wanted {tuple(wanted)}. {same_model}"
        )
    of_encoder = re.compile(
        rf"(?:{kind.base_model_prefix}\.)?(?:embeddings|encoder\.layer|layers)"
        r"\.(?!position_ids$|mask_token$)"
    )
    unused = sorted(tensor for tensor in loading["unexpected_keys"] if of_encoder.match(tensor))
    if unused:
        raise ConfigError(
            f"{about} has {len(unused)} encoder weights that its {CONFIG} does not describe, "
            f"such as {unused[0]}. They would not be used. {same_model}"
        )


def dropout_of(config: ModelConfig) -> dict[str, float]:
    """The config's dropout in the words of transformers."""
    # Dropout in attention would turn off torch's fused attention, also on the CPU.
    return {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}


def check_vocabulary(about: str, name: str, packed: str | None) -> None:
    """Raise ConfigError if the tokenizer of the weights and that of the data have different words.

    A token id would then mean one word in the data and another in the weights. An unknown
    vocabulary is not checked.
    """
    shipped = shipped_vocabulary(name)
    if shipped and packed and shipped != packed:
        raise ConfigError(
            f"{about} has a tokenizer with vocabulary {shipped}, but the data "
            f"set was packed with vocabulary {packed}, whose ids mean other words. "
            f"Pack it with --tokenizer {name}, or choose other weights"
        )


def described(key: str, config: ModelConfig) -> str:
    """The weights of a key, for messages."""
    return f"model.{key} {getattr(config, key)!r}"


def check_at_most(about: str, what: str, found: int, limit: int) -> None:
    """Raise ConfigError if the data set has more of something than an encoder accepts."""
    if found > limit:
        raise _misfit(about, f"at most {limit} {what}", found)


def check_exactly(about: str, what: str, found: int, wanted: int) -> None:
    """Raise ConfigError unless the data set has as much of something as an encoder needs."""
    if found != wanted:
        raise _misfit(about, f"exactly {wanted} {what}", found)


def _misfit(about: str, wanted: str, found: int) -> ConfigError:
    return ConfigError(
        f"{about} takes {wanted}, and the data set has {found}. "
        f"Choose other weights, or pack the data for these"
    )
