"""How many bytes the stored features of a frozen encoder take, from config.json and the manifest.

Login nodes have no torch, so nothing is computed. A test compares the shapes with real encoders.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from furnace_hpc.config.encoder_families import FAMILIES, Family, is_trained
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.pretrained_files import CONFIG, check_encoder, find_file
from furnace_hpc.config.sections.model import ModelConfig

Size = tuple[int, int]


class FeatureSize(NamedTuple):
    """The features of a sample. Texts and waveforms may have fewer tokens."""

    tokens: int
    width: int

    def num_bytes(self, manifest: Manifest, modality: str, bytes_per_value: int) -> int:
        """Bytes of the features of a whole pack, if every sample has the modality."""
        samples = sum(manifest.splits.values())
        if modality == "image":
            samples *= manifest.image_frames or 1
        return samples * self.tokens * (self.width * bytes_per_value + 1)


def feature_size(modality: str, config: ModelConfig, manifest: Manifest) -> FeatureSize | None:
    """The size of a sample's features. None if files do not say it, as for own code."""
    shape = manifest.columns[modality].shape
    section = config.encoder(modality)
    name = section.encoder or getattr(config, f"{modality}_weights", None)
    if not name:
        return _random(modality, config, shape)
    if not is_trained(name):
        return None
    try:
        path = find_file(name, CONFIG)
        content = json.loads(path.read_bytes()) if path else {}
        family = check_encoder(modality, name, content)
        return _trained(family, content.get(family.section) or content, shape)
    except (ConfigError, OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _random(modality: str, config: ModelConfig, shape: tuple[int, ...]) -> FeatureSize | None:
    """Of an encoder that the older keys choose, with random weights."""
    match modality, getattr(config, f"{modality}_encoder", ""):
        case "text", _:
            return FeatureSize(shape[0], config.width)
        case "image", "vit":
            height, width = (max(1, side // config.image_patch) for side in shape[-2:])
            return FeatureSize(height * width + 1, config.width)
        case (("image" | "audio"), "cnn"):
            return FeatureSize(getattr(config, f"{modality}_tokens"), config.width)
    return None


def _trained(family: Family, settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    name = next(name for name, known in FAMILIES.items() if known is family)
    return _SHAPES.get(name, _SHAPES[family.reads])(settings, shape)


def _text(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    return FeatureSize(shape[0], settings.get("hidden_size") or settings["dim"])


def _padded_text(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    return FeatureSize(settings["max_position_embeddings"], settings["hidden_size"])


def _patches(more: int, registers: str = "") -> "_Shape":
    """Tokens of a vision transformer: one per patch, and `more`, such as CLS."""

    def shape_of(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
        rows, columns = (side // settings["patch_size"] for side in shape[-2:])
        extra = settings[registers] if registers else 0
        return FeatureSize(rows * columns + more + extra, settings["hidden_size"])

    return shape_of


def _swin(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    stages = len(settings["depths"])
    rows, columns = (-(-side // settings["patch_size"]) for side in shape[-2:])
    for _ in range(stages - 1):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return FeatureSize(rows * columns, settings["embed_dim"] * 2 ** (stages - 1))


def _convnext(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    rows, columns = (side // settings.get("patch_size", 4) for side in shape[-2:])
    for _ in settings["hidden_sizes"][1:]:
        rows, columns = rows // 2, columns // 2
    return FeatureSize(rows * columns, settings["hidden_sizes"][-1])


def _resnet(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    halvings = 2 + len(settings["hidden_sizes"]) - 1 + settings["downsample_in_first_stage"]
    rows, columns = shape[-2:]
    for _ in range(halvings):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return FeatureSize(rows * columns, settings["hidden_sizes"][-1])


def _ast(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    patch = settings["patch_size"]
    bands = (settings["num_mel_bins"] - patch) // settings["frequency_stride"] + 1
    frames = (settings["max_length"] - patch) // settings["time_stride"] + 1
    return FeatureSize(bands * frames + 2, settings["hidden_size"])


def _whisper(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    return FeatureSize(settings["max_source_positions"], settings["d_model"])


def _clap(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    stride, stages = settings["patch_stride"], len(settings["depths"])
    steps = stride if isinstance(stride, list) else [stride, stride]
    rows, columns = (settings["spec_size"] // step // 2 ** (stages - 1) for step in steps)
    return FeatureSize(rows * columns, settings["hidden_size"])


def _waveform(settings: dict[str, Any], shape: tuple[int, ...]) -> FeatureSize:
    frames = shape[-1]
    for kernel, stride in zip(settings["conv_kernel"], settings["conv_stride"], strict=True):
        frames = (frames - kernel) // stride + 1
    return FeatureSize(frames, settings["hidden_size"])


_Shape = Callable[[dict[str, Any], tuple[int, ...]], FeatureSize]
# What an encoder reads, or its family's name where families differ
_SHAPES: dict[str, _Shape] = {
    "tokens": _text,
    "siglip-text": _padded_text,
    "pixels": _patches(1),
    "siglip-vision": _patches(0),
    "dinov3": _patches(1, "num_register_tokens"),
    "swin": _swin,
    "convnext": _convnext,
    "resnet": _resnet,
    "patches": _ast,
    "whisper": _whisper,
    "clap": _clap,
    "waveform": _waveform,
}


def feature_lines(rows: Iterable[tuple[ModelConfig, Manifest, str, bool]]) -> list[str]:
    """A line for each encoder and pack whose features will be stored.

    Args:
        rows: network, manifest of the pack, its name, and whether the training is in bf16.
    """
    lines: dict[str, None] = {}
    for config, manifest, pack, is_bf16 in rows:
        for modality in config.cached_modalities:
            section = config.encoder(modality)
            name = section.encoder or getattr(config, f"{modality}_weights", None)
            has_files = bool(name) and is_trained(str(name))
            size = feature_size(modality, config, manifest)
            about = "size not known before the first run"
            if size:
                num_bytes = size.num_bytes(manifest, modality, 2 if is_bf16 else 4)
                about = f"up to {_readable(num_bytes)}"
            each = "" if has_files else ", for each seed"
            shown = f" ({name})" if name else ""
            lines[f"cached features of {modality}{shown} of {pack}: {about}{each}"] = None
    return list(lines)


def _readable(num_bytes: int) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB"
