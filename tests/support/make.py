"""Small objects for tests: a network, random inputs, a config from a few keys, a run context."""

from pathlib import Path
from typing import Any

import torch

from furnace_hpc.config.grids.overrides import apply_overrides
from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.network import FusionModel

SHAPES = InputShapes(vocab_size=20, pad_id=0, image_channels=1, audio_coefficients=40)
# Every way of fusing, and the encoders of transformers under two of them.
DESIGNS: dict[str, dict[str, Any]] = {
    "concat": {"fusion": "concat"},
    "gated": {"fusion": "gated"},
    "low_rank": {"fusion": "low_rank", "rank": 3},
    "cross_attention": {},
    "bottleneck": {"fusion": "bottleneck", "fusion_layers": 2},
    "late": {"fusion": "bottleneck", "fusion_layers": 0},
    "transformers": {
        "image_encoder": "vit",
        "audio_encoder": "transformer",
        "image_layers": 1,
        "audio_layers": 1,
    },
}
Inputs = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]


def make_model(shapes: InputShapes = SHAPES, **changes: Any) -> FusionModel:
    """A small network in evaluation mode."""
    torch.manual_seed(0)
    settings = {"width": 32, "feedforward": 48, "text_layers": 1, "dropout": 0.0} | changes
    loss = LossConfig(info_nce=1.0, unimodal=1.0, vicreg=0.1, projection_width=16)
    return FusionModel(ModelConfig(**settings), shapes, {"digit": 10}, loss).eval()


def make_inputs(B: int = 4, text: int = 9, frames: int = 21, pixels: int = 32) -> Inputs:
    """Random inputs, lengths and presence (all there)."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "text": torch.randint(1, 20, (B, text), generator=generator),
        "image": torch.randn(B, 1, pixels, pixels, generator=generator),
        "audio": torch.randn(B, 40, frames, generator=generator),
    }
    lengths = {"text": torch.full((B,), text), "audio": torch.full((B,), frames)}
    return inputs, lengths, torch.ones(B, 3, dtype=torch.bool)


def make_config(deepspeed: str = "zero1", **changes: Any) -> TrainConfig:
    """A config from dotted changes. The model is small and has no dropout."""
    content = {
        "deepspeed": read_json(find_file("DeepSpeed file", deepspeed)),
        "model": {"width": 32, "feedforward": 48, "text_layers": 1, "dropout": 0.0},
        "steps": 12,
        "global_batch_size": 8,
    }
    return TrainConfig.model_validate(
        apply_overrides(content, {k.replace("__", "."): v for k, v in changes.items()})
    )


def make_context(
    config: TrainConfig,
    engine: Any,
    folder: Path = Path(),
    processes: Any = None,
    readers: dict[str, Any] | None = None,
) -> Any:
    """The context of attempt 0 of a run without a spec. Without `processes` there is one rank."""
    from furnace_hpc.engine.context import RunContext
    from furnace_hpc.engine.ranks.distributed import Processes
    from furnace_hpc.engine.ranks.stop import StopRequest
    from furnace_hpc.engine.ranks.watchdog import Watchdog
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    processes = processes or Processes(0, 0, 1, torch.device("cpu"))
    run = RunFolder(folder)
    return RunContext(
        spec=None,
        config=config,
        folder=run,
        attempt=0,
        processes=processes,
        engine=engine,
        readers=readers or {},
        num_parameters=0,
        watchdog=Watchdog(60, RankVerdict(run, 0, processes.rank)),
        stop=StopRequest(),
    )
