"""Train a small network for a few steps, and print the hash of its parameters as JSON.

`furnace doctor --portable` starts this as a child process in the environment of portable runs. The
inputs are drawn here, so the hash depends on no packed data.
"""

import json

import torch

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.engine.deepspeed_engine import parameters_sha256
from furnace_hpc.engine.portable import set_up_portable
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

STEPS, BATCH, TOKENS, FRAMES = 3, 8, 12, 32
SHAPES = InputShapes(vocab_size=40, pad_id=0, image_channels=1, audio_coefficients=40)
LOSS = LossConfig(alpha=0.5, beta=0.3)
TASKS = (TaskConfig(name="digit"),)


def main() -> None:
    """Print the hash, and the version of torch to which it belongs."""
    torch.set_num_threads(1)
    set_up_portable(torch.device("cpu"))
    print(json.dumps({"torch": torch.__version__, "parameters_sha256": hash_of_steps()}))


def hash_of_steps() -> str:
    """The hash of all parameters after the steps."""
    torch.manual_seed(0)
    config = ModelConfig(width=32, num_heads=2, feedforward=64, text_layers=1)
    model = FusionModel(config, SHAPES, {"digit": 10}, LOSS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    lengths = {"text": torch.full((BATCH,), TOKENS), "audio": torch.full((BATCH,), FRAMES)}
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    for _ in range(STEPS):
        inputs = {
            "text": torch.randint(1, 40, (BATCH, TOKENS)),
            "image": torch.randn(BATCH, 1, 32, 32),
            "audio": torch.randn(BATCH, 40, FRAMES),
        }
        labels = {"digit": torch.randint(0, 10, (BATCH,))}
        output = model(inputs, lengths, present)
        optimizer.zero_grad()
        loss = total_loss(output, labels, output["present"], LOSS, TASKS)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return parameters_sha256({name: value.detach() for name, value in model.named_parameters()})


if __name__ == "__main__":
    main()
