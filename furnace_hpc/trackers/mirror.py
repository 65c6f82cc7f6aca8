"""Mirror the runs of a grid to one tracker: read new records, send them, store the position."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.reading.run_files import ListedRun, list_runs
from furnace_hpc.trackers.choice import check_target, folder_of, open_tracker
from furnace_hpc.trackers.cursor import Cursor, Sent, locked
from furnace_hpc.trackers.records import all_records, read_new
from furnace_hpc.trackers.run_info import read_info, settled_step
from furnace_hpc.trackers.tracker import Delivery, Lost, Start, Tracker, Update


@dataclass(frozen=True)
class Mirrored:
    """The result of one pass over a grid."""

    num_runs: int = 0  # in the grid's folder
    num_changed: int = 0  # for which something was sent
    num_records: int = 0
    num_replaced: int = 0  # runs whose older records were not valid any more
    place: str = ""  # where the user finds the runs; empty if nothing was sent


def mirror(
    folder: GridFolder,
    target: TrackerTarget,
    report: str | Mapping[str, str] = "",
    again: bool = False,
) -> Mirrored:
    """Send the new records of each run of a grid. The next call sends later records.

    Args:
        folder: the grid.
        target: the tracker.
        report: path or address of the report, or run id -> report. Empty if there is none.
        again: replace the tracker's records of all runs.

    Raises:
        ConfigError: the library is missing, another process mirrors to the same target, the
            tracker refuses the data, or a newer Furnace has sent the runs.
        UnavailableError: the tracker does not answer. The next call continues.
    """
    check_target(target)
    name = _file_name(target)
    with locked(folder.trackers / f"{name}.lock", f"furnace track --to {target.to}"):
        one_pass = _Pass(folder, target, report, folder.trackers / f"{name}.json")
        own_folder = folder_of(target, folder)
        is_gone = own_folder is not None and not own_folder.exists()
        return one_pass.run(again or is_gone)


class _Pass:
    """One pass over the runs of a grid."""

    def __init__(
        self,
        folder: GridFolder,
        target: TrackerTarget,
        report: str | Mapping[str, str],
        file: Path,
    ) -> None:
        self._folder, self._target, self._report = folder, target, report
        self._cursor = Cursor(file)
        self._tracker: Tracker | None = None
        self._done = Mirrored()

    def run(self, again: bool) -> Mirrored:
        """Send the new records of all runs. The cursor is written even after an error."""
        listed, _ = list_runs(self._folder.path)
        self._done = Mirrored(num_runs=len(listed))
        try:
            for run in listed:
                stamp = _digest([run.files, run.link, self._report_of(run)])
                sent = self._cursor.runs.get(run.run)
                if again or sent is None or sent.files != stamp:
                    self._send_run(run, stamp, sent, again)
        finally:
            try:
                if self._tracker:
                    self._tracker.close()
            finally:
                self._cursor.write()
        return self._done

    def _report_of(self, run: ListedRun) -> str:
        if isinstance(self._report, str):
            return self._report
        return self._report.get(run.run, "")

    def _send_run(self, run: ListedRun, stamp: str, sent: Sent | None, again: bool) -> None:
        if self._tracker is None:
            self._tracker = open_tracker(self._target, self._folder)
            self._done = replace(self._done, place=self._tracker.place)
        tracker, below = self._tracker, None
        if tracker.delivery is Delivery.SETTLED:
            below = settled_step(run)
        new = read_new(run, sent.position if sent and not again else None, below)
        start = Start.REPLACE if sent and again else new.start
        info = read_info(run, self._folder.path.name, self._report_of(run))
        digest = _digest(vars(info))
        if start is Start.APPEND and not new.records and sent and sent.info == digest:
            self._cursor.set(run.run, Sent(stamp, digest, new.position, sent.state))
            return
        records = new.records
        if tracker.delivery is Delivery.WHOLE:
            records = all_records(run, new.position)
        update = Update(start, info, records, lambda: all_records(run, new.position))
        state = _send(tracker, update, sent.state if sent else {})
        self._cursor.set(run.run, Sent(stamp, digest, new.position, state))
        self._done = replace(
            self._done,
            num_changed=self._done.num_changed + 1,
            num_records=self._done.num_records + len(new.records),
            num_replaced=self._done.num_replaced + int(new.start is Start.REPLACE),
        )


def _send(tracker: Tracker, update: Update, state: dict[str, Any]) -> dict[str, Any]:
    """Send an update. If the tracker has lost the run, send all of it."""
    try:
        return tracker.send(update, state)
    except Lost:
        whole = replace(update, start=Start.REPLACE, records=update.all_records())
        return tracker.send(whole, {})


def _file_name(target: TrackerTarget) -> str:
    """Name of the cursor. Each tracker, place and project has its own."""
    return f"{target.to}-{_digest(target.model_dump())[:8]}"


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
