"""Write runs as event files of TensorBoard: a folder per run, with one file.

The cursor stores the length of the file. Events that a killed process wrote after this length are
cut off and written again. So no point is in the file twice, and bytes that a running TensorBoard
has read do not change.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from furnace_hpc.runs.state import RunState
from furnace_hpc.trackers.tracker import (
    Delivery,
    Lost,
    Record,
    RunInfo,
    Start,
    Update,
    library,
)

PREFIX = "events.out.tfevents.furnace."  # a generation follows: 1, or more after a replacement
TAGS = "furnace/text_summary"


class TensorBoard:
    """Event files below one folder."""

    delivery = Delivery.APPEND

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._events = library("tensorboard.compat.proto.event_pb2")
        self._summaries = library("tensorboard.compat.proto.summary_pb2")
        self._tensors = library("tensorboard.compat.proto.tensor_pb2")
        self._types = library("tensorboard.compat.proto.types_pb2")
        self._hparams = library("tensorboard.plugins.hparams.plugin_data_pb2")
        self._api = library("tensorboard.plugins.hparams.api_pb2")
        writer = library("tensorboard.summary.writer.record_writer")
        self._writer = writer.RecordWriter

    @property
    def place(self) -> str:
        """The command that shows the runs."""
        return f"tensorboard --logdir {self._folder}"

    def send(self, update: Update, state: dict[str, Any]) -> dict[str, Any]:
        """Append events, or write a new file that replaces the older one."""
        folder = self._folder / update.info.run_id
        generation, length = int(state.get("generation", 1)), int(state.get("bytes", 0))
        if update.start is Start.APPEND:
            if _size(folder / f"{PREFIX}{generation}") < length:
                raise Lost
        else:
            length = 0
            if update.start is Start.REPLACE:
                generation = max([0, *_generations(folder)]) + 1
        content = io.BytesIO()
        writer = self._writer(content)
        for event in self._all_events(update, generation, is_new=not length):
            writer.write(event.SerializeToString())
        folder.mkdir(parents=True, exist_ok=True)
        length = _write(folder / f"{PREFIX}{generation}", length, content.getvalue())
        for other in _generations(folder):
            if other != generation:
                (folder / f"{PREFIX}{other}").unlink(missing_ok=True)
        return {"generation": generation, "bytes": length}

    def close(self) -> None:
        """All files are closed already."""

    def _all_events(self, update: Update, generation: int, is_new: bool) -> Iterator[Any]:
        info = update.info
        first_s = next((record.time_s for record in update.records), info.start_s)
        last_s = update.records[-1].time_s if update.records else info.start_s
        if is_new:
            yield self._events.Event(wall_time=first_s, file_version="brain.Event:2")
            if generation > 1:  # a reader that knows the older file forgets its points
                log = self._events.SessionLog(status=self._events.SessionLog.START)
                yield self._events.Event(wall_time=first_s, step=0, session_log=log)
            yield self._event(0, first_s, [self._session_start(info)])
        for record in update.records:
            yield self._scalars(record)
        for name, (step, value) in info.summary.items():
            scalar = self._summaries.Summary.Value(tag=name, simple_value=value)
            yield self._event(step, last_s, [scalar])
        yield self._event(int(info.tags.get("attempts", 0)), last_s, [self._text(info)])
        if info.state in (RunState.DONE, RunState.FAILED):
            yield self._event(0, last_s, [self._session_end(info, last_s)])

    def _scalars(self, record: Record) -> Any:
        """One event for all numbers of a line. It is a third as long as one event for each."""
        make = self._summaries.Summary.Value
        values = [make(tag=name, simple_value=value) for name, value in record.values.items()]
        return self._event(record.step, record.time_s, values)

    def _event(self, step: int, time_s: float, values: list[Any]) -> Any:
        summary = self._summaries.Summary(value=values)
        return self._events.Event(wall_time=time_s, step=step, summary=summary)

    def _session_start(self, info: RunInfo) -> Any:
        """The config, for TensorBoard's page HPARAMS."""
        start = self._hparams.SessionStartInfo(group_name=info.run_id, start_time_secs=info.start_s)
        for name, value in {"variant": info.variant, "seed": info.seed, **info.config}.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = str(value)
        content = self._hparams.HParamsPluginData(session_start_info=start, version=0)
        return self._plugin_value("_hparams_/session_start_info", content)

    def _session_end(self, info: RunInfo, time_s: float) -> Any:
        status = self._api.STATUS_SUCCESS
        if info.state == RunState.FAILED:
            status = self._api.STATUS_FAILURE
        end = self._hparams.SessionEndInfo(status=status, end_time_secs=time_s)
        content = self._hparams.HParamsPluginData(session_end_info=end, version=0)
        return self._plugin_value("_hparams_/session_end_info", content)

    def _plugin_value(self, tag: str, content: Any) -> Any:
        metadata = self._summaries.SummaryMetadata()
        metadata.plugin_data.plugin_name = "hparams"
        metadata.plugin_data.content = content.SerializeToString()
        tensor = self._tensors.TensorProto(dtype=self._types.DT_FLOAT)
        tensor.tensor_shape.SetInParent()
        return self._summaries.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)

    def _text(self, info: RunInfo) -> Any:
        """The tags as a table, for TensorBoard's page TEXT."""
        lines = [f"| {name} | {text} |" for name, text in info.tags.items()]
        text = "\n".join(["| | |", "|-|-|", *lines]).encode()
        metadata = self._summaries.SummaryMetadata()
        metadata.plugin_data.plugin_name = "text"
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[text])
        tensor.tensor_shape.SetInParent()
        return self._summaries.Summary.Value(tag=TAGS, metadata=metadata, tensor=tensor)


def _generations(folder: Path) -> list[int]:
    names = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _write(path: Path, start: int, content: bytes) -> int:
    """Write content from `start` on, and cut off what was there. Return the new length."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(start)
        file.seek(start)
        file.write(content)
    return start + len(content)
