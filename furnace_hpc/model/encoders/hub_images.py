"""Image encoders of the hub. B batch, C channels, H height, W width, T tokens, D width."""

import torch
from torch import Tensor

from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.hub import HubEncoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.weights import check_exactly


class HubImageEncoder(HubEncoder):
    """An image encoder of transformers. Each pixel of a feature map is a token."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("image", config, shapes)
        settings = self.network.config
        check_exactly(self.about, "channels", shapes.image_channels, settings.num_channels)
        self.options: dict[str, bool] = {}
        if self.family.interpolates and _pair(settings.image_size) != shapes.image_size:
            self.options["interpolate_pos_encoding"] = True

    def forward(self, image_BCHW: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn standardised pixels into (tokens [B, T, D], mask [B, T])."""
        pixels = image_BCHW.to(self.network.dtype)
        found = self.network(pixel_values=pixels, **self.options).last_hidden_state
        if found.dim() == 4:
            found = found.flatten(2).transpose(1, 2)
        tokens_BTD = self.project(found)
        return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
