"""Export a run as the command does."""

from pathlib import Path
from typing import Any

from furnace_hpc.inference.export import export
from furnace_hpc.inference.model_folder import (
    Exported,
)


def exported(source: Path, out: Path, **options: Any) -> tuple[Exported, list[str]]:
    """Export and return the model and the reported lines."""
    lines: list[str] = []
    defaults = {
        "step": None,
        "data_dir": None,
        "tokenizer": None,
        "with_program": False,
        "replace": False,
        "with_onnx": False,
    }
    return export(source, out, **defaults | options, report=lines.append), lines
