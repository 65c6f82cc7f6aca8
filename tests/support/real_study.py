"""A study on a real Slurm whose ranks train: two nodes, ZeRO-2, a tiny model."""

import json
from pathlib import Path

import yaml
from slurm_study import PROFILE, Study

GRID = {
    "name": "study",
    "base": {
        "model": {"width": 16, "num_heads": 2, "feedforward": 32, "text_layers": 1},
        "deepspeed": "zero2",
        "steps": 40,
        "global_batch_size": 8,
        "evaluation": {"every": 20},
        "checkpoint_every": 10,
        "log_every": 1,
    },
    "seeds": [0],
    "reference": "first",
    "metric": "test/digit/accuracy",
    "variants": {"first": {}, "second": {"loss.beta": 0.3}},
}


class RealStudy(Study):
    """A study whose ranks train."""

    def __post_init__(self) -> None:
        (self.place / "slurm/clusters").mkdir(parents=True)
        profile = (
            PROFILE
            | {"nodes": 2, "setup": ["export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"]}
            | self.profile
        )
        (self.place / "slurm/clusters/dev.yaml").write_text(yaml.safe_dump(profile))
        (self.place / "study.yaml").write_text(yaml.safe_dump(GRID))

    def steps(self, run: str) -> int:
        """Return the newest step of the run with this prefix, from its files.

        A command for every look would slow it down.
        """
        files = self.folder.glob(f"{run}*/metrics/*.jsonl")
        return max(
            (json.loads(line)["step"] for path in files for line in whole_lines(path)), default=0
        )

    def result(self, run: str) -> dict:
        [path] = self.folder.glob(f"{run}*/result.json")
        return json.loads(path.read_text())


def whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
