"""Measure TriDigits: train each subset of modalities with 5 seeds, on an untuned data seed.

    python benchmarks/tridigits.py --work DIR     a quarter of an hour on two cores; resumes

The set must need fusion: three modalities are better than every pair, and every pair is better than
its better part. This holds for the mean, not for each seed. All runs use the base loss
(alpha = beta = 0) and 500 steps.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import record
import yaml

DATA_SEED = 7919
SEEDS = [0, 1, 2, 3, 4]
NAMES = ("text", "image", "audio")
GOALS = {
    "text_image_audio": (0.82, 0.86),
    "image": (0.74, 0.77),
    "audio": (0.65, 0.71),
    "text": (0.36, 0.38),
}


def main() -> None:
    """Train 35 runs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs; kept")
    parser.add_argument("--speech", default="bank", help="bank or espeak")
    options = parser.parse_args()
    record.begin()
    options.work.mkdir(parents=True, exist_ok=True)
    name = f"tridigits-{options.speech}"
    _pack(options.work / "data" / name, options.speech)
    grid = _write_grid(options.work, name)
    submit = [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        str(grid.resolve()),
        "--cluster",
        "local",
    ]
    subprocess.run(submit, cwd=options.work, check=True)
    record.write(
        f"tridigits_{options.speech}",
        _rows(options.work / "runs" / name),
        f"speech {options.speech}, data seed {DATA_SEED}",
    )


def _pack(folder: Path, speech: str) -> None:
    command = [sys.executable, "-m", "furnace_hpc.pack", "tridigits", "--out", str(folder)]
    subprocess.run([*command, "--seed", str(DATA_SEED), "--speech", speech], check=True)


def _write_grid(work: Path, name: str) -> Path:
    shipped = Path(__file__).parent.parent / "experiments" / "ablation.yaml"
    content = yaml.safe_load(shipped.read_text())
    content["base"] |= {"data": {"name": name}, "steps": 500}
    content["base"]["evaluation"]["every"] = 100
    subsets = [subset for size in (1, 2, 3) for subset in itertools.combinations(NAMES, size)]
    content |= {
        "name": name,
        "description": "Each subset of the modalities, retrained.",
        "variants": {"_".join(subset): {"model.modalities": list(subset)} for subset in subsets},
        "reference": "text_image_audio",
        "seeds": SEEDS,
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _rows(runs: Path) -> list[dict[str, object]]:
    accuracy: dict[str, list[float]] = {}
    for path in sorted(runs.glob("*/result.json")):
        result = json.loads(path.read_text())
        accuracy.setdefault(result["variant"], []).append(result["metrics"]["test/digit/accuracy"])
    means = {variant: statistics.mean(values) for variant, values in accuracy.items()}
    rows: list[dict[str, object]] = []
    for variant, mean in means.items():
        low, high = GOALS.get(variant, (None, None))
        row = {"variant": variant, "n": len(accuracy[variant]), "accuracy": round(mean, 4)}
        row["deviation"] = round(statistics.stdev(accuracy[variant]), 4)
        if low is not None:
            row |= {"goal": f"{low} to {high}", "reached": low <= round(mean, 3) <= high}
        rows.append(row)
    pairs = {variant: mean for variant, mean in means.items() if variant.count("_") == 1}
    best = max(pairs, key=lambda variant: pairs[variant])
    gain = means["text_image_audio"] - pairs[best]
    rows.append(
        {
            "three minus best pair": round(gain, 4),
            "best pair": best,
            "goal": ">= 0.015",
            "reached": gain >= 0.015,
        }
    )
    for pair, mean in pairs.items():
        part = max(means[part] for part in pair.split("_"))
        rows.append(
            {"pair minus best part": pair, "gain": round(mean - part, 4), "reached": mean > part}
        )
    return rows


if __name__ == "__main__":
    main()
