"""Print the JSON Schema of a kind of file, with which editors complete and check it.

python -m furnace_hpc.schema grid > .vscode/grid.schema.json
"""

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.deepspeed_file import DeepSpeedFile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import TrainConfig

KINDS: dict[str, type[BaseModel]] = {
    "grid": Grid,
    "config": TrainConfig,
    "cluster": ClusterProfile,
    "deepspeed": DeepSpeedFile,
}


def main(
    kind: Annotated[str, typer.Argument(help="grid, config (a grid's base), cluster or deepspeed")],
) -> None:
    """Print the JSON Schema of a kind of file."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")
    schema = KINDS[kind].model_json_schema()
    if kind == "grid":
        schema = _with_config(schema)
    print(json.dumps(schema, indent=2))


def _with_config(grid: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of a config to `base` of the grid's schema. A grid names its DeepSpeed file.

    A grid has `metric` or `metrics`.
    """
    config = TrainConfig.model_json_schema()
    properties = config["properties"]
    properties["deepspeed"] = {"anyOf": [{"type": "string"}, properties["deepspeed"]]}
    grid["$defs"] = grid.get("$defs", {}) | config["$defs"]
    grid["properties"]["base"] |= {"properties": properties}
    grid["required"] = [key for key in grid["required"] if key != "metric"]
    grid["anyOf"] = [{"required": ["metric"]}, {"required": ["metrics"]}]
    return grid


if __name__ == "__main__":
    run_command(main)
