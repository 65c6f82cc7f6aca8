"""One sample in the making, and the description of a whole pack of them: what each data set's reader hands over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.decode.reading import name_sample, reading
from furnace_hpc.data.packing.rejects import Refusal, Unusable

Array = NDArray[Any]
Values = dict[str, Array]


@dataclass(frozen=True)
class Sample:
    """A rendered row: a value for each column, or None where the row is refused; and what was refused of it."""

    values: Values | None
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class PackPlan:
    """All that a data set's reader decides before a sample is rendered."""

    dataset: str
    modalities: tuple[str, ...]
    labels: dict[str, Labels]
    rows: Mapping[str, Sequence[Any]]
    """split -> what `render` needs of each sample, in the order of the pack."""
    listed: dict[str, int]
    """split -> samples that the set's lists name; more than rows where the files were never found."""
    blank: Values
    """Column -> the value of a sample that lacks it; gives every column's type and shape."""
    render: Callable[[str, Any], Sample]
    """(split, row) -> sample; called in other processes, so it must be a plain function or a method of plain data."""
    settings: dict[str, Any]
    """Every knob, as JSON: what makes two packs the same."""
    vocab_size: int | None = None
    pad_id: int = 0
    image_frames: int | None = None
    preload: tuple[str, ...] = ()
    """Modules that `render` needs and that are slow to import: the workers are forked with them."""
    chunk_rows: int = 32
    """Rows rendered by one call of a worker, and written at once."""
    derive: Callable[[Mapping[str, Mapping[str, Array]]], dict[str, Values]] | None = None
    """split -> column -> array in, split -> further columns out; called once, at the end."""
    notes: tuple[str, ...] = ()
    """What the user should know before anything is rendered."""


@dataclass
class Draft:
    """Collects the columns of one sample; a file that cannot be read costs its modality, never more."""

    split: str
    source_id: str
    modalities: tuple[str, ...]
    values: Values
    refusals: list[tuple[str | None, str, Unusable]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, split: str, source_id: str, modalities: tuple[str, ...], blank: Values
    ) -> "Draft":
        """A sample that lacks every modality; `source_id` is the set's own name of it.

        Raises:
            ConfigError: the column would not give this name back: it is too narrow, or the name ends in a zero byte.
        """
        name_sample(source_id)
        draft = cls(
            split, source_id, modalities, {name: value.copy() for name, value in blank.items()}
        )
        try:
            name, column = source_id.encode(), blank["source_id"].dtype
        except UnicodeEncodeError:
            raise ConfigError(
                f"{split}: sample id {source_id!r} is no valid Unicode. Fix it in the list."
            ) from None
        draft.values["source_id"] = np.array(name, column)
        if draft.values["source_id"].item() != name:
            raise ConfigError(
                f"{split}: sample id {source_id!r} is of {len(name)} bytes, wanted {column.itemsize} at most and no "
                "zero byte at its end: correct it in the list of samples"
            )
        return draft

    def add(self, modality: str, file: str, read: Callable[[], Values]) -> None:
        """Add what `read` makes of a file, or write down why it gave nothing."""
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
        """Write down that a file gave nothing."""
        self.refusals.append((modality, file, error))

    def label(self, name: str, value: Array) -> None:
        """Set the column `label.<name>`."""
        self.values[f"label.{name}"] = value.astype(self.values[f"label.{name}"].dtype)

    def finish(self, *, labelled: bool = True, file: str = "") -> Sample:
        """The sample; one that has no label, or no modality left, is refused."""
        if any(error.reason == "no label" for _, _, error in self.refusals):
            pass  # its reader has told why
        elif not labelled:
            self.refuse(None, file, Unusable("no label"))
        elif not self.values["present"].any():
            self.refuse(None, file, Unusable("nothing left"))
        kept = labelled and bool(self.values["present"].any())
        refusals = tuple(
            Refusal(self.split, self.source_id, modality, path, error.reason, error.detail, kept)
            for modality, path, error in self.refusals
        )
        return Sample(self.values if kept else None, refusals)


def blank_sample(id_bytes: int, modalities: tuple[str, ...], **columns: Array) -> Values:
    """The columns that every set has, and its own: `sample_id` counts listed rows, `source_id` is the set's own."""
    common: Values = {
        "sample_id": np.zeros((), np.int32),
        "source_id": np.zeros((), f"S{id_bytes}"),
        "present": np.zeros(len(modalities), np.uint8),
    }
    return common | columns
