"""The package that `furnace new NAME --network` writes: a network to change line by line."""

CLASS = "network:Network"

INIT = '''"""The network of the grid {grid}. The grid lists this folder under `code`."""
'''
NETWORK = '''"""A network of your own. `furnace check --grid {grid}` checks its contract.

The contract is the class Network in furnace_hpc/model/own_code/contracts.py.

B batch, M modalities, T tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.model.own_code.contracts import NetworkContext


class Network(nn.Module):
    """Encoders of Furnace, a weighted sum of the modalities, and one head per task.

    Args:
        context: the modalities, sizes and tasks of the row.
        hidden: width of the layer before the heads. The grid sets it in model.network_args.
    """

    def __init__(self, context: NetworkContext, hidden: int = 64) -> None:
        super().__init__()
        self.modalities = context.modalities
        self.encoders = nn.ModuleDict(
            {{name: context.make_encoder(name) for name in context.modalities}}
        )
        self.norm = nn.LayerNorm(context.width)
        self.score = nn.Linear(context.width, 1)
        self.mix = nn.Linear(context.width, hidden)
        self.dropout = nn.Dropout(context.dropout)
        self.heads = nn.ModuleDict(
            {{task: context.make_head(task, hidden) for task in context.num_classes}}
        )

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> dict[str, object]:
        """Return the logits of all tasks, and one vector per modality."""
        vectors = []
        for name in self.modalities:  # every encoder runs for every batch
            tokens_BTD, mask_BT = self.encoders[name](inputs[name], lengths.get(name))
            weights_BT1 = mask_BT.to(tokens_BTD.dtype).unsqueeze(2)
            total_BD = (tokens_BTD * weights_BT1).sum(1)
            vectors.append(total_BD / weights_BT1.sum(1).clamp(min=1))
        features_BMD = self.norm(torch.stack(vectors, dim=1))
        # An absent modality has no share. If all are absent, the shares are equal.
        score_BM = self.score(features_BMD).squeeze(2).masked_fill(~present_BM, -1e4)
        fused_BD = (score_BM.softmax(1).unsqueeze(2) * features_BMD).sum(1)
        hidden = self.dropout(functional.gelu(self.mix(fused_BD)))
        logits = {{task: head(hidden) for task, head in self.heads.items()}}
        return {{"logits": logits, "features": features_BMD}}
'''


def package_name(grid: str) -> str:
    """The name of the package of a grid, which Python can import."""
    name = "".join(letter if letter.isalnum() else "_" for letter in grid)
    return f"{'_' if name[0].isdigit() else ''}{name}_code"


def package_files(grid: str) -> dict[str, str]:
    """File name -> text."""
    return {"__init__.py": INIT.format(grid=grid), "network.py": NETWORK.format(grid=grid)}
