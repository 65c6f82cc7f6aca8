"""Recognise the tool that wrote a file, by the names of its columns."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.tables.reading.foreign.lines import LinesFile, name_of_folder

# Columns that W&B adds to the export of its table of runs.
_WANDB = frozenset({"State", "Created", "Runtime", "User", "Sweep", "Notes", "Tags"})
_TENSORBOARD = frozenset({"Wall time", "Step", "Value"})
_TENSORBOARD_NAME = re.compile(r"run[-_](?P<run>.+?)-tag-(?P<tag>.+)", re.DOTALL)
_RUN_NAME = re.compile(r"(?P<row>.+?)[-_./ ](?:seed|s)[-_=]?(?P<seed>[0-9]{1,9})", re.DOTALL)
_RUN_COLUMNS = ("run", "Name", "name", "run_name")  # of a W&B history
_HISTORY_NAMES = ("history", "wandb-history")  # files named after no run


@dataclass(frozen=True)
class Format:
    """What the columns of a tool's file mean."""

    tool: str
    prefixes: tuple[str, ...] = ()  # a column may be given without them
    run_name: str | None = None  # column with the names of the runs
    state: str | None = None  # column with the states of the runs
    finished: str = ""  # the state of a run whose values count
    step: str | None = None  # if given, a run has a line per step, and the last one counts
    settings: str | None = None  # prefix of the columns with hyperparameters
    # The file is of one run, and maybe of one metric in the column `value`.
    file_run: str | None = None
    file_metric: str | None = None
    value: str | None = None


def recognise(file: LinesFile) -> Format:
    """The format of a file. A file of no known tool has no special columns."""
    columns = set(file.columns)
    if columns == _TENSORBOARD:
        return _tensorboard(file.path)
    if "_step" in columns:
        return _wandb_history(file, columns)
    if "run_id" in columns and any(name.startswith("metrics.") for name in columns):
        return Format(
            "MLflow",
            prefixes=("metrics.", "params.", "tags.", "tags.mlflow."),
            run_name=_present("tags.mlflow.runName", columns),
            state=_present("status", columns),
            finished="FINISHED",
            settings="params.",
        )
    if "Name" in columns and columns & _WANDB:
        return Format("W&B", run_name="Name", state=_present("State", columns), finished="finished")
    return Format("")


def tensorboard_tag(metric: str) -> str:
    """The metric as TensorBoard writes it in the name of a downloaded file."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", metric)


def split_run_name(name: str) -> tuple[str, int] | None:
    """Row and seed of a run name such as `base-seed3`. None if it has another form."""
    found = _RUN_NAME.fullmatch(name.strip())
    if found is None:
        return None
    return found["row"], int(found["seed"])


def find_column(name: str, columns: Collection[str], prefixes: Sequence[str]) -> str | None:
    """The column `name`, or the column that has it after a prefix."""
    candidates = [name, *(f"{prefix}{name}" for prefix in prefixes)]
    return next((candidate for candidate in candidates if candidate in columns), None)


def _tensorboard(path: Path) -> Format:
    found = _TENSORBOARD_NAME.fullmatch(path.stem)
    run, tag = (found["run"], found["tag"]) if found else (path.stem, None)
    return Format("TensorBoard", step="Step", file_run=run, file_metric=tag, value="Value")


def _wandb_history(file: LinesFile, columns: set[str]) -> Format:
    run_name = next((name for name in _RUN_COLUMNS if name in columns), None)
    file_run = file.path.stem
    if file_run in _HISTORY_NAMES:
        file_run = name_of_folder(file.path)
    return Format("W&B", run_name=run_name, step="_step", file_run=file_run)


def _present(name: str, columns: set[str]) -> str | None:
    return name if name in columns else None
