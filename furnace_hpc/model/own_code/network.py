"""Choose the network of a config, and adapt a network of own code to the engine.

B batch, M modalities, C classes, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.config.own_code.references import Reference
from furnace_hpc.config.sections.encoder import EncoderConfig
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.heads import make_head
from furnace_hpc.model.network import Computed, FusionModel, Network, only, without_empty
from furnace_hpc.model.own_code.contracts import NetworkContext
from furnace_hpc.model.own_code.modules import BrokenContract, check_shape, make_module


def make_network(
    config: ModelConfig,
    shapes: InputShapes,
    num_classes: dict[str, int],
    loss: LossConfig | None = None,
    ordinal: frozenset[str] = frozenset(),
) -> Network:
    """Make the network that a config asks for: encoders, fusion and heads, or own code.

    Raises:
        ConfigError: own code cannot be used, or trained weights do not fit the data.
    """
    if config.network is None:
        return FusionModel(config, shapes, num_classes, loss, ordinal)
    return OwnNetwork(config, shapes, num_classes, loss or LossConfig(), ordinal)


class OwnNetwork(Network):
    """A network of own code, with what the engine needs beside it.

    Absent inputs become zeros before the module sees them, also those of modality dropout and of
    modality subsets. So no value of an absent modality can change a result.
    """

    def __init__(
        self,
        config: ModelConfig,
        shapes: InputShapes,
        num_classes: dict[str, int],
        loss: LossConfig,
        ordinal: frozenset[str],
    ) -> None:
        super().__init__(config)
        self._path, self._width = str(config.network), config.width
        self._num_classes = dict(num_classes)
        made: dict[str, nn.Module] = {}

        def make(name: str) -> nn.Module:
            if name not in made:
                made[name] = make_encoder(name, config, shapes)
            return made[name]

        context = NetworkContext(
            modalities=config.modalities,
            width=config.width,
            dropout=config.dropout,
            shapes=shapes,
            num_classes=num_classes,
            make_encoder=make,
            make_head=lambda task, width: make_head(width, num_classes[task], task in ordinal),
        )
        reference = Reference("network", "model.network", self._path, config.network_args)
        self.module = make_module(reference, context)
        self._check_encoders(config, made)
        self._made = made  # a plain dict: the module has registered them
        self._second_B: Tensor | None = None
        if "text" in made:
            made["text"].register_forward_pre_hook(self._add_second, with_kwargs=True)
        self._add_loss_heads(config, num_classes, loss, ordinal)

    def _check_encoders(self, config: ModelConfig, made: Mapping[str, nn.Module]) -> None:
        """Raise ConfigError if the config has settings of an encoder that the module lacks."""
        for name in config.modalities:
            is_set = config.encoder(name) != EncoderConfig()
            is_set |= getattr(config, f"{name}_weights", None) is not None
            if is_set and name not in made:
                raise ConfigError(
                    f"the config sets the {name} encoder (model.{name} or model.{name}_weights), "
                    f"and {self._path} does not use it. Call context.make_encoder({name!r}) in "
                    f"__init__, or remove the settings"
                )

    def _add_second(
        self, encoder: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the places of the second texts to a call of the text encoder.

        So an encoder with token types reads pairs as it does in the built-in network.
        """
        is_whole = given and self._second_B is not None and len(given[0]) == len(self._second_B)
        if not is_whole or len(given) > 2 or "second_B" in named:
            return None
        return given, named | {"second_B": self._second_B}

    def furnace_encoders(self) -> Mapping[str, nn.Module]:
        """Modality -> the encoder that the module has asked Furnace for."""
        return self._made

    def compute(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        present_BM: Tensor,
        subsets: Sequence[Sequence[int]],
        complete: frozenset[str],
        mix: tuple[Tensor, Tensor] | None,
    ) -> Computed:
        """Call the module once, and once more for each subset of the modalities.

        A config with a network of own code has no mixup, so `mix` is None.
        """
        logits, features_BMD = self._call(inputs, lengths, present_BM)
        of_subsets = []
        for subset in subsets:
            kept_BM = only(subset, present_BM)
            of_subset, _ = self._call(inputs, lengths, kept_BM)
            of_subsets.append(without_empty(of_subset, kept_BM))
        return Computed(logits, features_BMD, of_subsets, present_BM)

    def _call(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Logits and features of the module, with their shapes checked."""
        dtype = next(self.parameters()).dtype
        given, given_lengths = {}, {}
        for m, name in enumerate(self.modalities):
            present_B, values = present_BM[:, m], inputs[name]
            if values.is_floating_point():
                values = values.to(dtype)
            is_present = present_B.view(-1, *[1] * (values.dim() - 1))
            given[name] = torch.where(is_present, values, torch.zeros_like(values))
            if name in lengths:
                one_B = torch.ones_like(lengths[name])
                given_lengths[name] = torch.where(present_B, lengths[name], one_B)
        self._second_B = lengths.get(TEXT_SECOND)
        if self._second_B is not None:  # that of an absent text must not change anything
            present_B = present_BM[:, self.modalities.index("text")]
            self._second_B = torch.where(present_B, self._second_B, 0)
        output = self.module(given, given_lengths, present_BM)
        self._check(output, present_BM)
        features_BMD = output["features"] * present_BM.unsqueeze(2).to(output["features"].dtype)
        return output["logits"], features_BMD

    def _check(self, output: Any, present_BM: Tensor) -> None:
        """Raise BrokenContract unless the output has the parts and shapes of the contract."""
        names = sorted(output) if isinstance(output, dict) else type(output).__name__
        if not isinstance(output, dict) or not {"logits", "features"} <= output.keys():
            problem = f"forward returns a dict with logits and features. It returned {names}"
            raise BrokenContract("shapes", self._path, problem)
        B, M = present_BM.shape
        if not isinstance(output["logits"], dict) or output["logits"].keys() != (
            self._num_classes.keys()
        ):
            problem = f"logits are a dict with the tasks {sorted(self._num_classes)}"
            raise BrokenContract("shapes", self._path, problem)
        for task, count in self._num_classes.items():
            what = f"the logits of task {task!r} are [B, C]"
            check_shape(output["logits"][task], (B, count), what, self._path)
        wanted = (B, M, self._width)
        check_shape(output["features"], wanted, "features are [B, M, D]", self._path)
