"""Send runs to Weights & Biases, or write its offline folders.

A W&B run has Furnace's id. An offline folder always has the whole run. It is written beside the old
folder, which it replaces. W&B's server cannot delete a step. So it gets only steps below the newest
checkpoint, which no resumed run repeats. Steps up to the server's last one are not sent again.
"""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.runs.state import RunState
from furnace_hpc.trackers.tracker import Delivery, Record, RunInfo, Update, library

MAX_TAG = 64  # characters
BUILDING = ".building"  # a folder that is not complete
# W&B would otherwise collect facts about this machine, which trained nothing.
QUIET = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class Wandb:
    """One project of W&B, or a folder of offline runs."""

    def __init__(self, project: str, folder: Path | None, work: Path, address: str | None) -> None:
        """Open a project.

        Args:
            project: its name, or entity/project.
            folder: folder of the offline runs. None: send to the server.
            work: folder for W&B's own files.
            address: of the user's own server. None: W&B's cloud.
        """
        self._wandb = library("wandb")
        entity, slash, name = project.rpartition("/")
        self._project = {"project": name, "entity": entity if slash else None}
        self._folder, self._building = folder, (folder or work) / BUILDING
        known = self._wandb.Settings.model_fields
        settings = {name: value for name, value in QUIET.items() if name in known}
        if address:
            settings["base_url"] = address
        self._settings = settings
        self._place = ""

    @property
    def delivery(self) -> Delivery:
        """Offline folders are written as a whole."""
        return Delivery.WHOLE if self._folder else Delivery.SETTLED

    @property
    def place(self) -> str:
        """The project's page, or the command that sends the folders."""
        if self._folder:
            return f"the runs after `wandb sync {self._folder}/offline-run-*`"
        return self._place or f"the project {self._project['project']} on W&B"

    def send(self, update: Update, state: dict[str, Any]) -> dict[str, Any]:
        """Write the run's folder, or send the steps that the server lacks."""
        shutil.rmtree(self._building, ignore_errors=True)
        self._building.mkdir(parents=True)
        try:
            self._log(update)
        except self._wandb.errors.CommError as error:
            raise UnavailableError(
                f"W&B does not answer ({short(str(error), 200)}). Check the network, or write "
                f"folders with --offline"
            ) from None
        except self._wandb.errors.Error as error:
            raise ConfigError(
                f"W&B refuses run {update.info.run_id} ({short(str(error), 300).rstrip(' .')}). "
                f"Call `wandb login`, or write folders with --offline"
            ) from None
        if self._folder:
            self._replace_folder(update.info)
        shutil.rmtree(self._building, ignore_errors=True)
        return {}

    def close(self) -> None:
        """Stop W&B's service."""
        self._wandb.teardown()

    def _log(self, update: Update) -> None:
        info = update.info
        run = self._wandb.init(
            **self._project,
            id=info.run_id,
            name=info.run_id,
            group=info.variant,
            job_type=info.grid,
            tags=[short(label, MAX_TAG) for label in info.labels],
            notes=f"Report: {info.tags['report']}" if "report" in info.tags else None,
            config={"furnace": info.tags, **info.config},
            dir=str(self._building),
            mode="offline" if self._folder else "online",
            resume=None if self._folder else "allow",
            allow_val_change=True,
            settings=self._wandb.Settings(**self._settings),
        )
        try:
            first = 0 if self._folder else int(run.step)
            for step, values in _by_step(update.records):
                if step >= first:
                    run.log(values, step=step)
            run.summary.update({name: value for name, (_, value) in info.summary.items()})
            if not self._folder:
                self._place = str(run.get_project_url() or "")
        finally:
            run.finish(exit_code=int(info.state == RunState.FAILED))

    def _replace_folder(self, info: RunInfo) -> None:
        """Give the complete folder its name. Nothing is left of an older one."""
        assert self._folder
        [built] = (self._building / "wandb").glob(f"offline-run-*-{info.run_id}")
        for older in self._folder.glob(f"offline-run-*-{info.run_id}"):
            shutil.rmtree(older)
        started = datetime.fromtimestamp(info.start_s, UTC)
        built.rename(self._folder / f"offline-run-{started:%Y%m%d_%H%M%S}-{info.run_id}")


def _by_step(records: Sequence[Record]) -> list[tuple[int, dict[str, float]]]:
    """The numbers of each step. W&B has one line per step."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        line = found.setdefault(record.step, {})
        line.update(record.values)
        line["_timestamp"] = record.time_s
    return sorted(found.items())
