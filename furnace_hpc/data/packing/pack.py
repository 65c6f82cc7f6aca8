"""Raw files to columns: chunks of rows rendered on all cores, written in order by one process, resumable anywhere."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Column, Manifest
from furnace_hpc.data.columns import (
    check_replaceable,
    fingerprint,
    map_file,
    open_columns,
    rename_into_place,
    sync_folder,
    write_durably,
    write_npy,
)
from furnace_hpc.data.packing.rejects import reasons_of
from furnace_hpc.data.packing.resumable_writer import Unfinished
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.packing.statistics import MEASURED, Moments
from furnace_hpc.data.packing.workers import rendered
from furnace_hpc.data.versions import versions

Report = Callable[[str, int, int], None]  # what, done, total
RECORD_EVERY_S = 5.0  # at most so much is rendered again after a kill


def pack_files(
    plan: PackPlan,
    out: Path,
    report: Report,
    *,
    workers: int | None,
    max_refused: float,
    force: bool,
) -> tuple[Manifest, bool]:
    """Render a plan's rows into `out`; return the manifest, and whether there was anything to do.

    Args:
        plan: what a data set's reader found.
        out: folder of the pack.
        report: is told what, how much is done, and of how much.
        workers: processes that render; None: all usable cores. No value changes.
        max_refused: part of the rows that may have a refusal; above it, nothing becomes usable.
        force: replace another pack, and drop a half-made one of other settings.

    Raises:
        ConfigError: another pack is there; too much was refused; the disk is full (what is done is kept).
    """
    out = out.resolve()
    check_replaceable(out)
    _check_not_empty(plan)
    if not force and (existing := _existing(out, plan)):
        shutil.rmtree(out.with_name(f"{out.name}.packing"), ignore_errors=True)
        return existing, False
    unfinished = Unfinished(out, plan)
    try:
        unfinished.begin(force=force)
        _render_all(plan, unfinished, report, workers or len(os.sched_getaffinity(0)))
        _check_refused(unfinished, max_refused)
        return _publish(plan, unfinished, out, report), True
    except OSError as error:
        done, total = sum(unfinished.progress.rows.values()), sum(map(len, plan.rows.values()))
        raise ConfigError(
            f"data folder {out} cannot be written ({error.strerror or error}) after {done:,} of {total:,} rows: "
            "make room there and give the same command; it goes on from what is done"
        ) from error
    finally:
        unfinished.close()


def _existing(out: Path, plan: PackPlan) -> Manifest | None:
    """The whole pack of the same settings that is there; a damaged one counts as none."""
    try:
        manifest = open_columns(out).manifest
    except ConfigError:
        return None
    if manifest.dataset == plan.dataset and manifest.preprocessing == plan.settings:
        return manifest
    held = f"{manifest.dataset} {manifest.fingerprint} with other settings"
    raise ConfigError(
        f"folder {str(out)!r} holds {held}: choose another --out, or replace it with --force"
    )


def _render_all(plan: PackPlan, unfinished: Unfinished, report: Report, workers: int) -> None:
    """Render what is not done yet, in order; whatever stops it, what was written is recorded."""
    progress, total = unfinished.progress, sum(map(len, plan.rows.values()))
    report("samples", sum(progress.rows.values()), total)
    recorded_s = time.monotonic()
    try:
        for chunk in rendered(plan, dict(progress.rows), workers):
            unfinished.append(
                chunk.split, chunk.num_rows, chunk.columns, chunk.refused_lines, chunk.incomplete
            )
            for modality, moments in chunk.moments.items():
                progress.moments.setdefault(modality, _zero(moments)).add(moments)
            report("samples", sum(progress.rows.values()), total)
            if time.monotonic() - recorded_s > RECORD_EVERY_S:
                unfinished.record()
                recorded_s = time.monotonic()
    finally:
        unfinished.record()


def _zero(like: Moments) -> Moments:
    return Moments(0, [0.0] * len(like.total), [0.0] * len(like.total))


def _check_refused(unfinished: Unfinished, max_refused: float) -> None:
    """Raise ConfigError where too many rows have a refusal, or a split has no sample."""
    progress = unfinished.progress
    reasons = _reasons(unfinished)
    rows, incomplete = sum(progress.rows.values()), sum(progress.incomplete.values())
    if incomplete > max_refused * rows:
        raise ConfigError(
            f"{incomplete:,} of {rows:,} samples have something that could not be read ({incomplete / rows:.1%}; "
            f"--max-refused is {max_refused:.1%}): {reasons}; see {unfinished.refused}; fix the files and delete "
            f"{unfinished.folder}, or accept it with --max-refused {np.ceil(incomplete / rows * 100) / 100:g}"
        )
    if empty := [split for split, kept in progress.kept.items() if not kept]:
        raise ConfigError(
            f"split {empty[0]!r} has no usable sample ({_reasons(unfinished, empty[0])}): fix its files"
        )


def _reasons(unfinished: Unfinished, split: str | None = None) -> str:
    counts = reasons_of(unfinished.refused.read_bytes(), split)
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def _check_not_empty(plan: PackPlan) -> None:
    """Raise ConfigError where a split has no row, before anything is rendered."""
    for split, rows in plan.rows.items():
        if not rows:
            listed = plan.listed[split]
            missing = (
                f"{listed:,} samples are listed, and none of them has a file"
                if listed
                else "no sample is listed"
            )
            raise ConfigError(
                f"split {split!r} is empty: {missing}; look at --source and the lists"
            )


def _publish(plan: PackPlan, unfinished: Unfinished, out: Path, report: Report) -> Manifest:
    """Seal the columns, hash them, write the manifest, and rename the whole into place."""
    unfinished.seal()
    progress = unfinished.progress
    columns = {
        name: Column(dtype=value.dtype.name, shape=value.shape)
        for name, value in plan.blank.items()
    }
    if plan.derive:
        arrays = {
            split: {
                name: map_file(unfinished.columns / split / f"{name}.npy") for name in plan.blank
            }
            for split in plan.rows
        }
        for split, made in plan.derive(arrays).items():
            for name, array in made.items():
                write_npy(unfinished.columns / split / f"{name}.npy", array)
                columns[name] = Column(dtype=array.dtype.name, shape=array.shape[1:])
    files, names = {}, [(split, name) for split in plan.rows for name in columns]
    for number, (split, name) in enumerate(names):
        report("hashes", number, len(names))
        files[f"{split}/{name}.npy"] = unfinished.stored(split, name)
    report("hashes", len(names), len(names))
    content = {
        "dataset": plan.dataset,
        "modalities": plan.modalities,
        "splits": progress.kept,
        "columns": columns,
        "files": files,
        "image_frames": plan.image_frames,
        "labels": plan.labels,
        "statistics": {
            name: progress.moments[name].statistics()
            for name in MEASURED
            if name in progress.moments
        },
        "vocab_size": plan.vocab_size,
        "pad_id": plan.pad_id,
        "counts": _counts(plan, unfinished),
        "preprocessing": plan.settings,
        "versions": versions(),
        "fingerprint": fingerprint(progress.kept, columns, files),
    }
    manifest = Manifest.model_validate(content)
    write_durably(unfinished.columns / "manifest.json", manifest.model_dump_json(indent=1).encode())
    for folder in (*(unfinished.columns / split for split in plan.rows), unfinished.columns):
        sync_folder(folder)
    rename_into_place(unfinished.columns, out, f"{os.getpid():x}")
    shutil.rmtree(unfinished.folder, ignore_errors=True)
    return manifest


def _counts(plan: PackPlan, unfinished: Unfinished) -> dict[str, dict[str, int]]:
    """Split -> what became of the samples that the lists name."""
    progress = unfinished.progress
    return {
        split: {
            "listed": plan.listed[split],
            "found": len(rows),
            "packed": progress.kept[split],
            "refused": len(rows) - progress.kept[split],
            "incomplete": progress.incomplete[split] - (len(rows) - progress.kept[split]),
        }
        for split, rows in plan.rows.items()
    }
