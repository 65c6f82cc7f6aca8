"""A package of own code for tests: modules that keep their contracts, and modules that do not."""

from pathlib import Path

import yaml

NET = '''"""Networks."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from study_code.enc import Rows


class MyNet(nn.Module):
    """A network of its own: an encoder per modality, a gate, and a head per task."""

    def __init__(self, context, hidden: int = 16):
        super().__init__()
        self.modalities = context.modalities
        self.encoders = nn.ModuleDict({m: context.make_encoder(m) for m in context.modalities})
        self.norm = nn.LayerNorm(context.width)
        self.gate = nn.Linear(context.width, 1)
        self.mix = nn.Linear(context.width, hidden)
        self.heads = nn.ModuleDict(
            {task: context.make_head(task, hidden) for task in context.num_classes}
        )

    def forward(self, inputs, lengths, present_BM):
        vectors = []
        for name in self.modalities:
            tokens_BTD, mask_BT = self.encoders[name](inputs[name], lengths.get(name))
            weights = mask_BT.to(tokens_BTD.dtype).unsqueeze(2)
            vectors.append((tokens_BTD * weights).sum(1) / weights.sum(1).clamp(min=1))
        features = self.norm(torch.stack(vectors, dim=1))
        scores = self.gate(features).squeeze(2).masked_fill(~present_BM, -1e4)
        fused = (scores.softmax(1).unsqueeze(2) * features).sum(1)
        hidden = functional.gelu(self.mix(fused))
        logits = {task: head(hidden) for task, head in self.heads.items()}
        return {"logits": logits, "features": features}


class Raises(MyNet):
    def forward(self, inputs, lengths, present_BM):
        raise IndexError("no such token")  # line of Raises


class WrongShape(MyNet):
    def forward(self, inputs, lengths, present_BM):
        output = super().forward(inputs, lengths, present_BM)
        return output | {"features": output["features"].mean(1)}


class Unused(MyNet):
    def __init__(self, context):
        super().__init__(context)
        self.forgotten = nn.Linear(3, 3)


class Detached(MyNet):
    def forward(self, inputs, lengths, present_BM):
        with torch.no_grad():
            tokens, mask = self.encoders[self.modalities[0]](inputs[self.modalities[0]], None)
        output = super().forward(inputs, lengths, present_BM)
        return output | {"logits": {t: v.detach() * 0 + v * 0 for t, v in output["logits"].items()}}


class AlwaysDrops(MyNet):
    def forward(self, inputs, lengths, present_BM):
        inputs = dict(inputs, image=functional.dropout(inputs["image"], 0.5))
        return super().forward(inputs, lengths, present_BM)


class BatchMean(MyNet):
    def forward(self, inputs, lengths, present_BM):
        output = super().forward(inputs, lengths, present_BM)
        logits = {task: v - v.mean(0, keepdim=True) for task, v in output["logits"].items()}
        return output | {"logits": logits}


class Skips(MyNet):
    def forward(self, inputs, lengths, present_BM):
        output = super().forward(inputs, lengths, present_BM)
        if bool(present_BM.all()):
            output["logits"] = {t: v + self.gate(output["features"]).sum() * 0
                                for t, v in output["logits"].items()}
        return output


class NoImages(MyNet):
    """It reads images without an encoder of Furnace."""

    def __init__(self, context):
        own = {"image": Rows(context)}
        super().__init__(
            replace(context, make_encoder=lambda m: own.get(m) or context.make_encoder(m))
        )


class Peeks(MyNet):
    """Keeps what it saw before, so that an absent value can come back."""

    before = None

    def forward(self, inputs, lengths, present_BM):
        output = super().forward(inputs, lengths, present_BM)
        Peeks.before, last = float(inputs["image"].sum()), Peeks.before
        return output | {"features": output["features"] + (last or 0.0)}
'''
FUSION = '''"""A fusion."""

from furnace_hpc.config.base import Config
from torch import nn


class Settings(Config):
    scale: float = 1.0
    bias: bool = True


class Scaled(nn.Module):
    def __init__(self, context, settings: Settings):
        super().__init__()
        self.scale = settings.scale
        self.layer = nn.Linear(context.width, context.width, bias=settings.bias)

    def forward(self, features_BMD, present_BM, tokens, masks):
        return self.scale * self.layer(features_BMD.sum(1))
'''
ENCODER = '''"""An encoder."""

import torch
from torch import nn


class Rows(nn.Module):
    """Each row of an image is a token."""

    def __init__(self, context, *, scale: float = 1.0):
        super().__init__()
        channels, (_, width) = context.shapes.image_channels, context.shapes.image_size
        self.layer = nn.Linear(channels * width, context.width)
        self.scale = scale

    def forward(self, values, length_B):
        rows = values.transpose(1, 2).flatten(2)
        return self.layer(rows) * self.scale, torch.ones(rows.shape[:2], dtype=torch.bool)


class Means(nn.Module):
    """The mean of an image, without a parameter."""

    def __init__(self, context):
        super().__init__()
        self.width = context.width

    def forward(self, values, length_B):
        means = values.mean((1, 2, 3)).view(-1, 1, 1) * torch.arange(self.width).to(values.dtype)
        return means, torch.ones(means.shape[:2], dtype=torch.bool)
'''
LOSSES = '''"""Terms of the loss, and metrics."""


def shrink(inputs, power: int = 2):
    present = inputs.present_BM.unsqueeze(2)
    return (inputs.features_BMD.abs() ** power * present).mean()


def error_rate(logits_NC, labels, percent: bool = False) -> float:
    rate = float((logits_NC.argmax(1) != labels).double().mean())
    return 100 * rate if percent else rate
'''
FILES = {
    "__init__.py": '"""Own code of tests."""\n',
    "net.py": NET,
    "fusion.py": FUSION,
    "enc.py": ENCODER,
    "losses.py": LOSSES,
}
PACKAGE = "study_code"
SMALL = {"width": 16, "num_heads": 2, "feedforward": 32, "text_layers": 1, "dropout": 0.0}
NETWORK = {"model.network": f"{PACKAGE}.net:MyNet", "model.network_args": {"hidden": 12}}


def write_package(folder: Path, files: dict[str, str] = FILES) -> Path:
    """Write the package, and return its folder."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    for name, text in files.items():
        (package / name).write_text(text)
    return package


def write_grid(folder: Path, variants: dict[str, dict], **changes: object) -> Path:
    """Write a grid that lists the package, and return its path."""
    content = {
        "name": "own",
        "code": [f"./{PACKAGE}"],
        "base": {
            "model": SMALL,
            "deepspeed": "zero1_fp32",
            "steps": 4,
            "global_batch_size": 4,
            "evaluation": {"every": 4},
            "checkpoint_every": 2,
        },
        "seeds": [0],
        "reference": next(iter(variants)),
        "metric": "test/digit/accuracy",
        "variants": variants,
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path
