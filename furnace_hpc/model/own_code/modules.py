"""Make modules of the user's own code, and check what they return against their contracts."""

from typing import Any, cast

from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.arguments import checked_arguments
from furnace_hpc.config.own_code.loading import load
from furnace_hpc.config.own_code.references import Reference, is_import_path
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.own_code.contracts import EncoderContext, FusionContext


class BrokenContract(ConfigError):
    """A module of own code does not do what its contract says."""

    def __init__(self, contract: str, reference: str, problem: str) -> None:
        super().__init__(f"contract {contract!r} of {reference}: {problem}")
        self.contract = contract


def make_module(reference: Reference, context: object) -> nn.Module:
    """Make a module of own code.

    Raises:
        ConfigError: it cannot be imported, is no module, or the values do not fit its parameters.
    """
    made_class = load(reference)
    if not (isinstance(made_class, type) and issubclass(made_class, nn.Module)):
        raise ConfigError(
            f"{reference.key} is {reference.path}, which is no class of torch.nn.Module. Name one"
        )
    made: nn.Module = made_class(context, **checked_arguments(made_class, reference))
    return made


def own_fusion(config: ModelConfig) -> nn.Module:
    """Make the fusion of model.fusion."""
    reference = Reference("fusion", "model.fusion", config.fusion, config.fusion_args)
    context = FusionContext(config.modalities, config.width, config.dropout)
    return OwnFusion(make_module(reference, context), reference.path)


def own_encoder(modality: str, config: ModelConfig, shapes: InputShapes) -> nn.Module | None:
    """Make the encoder of a modality. None if it is not of own code."""
    section = getattr(config, modality, None)
    if section is None or not is_import_path(section.encoder):
        return None
    key = f"model.{modality}.encoder"
    reference = Reference("encoder", key, section.encoder, section.encoder_args)
    context = EncoderContext(modality, config.width, config.dropout, shapes)
    return OwnEncoder(make_module(reference, context), reference.path, config.width)


class OwnEncoder(nn.Module):
    """An encoder of own code. Its output has the shapes of the contract, or an error says so."""

    def __init__(self, module: nn.Module, path: str, width: int) -> None:
        super().__init__()
        self.module, self.path, self.width = module, path, width

    def forward(
        self, values: Tensor, length_B: Tensor | None, second_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [B, T, D] and their mask [B, T].

        The module does not get `second_B`, the places of the second texts of pairs.
        """
        if values.is_floating_point():
            first = next(self.parameters(), values)  # an encoder may have no parameters
            values = values.to(first.dtype)
        output = self.module(values, length_B)
        if not (isinstance(output, tuple) and len(output) == 2):
            problem = f"forward returns (tokens, mask). It returned {type(output).__name__}"
            raise BrokenContract("shapes", self.path, problem)
        tokens_BTD, mask_BT = output
        T = tokens_BTD.shape[1] if isinstance(tokens_BTD, Tensor) and tokens_BTD.dim() > 1 else 1
        wanted = (len(values), T, self.width)
        check_shape(tokens_BTD, wanted, "tokens are [B, T, D]", self.path)
        check_shape(mask_BT, wanted[:2], "the mask is [B, T]", self.path)
        return tokens_BTD, mask_BT.bool()


class OwnFusion(nn.Module):
    """A fusion of own code. Its output has the shape of the contract, or an error says so."""

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.module, self.path = module, path

    def forward(
        self, features_BMD: Tensor, present_BM: Tensor, tokens: list[Tensor], masks: list[Tensor]
    ) -> Tensor:
        """Return the fused vectors [B, D]."""
        fused_BD = self.module(features_BMD, present_BM, tokens, masks)
        B, _, D = features_BMD.shape
        check_shape(fused_BD, (B, D), "forward returns [B, D]", self.path)
        return cast(Tensor, fused_BD)


def check_shape(value: Any, wanted: tuple[int, ...], what: str, path: str) -> None:
    """Raise BrokenContract unless a value is a tensor of this shape."""
    got = type(value).__name__
    if isinstance(value, Tensor):
        got = f"shape {list(value.shape)}"
    if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
        raise BrokenContract("shapes", path, f"{what}, here {list(wanted)}. It returned {got}")
