"""Pack raw files into columns: workers render chunks of rows, and one process writes them in order.

An interrupted pack can be resumed at any point.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Column, Manifest, Statistics, column_file
from furnace_hpc.console.progress_bar import Report
from furnace_hpc.data.columns import (
    check_replaceable,
    fingerprint,
    map_file,
    open_columns,
    other_pack,
    package_versions,
    rename_into_place,
    write_npy,
)
from furnace_hpc.data.packing.rejects import reasons_of
from furnace_hpc.data.packing.resumable_writer import ResumableWriter
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.packing.statistics import (
    MEASURED,
    number_statistics,
    target_statistics,
)
from furnace_hpc.data.packing.workers import render_chunks
from furnace_hpc.host.durable_files import sync, write_durably

RECORD_EVERY_S = 5.0  # a kill loses at most this much work


def pack_files(
    plan: PackPlan,
    out: Path,
    report: Report,
    *,
    workers: int | None,
    max_refused: float,
    force: bool,
) -> tuple[Manifest, bool]:
    """Render a plan's rows into `out`. Return the manifest, and whether anything was packed.

    Args:
        plan: rows, columns and settings of the pack.
        out: folder of the pack.
        report: called with the kind of work, the number done, and the total.
        workers: number of rendering processes. None: all usable cores. The pack is the same.
        max_refused: fraction of the rows that may have a refused file. Above it the pack fails.
        force: replace another pack, and delete an unfinished one with other settings.

    Raises:
        ConfigError: `out` holds another pack, too many files were refused, or the disk is full.
            After a full disk the pack can be resumed.
    """
    out = out.resolve()
    check_replaceable(out)
    _check_not_empty(plan)
    if not force and (existing := _existing(out, plan)):
        shutil.rmtree(out.with_name(f"{out.name}.packing"), ignore_errors=True)
        return existing, False
    writer = ResumableWriter(out, plan)
    try:
        writer.begin(force=force)
        _render_all(plan, writer, report, workers or len(os.sched_getaffinity(0)))
        _check_refused(writer, max_refused)
        return _publish(plan, writer, out, report), True
    except OSError as error:
        done, total = sum(writer.progress.rows.values()), sum(map(len, plan.rows.values()))
        raise ConfigError(
            f"data folder {out} cannot be written ({error.strerror or error}) after {done:,} of "
            f"{total:,} rows. Free disk space and run the same command; the pack resumes."
        ) from error
    finally:
        writer.close()


def _existing(out: Path, plan: PackPlan) -> Manifest | None:
    """Return the manifest of a pack with the same settings. None if the pack is missing or damaged.

    Raises:
        ConfigError: the folder holds a pack with other settings.
    """
    try:
        manifest = open_columns(out).manifest
    except ConfigError:
        return None
    if manifest.dataset == plan.dataset and manifest.preprocessing == plan.settings:
        return manifest
    raise other_pack(out, manifest)


def _render_all(plan: PackPlan, writer: ResumableWriter, report: Report, workers: int) -> None:
    """Render the remaining rows in order. Record the progress every few seconds and at the end."""
    total = sum(map(len, plan.rows.values()))
    report("samples", sum(writer.progress.rows.values()), total)
    recorded_s = time.monotonic()
    try:
        for chunk in render_chunks(plan, writer.progress.rows, workers):
            writer.append(chunk)
            report("samples", sum(writer.progress.rows.values()), total)
            if time.monotonic() - recorded_s > RECORD_EVERY_S:
                writer.record()
                recorded_s = time.monotonic()
    finally:
        writer.record()


def _check_refused(writer: ResumableWriter, max_refused: float) -> None:
    """Raise ConfigError if too many rows have a refusal, or a split has no sample."""
    progress = writer.progress
    reasons = _reasons(writer)
    rows, incomplete = sum(progress.rows.values()), sum(progress.incomplete.values())
    if incomplete > max_refused * rows:
        enough = np.ceil(incomplete / rows * 100) / 100
        raise ConfigError(
            f"{incomplete:,} of {rows:,} samples have a file that could not be read "
            f"({incomplete / rows:.1%}; --max-refused is {max_refused:.1%}): {reasons}. "
            f"See {writer.refused}. Fix the files and delete {writer.folder}, or accept "
            f"them with --max-refused {enough:g}."
        )
    if empty := [split for split, kept in progress.kept.items() if not kept]:
        raise ConfigError(
            f"split {empty[0]!r} has no usable sample ({_reasons(writer, empty[0])}): fix its files"
        )


def _reasons(writer: ResumableWriter, split: str | None = None) -> str:
    counts = reasons_of(writer.refused.read_bytes(), split)
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def _check_not_empty(plan: PackPlan) -> None:
    """Raise ConfigError if a split has no row, before anything is rendered."""
    for split, rows in plan.rows.items():
        if rows:
            continue
        missing = "no sample is listed"
        if listed := plan.listed[split]:
            missing = f"{listed:,} samples are listed, and none of them has a file"
        raise ConfigError(f"split {split!r} is empty: {missing}; check --source and the lists")


def _publish(plan: PackPlan, writer: ResumableWriter, out: Path, report: Report) -> Manifest:
    """Write final headers, hashes and the manifest, and rename the folder into place."""
    writer.seal()
    progress = writer.progress
    columns = _described(plan) | _write_derived(plan, writer.columns)
    files, names = (
        {},
        [
            f"{split}/{column_file(name, column)}"
            for split in plan.rows
            for name, column in columns.items()
        ],
    )
    for number, name in enumerate(names):
        report("hashes", number, len(names))
        files[name] = writer.stored(name)
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
        }
        | _number_statistics(plan, writer.columns)
        | dict(plan.statistics)
        | _target_statistics(plan, writer.columns),
        "vocab_size": plan.vocab_size,
        "pad_id": plan.pad_id,
        "special_tokens": plan.special_tokens,
        "counts": _counts(plan, writer),
        "preprocessing": plan.settings,
        "versions": package_versions(),
        "fingerprint": fingerprint(progress.kept, columns, files),
    }
    manifest = Manifest.model_validate(content)
    write_durably(writer.columns / "manifest.json", manifest.model_dump_json(indent=1).encode())
    for folder in (*(writer.columns / split for split in plan.rows), writer.columns):
        sync(folder)
    rename_into_place(writer.columns, out, f"{os.getpid():x}")
    shutil.rmtree(writer.folder, ignore_errors=True)
    return manifest


def _number_statistics(plan: PackPlan, folder: Path) -> dict[str, Statistics]:
    """Return `numbers` -> mean and deviation over the train split, if the pack has numbers."""
    if "numbers" not in plan.modalities:
        return {}
    return {"numbers": number_statistics(map_file(folder / "train" / "numbers.npy"))}


def _described(plan: PackPlan) -> dict[str, Column]:
    """Return the type of each rendered column."""
    columns = {
        name: Column(dtype=value.dtype.name, shape=value.shape)
        for name, value in plan.stored.items()
    }
    if plan.jpeg:
        shape = (*plan.blank["image"].shape[:-2], plan.jpeg.size, plan.jpeg.size)
        columns["image"] = Column(dtype="uint8", shape=shape, jpeg=plan.jpeg)
    return columns


def _target_statistics(plan: PackPlan, folder: Path) -> dict[str, Statistics]:
    """Return `label.<task>` -> mean and deviation over the train split, for each regression."""
    return {
        f"label.{task}": target_statistics(map_file(folder / "train" / f"label.{task}.npy"))
        for task, labels in plan.labels.items()
        if labels.kind == "regression"
    }


def _write_derived(plan: PackPlan, folder: Path) -> dict[str, Column]:
    """Write the columns that are computed from the others, and return their types."""
    if plan.derive is None:
        return {}
    arrays = {
        split: {name: map_file(folder / split / f"{name}.npy") for name in plan.stored}
        for split in plan.rows
    }
    derived = {}
    for split, made in plan.derive(arrays).items():
        for name, array in made.items():
            write_npy(folder / split / f"{name}.npy", array)
            derived[name] = Column(dtype=array.dtype.name, shape=array.shape[1:])
    return derived


def _counts(plan: PackPlan, writer: ResumableWriter) -> dict[str, dict[str, int]]:
    """Return split -> numbers of listed, found, packed, refused and incomplete samples."""
    progress = writer.progress
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
