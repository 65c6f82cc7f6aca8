"""Train rows of a grid for a few steps with the local queue, and compare the runs.

Each row has three runs in fp32:

- `one`: one process, ZeRO stage 0, a learning rate too small to change a weight
- `two`: the same on two processes at ZeRO stage 3
- `whole`: some steps on two processes at ZeRO stage 3

A copy of `whole` is cut back to its first checkpoint and resumed.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.checks.modules import Finding
from furnace_hpc.checks.places import Places
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.sections.optimizer import WHOLE_MATRICES
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.host.json_lines import read_json
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.metrics import read_metrics
from furnace_hpc.runs.records.result import RunResult, read_result

GRID = "check"
PACK = "pack"
STEPS, SAVED_AT = 4, 2
BATCH = 4
UNCHANGING_LR = 1e-30
TOLERANCE = 1e-6  # relative, between the losses of one and two processes
ZERO_3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
LOSS = "the same fp32 loss on 1 and 2 processes (ZeRO-3)"
RESUME = "save and resume, bit for bit (ZeRO-3)"


@dataclass(frozen=True)
class CheckedRow:
    """A row that is trained, and what is known of its network."""

    name: str
    config: TrainConfig
    metric: str
    places: Places
    is_random: bool
    """Whether its own code draws random numbers in training."""


def checked_config(config: TrainConfig) -> TrainConfig:
    """The config of a row, in fp32 on a CPU and without what only costs time in a check."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    # Weights of other rows are not there, and no contract depends on them. Augmentation draws
    # numbers, and mixup compares the samples of a process.
    for key in (
        "init_from",
        "augment",
        "epochs",
        "early_stopping",
        "compile",
        "portable",
        "tf32",
        "keep_every",
    ):
        content.pop(key, None)
    if config.optimizer.name in WHOLE_MATRICES:  # refused at ZeRO stage 3
        del content["optimizer"]["name"]
    content |= {
        "seed": 0,
        "pack_seed": None,
        "steps": STEPS,
        "global_batch_size": BATCH,
        "micro_batch_size": None,
        "log_every": 1,
        "checkpoint_every": SAVED_AT,
        "keep_checkpoints": STEPS,
        "data": content.get("data", {}) | {"name": PACK},
        "model": content.get("model", {}) | {"dropout": 0.0, "modality_dropout": 0.0},
        "evaluation": content.get("evaluation", {}) | {"every": STEPS, "select": "last"},
        "deepspeed": {"zero_optimization": {"stage": 0}, "bf16": {"enabled": False}},
    }
    return TrainConfig.model_validate(content)


class TrainedCheck:
    """The runs of all rows, in a folder of their own."""

    def __init__(self, place: Path, rows: Sequence[CheckedRow], code: Sequence[str]) -> None:
        self._place, self._rows, self._code = place, rows, code
        self._grid = place / "grid.yaml"

    def run(self) -> dict[str, list[Finding]]:
        """Train, resume and compare. Return row -> the results of its contracts.

        Raises:
            ConfigError: the runs cannot be submitted.
        """
        self._write_grid()
        self._submit(self._place / "runs", [])
        resumed = [index for index in range(len(self._rows)) if self._cut_back(index)]
        if resumed:
            chosen = [word for index in resumed for word in ("--variant", f"{index}-whole")]
            self._submit(self._place / "resumed", chosen)
        return {row.name: self._findings(index, row) for index, row in enumerate(self._rows)}

    def _write_grid(self) -> None:
        variants: dict[str, Any] = {}
        for index, row in enumerate(self._rows):
            content = row.config.model_dump(mode="json", exclude_defaults=True)
            content = {key: value for key, value in content.items() if key != "own_code"}
            optimizer = content.get("optimizer", {})
            still = {"optimizer": optimizer | {"lr": UNCHANGING_LR, "weight_decay": 0.0}}
            divided = {"deepspeed": content["deepspeed"] | {"zero_optimization": ZERO_3}}
            two = {"resources.processes_per_node": 2}
            variants[f"{index}-one"] = content | still
            variants[f"{index}-two"] = content | still | divided | two
            variants[f"{index}-whole"] = content | divided | two
        grid = {
            "name": GRID,
            "base": {},
            "seeds": [0],
            "reference": "0-one",
            "metric": self._rows[0].metric,
            "variants": variants,
            "code": list(self._code),
        }
        self._grid.write_text(strict_yaml.dump(grid))

    def _submit(self, runs_root: Path, options: list[str]) -> None:
        """Run `furnace submit` on this machine. Its progress is shown, and its table is not."""
        command = [sys.executable, "-P", "-m", "furnace_hpc.submit", "--grid", str(self._grid)]
        command += ["--cluster", "local", "--runs-root", str(runs_root)]
        command += ["--data-root", str(self._place), *options]
        log = self._place / "submit.log"
        with log.open("w") as file:
            done = subprocess.run(command, stdout=file, cwd=self._place, check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode == 2:
            raise ConfigError("the rows cannot be trained here: see the error above")

    def _find(self, root: str, index: int, name: str) -> RunFolder:
        found = list((self._place / root / GRID).glob(f"{index}-{name}-s0-*"))
        if len(found) != 1:
            raise ConfigError(
                f"run {index}-{name} has no folder in {self._place / root}. See submit.log there"
            )
        return RunFolder(found[0])

    def _cut_back(self, index: int) -> bool:
        """Copy a finished run, as if it had been stopped at its first checkpoint."""
        source = self._find("runs", index, "whole")
        if not source.result.is_file():
            return False
        copy = RunFolder(self._place / "resumed" / GRID / source.path.name)
        shutil.copytree(source.path, copy.path)
        copy.result.unlink()
        for checkpoint in copy.path.glob("checkpoints/step-*"):
            if checkpoint.name != source.checkpoint(SAVED_AT).name:
                shutil.rmtree(checkpoint)
        record = copy.attempt(1)
        ended = read_json(record) | {"reason": "stopped", "step": SAVED_AT}
        record.write_text(json.dumps(ended))
        return True

    def _findings(self, index: int, row: CheckedRow) -> list[Finding]:
        results, problems = dict[str, RunResult](), list[Finding]()
        for name in ("one", "two", "whole"):
            run = self._find("runs", index, name)
            result = read_result(run)
            if result is None:
                contract = RESUME if name == "whole" else LOSS
                problems.append(_failed_run(contract, name, run, row.places))
            else:
                results[name] = result
        if problems:
            return problems[:1]
        return [self._compare_losses(index, row, results), self._compare_resumed(index, row)]

    def _compare_losses(
        self, index: int, row: CheckedRow, results: dict[str, RunResult]
    ) -> Finding:
        one = {n: v for n, v in results["one"].metrics.items() if _is_loss(n)}
        two = {name: results["two"].metrics[name] for name in one}
        if not row.is_random:
            one |= _first_losses(self._find("runs", index, "one"))
            two |= _first_losses(self._find("runs", index, "two"))
        for name, value in one.items():
            difference = abs(value - two[name]) / max(abs(value), 1e-12)
            if not difference <= TOLERANCE:
                return Finding(
                    LOSS,
                    f"{name} is {value:.9g} on 1 process and {two[name]:.9g} on 2, a relative "
                    f"difference of {difference:.2g}, at most {TOLERANCE:g} is accepted. The "
                    f"loss must be a mean over samples, which depend on no other sample",
                    row.places.of_definition(),
                )
        return Finding(LOSS)

    def _compare_resumed(self, index: int, row: CheckedRow) -> Finding:
        resumed = self._find("resumed", index, "whole")
        again = read_result(resumed)
        if again is None:
            return _failed_run(RESUME, "resumed", resumed, row.places)
        if read_attempts(resumed)[-1].attempt < 2:
            raise ConfigError(f"run {resumed.path} was not resumed. See submit.log beside it")
        whole = read_result(self._find("runs", index, "whole"))
        assert whole is not None
        if again.parameters_sha256 == whole.parameters_sha256:
            return Finding(RESUME)
        return Finding(
            RESUME,
            f"after step {STEPS} the parameters of the run that resumed at step {SAVED_AT} differ "
            f"from those of the run that was not stopped. Keep all state in parameters and "
            f"buffers, and draw random numbers only with torch, numpy and random",
            row.places.of_definition(),
        )


def _failed_run(contract: str, name: str, run: RunFolder, places: Places) -> Finding:
    """The finding of a run that ended without a result."""
    attempts = read_attempts(run)
    why = (attempts[-1].error or attempts[-1].reason or "") if attempts else "it never began"
    logs = sorted(run.path.glob("logs/*.log"))
    text = "\n".join(log.read_text(errors="replace") for log in logs)
    return Finding(contract, f"the run {name!r} failed: {why}", places.of_log(text))


def _is_loss(name: str) -> bool:
    return name.endswith("/loss")


def _first_losses(run: RunFolder) -> dict[str, float]:
    """The loss terms of the first training step."""
    for record in read_metrics(run):
        if record["kind"] == "train":
            terms = {n: v for n, v in record.items() if n.startswith("train/")}
            return {name: value for name, value in terms.items() if isinstance(value, float)}
    return {}
