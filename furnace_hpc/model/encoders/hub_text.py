"""Text encoders of the hub. B batch, T tokens, D width."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.convolutions import length_mask
from furnace_hpc.model.encoders.hub import HubEncoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.transformers import token_types
from furnace_hpc.model.encoders.weights import check_at_most, check_vocabulary


class HubTextEncoder(HubEncoder):
    """A text encoder of transformers."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("text", config, shapes)
        settings, self.pad_id = self.network.config, shapes.pad_id
        check_at_most(self.about, "token ids", shapes.vocab_size, settings.vocab_size)
        if (limit := self._most_tokens()) is not None:
            check_at_most(self.about, "tokens per text", shapes.text_tokens, limit)
        if self.is_random:
            return
        if self.family.first_position and settings.pad_token_id != shapes.pad_id:
            raise ConfigError(
                f"{self.about} counts positions from its padding, id {settings.pad_token_id}, and "
                f"the data set is padded with id {shapes.pad_id}. Pack the data with its tokenizer"
            )
        if "text" not in shapes.architectures:
            check_vocabulary(self.about, self.name, shapes.vocabulary)

    def _most_tokens(self) -> int | None:
        """Tokens that the network has positions for. None if it has no limit."""
        settings = self.network.config
        if not getattr(settings, "position_biased_input", True):  # of DeBERTa
            return None
        first = 0
        if self.family.first_position:
            first = settings.pad_token_id + self.family.first_position
        return int(settings.max_position_embeddings) - first

    def forward(
        self, text_BT: Tensor, length_B: Tensor | None, second_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn token ids into (tokens [B, T, D], mask [B, T]).

        Of text pairs `second_B` is the place of the second text's first token. Encoders with token
        types use it.
        """
        if self.family.mask == "none":
            missing = self.network.config.max_position_embeddings - text_BT.shape[1]
            text_BT = functional.pad(text_BT, (0, missing), value=self.pad_id)
            tokens_BTD = self.network(input_ids=text_BT).last_hidden_state
            return self.project(tokens_BTD), torch.ones_like(text_BT, dtype=torch.bool)
        mask_BT = length_mask(length_B, text_BT.shape[1], text_BT)
        attention_mask = None
        if length_B is not None:
            attention_mask = self._attention_mask(mask_BT)
        types = token_types(self.network, mask_BT, second_B)
        pairs = {} if types is None else {"token_type_ids": types}
        output = self.network(input_ids=text_BT, attention_mask=attention_mask, **pairs)
        return self.project(output.last_hidden_state), mask_BT

    def _attention_mask(self, mask_BT: Tensor) -> Any:
        """The mask in a form that makes no host wait for the GPU.

        Of a mask [B, T], transformers asks on the host whether it is all true.
        """
        keys_B11T = mask_BT[:, None, None, :]
        position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        ahead_TT = position_T[None, :] - position_T[:, None]
        match self.family.mask:
            case "tokens":
                return mask_BT.long()
            case "causal":
                return self.for_attention(keys_B11T & (ahead_TT <= 0))
            case "windows":
                # A token of the padding attends to itself. Without any key it would be NaN.
                near_TT = ahead_TT.abs() <= self.network.config.local_attention // 2
                near_B1TT = (keys_B11T & near_TT) | (ahead_TT == 0)
                return {
                    "full_attention": self.for_attention(keys_B11T),
                    "sliding_attention": self.for_attention(near_B1TT),
                }
        return self.for_attention(keys_B11T)
