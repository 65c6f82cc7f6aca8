"""The contracts of your own modules and functions: what they get, and what they return.

A module is a class of `torch.nn.Module`. Furnace makes it as `MyNet(context, **args)`, where the
config gives the args. No class needs to inherit from the protocols here, and nothing is registered.

B batch, M modalities, T tokens, D width, C classes.

Rules for all modules:

- They run on every rank for every batch. Call the same submodules in the same order each time,
  whatever the values are, because under ZeRO stage 3 each call is a collective.
- Zeros replace the inputs of an absent modality. For a network, its length is 1.
- A sample's output depends on no other sample of the batch. Use a layer norm, and no batch norm.
- In evaluation (`self.training` is false) the same input gives the same output.
- Every parameter that requires a gradient gets one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from furnace_hpc.model.encoders.input_shapes import InputShapes


@dataclass(frozen=True)
class NetworkContext:
    """What a network is built for."""

    modalities: tuple[str, ...]
    """The modalities of the row, in the order of the axis M."""
    width: int
    """Size D of the features that the network returns: model.width."""
    dropout: float
    """model.dropout."""
    shapes: InputShapes
    """Sizes of the inputs, such as shapes.image_size and shapes.vocab_size."""
    num_classes: Mapping[str, int]
    """Task -> number of logits C."""
    make_encoder: Callable[[str], nn.Module]
    """Makes Furnace's encoder of a modality, as other keys of `model` say. It is an `Encoder`."""
    make_head: Callable[[str, int], nn.Module]
    """Makes a head: (task, size of its input) -> a module from [B, size] to logits [B, C]."""


class Network(Protocol):
    """The key model.network: from inputs to logits."""

    def __init__(self, context: NetworkContext, **args: Any) -> None: ...

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> dict[str, Any]:
        """Compute the logits of all tasks.

        Args:
            inputs: modality -> values. text: token ids [B, T], int64. image: [B, channels, height,
                width]. audio: [B, coefficients, frames] or waveforms [B, samples]. numbers: N
                numbers [B, N, 2], each with 1, or 0 and 0 if it is missing. All but text are
                standardised, and of the type of the parameters.
            lengths: text and audio -> valid tokens or frames [B]. A modality that is complete in
                the whole batch is left out, because all its positions are valid.
            present_BM: whether each sample has each modality. Each sample has at least one.

        Returns:
            "logits": task -> [B, C]. A head of `context.make_head` gives what its loss needs.
            "features": [B, M, D], one vector per modality, D = context.width. The losses that
                compare modalities and the consistency metrics use them. Furnace sets those of
                absent modalities to zero.
        """
        ...


@dataclass(frozen=True)
class FusionContext:
    """What a fusion is built for."""

    modalities: tuple[str, ...]
    width: int
    """Size D of the features and of the fused vector: model.width."""
    dropout: float
    """model.dropout."""


class Fusion(Protocol):
    """The key model.fusion: from the encoded modalities to one vector."""

    def __init__(self, context: FusionContext, **args: Any) -> None: ...

    def forward(
        self, features_BMD: Tensor, present_BM: Tensor, tokens: list[Tensor], masks: list[Tensor]
    ) -> Tensor:
        """Compute one vector per sample. The mean of the present features is added to it.

        Args:
            features_BMD: mean token of each modality [B, M, D]. Zero if absent.
            present_BM: whether each sample has each modality.
            tokens: of each modality [B, T, D]. Zero if absent.
            masks: of each modality [B, T]. True where a token is valid.

        Returns:
            [B, D].
        """
        ...


@dataclass(frozen=True)
class EncoderContext:
    """What an encoder is built for."""

    modality: str
    width: int
    """Size D of the tokens: model.width."""
    dropout: float
    """model.dropout."""
    shapes: InputShapes
    """Sizes of the inputs, such as shapes.image_size and shapes.vocab_size."""


class Encoder(Protocol):
    """The key model.<modality>.encoder: from the values of a modality to tokens."""

    def __init__(self, context: EncoderContext, **args: Any) -> None: ...

    def forward(self, values: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute tokens.

        Args:
            values: as in `Network.forward`.
            length_B: valid tokens or frames. None if all positions are valid, and for images.

        Returns:
            Tokens [B, T, D] and their mask [B, T]. Each sample has at least one valid token.
        """
        ...


@dataclass(frozen=True)
class LossInputs:
    """What a term of the key loss.extra is computed from."""

    logits: Mapping[str, Tensor]
    """Task -> [B, C]."""
    labels: Mapping[str, Tensor]
    """Task -> class indices [B]. multi_label: 0 and 1 [B, C]. regression: numbers [B, C]."""
    features_BMD: Tensor
    """One vector per modality, fp32. Zero if absent."""
    present_BM: Tensor
    """The modalities that the network used."""


class LossTerm(Protocol):
    """The key loss.extra: a function that computes one more term of the loss."""

    def __call__(self, inputs: LossInputs, **args: Any) -> Tensor:
        """Compute a scalar: the mean over the B samples of a term that each sample has alone.

        Then the mean over processes is the term of all samples, for any number of processes.
        """
        ...


class Metric(Protocol):
    """The key evaluation.extra: a function that scores a task on a whole split."""

    def __call__(self, logits_NC: Tensor, labels: Tensor, **args: Any) -> float:
        """Compute the score of all N samples. It becomes `<split>/<task>/<function's name>`.

        Args:
            logits_NC: on the CPU. Log-probabilities of an ordinal task, standardised numbers of a
                regression.
            labels: as in `LossInputs`. Numbers of a regression are in the target's units.
            **args: the values of the config.
        """
        ...
