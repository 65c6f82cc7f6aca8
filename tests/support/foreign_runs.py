"""Runs of another tool, for the tests of `aggregate --from`."""

import csv
import json
from pathlib import Path

import polars as pl

from furnace_hpc.tables.foreign import ForeignTable, collect_foreign
from furnace_hpc.tables.reading.foreign.columns import Query
from furnace_hpc.tables.table import Ablation

BASE, BIG = [0.801, 0.809, 0.800, 0.795], [0.840, 0.834, 0.831, 0.841]


def wide_lines() -> list[dict]:
    return [
        {"variant": row, "seed": seed, "acc": value, "loss": round(1 - value, 4)}
        for row, values in (("base", BASE), ("big", BIG))
        for seed, value in enumerate(values)
    ]


def long_lines() -> list[dict]:
    return [
        {"variant": line["variant"], "seed": line["seed"], "metric": name, "value": line[name]}
        for line in wide_lines()
        for name in ("acc", "loss")
    ]


def write_csv(path: Path, lines: list[dict], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(lines)
    return path


def write_json_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def table_of(*paths: Path, metric: str = "acc", **options) -> Ablation:
    names = ("row", "seed", "pack", "value", "data_set")
    query = Query(metric, **{name: options.pop(name) for name in names if name in options})
    return collect_foreign(ForeignTable(paths, query, **({"direction": "max"} | options)))


def values_of(ablation: Ablation) -> dict[str, list[float]]:
    return {row.variant: [row.values[draw] for draw in row.values] for row in ablation.rows}


def write(kind: str, folder: Path, lines: list[dict]) -> Path:
    path = folder / f"runs.{kind}"
    match kind:
        case "csv":
            return write_csv(path, lines)
        case "tsv":
            return write_csv(path, lines, "\t")
        case "jsonl":
            return write_json_lines(path, lines)
    pl.DataFrame(lines).write_parquet(path)
    return path


def write_events(folder: Path) -> None:
    for line in wide_lines():
        place = folder / f"{line['variant']}-seed{line['seed']}"
        place.mkdir()
        values = {"acc": [(1, 0.1), (9, line["acc"])], "loss": [(9, 0.2)], "tf2/acc": [(9, 0.1)]}
        (place / "events.out.tfevents.1700000000.node.1.0").write_text(json.dumps(values))
