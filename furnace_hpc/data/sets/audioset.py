"""Plan a pack of AudioSet (Gemmeke et al. 2017) with frames, 527 classes, multi-label.

The folder has the layout of CAV-MAE:

    balanced_train_segments.csv, eval_segments.csv, or CAV-MAE's JSON lists
    class_labels_indices.csv, optionally ontology.json
    audio/<id>.flac (or .wav, .ogg, .mp3)
    frames/frame_<0..9>/<id>.jpg

Sounds may also be named Y<id>, <id>_<start>_<end> in s or ms, or Y<id>_<start>_<end>.

All frames of a clip are kept. Training draws one, evaluation takes the middle one. Many videos no
longer exist, so the manifest counts `listed` and `found` clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SAMPLING_WEIGHT, Labels
from furnace_hpc.data.decode.audio import SoundKnobs, read_sound
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.held_out import drawn_by_hash
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Array, Draft, PackPlan, Sample, Values, blank_sample
from furnace_hpc.data.packing.source_lists import check_disjoint, fingerprint_of
from furnace_hpc.data.sets.audioset_files import NOT_DECODED, SoundFiles
from furnace_hpc.data.sets.audioset_lists import (
    CLASS_FILE,
    NUM_CLASSES,
    Clip,
    read_classes,
    read_clips,
)

Clips = dict[str, list[Clip]]  # split -> clips
MODALITIES = ("image", "audio")
ID_BYTES = 11  # of YouTube's ids. Other sets in this layout may have longer ids.
NAMES = "<id>.flac (or .wav, .ogg, .mp3), Y<id>.flac or <id>_<start>_<end>.flac"
RECIPE = 2  # increase it if the same files and settings make other columns


@dataclass(frozen=True)
class ClipKnobs:
    """The settings that decide the columns."""

    image: ImageKnobs
    sound: SoundKnobs
    num_frames: int
    val_fraction: float
    """Exact fraction of train for validation, chosen by id, for lists without a val split."""
    num_classes: int = NUM_CLASSES
    """Rows that the class list must have. An incomplete list would make another task."""


@dataclass(frozen=True)
class Lists:
    """The files that list the splits, in the source folder."""

    train: str
    val: str | None
    test: str


def plan_audioset(
    source: Path, lists: Lists, sounds: Path, frames: Path, knobs: ClipKnobs
) -> PackPlan:
    """Plan a pack of the clips that have files.

    Raises:
        ConfigError: a list is missing or malformed, splits overlap, or no clip has a file.
    """
    classes = read_classes(source / CLASS_FILE, source / "ontology.json", knobs.num_classes)
    files = SoundFiles(sounds)
    names = {"train": lists.train, "val": lists.val, "test": lists.test}
    listed: Clips = {
        split: read_clips(source / name, classes, files, frames)
        for split, name in names.items()
        if name
    }
    notes = _check_sounds(files, [clip for clips in listed.values() for clip in clips])
    present = _ids_with_files(listed, knobs.num_frames)
    if not present:
        raise ConfigError(
            f"no clip of {source / lists.train} has a file in {sounds} or {frames}: "
            "check --audio and --frames"
        )
    if not lists.val:
        listed = _with_validation(listed, present, knobs.val_fraction, notes)
    check_disjoint({split: (clip.video_id for clip in clips) for split, clips in listed.items()})
    found = {
        split: [clip for clip in clips if clip.video_id in present]
        for split, clips in listed.items()
    }
    longest = max(len(clip.video_id.encode()) for clips in found.values() for clip in clips)
    reader = _Reader(knobs, max(ID_BYTES, longest))
    class_names = _distinct(classes.names, classes.mids)
    return PackPlan(
        dataset="audioset",
        modalities=MODALITIES,
        labels={"classes": Labels(kind="multi_label", classes=class_names)},
        rows=found,
        listed={split: len(clips) for split, clips in listed.items()},
        blank=reader.blank(),
        render=reader.render,
        settings=_settings(found, lists, knobs),
        image_frames=knobs.num_frames,
        preload=(read_sound.__module__, "librosa.feature.spectral"),
        chunk_rows=16,
        derive=sampling_weights,
        notes=notes,
    )


def _settings(found: Clips, lists: Lists, knobs: ClipKnobs) -> dict[str, Any]:
    """Return the settings of a pack, as its manifest stores them."""
    val_fraction = None if lists.val else knobs.val_fraction
    return {
        "recipe": RECIPE,
        "listing": fingerprint_of(
            {s: [(c.video_id, c.classes) for c in clips] for s, clips in found.items()}
        ),
        "image": knobs.image.model_dump(mode="json") | {"frames": knobs.num_frames},
        "audio": knobs.sound.model_dump(mode="json"),
        "val_fraction": val_fraction,
    }


def sampling_weights(columns: Mapping[str, Mapping[str, Array]]) -> dict[str, Values]:
    """Return the column `sampling_weight`: the sum of 1000 / count over the classes of a clip.

    Counts are of train, as in CAV-MAE (Gong et al., ICLR 2023).
    """
    counts = np.asarray(columns["train"]["label.classes"]).sum(axis=0, dtype=np.int64)
    share = (1000.0 / (counts + 0.01)).astype(np.float64)
    return {
        split: {SAMPLING_WEIGHT: (np.asarray(found["label.classes"]) @ share).astype(np.float32)}
        for split, found in columns.items()
    }


def _with_validation(listed: Clips, present: set[str], part: float, notes: Sequence[str]) -> Clips:
    """Split train into train and val by the ids only. val gets the exact part of clips with files.

    Raises:
        ConfigError: only one clip of train has files.
    """
    ids = [clip.video_id for clip in listed["train"]]
    found = [name for name in ids if name in present]
    if len(found) == 1:
        few = f"1 clip of train has files ({found[0]!r}), wanted 2 at least: give --val-list"
        raise ConfigError("; ".join([few, *notes]))
    held_out = drawn_by_hash(ids, found, part)
    return {
        "train": [clip for clip in listed["train"] if clip.video_id not in held_out],
        "val": [clip for clip in listed["train"] if clip.video_id in held_out],
        "test": listed["test"],
    }


def _check_sounds(files: SoundFiles, clips: Sequence[Clip]) -> tuple[str, ...]:
    """Return notes about the folder of sounds.

    Raises:
        ConfigError: it has files, but none of a listed clip.
    """
    used = {clip.sound for clip in clips if clip.sound}
    notes = []
    if unmatched := files.unmatched(used, len(clips)):
        if not used:
            raise ConfigError(f"{unmatched}: wanted {NAMES}; check --audio and the lists")
        notes.append(f"{unmatched}: wanted {NAMES}")
    foreign = [path for path in used if path.suffix.lower() in NOT_DECODED]
    if foreign:
        example = min(foreign)
        notes.append(
            f"{len(foreign):,} of {len(used):,} sounds are {example.suffix} or similar, which is "
            f"not decoded: convert them, e.g. ffmpeg -i {example.name} {example.stem}.flac"
        )
    return tuple(notes)


def _ids_with_files(listed: Clips, num_frames: int) -> set[str]:
    """Return the ids of all clips that have a sound or a frame."""
    found = set()
    for clips in listed.values():
        for clip in clips:
            frames = (_frame(clip, number) for number in range(num_frames))
            if clip.sound is not None or any(path.exists() for path in frames):
                found.add(clip.video_id)
    return found


def _frame(clip: Clip, number: int) -> Path:
    return clip.frames / f"frame_{number}" / f"{clip.video_id}.jpg"


def _distinct(names: tuple[str, ...], mids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes, or their mids if two have the same name."""
    if len(set(names)) == len(names):
        return names
    return mids


@dataclass(frozen=True)
class _Reader:
    knobs: ClipKnobs
    id_bytes: int

    def blank(self) -> Values:
        """Return a clip without frames and sound."""
        size, sound = self.knobs.image.size, self.knobs.sound
        return blank_sample(
            self.id_bytes,
            MODALITIES,
            image=np.zeros((self.knobs.num_frames, 3, size, size), np.uint8),
            audio=np.zeros((sound.coefficients, sound.frames), np.float16),
            audio_length=np.array(1, np.int16),
            **{"label.classes": np.zeros(self.knobs.num_classes, np.uint8)},
        )

    def render(self, split: str, clip: Clip) -> Sample:
        """Render one clip."""
        draft = Draft.begin(split, clip.video_id, MODALITIES, self.blank())
        self._add_frames(draft, clip)
        name = f"{clip.video_id}.flac"
        if clip.sound:
            name = clip.sound.name
        draft.add("audio", f"audio/{name}", lambda: self._sound(clip))
        labels = np.zeros(self.knobs.num_classes, np.uint8)
        labels[list(clip.classes)] = 1
        draft.label("classes", labels)
        return draft.finish(labelled=bool(clip.classes), file=clip.video_id)

    def _sound(self, clip: Clip) -> Values:
        if clip.sound is None:
            raise Unusable("missing")
        values, length = read_sound(clip.sound, self.knobs.sound)
        return {"audio": values, "audio_length": np.array(length, np.int16)}

    def _add_frames(self, draft: Draft, clip: Clip) -> None:
        """Add all readable frames. The frame nearest in time replaces an unreadable one."""
        read: dict[int, Array] = {}
        for number in range(self.knobs.num_frames):
            path = _frame(clip, number)
            try:
                read[number] = read_image(path, self.knobs.image)
            except Unusable as error:
                draft.refuse("image", f"{path.parent.name}/{path.name}", error)
        if read:
            nearest = [
                min(read, key=lambda have: (abs(have - n), have))
                for n in range(self.knobs.num_frames)
            ]
            draft.add(
                "image",
                clip.video_id,
                lambda: {"image": np.stack([read[number] for number in nearest])},
            )
