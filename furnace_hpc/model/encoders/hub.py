"""Build the network of a Hugging Face encoder: from files, from a description, or at random.

`config/encoder_families.py` has what differs between families.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.encoder_families import (
    DROPOUT,
    FAMILIES,
    MADE_AGAIN,
    RANDOM,
    REPLACED,
    Family,
)
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.pretrained_files import check_encoder, not_found, weight_names
from furnace_hpc.config.sections.encoder import EncoderConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.random_sizes import random_settings

# Buffers that would lose too much in bf16: angles of rotary positions, and statistics.
_IN_FP32 = ("inv_freq", "running_mean", "running_var")


class HubEncoder(nn.Module):
    """A network of transformers, and a projection of its tokens to the width of the fusion.

    Subclasses call the network.
    """

    def __init__(self, modality: str, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        settings: EncoderConfig = getattr(config, modality)
        self.name = name = str(settings.encoder)
        self.about = f"model.{modality}.encoder {name!r}"
        self.is_random = name.startswith(RANDOM)
        self.left_out = ""
        """The weights in the files that are not the encoder's, in words."""
        if self.is_random:
            self.family = FAMILIES[name.removeprefix(RANDOM)]
            network = self._random_network(config, shapes)
        elif modality in shapes.architectures:
            described = dict(shapes.architectures[modality])
            self.family = check_encoder(modality, name, described)
            network = _from_settings(self.family, described, config.dropout)
        else:
            self.family = check_encoder(modality, name)
            network, left_out = _from_files(self.about, self.family, settings, config.dropout)
            self.left_out = _parts_of(left_out)
        _leave_out(network, self.family.unused)
        _fix_batch_norms(network)
        _fix_constants(network)
        self.network = network
        self.project = _projection(_width_of(network), config.width)

    def _random_network(self, config: ModelConfig, shapes: InputShapes) -> Any:
        sizes = random_settings(self.name.removeprefix(RANDOM), config, shapes)
        try:
            return _from_settings(self.family, sizes, config.dropout)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{self.about} cannot have width {config.width}, num_heads {config.num_heads} and "
                f"feedforward {config.feedforward} ({type(error).__name__}: {reason}). Change them"
            ) from None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HubEncoder":
        """Move and convert all tensors, but keep some buffers in fp32."""
        kept = {
            name: buffer
            for name, buffer in self.named_buffers()
            if name.endswith(_IN_FP32) and not buffer.is_meta
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            parent, _, last = name.rpartition(".")
            module = self.get_submodule(parent)
            setattr(module, last, buffer.to(module.get_buffer(last).device))
        return self

    def for_attention(self, allowed: Tensor) -> Tensor:
        """A mask for torch's own attention, or the numbers that other attention adds."""
        if self.network.config._attn_implementation == "sdpa":
            return allowed
        dtype = self.network.dtype
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, torch.finfo(dtype).min)


def _network_class(family: Family) -> Any:
    if family.network == "WhisperEncoder":  # not exported by transformers
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperEncoder
    import transformers

    return getattr(transformers, family.network)


def _from_settings(family: Family, settings: dict[str, Any], dropout: float) -> Any:
    """A network with random weights, from the values of its configuration."""
    kind = _network_class(family)
    return kind(_adjusted(kind.config_class.from_dict(settings), dropout))


def _adjusted(settings: Any, dropout: float) -> Any:
    """Set the dropout of a configuration, and turn off what changes the network at random."""
    for name in DROPOUT:
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    for name, value in REPLACED.items():
        if hasattr(settings, name):
            setattr(settings, name, value)
    return settings


def _from_files(
    about: str, family: Family, settings: EncoderConfig, dropout: float
) -> tuple[Any, list[str]]:
    """Load a network from safetensors files. Nothing is downloaded, and no code of the files runs.

    Returns:
        The network, and the names of weights of heads and of other encoders.

    Raises:
        ConfigError: the files cannot be read, or weights are missing, unknown or of another shape.
    """
    from transformers import AutoConfig

    kind, name = _network_class(family), str(settings.encoder)
    try:
        described = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        if family.section and hasattr(described, family.section):
            described = getattr(described, family.section)
        with _without_report():
            network, loading = kind.from_pretrained(
                name,
                config=_adjusted(described, dropout),
                key_mapping={rf"^{scope.replace('.', '[.]')}": "" for scope in family.scopes},
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # the other format is a pickle
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_weights refuses them and names one
                dtype=torch.float32,
            )
    except MemoryError:
        raise
    except Exception as error:  # depending on config.json, any class of error can occur
        reason = " ".join(str(error).split())[:200]
        key = f"{family.modality}.encoder"
        raise not_found(key, name, f"{type(error).__name__}: {reason}") from None
    return network, _check_weights(about, family, settings, loading)


@contextmanager
def _without_report() -> Iterator[None]:
    """Turn off the table of weights that transformers logs. `_check_weights` has its errors."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_weights(
    about: str, family: Family, settings: EncoderConfig, loading: dict[str, Any]
) -> list[str]:
    """Check that the files have exactly the encoder's weights. Return the names of other weights.

    Raises:
        ConfigError: weights are missing, unknown or of another shape, and the config does not
            allow it.
    """
    fix = "Take weights and config.json from the same model"
    missing = [key for key in loading["missing_keys"] if not _is_unused(key, family)]
    if found := _not_allowed(missing, settings.allow_missing):
        raise ConfigError(
            f"{about} lacks {len(found)} weights of {family.network}, such as {found[0]}. {fix}, "
            f"or name them in allow_missing to start them at random"
        )
    reshaped = {key: (tuple(has), tuple(wants)) for key, has, wants in loading["mismatched_keys"]}
    kept = [key for key in reshaped if not _is_unused(key, family)]
    if found := _not_allowed(kept, settings.allow_missing):
        has, wants = reshaped[found[0]]
        raise ConfigError(
            f"{about} has {len(found)} weights of another shape than its config.json describes, "
            f"such as {found[0]}: {has}, wanted {wants}. {fix}, or name them in allow_missing to "
            f"start them at random"
        )
    others = _other_parts(str(settings.encoder), family)
    extra = [key for key in loading["unexpected_keys"] if key.partition(".")[0] not in others]
    if found := _not_allowed(
        [key for key in extra if not _is_unused(key, family)], settings.allow_unused
    ):
        raise ConfigError(
            f"{about} has {len(found)} encoder weights that its config.json does not describe, "
            f"such as {found[0]}. They would not be used. {fix}, or name them in allow_unused"
        )
    return sorted(loading["unexpected_keys"])


def _parts_of(names: list[str]) -> str:
    """Beginnings of names and how many there are: `cls (5), pooler (2)`."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in sorted(counts.items()))


def _other_parts(name: str, family: Family) -> frozenset[str]:
    """Where the names of weights of heads and of other encoders begin in the files."""
    names = weight_names(name)
    for scope in family.scopes:
        if any(key.startswith(scope) for key in names):
            return frozenset(key.partition(".")[0] for key in names if not key.startswith(scope))
    return frozenset()


def _is_unused(key: str, family: Family) -> bool:
    """Whether the encoder leaves out a weight of its own network, or makes it itself."""
    for scope in family.scopes:
        key = key.removeprefix(scope)
    is_part = any(key == part or key.startswith(f"{part}.") for part in family.unused)
    return is_part or any(fnmatchcase(key, pattern) for pattern in MADE_AGAIN)


def _not_allowed(keys: list[str], allowed: tuple[str, ...]) -> list[str]:
    return sorted(key for key in keys if not any(fnmatchcase(key, name) for name in allowed))


def _leave_out(network: nn.Module, parts: tuple[str, ...]) -> None:
    """Remove parts of a network that its tokens do not depend on, so that they have no weights."""
    for part in parts:
        parent, _, last = part.rpartition(".")
        module = network.get_submodule(parent)
        found = getattr(module, last, None)
        if isinstance(found, nn.Module):
            setattr(module, last, nn.Identity())
        elif isinstance(found, nn.Parameter):
            setattr(module, last, None)


class FixedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the stored statistics, also in training.

    Statistics of a batch would depend on the ranks, and on samples that lack the modality.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in fp32."""
        assert self.running_mean is not None
        assert self.running_var is not None
        normalised = functional.batch_norm(
            x.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            eps=self.eps,
        )
        return normalised.to(x.dtype)


def _fix_batch_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = FixedBatchNorm


def _fix_constants(network: nn.Module) -> None:
    """Turn parameters that are never trained into buffers, such as sinusoidal positions."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.data)


def _width_of(network: Any) -> int:
    """Values per token."""
    settings = network.config
    sizes = getattr(settings, "hidden_sizes", None)
    return int(sizes[-1] if sizes else settings.hidden_size)


def _projection(found: int, width: int) -> nn.Module:
    if found == width:
        return nn.Identity()
    return nn.Linear(found, width)
