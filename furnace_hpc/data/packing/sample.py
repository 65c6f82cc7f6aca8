"""The types between a data set's reader and the packing code: a sample, and the plan of a pack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import JpegStore, Labels, Statistics
from furnace_hpc.data.decode.reading import name_sample, reading
from furnace_hpc.data.packing.rejects import Refusal, Unusable

Array = NDArray[Any]
Values = dict[str, Array]


@dataclass(frozen=True)
class Sample:
    """A rendered row."""

    values: Values | None
    """A value for each column. None if the row is refused."""
    refusals: tuple[Refusal, ...]


RenderMany = Callable[[str, Sequence[Any]], tuple[Values, NDArray[np.bool_]] | None]


@dataclass(frozen=True)
class PackPlan:
    """The description of a pack, which a data set's reader makes before a sample is rendered."""

    dataset: str
    modalities: tuple[str, ...]
    labels: dict[str, Labels]
    rows: Mapping[str, Sequence[Any]]
    """split -> the argument of `render` for each sample, in the order of the pack."""
    listed: dict[str, int]
    """split -> samples in the set's lists. More than rows if some have no file."""
    blank: Values
    """Column -> the value of a sample that lacks it. It defines the column's type and shape."""
    render: Callable[[str, Any], Sample]
    """(split, row) -> sample. It is pickled, because other processes call it."""
    settings: dict[str, Any]
    """All settings, as JSON. Two packs with the same settings are the same."""
    vocab_size: int | None = None
    pad_id: int = 0
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Special token of a tokenizer that is not in the settings -> its id."""
    image_frames: int | None = None
    preload: tuple[str, ...] = ()
    """Slow modules that `render` imports. Workers are forked after their import."""
    render_many: "RenderMany | None" = None
    """(split, rows) -> columns of the rows that it can render at once, and which rows these are.
    They equal those of `render`. None: no row."""
    chunk_rows: int = 32
    """Rows that a worker renders at once."""
    derive: Callable[[Mapping[str, Mapping[str, Array]]], dict[str, Values]] | None = None
    """Computes more columns from (split -> column -> array), once at the end."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """Modality -> mean and deviation that are given, not measured."""
    notes: tuple[str, ...] = ()
    """Notes that are printed before anything is rendered."""
    jpeg: JpegStore | None = None
    """How images are stored. None: as pixels."""

    def as_jpeg(self, size: int) -> "PackPlan":
        """Return the plan of a pack that stores the rendered images as JPEG files.

        Args:
            size: height and width of an image in a batch, at most those of a rendered image.
        """
        store = JpegStore(size=size, stored_size=self.blank["image"].shape[-1])
        settings = self.settings | {"image_store": store.model_dump()}
        return replace(self, jpeg=store, settings=settings)

    @property
    def stored(self) -> Values:
        """Column -> the value of a sample that lacks it, for each column with an .npy file."""
        if self.jpeg is None:
            return self.blank
        ends = np.zeros(self.blank["image"].shape[:-3], np.int64)
        rest = {name: value for name, value in self.blank.items() if name != "image"}
        return rest | {"image_end": ends}


@dataclass
class Draft:
    """Collects the columns of one sample. An unreadable file only removes its modality."""

    split: str
    source_id: str
    modalities: tuple[str, ...]
    values: Values
    refusals: list[tuple[str | None, str, Unusable]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, split: str, source_id: str, modalities: tuple[str, ...], blank: Values
    ) -> "Draft":
        """Start a sample without modalities. `source_id` is its name in the data set.

        Raises:
            ConfigError: the column cannot hold the name: it is too long or ends in a zero byte.
        """
        name_sample(source_id)
        draft = cls(
            split, source_id, modalities, {name: value.copy() for name, value in blank.items()}
        )
        try:
            name, column = source_id.encode(), blank["source_id"].dtype
        except UnicodeEncodeError:
            raise ConfigError(
                f"{split}: sample id {source_id!r} is not valid Unicode. Fix it in the list."
            ) from None
        draft.values["source_id"] = np.array(name, column)
        if draft.values["source_id"].item() != name:
            raise ConfigError(
                f"{split}: sample id {source_id!r} has {len(name)} bytes, wanted at most "
                f"{column.itemsize} and no zero byte at its end. Fix it in the list."
            )
        return draft

    def add(self, modality: str, file: str, read: Callable[[], Values]) -> None:
        """Add the columns that `read` makes of a file, or record why it is unusable."""
        try:
            with reading(file):
                made = read()
        except Unusable as error:
            self.refuse(modality, file, error)
            return
        for name, value in made.items():
            if value.shape != self.values[name].shape or value.dtype != self.values[name].dtype:
                wanted = self.values[name]
                raise ValueError(
                    f"{name} is {value.dtype} {value.shape}, wanted {wanted.dtype} {wanted.shape}"
                )
            self.values[name] = value
        self.values["present"][self.modalities.index(modality)] = 1

    def refuse(self, modality: str | None, file: str, error: Unusable) -> None:
        """Record that a file is unusable. No modality: the whole sample is refused."""
        self.refusals.append((modality, file, error))

    def label(self, name: str, value: Array) -> None:
        """Set the column `label.<name>`."""
        self.values[f"label.{name}"] = value.astype(self.values[f"label.{name}"].dtype)

    def finish(self, *, labelled: bool = True, file: str = "") -> Sample:
        """Return the sample. Refuse it if it has no label or no modality."""
        has_modality = bool(self.values["present"].any())
        kept = labelled and has_modality
        has_reason = any(modality is None for modality, _, _ in self.refusals)
        if not labelled and not has_reason:
            self.refuse(None, file, Unusable("no label"))
        elif not has_modality and not has_reason:
            self.refuse(None, file, Unusable("nothing left"))
        refusals = tuple(
            Refusal(self.split, self.source_id, modality, path, error.reason, error.detail, kept)
            for modality, path, error in self.refusals
        )
        if not kept:
            return Sample(None, refusals)
        return Sample(self.values, refusals)


def blank_sample(id_bytes: int, modalities: tuple[str, ...], **columns: Array) -> Values:
    """Return the blank values of the common columns and of the set's own columns.

    `sample_id` counts rows. `source_id` is the sample's name in the data set.
    """
    common: Values = {
        "sample_id": np.zeros((), np.int32),
        "source_id": np.zeros((), f"S{id_bytes}"),
        "present": np.zeros(len(modalities), np.uint8),
    }
    return common | columns
