"""Write the first grid of a packed data set as text, with rows for the first questions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from furnace_hpc.config.base import ModalityName
from furnace_hpc.config.grids.network_template import CLASS
from furnace_hpc.config.manifest import SAMPLING_WEIGHT, Labels, Manifest, waveform_of
from furnace_hpc.config.metrics import METRICS, subsets, target_key
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.preprocessing.record import recorded_encoder

Modalities = tuple[ModalityName, ...]
SEEDS = 5
MIN_STEPS = 300
MOST_TARGETS = 4  # of a task, each with a metric of its own
EVALUATIONS = 10  # of a run
WAVE_ENCODER = "random:wav2vec2"
LARGE_IMAGE = 96  # pixels, from which fewer images are evaluated at a time
_COMMENT_AT = 44  # column of comments
_TRAINED: dict[ModalityName, tuple[tuple[str, str], ...]] = {  # lines and their comments
    "text": (("text_weights: bert-base-uncased", "pack with --tokenizer bert-base-uncased"),),
    "image": (
        ("image_encoder: vit", "pack with --image-size 224"),
        ("image_weights: google/vit-base-patch16-224-in21k", ""),
    ),
}


@dataclass(frozen=True)
class Size:
    """Sizes of the network and of the training, for up to `most_samples` train samples."""

    most_samples: float
    width: int
    num_heads: int
    feedforward: int
    lr: str
    batch: int
    epochs: int
    timeout_min: int


SIZES = (
    Size(1_000, 32, 4, 64, "3e-3", 16, 20, 60),
    Size(20_000, 64, 4, 128, "3e-3", 32, 10, 60),
    Size(200_000, 128, 4, 512, "1e-3", 128, 10, 240),
    Size(math.inf, 256, 8, 1024, "3e-4", 256, 5, 240),
)


@dataclass(frozen=True)
class Row:
    """A row of the grid."""

    name: str
    overrides: str  # in YAML
    comment: str = ""
    modalities: Modalities = ()
    is_sanity: bool = False


@dataclass(frozen=True)
class FirstGrid:
    """What a first grid is made from."""

    name: str
    packs: tuple[str, ...]  # folders below the data root
    manifest: Manifest  # of the first pack
    lacking: Mapping[Modalities, int] = field(default_factory=dict)
    """Modalities -> number of samples that have none of them, if there are any."""
    package: str = ""
    """Folder of a network of its own beside the grid. Empty if there is none."""

    @property
    def num_train(self) -> int:
        """Number of train samples."""
        return self.manifest.splits.get("train", 0)

    @property
    def size(self) -> Size:
        """The smallest size that fits the number of train samples."""
        return next(size for size in SIZES if self.num_train <= size.most_samples)

    @property
    def batch(self) -> int:
        """Samples per step: a power of two, at most the train split."""
        return min(self.size.batch, 1 << (max(1, self.num_train).bit_length() - 1))

    @property
    def epochs(self) -> int:
        """Passes over the train split. Small splits get more, for at least `MIN_STEPS` steps."""
        least = MIN_STEPS * self.batch / max(1, self.num_train)
        return max(self.size.epochs, math.ceil(least))

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return math.ceil(self.epochs * max(1, self.num_train) / self.batch)

    @property
    def rows(self) -> list[Row]:
        """All rows, the reference first. Those that cannot be trained are included."""
        return list(_rows(self))

    def text(self) -> str:
        """The grid as YAML with comments."""
        return "\n".join([*_head(self), *_base(self), *_table(self), *_variants(self)]) + "\n"


def modality_rows(modalities: Modalities) -> list[Modalities]:
    """The modalities of each row that has fewer than the pack: each alone, then each left out."""
    alone = [part for part in subsets(modalities) if len(part) == 1]
    left_out = [tuple(one for one in modalities if one != name) for name in modalities]
    if len(modalities) == 1:
        return []
    return [*alone, *(part for part in left_out if len(part) > 1)]


def _rows(grid: FirstGrid) -> Iterator[Row]:
    modalities, size = grid.manifest.modalities, grid.size
    twice = f"{{epochs: {2 * grid.epochs}}}"
    last = Row("twice_epochs", twice, "more training must not help", is_sanity=True)
    if len(modalities) == 1:
        half = f"{{model.width: {size.width // 2}, model.feedforward: {size.feedforward // 2}}}"
        double = f"{{model.width: {size.width * 2}, model.feedforward: {size.feedforward * 2}}}"
        yield Row("base", "{}")
        yield Row("half_width", half)
        yield Row("double_width", double)
        yield Row("low_lr", f"{{optimizer.lr: {float(size.lr) / 3:.0e}}}")
        yield last
        return
    yield Row("all", "{}")
    for part in modality_rows(modalities):
        overrides = f"{{model.modalities: [{', '.join(part)}]}}"
        if len(part) == 1:
            yield Row(f"only_{part[0]}", overrides, modalities=part, is_sanity=True)
        else:
            (missing,) = set(modalities) - set(part)
            yield Row(f"no_{missing}", overrides, modalities=part)
    yield Row("concat", "{model.fusion: concat}", "the simplest fusion")
    yield last


def _line(text: str, comment: str = "") -> str:
    if not comment:
        return text
    return f"{text:<{_COMMENT_AT}}  # {comment}"


def _word(text: str) -> str:
    """A name, in quotes if YAML would read it as something else: `no`, `010`."""
    if strict_yaml.load(text) == text:
        return text
    return f"'{text}'"


def _head(grid: FirstGrid) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in grid.manifest.splits.items())
    inputs = ", ".join(grid.manifest.modalities)
    yield f"# The first study of {', '.join(grid.packs)} ({counts} samples; {inputs})."
    yield "# `furnace new` wrote it. Change rows and values. docs/grids.md explains the keys."
    yield "#"
    yield f"#   furnace submit --grid {grid.name} --dry-run    show every run"
    yield f"#   furnace submit --grid {grid.name}              train them; repeat it to resume"
    yield f"#   furnace aggregate --grid {grid.name}           write the tables again"
    yield f"name: {_word(grid.name)}"
    if len(grid.manifest.modalities) == 1:
        yield "description: Are the width and the learning rate right?"
    else:
        yield "description: What does each modality add, and what does attention add?"
    if grid.package:
        yield _line(f"code: [./{grid.package}]", "docs/own-network.md explains it")


def _base(grid: FirstGrid) -> Iterator[str]:
    manifest, size = grid.manifest, grid.size
    yield "\nbase:"
    if len(grid.packs) == 1:
        yield f"  data: {{name: {_word(grid.packs[0])}}}"
    if SAMPLING_WEIGHT in manifest.columns:
        yield _line("  # data.sampling: weighted", "draw samples by their weights")
    yield "  tasks:"
    for name, labels in manifest.labels.items():
        yield _line(f"    - {_task(name, labels)}", f"{len(labels.classes):,} classes")
    yield "  model:"
    yield f"    modalities: [{', '.join(manifest.modalities)}]"
    yield _line("    fusion: cross_attention", "or concat, gated, low_rank, bottleneck")
    yield _line(f"    width: {size.width}", f"chosen for {grid.num_train:,} train samples")
    yield f"    num_heads: {size.num_heads}"
    yield f"    feedforward: {size.feedforward}"
    if waveform_of(manifest):
        yield _line(f"    audio: {{encoder: {WAVE_ENCODER}}}", "waveforms need such an encoder")
    yield from _trained(manifest)
    yield f"  optimizer: {{lr: {size.lr}, weight_decay: 0.01}}"
    every = max(1, grid.steps // EVALUATIONS)
    yield f"  evaluation: {_evaluation(grid, every)}"
    yield _line("  deepspeed: zero1_fp32", "on GPUs: zero1 (bf16)")
    yield _line(f"  epochs: {grid.epochs}", f"{grid.steps:,} steps")
    yield _line(f"  global_batch_size: {grid.batch}", "over all processes")
    yield f"  checkpoint_every: {every}"


def _task(name: str, labels: Labels) -> str:
    if labels.kind == "single_label":
        return f"{{name: {_word(name)}}}"
    return f"{{name: {_word(name)}, kind: {labels.kind}}}"


def _trained(manifest: Manifest) -> Iterator[str]:
    """Lines that use trained encoders, as comments. Those that the pack is made for come first."""
    lines: list[tuple[str, str]] = []
    for name in manifest.modalities:
        if encoder := recorded_encoder(manifest, name):
            lines.append((f"{name}: {{encoder: {_word(encoder)}}}", "the pack is made for it"))
        else:
            lines += _TRAINED.get(name, ())
    if lines:
        yield "    # Trained encoders, if you remove the #:"
    yield from (_line(f"    # {text}", comment) for text, comment in lines)


def _evaluation(grid: FirstGrid, every: int) -> str:
    """How often to evaluate. Of large images only a few are in memory at a time."""
    image = grid.manifest.columns.get("image")
    if image is not None and max(image.shape, default=0) >= LARGE_IMAGE:
        return f"{{every: {every}, select: best, batch_size: 32}}"
    return f"{{every: {every}, select: best}}"


def _table(grid: FirstGrid) -> Iterator[str]:
    yield f"\nresources: {{timeout_min: {grid.size.timeout_min}}}"
    if len(grid.packs) > 1:
        yield f"packs: [{', '.join(map(_word, grid.packs))}]"
    seeds = ", ".join(map(str, range(SEEDS)))
    yield _line(f"seeds: [{seeds}]", "more seeds make intervals narrower")
    yield f"reference: {grid.rows[0].name}"
    metrics = list(_metrics(grid.manifest))
    if len(metrics) == 1:
        yield f"metric: {metrics[0]}"
    else:
        yield _line("metrics:", "the first one decides verdicts")
        yield from (f"  - {metric}" for metric in metrics)
    sanity = [row.name for row in grid.rows if row.is_sanity and not _lacking(grid, row)]
    yield "# These rows must not beat the reference. If one does, the table has a warning."
    yield f"sanity: [{', '.join(sanity)}]"


def _metrics(manifest: Manifest) -> Iterator[str]:
    """The first metric of each task's kind, and F1 of the first task, which rare classes change.

    A regression with a few targets also has the metric of each.
    """
    for number, (name, labels) in enumerate(manifest.labels.items()):
        yield f"test/{name}/{METRICS[labels.kind][0]}"
        if number == 0 and "f1_macro" in METRICS[labels.kind]:
            yield f"test/{name}/f1_macro"
        if labels.kind == "regression" and 1 < len(labels.classes) <= MOST_TARGETS:
            yield from (f"test/{name}/mae:{target_key(target)}" for target in labels.classes)


def _lacking(grid: FirstGrid, row: Row) -> int:
    return grid.lacking.get(row.modalities, 0)


def _variants(grid: FirstGrid) -> Iterator[str]:
    yield "\nvariants:"
    if grid.package:
        yield _line("  own:", "your network")
        yield f"    model.network: {grid.package}.{CLASS}"
        yield f"    model.network_args: {{hidden: {grid.size.feedforward}}}"
    for row in grid.rows:
        line = f"{row.name}: {row.overrides}"
        if count := _lacking(grid, row):
            have = " or ".join(row.modalities)
            options = " ".join(f"--require {name}" for name in row.modalities)
            yield f"  # {line}"
            yield f"  #   not possible: {count:,} samples have no {have}. Pack with {options}"
        else:
            yield _line(f"  {line}", row.comment)
