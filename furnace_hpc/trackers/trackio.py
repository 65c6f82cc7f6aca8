"""Write runs into trackio's local store, an SQLite file per project.

Each line has an id of its own, and the store keeps a line once. So a line that is sent twice is
shown once.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.trackers.tracker import Delivery, RunInfo, Start, Update, library

FOLDER = "TRACKIO_DIR"


class Trackio:
    """One project of trackio's local store."""

    delivery = Delivery.APPEND

    def __init__(self, project: str, folder: Path | None) -> None:
        if folder:
            os.environ[FOLDER] = str(folder)  # trackio reads it when it is imported
        storage = library("trackio.sqlite_storage")
        if folder:
            storage.TRACKIO_DIR = folder  # it may have been imported before
        self._store, self._project = storage.SQLiteStorage, project
        try:
            self._store.validate_project_name(project)
        except ValueError as error:
            raise ConfigError(f"{error} Give another name with --project") from None
        self._folder = Path(storage.TRACKIO_DIR)
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def place(self) -> str:
        """The command that shows the runs."""
        return f"{FOLDER}={self._folder} trackio show --project {self._project}"

    def send(self, update: Update, state: dict[str, Any]) -> dict[str, Any]:
        """Insert the new lines, and the config with them."""
        info = update.info
        if update.start is not Start.APPEND:
            self._store.delete_run(self._project, info.run_id, run_id=info.run_id)
        lines = [
            (record.step, record.time_s, record.values, f"{record.kind}/{record.step}")
            for record in update.records or update.all_records()[-1:]
        ]
        last_s = lines[-1][1] if lines else info.start_s
        lines += [
            (step, last_s, {name: value}, name) for name, (step, value) in info.summary.items()
        ]
        lines = lines or [(0, info.start_s, {}, "start")]  # the store takes no config alone
        self._store.bulk_log(
            self._project,
            info.run_id,
            [values for _, _, values, _ in lines],
            steps=[step for step, _, _, _ in lines],
            timestamps=[_time(time_s) for _, time_s, _, _ in lines],
            config=_config(info),
            log_ids=[f"{info.run_id}/{name}" for _, _, _, name in lines],
            run_id=info.run_id,
        )
        return {}

    def close(self) -> None:
        """Nothing is open: each transaction closes its connection."""


def _config(info: RunInfo) -> dict[str, Any]:
    """Names that begin with an underscore are trackio's own."""
    own = {"_Group": info.variant, "_Created": _time(info.start_s)}
    return own | {f"furnace.{name}": text for name, text in info.tags.items()} | info.config


def _time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat()
