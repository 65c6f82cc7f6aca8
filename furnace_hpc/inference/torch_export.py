"""Write the whole computation as one file for other programs, with torch.export.

B batch, M modalities, T tokens.
"""

import io
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.config.metrics import subsets
from furnace_hpc.config.parsing.utf8_path import utf8_path
from furnace_hpc.inference.model_folder import Deployed, Exported, Program

# Relative to the largest logit or to 1. For bf16 this is two of its eight bits.
TOLERANCE = {"fp32": 1e-5, "bf16": 2.0**-6}
BATCHES = (1, 2, 7)
MISSING = 0.2  # share of the drawn numbers

Inputs = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def make_program(model: Deployed, exported: Exported, path: Path) -> Program:
    """Write the program of `Deployed.forward` for any batch size, read it again, and compare.

    Raises:
        ConfigError: tracing fails, or the program differs from the network by more than the
            tolerance.
    """
    try:
        content = _traced(model, exported)
    except Exception as error:  # the tracer has no exception class of its own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"torch.export cannot trace this network ({reason}). Leave --format out"
        ) from error
    path.write_bytes(content)
    tolerance = TOLERANCE[exported.config.deepspeed.precision]
    difference = largest_difference(model, exported, path)
    if not difference <= tolerance:
        raise ConfigError(
            f"the program of torch.export differs from the network by {difference:.1e} of the "
            f"largest logit, wanted at most {tolerance:.0e}. Leave --format out"
        )
    return Program(tolerance=tolerance, difference=difference)


def _traced(model: Deployed, exported: Exported) -> bytes:
    """Return the content of the program's file.

    It is made in memory, because torch aborts the process if it writes to a full disk.
    """
    inputs, lengths, present = random_inputs(exported, 2, seed=0)
    batch = {0: Dim("batch", min=1)}
    shapes = dict.fromkeys(inputs, batch), dict.fromkeys(lengths, batch), batch
    with torch.no_grad():
        program = torch.export.export(model, (inputs, lengths, present), dynamic_shapes=shapes)
    program.example_inputs = None  # otherwise the file would contain them as a pickle
    _strip(program)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _strip(program: torch.export.ExportedProgram) -> None:
    """Remove stack traces, which contain the paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def largest_difference(model: Deployed, exported: Exported, path: Path) -> float:
    """Return the largest relative difference of logits between the model and the file's program.

    The inputs are random, over every subset of the modalities and several batch sizes.
    """
    with utf8_path(path) as named:
        program = torch.export.load(named).module()
    worst = 0.0
    for size, subset in itertools.product(BATCHES, subsets(tuple(range(len(exported.modalities))))):
        inputs, lengths, present = random_inputs(exported, size, seed=size)
        present[:] = False
        present[:, list(subset)] = True
        with torch.no_grad():
            wanted, made = model(inputs, lengths, present), program(inputs, lengths, present)
        for task, logits in wanted.items():
            worst = max(worst, relative_difference(made[task], logits))
    return worst


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value or to 1.

    It is infinite if a value is not a number.
    """
    scale = expected.abs().max().clamp(min=1)
    difference = ((found - expected).abs().max() / scale).item()
    return math.inf if math.isnan(difference) else difference


def random_inputs(exported: Exported, size: int, seed: int) -> Inputs:
    """Draw stored values of `size` samples with all modalities."""
    generator, data = torch.Generator().manual_seed(seed), exported.data
    inputs, lengths = {}, {}
    for name in exported.modalities:
        column = data.columns[name]
        shape = column.shape
        if name == "image" and data.image_frames:
            shape = shape[1:]
        inputs[name] = _random(name, (size, *shape), column.dtype, exported, generator)
        if f"{name}_length" in data.columns:
            lengths[name] = torch.randint(1, shape[-1] + 1, (size,), generator=generator)
        if name == "text" and TEXT_SECOND in data.columns:
            lengths[TEXT_SECOND] = torch.randint(1, shape[-1] + 1, (size,), generator=generator)
    return inputs, lengths, torch.ones(size, len(exported.modalities), dtype=torch.bool)


def _random(
    name: str, shape: tuple[int, ...], dtype: str, exported: Exported, generator: torch.Generator
) -> Tensor:
    kind: Any = getattr(torch, dtype)
    if name == "text" or not kind.is_floating_point:
        end = torch.iinfo(kind).max + 1
        if name == "text":
            end = exported.data.vocab_size or 1
        return torch.randint(0, end, shape, generator=generator, dtype=torch.int64).to(kind)
    statistics = exported.data.statistics[name]
    wide = (1, -1) + (1,) * (len(shape) - 2)
    mean, std = (torch.tensor(values).view(wide) for values in (statistics.mean, statistics.std))
    drawn = (torch.randn(shape, generator=generator) * std + mean).to(kind)
    if name == "numbers":
        return drawn.where(torch.rand(shape, generator=generator) > MISSING, math.nan)
    return drawn
