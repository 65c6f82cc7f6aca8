"""Figures of finetune.py in which steps of several networks are made in turn, in one process.

So noise affects all of them alike. Each ratio is the median over the turns, with a 95 % interval by
bootstrap over them.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FROZEN: dict[str, Any] = {"freeze": "all"}
CACHED: dict[str, Any] = FROZEN | {"cache_features": True}
TOKENS, PIXELS, WARM = 64, 64, 2
CACHED_GOAL, OWN_GOAL, DRY_RUN_GOAL_S = 5.0, 1.02, 1.2
Step = Callable[[int], Any]
OWN_CODE = '''"""A network with the layers of the built-in one, and a fusion by concatenation."""

import torch
from torch import nn

from furnace_hpc.model.attention import masked_mean
from furnace_hpc.model.fusion import ConcatFusion


class Same(nn.Module):
    def __init__(self, context, feedforward: int = 128):
        super().__init__()
        names = self.modalities = context.modalities
        self.encoders = nn.ModuleDict({name: context.make_encoder(name) for name in names})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(context.width) for name in names})
        self.fusion = ConcatFusion(len(names), context.width, feedforward, context.dropout)
        self.heads = nn.ModuleDict(
            {task: context.make_head(task, context.width) for task in context.num_classes}
        )

    def forward(self, inputs, lengths, present_BM):
        pooled = []
        for m, name in enumerate(self.modalities):
            tokens, mask = self.encoders[name](inputs[name], lengths.get(name))
            present_B = present_BM[:, m]
            tokens = self.norms[name](tokens) * present_B.view(-1, 1, 1)
            pooled.append(masked_mean(tokens, mask & present_B.unsqueeze(1)))
        features = torch.stack(pooled, dim=1)
        fused = self.fusion(features, present_BM) + masked_mean(features, present_BM)
        logits = {task: head(fused) for task, head in self.heads.items()}
        return {"logits": logits, "features": features}
'''


def in_turns(steps: Mapping[str, Step], turns: int) -> dict[str, list[float]]:
    """Seconds of each step. Each turn begins with another network."""
    names, seconds = list(steps), {name: list[float]() for name in steps}
    for turn in range(-WARM, turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start_s = time.perf_counter()
            steps[name](turn + WARM)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start_s)
    return seconds


def ratio_row(measure: str, one: list[float], other: list[float]) -> dict[str, object]:
    """How many times the seconds of `other` are in those of `one`."""
    quotients = np.array(one) / np.array(other)
    draws = np.random.default_rng(0).choice(quotients, (2000, len(quotients)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        "measure": measure,
        "ratio": round(float(np.median(quotients)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "step_ms": [round(1e3 * statistics.median(times), 1) for times in (one, other)],
        "turns": len(quotients),
    }


def write_pack(folder: Path, samples: int) -> Path:
    """A pack of random texts of 16 to 64 tokens and images of 64 pixels."""
    from furnace_hpc.config.manifest import Labels, Statistics
    from furnace_hpc.data.columns import write_columns

    generator, splits = np.random.default_rng(0), {}
    for split, size in (("train", samples), ("val", 8), ("test", 8)):
        splits[split] = {
            "text": generator.integers(1, 1000, (size, TOKENS)).astype(np.uint16),
            "text_length": generator.integers(16, TOKENS + 1, size).astype(np.uint16),
            "image": generator.integers(0, 256, (size, 3, PIXELS, PIXELS)).astype(np.uint8),
            "present": np.ones((size, 2), dtype=np.uint8),
            "label.digit": (np.arange(size) % 10).astype(np.uint8),
            "sample_id": np.arange(size, dtype=np.int64),
        }
    digits = tuple(map(str, range(10)))
    write_columns(
        folder,
        splits=splits,
        dataset="random",
        modalities=("text", "image"),
        labels={"digit": Labels(kind="single_label", classes=digits)},
        statistics={"image": Statistics(mean=(128.0,) * 3, std=(64.0,) * 3)},
        vocab_size=1000,
        preprocessing={},
    )
    return folder


def save_encoders(folder: Path, size: dict[str, Any]) -> dict[str, str]:
    """Save a BERT and a ViT with random weights. Return modality -> folder."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    common = {
        "hidden_size": size["model__width"],
        "num_attention_heads": size["model__num_heads"],
        "num_hidden_layers": size["model__text_layers"],
        "intermediate_size": size["model__feedforward"],
    }
    text = BertConfig(vocab_size=1000, **common)
    image = ViTConfig(image_size=PIXELS, patch_size=8, **common)
    BertModel(text, add_pooling_layer=False).save_pretrained(folder / "text")
    ViTModel(image, add_pooling_layer=False).save_pretrained(folder / "image")
    return {name: str(folder / name) for name in ("text", "image")}


def cached_features(size: dict[str, Any], turns: int) -> list[dict[str, object]]:
    """Steps with frozen encoders: plain, computed for each sample alone, and from files.

    The encoders have the layers and width of `size`. The fusion has a quarter of the width.
    """
    from make import make_config
    from rank_work import FP32

    from furnace_hpc.data.columns import open_columns
    from furnace_hpc.engine.deepspeed_engine import engine_sha256

    sections = {"frozen": FROZEN, "computed": CACHED, "cached": CACHED}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, processes = Path(place), _processes(Path(place))
        columns = open_columns(
            write_pack(folder / "data" / "random", 4 * size["global_batch_size"])
        )
        steps: dict[str, Step] = {}
        engines = {}
        saved = save_encoders(folder / "encoders", size)
        fusion = {
            "model__modalities": ["text", "image"],
            "model__width": size["model__width"] // 4,
            "model__feedforward": size["model__feedforward"] // 4,
            "global_batch_size": size["global_batch_size"],
        }
        for name, section in sections.items():
            encoders = {f"model__{m}": section | {"encoder": path} for m, path in saved.items()}
            config = make_config("zero1", **FP32, **fusion, **encoders, steps=10_000)
            os.environ["FURNACE_FEATURES"] = "compute" if name == "computed" else ""
            engine, step = _trained(config, columns, folder, processes, stack)
            engines[name], steps[name] = engine, step
        stored = sum(file.stat().st_size for file in folder.rglob("features/*/*.part"))
        seconds = in_turns(steps, turns)
        hashes = {name: engine_sha256(engine, processes) for name, engine in engines.items()}
    plain = ratio_row("frozen encoders : cached features", seconds["frozen"], seconds["cached"])
    alone = ratio_row(
        "frozen encoders, samples computed alone : cached features",
        seconds["computed"],
        seconds["cached"],
    )
    goal = {"goal": f">= {CACHED_GOAL:g} x"}
    plain |= goal | {"reached": float(str(plain["ratio"])) >= CACHED_GOAL}
    alone |= {
        "same_parameters": hashes["computed"] == hashes["cached"],
        "same_as_batches": hashes["frozen"] == hashes["cached"],
        "stored_mib": round(stored / 2**20, 1),
    }
    alone |= goal | {
        "reached": float(str(alone["ratio"])) >= CACHED_GOAL
        and hashes["computed"] == hashes["cached"]
    }
    return [plain, alone]


def own_network(size: dict[str, Any], turns: int) -> list[dict[str, object]]:
    """Steps through the built-in network, and through own code with the same layers."""
    from make import make_config
    from rank_work import FP32

    from furnace_hpc.config.own_code.loading import use_folder
    from furnace_hpc.data.columns import open_columns

    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, processes = Path(place), _processes(Path(place))
        (folder / "code").mkdir()
        (folder / "code" / "same_layers.py").write_text(OWN_CODE)
        use_folder(folder / "code")
        columns = open_columns(
            write_pack(folder / "data" / "random", 4 * size["global_batch_size"])
        )
        own = {
            "model__network": "same_layers:Same",
            "model__network_args": {"feedforward": size["model__feedforward"]},
        }
        common = {**FP32, **size, "model__fusion": "concat", "steps": 10_000}
        steps: dict[str, Step] = {}
        weights: dict[str, Any] = {}
        for name, changes in {"built-in": {}, "own": own}.items():
            config = make_config("zero1", **common, **changes)
            _, steps[name] = _trained(config, columns, folder, processes, stack, weights)
        losses: dict[str, list[float]] = {name: [] for name in steps}
        noted = {name: _noted(step, losses[name]) for name, step in steps.items()}
        seconds = in_turns(noted, turns)
    row = ratio_row("own network : built-in network", seconds["own"], seconds["built-in"])
    difference = np.abs(np.subtract(losses["own"], losses["built-in"])).max()
    row |= {"largest_difference_of_losses": float(difference), "goal": f"<= {OWN_GOAL} x"}
    return [row | {"reached": float(str(row["ratio"])) <= OWN_GOAL}]


def _noted(step: Step, losses: list[float]) -> Step:
    return lambda number: losses.append(float(step(number)["loss"]))


def _processes(folder: Path) -> Any:
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group

    return init_process_group(RankInfo(0, 0, 1, folder / "rendezvous"))


def _trained(
    config: Any,
    columns: Any,
    folder: Path,
    processes: Any,
    stack: ExitStack,
    weights: dict[str, Any] | None = None,
) -> tuple[Any, Step]:
    """An engine and its training step. Networks share `weights`, if they are given."""
    from furnace_hpc.data.features.reader import FeatureReader
    from furnace_hpc.engine.deepspeed_engine import build_engine, place
    from furnace_hpc.engine.features.build import frozen_features
    from furnace_hpc.engine.loop import train_batches, train_step
    from furnace_hpc.engine.ranks.stop import StopRequest
    from furnace_hpc.engine.ranks.watchdog import Watchdog
    from furnace_hpc.engine.setup import build_model
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    model = build_model(config, columns.manifest)
    if weights is not None:
        inner: Any = getattr(model, "module", model)
        inner.load_state_dict(weights or inner.state_dict())
        weights |= {name: value.clone() for name, value in inner.state_dict().items()}
    run = RunFolder(folder / "runs" / "grid" / "run")
    run.path.mkdir(parents=True, exist_ok=True)
    watchdog = Watchdog(3600, RankVerdict(run, 1, 0))
    given = (model, config, columns, run, processes, watchdog, StopRequest())
    sources = {name: found.source for name, found in frozen_features(*given).items()}
    modalities = config.model.modalities
    reader = FeatureReader(sources, columns, "train", modalities, ("digit",), processes.device)
    place(model, config, processes)
    engine = build_engine(model, config, processes)
    batches = stack.enter_context(train_batches(engine, reader, config, processes))
    return engine, lambda step: train_step(engine, batches, config, step)


def dry_run(repeats: int, rows: int, seeds: int) -> list[dict[str, object]]:
    """Seconds of the plan of 1,000 runs that use own code."""
    runs = rows * seeds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "code").mkdir()
        (folder / "code" / "same_layers.py").write_text(OWN_CODE)
        shutil.copytree(write_pack(folder / "pack", 64), folder / "data" / "random")
        row = {"model.network": "same_layers:Same"}
        content = {
            "name": "thousand",
            "base": {
                "data": {"name": "random"},
                "model": {"modalities": ["text", "image"]},
                "deepspeed": "zero1",
            },
            "seeds": list(range(seeds)),
            "reference": "row-0",
            "metric": "test/digit/accuracy",
            "code": ["./code/same_layers.py"],
            "variants": {
                f"row-{number}": row | {"model.network_args": {"feedforward": 8 + number}}
                for number in range(rows)
            },
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        program = (
            "import sys\nfrom furnace_hpc.submit import main\n"
            "main(grid='grid.yaml', cluster='local', dry_run=True)\n"
            "print(json.dumps('torch' in sys.modules))"
        ).replace("import sys", "import json, sys")
        seconds, loads = [], []
        for _ in range(repeats):
            start_s = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-P", "-c", program],
                cwd=folder,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            seconds.append(time.perf_counter() - start_s)
            lines = done.stdout.splitlines()
            assert any(f"{runs:,} runs ({runs:,} start)" in line for line in lines), done.stdout
            loads.append(json.loads(lines[-1]))
    median_s = statistics.median(seconds)
    return [
        {
            "measure": f"submit --dry-run of {rows:,} rows x {seeds} with own code",
            "seconds": round(median_s, 2),
            "fastest_s": round(min(seconds), 2),
            "imports_torch": any(loads),
            "repeats": repeats,
            "goal": f"<= {DRY_RUN_GOAL_S} s, without torch",
            "reached": median_s <= DRY_RUN_GOAL_S and not any(loads),
        }
    ]
