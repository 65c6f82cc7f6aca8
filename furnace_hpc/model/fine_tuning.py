"""Train only parts of an encoder, or its layers at different rates.

The layers of any network are found by its lists of modules. So nothing here depends on a family of
models. A frozen layer is in evaluation mode, without dropout. Its parameters need no gradient, and
neither does its input. So autograd keeps none of its activations, and the optimizer no state.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.encoder import EncoderConfig, LoraConfig
from furnace_hpc.config.sections.model import ModelConfig

# Parameters of the input, also where a network defines them after its layers.
_OF_INPUT = re.compile(r"embed|relative_attention|position")
ALL_LINEAR = "all-linear"  # peft's name of all linear layers


class Layers(NamedTuple):
    """The layers of a network."""

    number: int
    depths: dict[str, int]
    """Parameter -> 0 for embeddings, 1 to `number` for layers, `number` + 1 for what follows."""


def fine_tune(encoders: Mapping[str, nn.Module], config: ModelConfig) -> tuple[nn.Module, ...]:
    """Freeze encoders and add adapters. Return the modules that stay in evaluation mode.

    Raises:
        ConfigError: an encoder has fewer layers than the config needs, or peft is missing.
    """
    frozen: list[nn.Module] = []
    for name, encoder in encoders.items():
        settings, network = config.encoder(name), network_of(encoder)
        if settings.lora:
            _add_adapters(network, settings.lora, name)
        if settings.freeze is not None:
            _freeze(network, settings, name)
            frozen += _frozen_modules(network)
    for module in frozen:
        module.eval()
    return tuple(frozen)


def network_of(encoder: nn.Module) -> nn.Module:
    """The model of transformers inside an encoder, without its projection. Else the encoder."""
    for child in encoder.children():
        if hasattr(child, "activation_checkpointing_enable"):
            return child
    return encoder


def checkpoint_encoders(encoders: Mapping[str, nn.Module], config: ModelConfig) -> None:
    """Compute the layers of those encoders again in backward that the config names.

    Raises:
        ConfigError: an encoder cannot do it.
    """
    for name, encoder in encoders.items():
        if not config.encoder(name).gradient_checkpointing:
            continue
        enable = getattr(network_of(encoder), "activation_checkpointing_enable", None)
        if enable is None:
            raise ConfigError(
                f"model.{name}.gradient_checkpointing needs an encoder of transformers, got "
                f"{type(encoder).__name__}. Remove it."
            )
        enable({"use_reentrant": False})


def rate_multipliers(
    encoders: Mapping[str, nn.Module], config: ModelConfig
) -> dict[nn.Parameter, float]:
    """Parameter -> multiple of the learning rate, of the encoders that have another rate than 1.

    The projection behind an encoder's network is new, so it learns at the full rate.
    """
    found: dict[nn.Parameter, float] = {}
    for name, encoder in encoders.items():
        settings, network = config.encoder(name), network_of(encoder)
        if settings.lr_multiplier == settings.layer_decay == 1:
            continue
        parameters = dict(network.named_parameters())
        found |= dict.fromkeys(parameters.values(), settings.lr_multiplier)
        if settings.layer_decay < 1:
            layers = layers_of(network, f"model.{name}.layer_decay")
            for parameter, depth in layers.depths.items():
                decay = settings.layer_decay ** (layers.number + 1 - depth)
                found[parameters[parameter]] *= decay
    return found


def encoders_of(model: nn.Module) -> Mapping[str, nn.Module]:
    """Modality -> the encoder that Furnace has made for a network. Empty for other networks."""
    get_encoders = getattr(model, "furnace_encoders", None)
    found: Mapping[str, nn.Module] = get_encoders() if get_encoders else {}
    return found


def layers_of(network: nn.Module, key: str) -> Layers:
    """The layers of a network: its longest list of modules by parameters.

    A network in stages, such as Swin, has its stages as layers.

    Raises:
        ConfigError: it has none. `key` is the setting that needs them.
    """
    lists = dict(_outermost_lists(network))
    if not lists:
        raise ConfigError(
            f"{key} needs an encoder with a list of layers, got {type(network).__name__}. Remove it"
        )
    sizes = {name: sum(map(_whole_numel, part.parameters())) for name, part in lists.items()}
    name = max(sizes, key=lambda name: sizes[name])
    return Layers(len(lists[name]), _depths(network, f"{name}.", len(lists[name])))


def _whole_numel(parameter: nn.Parameter) -> int:
    """The numbers in a whole parameter. At ZeRO stage 3 the tensor itself is empty."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _depths(network: nn.Module, prefix: str, count: int) -> dict[str, int]:
    """Parameter -> depth. What a network defines before its layers counts as embeddings."""
    depths, is_before = {}, True
    for parameter, _ in network.named_parameters():
        if parameter.startswith(prefix):
            is_before = False
            number = parameter.removeprefix(prefix).partition(".")[0]
            depths[parameter] = int(number) + 1
        else:
            is_of_input = is_before or _OF_INPUT.search(parameter)
            depths[parameter] = 0 if is_of_input else count + 1
    return depths


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules that are not inside another one."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield f"{prefix}{name}", child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _freeze(network: nn.Module, settings: EncoderConfig, name: str) -> None:
    if settings.freeze == "all":
        network.requires_grad_(False)
        return
    key = f"model.{name}.freeze"
    layers, last = layers_of(network, key), 0
    if isinstance(settings.freeze, int):
        last = settings.freeze
    if last > layers.number:
        raise ConfigError(
            f"{key} is {last}, and the encoder {type(network).__name__} has {layers.number} "
            f"layers. Write at most {layers.number}, or all"
        )
    for parameter, value in network.named_parameters():
        if layers.depths[parameter] <= last:
            value.requires_grad_(False)


def _frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parameters, all of which are frozen."""
    needs_gradient = [value.requires_grad for value in module.parameters()]
    if not needs_gradient:
        return
    if not any(needs_gradient):
        yield module
        return
    for child in module.children():
        yield from _frozen_modules(child)


def _add_adapters(network: nn.Module, lora: LoraConfig, name: str) -> None:
    """Freeze a network and put adapters of peft into its layers."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            f"model.{name}.lora needs the package peft, which is not installed. Run: pip install "
            "'furnace-hpc[lora]'"
        ) from None
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or ALL_LINEAR,
        use_dora=lora.dora,
        bias="none",
    )
    try:
        inject_adapter_in_model(settings, network)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.{name}.lora.targets {list(lora.targets)} cannot get adapters ({reason}). Write "
            "names of linear layers of the encoder, or remove targets"
        ) from None
